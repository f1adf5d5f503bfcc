"""The search index as a file: used when it is whole and true, made anew when not, dropped when asked; and the graph of large memories."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from memalign import Feedback, Judge, Retrieval, Scale
from memalign.cli import app
from memalign.memory import search
from memalign.memory.retrieval import cachefile, graph
from memalign.memory.retrieval.exact import Exact
from memalign.models.scripted import ScriptedChatModel

ITEMS = 700
DIMENSION = 16


class Spread:
    """Vectors drawn from the text, in 30 directions: near ones exist."""

    id = "scripted/spread"

    async def embed(self, texts: Any) -> np.ndarray:
        rows = []
        for text in texts:
            number = int(text.split()[-1])
            centre = np.random.default_rng(number % 30).normal(size=DIMENSION)
            rows.append(centre + 0.4 * np.random.default_rng(1000 + number).normal(size=DIMENSION))
        found = np.array(rows, dtype=np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    async def aclose(self) -> None:
        pass


def graph_or_skip() -> None:
    """Skip without the optional part; it is not imported here, since onnxruntime must come first."""
    if not graph.available():
        pytest.skip("needs usearch")


def reply(number: int) -> dict[str, Any]:
    return {"inputs": f"question {number}", "outputs": f"a reply of quite some words about the number {number}"}


def feedback(first: int, last: int) -> list[Feedback]:
    return [Feedback(**reply(number), value=number % 2 == 0, id=f"f{number}", annotator=f"ann{number % 3}") for number in range(first, last)]


@pytest.fixture
def judges() -> Iterator[Any]:
    made: list[Judge] = []

    def make(path: str | Path, **more: Any) -> Judge:
        model = ScriptedChatModel(lambda request: {"rationale": "", "verdict": "yes"})
        made.append(Judge(more.pop("name", "near"), "Is it good?", Scale.boolean(), model, memory=str(path), embedder=Spread(), floor=-1.0, **more))
        return made[-1]

    yield make
    for judge in made:
        judge.close()


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("aligned") / "judge.db"
    judge = Judge("near", "Is it good?", Scale.boolean(), ScriptedChatModel([]), memory=str(path), embedder=Spread())
    judge.align(feedback(0, ITEMS))
    judge.close()
    return path


@pytest.fixture
def db(tmp_path: Path, aligned: Path) -> str:
    return str(shutil.copy(aligned, tmp_path / "judge.db"))


@pytest.fixture(params=["exact", "graph"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Files without and with a graph; the sizes from which they are made are those of a test."""
    if request.param == "graph":
        graph_or_skip()
        monkeypatch.setattr(search, "LINKED_FROM", 300)
    monkeypatch.setattr("memalign.memory.retrieval.exact.BLOCK_NUMBERS", 200 * DIMENSION)
    return str(request.param)


def files(db: str) -> list[Path]:
    return sorted(path for path in Path(db).parent.iterdir() if "-index-" in path.name and path.suffix != ".lock")


def shown(judge: Judge, numbers: Any = range(2000, 2020)) -> list[tuple[str, ...]]:
    return [judge(**reply(number)).episode_ids for number in numbers]


def same(found: list[tuple[str, ...]], expected: list[tuple[str, ...]]) -> bool:
    """Whether nearly all the same cases were found: a graph ranks by float16, so that among neighbours that are as near, others may win."""
    hits = sum(len(set(some) & set(others)) for some, others in zip(found, expected, strict=True))
    return hits >= 0.97 * sum(map(len, expected)) and [len(some) for some in found] == [len(others) for others in expected]


def loaded_from_file(judge: Judge) -> bool:
    judge.memory.view()
    return judge.memory._search._in_file > 0


def test_a_file_serves_what_the_database_would(judges: Any, db: str, kind: str) -> None:
    plain = judges(db)
    expected = shown(plain)
    assert not loaded_from_file(plain)
    assert plain.memory.keep_index() is True
    assert len(files(db)) == 1
    assert same(shown(plain), expected)
    fresh = judges(db)
    assert loaded_from_file(fresh)
    assert (fresh.memory._search._index.graph is not None) is (kind == "graph")
    assert same(shown(fresh), expected)


def test_changes_after_the_file_was_made_are_seen(judges: Any, db: str, kind: str) -> None:
    judges(db).memory.keep_index()
    writer, truth = judges(db), judges(db)
    assert loaded_from_file(writer)
    gone = shown(writer, [2000])[0]
    writer.unalign(gone)
    writer.align(feedback(2000, 2300))
    for path in files(db):
        path.unlink()
    assert not loaded_from_file(truth)
    numbers = range(2000, 2040)
    assert same(shown(writer, numbers), shown(truth, numbers))
    assert not set(gone) & set(sum(shown(writer, numbers), ()))
    assert writer.memory.keep_index() is True, "a second file starts from the first"
    renewed = judges(db)
    assert loaded_from_file(renewed)
    assert same(shown(renewed, numbers), shown(truth, numbers))


FAULTS = ["truncated", "one byte", "header", "not an object", "empty", "text", "of another judge", "of another file"]
KEYS = ["revision", "fingerprint", "size", "rest", "parts"]


@pytest.mark.parametrize("fault", FAULTS + [f"one bit of {key}" for key in KEYS])
def test_a_file_that_is_not_whole_or_not_ours_is_not_used(judges: Any, db: str, tmp_path: Path, kind: str, fault: str) -> None:
    judge = judges(db)
    expected = shown(judge)
    judge.memory.keep_index()
    (path,) = files(db)
    data = bytearray(path.read_bytes())
    if fault == "truncated":
        data = data[: len(data) // 2]
    elif fault == "one byte":
        data[-len(data) // 3] ^= 1
    elif fault == "header":
        data[60:90] = b"\xff" * 30
    elif fault == "not an object":
        length = int.from_bytes(data[49:57], "little")
        data[57 : 57 + length] = b"[]".ljust(length)
    elif fault.startswith("one bit"):
        data[data.index(f'"{fault.split()[-1]}": '.encode()) + 1] ^= 1
    elif fault == "empty":
        data = bytearray()
    elif fault == "text":
        data = bytearray(b"memalign index 1\n" + b"not an index" * 50)
    else:
        other = judges(tmp_path / "other.db")
        other.align(feedback(100, 700))
        other.memory.keep_index()
        (foreign,) = (found for found in files(db) if found.name.startswith("other"))
        data = bytearray(foreign.read_bytes()) if fault == "of another file" else data
        if fault == "of another judge":
            data = data.replace(b'"fingerprint": "', b'"fingerprint": "0', 1)[: len(data)]
    path.unlink()
    path.write_bytes(data)
    fresh = judges(db)
    assert not loaded_from_file(fresh)
    assert same(shown(fresh), expected)
    assert fresh.memory.keep_index() is True
    assert loaded_from_file(judges(db))


HEADER = {"revision": 1, "fingerprint": "f0", "size": 0, "words": False, "rest": {"texts": ["true"], "first": 0}}


def test_no_bit_of_a_header_can_be_another(tmp_path: Path) -> None:
    path = tmp_path / "index"
    cachefile.write(path, HEADER, {"ids": np.arange(3)})
    whole = path.read_bytes()
    found = cachefile.header(path)
    assert found is not None
    for place in range(found["start"] * 8):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        found = cachefile.header(path)
        assert found is None or (found.keys() >= HEADER.keys() and cachefile.read(path, found) is None)


def test_a_file_that_takes_the_place_of_another_is_not_read_by_the_header_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "index"
    cachefile.write(path, HEADER, {"ids": np.arange(3), "live": np.ones(3, np.bool_)})
    before = cachefile.header(path)
    cachefile.write(path, HEADER | {"revision": 2}, {"ids": np.arange(300), "live": np.ones(300, np.bool_)})
    assert before is not None
    assert cachefile.read(path, before) is None
    after = cachefile.header(path)
    assert after is not None
    parts = cachefile.read(path, after)
    assert parts is not None
    assert parts["ids"].tolist() == list(range(300))


def test_a_judge_that_meets_a_new_file_between_header_and_parts_reads_the_database(judges: Any, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = judges(db)
    writer.memory.keep_index()
    read = cachefile.read

    def replaced(path: Path, found: Any) -> Any:
        if writer.memory.view().revision == 1:
            writer.align(feedback(2000, 2100))
            assert writer.memory.keep_index() is True
        return read(path, found)

    fresh = judges(db)
    monkeypatch.setattr(cachefile, "read", replaced)
    fresh.memory.view()
    monkeypatch.undo()
    assert fresh.memory._search._in_file == 0
    assert shown(fresh, range(3000, 3020)) == shown(writer, range(3000, 3020))


def test_a_file_from_before_a_purge_or_of_a_restored_copy_is_stale(judges: Any, db: str, tmp_path: Path) -> None:
    import sqlite3

    judges(db).memory.keep_index()
    with sqlite3.connect(db) as database:
        database.execute("UPDATE judge SET purged = 7")
    database.close()
    assert not loaded_from_file(judges(db))
    assert judges(db).memory.keep_index() is True
    with sqlite3.connect(db) as database:
        database.execute("UPDATE revision SET at = '2020-01-01T00:00:00+00:00'")
    database.close()
    assert not loaded_from_file(judges(db))


def test_dropping_leaves_no_file_and_nothing_in_ram(judges: Any, db: str, kind: str) -> None:
    judge = judges(db)
    expected = shown(judge)
    judge.memory.keep_index()
    (path,) = files(db)
    (path.parent / f"{path.name}.123.part").write_bytes(b"half")
    assert judge.memory.drop_index() == 2
    assert files(db) == []
    assert len(judge.memory._search) == 0
    assert same(shown(judge), expected)
    assert judge.memory.drop_index() == 0


def test_a_purge_deletes_the_file_and_what_it_held(judges: Any, db: str, kind: str) -> None:
    judge, other = judges(db), judges(db)
    judge.memory.keep_index()
    gone = shown(other, [2000])[0]
    judge.purge(gone)
    assert files(db) == []
    for one in (judge, other, judges(db)):
        assert not set(gone) & set(shown(one, [2000])[0])
    assert judge.memory.keep_index() is True
    assert loaded_from_file(judges(db))


def test_a_purge_while_the_file_is_written_leaves_none(judges: Any, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = judges(db)
    judge.memory.view()
    written = cachefile.write

    def purged_meanwhile(*arguments: Any) -> None:
        written(*arguments)
        with judge.memory.store.writing() as connection:
            connection.exec_driver_sql("UPDATE judge SET purged = 9")

    monkeypatch.setattr(cachefile, "write", purged_meanwhile)
    assert judge.memory.keep_index() is False
    assert files(db) == []


def test_a_pinned_judge_and_one_that_lacks_vectors_keep_no_file(judges: Any, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "KEPT_FROM", 100)
    judge = judges(db)
    judge.align(feedback(2000, 2010))
    pinned = judge.at(1)
    for _ in range(20):
        shown(pinned, [2000])
    pinned.memory._search.close()
    assert files(db) == []
    import sqlite3

    with sqlite3.connect(db) as database:
        database.execute("DELETE FROM embedding WHERE content_hash = (SELECT content_hash FROM feedback LIMIT 1)")
    database.close()
    other = judges(db)
    other.memory.view()
    assert other.memory.keep_index() is False


def test_a_file_is_made_in_the_background_while_judging_goes_on(judges: Any, db: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "KEPT_FROM", 500)
    judge = judges(db)
    expected = shown(judge)
    deadline = time.monotonic() + 60
    while not files(db) and time.monotonic() < deadline:
        assert len(shown(judge, [2000])[0]) == len(expected[0])
        time.sleep(0.01)
    judge.memory._search.close()
    assert len(files(db)) == 1
    assert same(shown(judge), expected)
    assert loaded_from_file(judges(db))


def test_closing_stops_a_build(judges: Any, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph_or_skip()
    monkeypatch.setattr(search, "KEPT_FROM", 500)
    monkeypatch.setattr(search, "LINKED_FROM", 300)
    monkeypatch.setattr("memalign.memory.retrieval.exact.BLOCK_NUMBERS", 200 * DIMENSION)
    reached, go_on = threading.Event(), threading.Event()
    grown = graph.grown

    def slow(*arguments: Any) -> Any:
        reached.set()
        go_on.wait(30)
        return grown(*arguments)

    monkeypatch.setattr(search, "grown", slow)
    judge = judges(db)
    shown(judge)
    assert reached.wait(30)
    closing = threading.Thread(target=judge.close)
    closing.start()
    time.sleep(0.05)
    go_on.set()
    closing.join(30)
    assert not closing.is_alive()
    assert files(db) == []


def test_two_processes_build_one_file(judges: Any, db: str, kind: str) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_search_file as t\n"
        "from memalign.memory import search; search.LINKED_FROM = 300\n"
        "import memalign.memory.retrieval.exact as exact; exact.BLOCK_NUMBERS = 200 * t.DIMENSION\n"
        "from memalign import Judge, Scale; from memalign.models.scripted import ScriptedChatModel\n"
        "judge = Judge('near', 'Is it good?', Scale.boolean(), ScriptedChatModel([]), memory=sys.argv[1], embedder=t.Spread(), floor=-1.0)\n"
        "print([judge.memory.keep_index() for _ in range(3)]); judge.close()\n"
    )
    here = str(Path(__file__).parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen([sys.executable, "-c", program, db, here], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    assert any("True" in out for out, _ in told)
    assert len(files(db)) == 1
    truth = judges(db)
    assert loaded_from_file(truth)
    expected = shown(truth)
    truth.memory.drop_index()
    assert same(shown(truth), expected)


def test_another_process_that_builds_is_waited_for_by_nobody(judges: Any, db: str) -> None:
    judge = judges(db)
    judge.memory.view()
    path = cachefile.path_for(db, judge.memory.judge_id, "scripted/spread")
    assert path is not None
    with cachefile.making(path) as mine:
        assert mine
        outcome: list[bool] = []
        thread = threading.Thread(target=lambda: outcome.append(judge.memory.keep_index()))
        thread.start()
        thread.join(30)
    assert outcome == [False]
    assert files(db) == []


def test_where_nothing_can_be_written_search_goes_on_in_ram(judges: Any, db: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "KEPT_FROM", 500)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    judge = judges(db)
    expected = shown(judge, range(2000, 2005))
    monkeypatch.setattr(cachefile, "write", full)
    assert same(shown(judge)[:5], expected)
    judge.memory._search.close()
    assert same(shown(judge)[:5], expected)
    assert files(db) == []


def test_words_are_kept_in_the_file_too(judges: Any, db: str) -> None:
    wordy = judges(db, retrieval=Retrieval(words=True))
    expected = shown(wordy)
    wordy.memory.keep_index()
    fresh = judges(db, retrieval=Retrieval(words=True))
    assert loaded_from_file(fresh)
    assert same(shown(fresh), expected)


def test_the_graph_finds_nearly_all_that_exact_search_finds() -> None:
    graph_or_skip()
    random = np.random.default_rng(0)
    rows = random.normal(size=(40, 48))[random.integers(0, 40, 4000)] + 0.6 * random.normal(size=(4000, 48))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    exact = Exact(48)
    exact.grow(4000)
    exact.put(np.arange(4000), rows)
    live = np.ones(4000, np.bool_)
    live[::7] = False
    made = graph.grown(None, exact, lambda: live, 4000, lambda: False)
    assert made is not None
    hits = 0
    for query in rows[:100]:
        slots, scores = made.nearest(query, 5, live)
        wanted, _ = exact.nearest(query, 5, live)
        hits += len(set(slots.tolist()) & set(wanted.tolist()))
        assert live[slots].all()
        assert scores == pytest.approx(rows[slots] @ query, abs=2e-3)
    assert hits >= 490
    few = np.zeros(4000, np.bool_)
    few[1:60] = live[1:60]
    assert made.nearest(rows[3], 5, few)[0].tolist() == exact.nearest(rows[3], 5, few)[0].tolist()
    assert made.nearest(rows[3], 5, np.zeros(4000, np.bool_))[0].tolist() == []
    assert graph.grown(None, exact, lambda: live, 4000, lambda: True) is None


def test_the_command_makes_and_drops_the_file(judges: Any, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memalign.judge.Judge.load", lambda *_arguments: judges(db))

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["memory", "index", "--db", db, *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert f"index of {ITEMS} items made" in run()
    assert len(files(db)) == 1
    assert '"dropped": 1' in run("--drop", "--json")
    assert files(db) == []


def test_the_graph_leaves_the_local_embedder_in_working_order() -> None:
    """onnxruntime crashes when it is loaded after usearch, as happened when a large memory was opened before its first text was embedded."""
    if not graph.available() or importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("needs usearch and onnxruntime")
    program = "from memalign.memory.retrieval import graph; graph._new(8); import onnxruntime; print(onnxruntime.__version__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, bool(done.stdout.strip())) == (0, True), done.stderr
