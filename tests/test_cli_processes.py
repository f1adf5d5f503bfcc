"""The commands as processes of their own: exit codes, Ctrl-C, pipes and terminals."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from endpoint import ScriptedEndpoint
from test_cli import answered, jsonl, row

HEAVY = ("aiohttp", "alembic", "genai_prices", "jinja2", "numpy", "pydantic", "rich", "sqlalchemy", "tenacity")
SECONDS = 60

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals of POSIX")


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint(answered) as running:
        yield running


@pytest.fixture
def environment(endpoint: ScriptedEndpoint, db: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {**kept, "OPENAI_BASE_URL": endpoint.url, "MEMALIGN_RETRIES": "1", "MEMALIGN_DB": db, "TERM": "xterm", "PYTHONWARNINGS": "error"}


def memalign(environment: dict[str, str], *arguments: str, code: int = 0, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "memalign", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False, **more)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def judge(environment: dict[str, str]) -> None:
    settings = ["--judge", "polite", "--instructions", "Is it polite?", "--scale", "boolean", "--model", "openai/m", "--embedder", "openai/e"]
    memalign(environment, "init", *settings)


def started(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "memalign", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.02)


def interrupted(process: subprocess.Popen[str]) -> str:
    """What a process says on Ctrl-C; it has to end soon and without a traceback."""
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 130, said
    assert said.strip() == "interrupted: nothing is lost, run the same command again"
    return said


def test_help_loads_nothing_heavy(environment: dict[str, str]) -> None:
    code = f"""
import sys
from memalign.cli import main
sys.argv = ["memalign", "--help"]
try:
    main()
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=SECONDS, check=True)
    assert "Usage:" in done.stdout
    assert done.stderr.strip() == "[]"


def test_exit_codes(environment: dict[str, str], judge: None, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    good, bad = jsonl(tmp_path / "good.jsonl", row(1)), jsonl(tmp_path / "bad.jsonl", row(2), "{broken")
    assert memalign(environment, "align", good).stderr == ""
    memalign(environment, "align", bad, code=1)
    assert memalign(environment, "align", "nowhere.jsonl", code=2).stderr.startswith("error: there is no file")
    memalign(environment, "align", "--nonsense", code=2)
    memalign(environment, "nonsense", code=2)
    unreachable = {**environment, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    assert memalign(unreachable, "judge", "--outputs", "x", code=3).stderr.count("\n") == 1
    assert "OPENAI_BASE_URL" in memalign({**environment, "OPENAI_BASE_URL": "nowhere"}, "judge", "--outputs", "x", code=2).stderr


def test_ctrl_c_while_aligning(environment: dict[str, str], judge: None, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    endpoint.delay_seconds = 60
    process = started(environment, "align", jsonl(tmp_path / "feedback.jsonl", row(1), row(2)))
    until(lambda: any(asked.path == "chat/completions" for asked in endpoint.requests))
    interrupted(process)
    endpoint.delay_seconds = 0
    resumed = json.loads(memalign(environment, "align", "--json").stdout)
    assert (resumed["new"], [guideline["evidence_for"] for guideline in resumed["added"]]) == (0, [["r1", "r2"]])
    assert json.loads(memalign(environment, "memory", "list", "--json").stdout)["counts"]["episodes"] == 2


def test_ctrl_c_while_judging(environment: dict[str, str], judge: None, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    file, out = jsonl(tmp_path / "items.jsonl", *({"outputs": f"reply {number}"} for number in range(6))), tmp_path / "results.jsonl"
    for _ in range(2):
        endpoint.then()
    for _ in range(4):
        endpoint.then(delay_seconds=60)
    process = started({**environment, "MEMALIGN_CONCURRENCY": "1"}, "judge", file, "--out", str(out))
    until(lambda: out.exists() and out.read_text().count("\n") == 2 and endpoint.in_flight == 1)
    interrupted(process)
    assert len(out.read_text().splitlines()) == 2
    with closing(sqlite3.connect(environment["MEMALIGN_DB"])) as connection:
        assert connection.execute("SELECT count(*) FROM verdict").fetchone() == (2,)
    endpoint.script.clear()
    assert "4 judged, 2 done before" in memalign(environment, "judge", file, "--out", str(out), "--resume").stderr
    assert sorted(json.loads(line)["row"] for line in out.read_text().splitlines()) == [1, 2, 3, 4, 5, 6]


def test_ctrl_c_while_another_process_holds_the_memory(environment: dict[str, str], judge: None, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    file, out = jsonl(tmp_path / "items.jsonl", {"outputs": "hi"}, {"outputs": "ho"}), tmp_path / "results.jsonl"
    endpoint.then().then(delay_seconds=60)
    with closing(sqlite3.connect(environment["MEMALIGN_DB"], isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        several = started({**environment, "MEMALIGN_CONCURRENCY": "1"}, "judge", file, "--out", str(out))
        until(lambda: out.exists() and out.read_text().count("\n") == 1 and endpoint.in_flight == 1)
        one = started(environment, "judge", "--outputs", "hi")
        assert one.stdout is not None
        assert one.stdout.readline() == "verdict: yes\n"
        for process in (several, one):
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=15)
            assert process.returncode == 130, told
            assert "Traceback" not in told
            assert told.splitlines()[-1] == "interrupted: nothing is lost, run the same command again"
            if process is several:
                assert told.splitlines()[0] == "the last verdicts could not be logged: the memory did not take them in time"


def test_ctrl_c_while_one_item_is_judged(environment: dict[str, str], judge: None, endpoint: ScriptedEndpoint) -> None:
    endpoint.delay_seconds = 60
    process = started(environment, "judge", "--outputs", "x")
    until(lambda: bool(endpoint.requests))
    interrupted(process)


def test_a_reader_that_goes_away_is_no_crash(environment: dict[str, str], judge: None, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "items.jsonl", *({"outputs": f"reply {number}"} for number in range(200)))
    process = started(environment, "judge", file)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(SECONDS) == 1
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_any_encoding_of_the_terminal_will_do(environment: dict[str, str], judge: None, tmp_path: Path) -> None:
    plain = {**environment, "PYTHONIOENCODING": "ascii"}
    file = jsonl(tmp_path / "feedback.jsonl", row(1, rationale="Grüß Gott 😀 fehlt."))
    assert "Gr\\xfc\\xdf Gott \\U0001f600" in memalign(plain, "align", file).stdout
    told = json.loads(memalign(plain, "memory", "list", "--episodes", "--json").stdout)
    assert told["cases"][0]["rationale"] == "Grüß Gott 😀 fehlt."


def on_terminal(environment: dict[str, str], *arguments: str) -> tuple[str, str]:
    """Standard output, through a pipe, and what a terminal gets on standard error."""
    leader, follower = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "memalign", *arguments], env=environment, stdout=subprocess.PIPE, stderr=follower, text=True)
    os.close(follower)
    shown = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    os.close(leader)
    assert process.stdout is not None
    out = process.stdout.read()
    process.stdout.close()
    assert process.wait(SECONDS) == 0, shown.decode()
    return out, shown.decode()


def test_a_bar_on_a_terminal_only(environment: dict[str, str], judge: None, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    endpoint.delay_seconds = 0.3
    file = jsonl(tmp_path / "feedback.jsonl", *map(row, range(9)))
    out, shown = on_terminal(environment, "align", file, "--json")
    assert json.loads(out)["new"] == 9
    assert "distil" in shown
    assert "9/9" in shown
    out, shown = on_terminal(environment, "judge", jsonl(tmp_path / "items.jsonl", *map(row, range(9)), row(10, colour="red")))
    assert len([json.loads(line) for line in out.splitlines()]) == 10
    assert "10/10" in shown
    assert "remark: " in shown
    assert memalign(environment, "align", file).stderr == ""


def test_no_colours_unless_a_terminal_wants_them(environment: dict[str, str], judge: None, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "feedback.jsonl", row(1), row(2, value=True, rationale=""))
    for arguments in (("align", file), ("memory", "list", "--episodes"), ("eval", file, "--compare"), ("memory", "history")):
        done = memalign(environment, *arguments)
        assert "\x1b" not in done.stdout + done.stderr
    _, shown = on_terminal({**environment, "NO_COLOR": "1"}, "judge", file)
    assert "\x1b[3" not in shown


def until_shown(leader: int, wanted: str) -> None:
    """Read what a process writes on its terminal until it has written this."""
    shown = ""
    while wanted not in shown:
        assert select.select([leader], [], [], SECONDS)[0], f"this was not shown in time: {wanted!r}; but: {shown}"
        shown += os.read(leader, 65536).decode()


def test_ctrl_c_at_a_question_of_the_coach(environment: dict[str, str], judge: None, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    def coached(body: dict[str, Any]) -> str:
        said = {"problem": "vague", "with": "", "why": "Say what.", "question": ""}
        return json.dumps(said) if "problem" in json.dumps(body.get("response_format", {})) else answered(body)

    endpoint.chat = coached
    file = jsonl(tmp_path / "feedback.jsonl", *(row(number, rationale=f"Hm {number}") for number in (1, 2, 3)))
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "memalign", "align", file, "--coach"]
    process = subprocess.Popen(command, env=environment, stdin=follower, stdout=follower, stderr=subprocess.PIPE, text=True)
    os.close(follower)
    for answer in ("k", "s"):
        until_shown(leader, "[s]kip")
        os.write(leader, f"{answer}\n".encode())
    until_shown(leader, "[s]kip")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    os.close(leader)
    assert process.returncode == 130, said
    learn = f"memalign align --db {environment['MEMALIGN_DB']}"
    decided, left = f"1 decided record(s) are stored; to learn them, run: {learn}", "1 record(s) are left: to decide them, run the same command again"
    assert said.strip() == f"interrupted: {decided}; {left}"
    learned = json.loads(memalign(environment, "align", "--json").stdout)
    assert [guideline["evidence_for"] for guideline in learned["added"]] == [["r1"]]
