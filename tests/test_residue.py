"""Nothing of a purged record is left: planted phrases are searched for in the bytes of all that memalign keeps or tells."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from sqlalchemy import select

from conftest import MakeJudge, add, record, says, shown_cases, shown_guidelines
from memalign import Feedback, Judge
from memalign.memory.archive import zstd
from memalign.models import ChatRequest
from memalign.models.scripted import ScriptedChatModel
from memalign.stores import schema
from pgserving import Server

pytestmark = pytest.mark.both_stores

PLANTED = re.compile(r"zq[a-z]+\d+x")
KINDS = ("input", "output", "reason", "id", "source")


def phrase(kind: str, number: int) -> str:
    return f"zq{kind}{number}x"


def planted(number: int) -> Feedback:
    """A record with a phrase of its own in each of its parts."""
    return Feedback(
        id=phrase("id", number),
        inputs={"question": f"Where is parcel {phrase('input', number)}?"},
        outputs=f"It went to {phrase('output', number)} and will not come back before the summer, sorry.",
        value=bool(number % 2),
        rationale=f"Never tell them {phrase('reason', number)}; be kind.",
        annotator="ann",
        source=f"{phrase('source', number)}.csv",
    )


PHRASES = [phrase(kind, number) for kind in KINDS for number in range(10)]


def copying(request: ChatRequest) -> Any:
    """A model that copies what was planted into whatever it writes, from cases and from guidelines that it is shown."""
    text = "\n".join(message.content for message in request.messages)
    seen = sorted(set(PLANTED.findall(text)))
    if request.purpose == "judge":
        return says("yes", f"Because of {' '.join(seen)}.")
    if request.purpose != "distil":
        return {"groups": []}
    from_guidelines = PLANTED.findall(" ".join(shown_guidelines(request).values()))[:3]
    return {
        "operations": [
            add(
                number,
                when=f"case {number} comes",
                decide=f"heed {' and '.join([*PLANTED.findall(reason), *from_guidelines]) or reason}",
                because="so",
            )
            for number, _, reason in shown_cases(request)
        ]
    }


def found_in(*places: Any) -> list[str]:
    """The planted phrases that stand in bytes, in files, or in what JSON makes of other things."""
    data = b"".join(map(_bytes, places))
    return [each for each in PHRASES if each.encode() in data]


def _bytes(place: Any) -> bytes:
    if isinstance(place, Path):
        return place.read_bytes()
    return place if isinstance(place, bytes) else json.dumps(place, default=str).encode()


class Kept(Protocol):
    """What the places that a memory takes up hold now."""

    def __call__(self) -> list[Any]: ...


@pytest.fixture
def kept(backend: str, db: str, request: pytest.FixtureRequest) -> Kept:
    """SQLite: all files of the folder. PostgreSQL: a dump, all files of the database and those of all databases; not the log of changes."""
    if backend == "sqlite":
        return lambda: [path for path in Path(db).parent.rglob("*") if path.is_file()]
    return partial(_of_server, request.getfixturevalue("postgres"), db)


def _of_server(server: Server, db: str) -> list[Any]:
    with psycopg.connect(db, autocommit=True) as connection:
        connection.execute("ANALYZE")  # as autovacuum would, sooner or later
    return [server.dump(db), *server.files(db)]


def taught(judge: Judge) -> None:
    """Ten planted records and six others, in two alignments, with judgements on both."""
    judge.align([planted(number) for number in range(10)])
    judge.align([record(number, f"reason {number}") for number in range(6)])
    for number in range(10):
        judge(inputs=planted(number).inputs, outputs=planted(number).outputs)
        judge(inputs=f"question {number}", outputs=f"reply {number}")
    judge.overwrite(
        Feedback(id=phrase("id", 0), inputs="now", outputs="another text altogether, without any plant in it", value=True, rationale="ok")
    )


@pytest.fixture
def judge(make_judge: MakeJudge, db: str, kept: Kept) -> Judge:
    return make_judge(ScriptedChatModel(copying), memory=db, exemplars=3)


def test_the_plants_are_everywhere_before_the_purge(judge: Judge, kept: Kept) -> None:
    """Else their absence would prove nothing."""
    taught(judge)
    assert found_in(*kept()) == PHRASES
    texts = [guideline.text for guideline in judge.memory.guidelines(all_states=True)]
    assert set(found_in(texts)) >= {phrase("reason", number) for number in range(10)}
    late = [g for g in judge.memory.guidelines() if set(g.evidence_for) <= {record(n).id for n in range(6)}]
    assert found_in([g.text for g in late]), "later guidelines copied from earlier ones"
    with judge.memory.store.reading() as connection:
        assert found_in(list(connection.execute(select(schema.verdict.c.rationale)).scalars()))


def test_nothing_planted_is_left_anywhere(judge: Judge, kept: Kept, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    taught(judge)
    caplog.clear()
    capfd.readouterr()
    report = judge.purge([phrase("id", number) for number in range(10)], actor="officer")
    assert (report.withdrawn, report.versions, report.erased, report.residue, report.unconsumed) == (10, 11, True, {}, 0)
    assert found_in(*kept()) == []
    assert found_in(report.to_dict(), report.lines(), caplog.text, *capfd.readouterr()) == []
    memory = judge.memory
    told = [memory.guidelines(all_states=True), memory.episodes(), memory.history(), memory.audit().to_dict()]
    past = [[memory.at(n).guidelines(all_states=True), memory.at(n).episodes()] for n in range(memory.history()[-1].number + 1)]
    assert found_in([str(part) for part in (*told, *past)]) == []
    verdict = judge(inputs="question 1", outputs="some other reply")
    assert not set(verdict.episode_ids) & {phrase("id", number) for number in range(10)}
    assert sorted(episode.feedback.inputs for episode in memory.episodes()) == [f"question {number}" for number in range(6)]
    assert {each for g in memory.guidelines() for each in g.evidence_for} == {record(n).id for n in range(6)}, "what remains is distilled again"
    judge.close()
    assert found_in(*kept()) == []


def test_no_export_holds_them_and_an_old_one_brings_none_back(judge: Judge, make_judge: MakeJudge, db: str, kept: Kept, tmp_path: Path) -> None:
    taught(judge)
    old, new = tmp_path / "old.memalign", tmp_path / "new.memalign"
    judge.memory.export(old, log=True)
    assert found_in(unpacked(old)) == PHRASES
    held = old.read_bytes()
    old.unlink()
    judge.purge([phrase("id", number) for number in range(10)])
    judge.memory.export(new, log=True)
    assert found_in(new, unpacked(new)) == []
    new.unlink()
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere.memalign"
    elsewhere.write_bytes(held)
    assert judge.memory.import_(elsewhere).buried == 10
    judge.align()
    assert found_in(*kept(), str(judge.memory.episodes()), str(judge.memory.guidelines(all_states=True))) == []
    assert len(judge.memory.episodes()) == 6
    other = make_judge(ScriptedChatModel(copying), memory=str(tmp_path.parent / f"{tmp_path.name}-other.db"))
    other.memory.import_(elsewhere)
    assert len(other.memory.episodes()) == 16, "elsewhere nothing was purged"
    judge.memory.export(new)
    other.memory.import_(new)
    assert len(other.memory.episodes()) == 6, "the newer export carries the tombstones"
    other.align()
    assert found_in(Path(other.memory.store.location)) == []


def unpacked(path: Path) -> bytes:
    return zstd.decompress(path.read_bytes())


@pytest.mark.parametrize("selection", [{"source": f"{phrase('source', 4)}.csv"}, {"search": phrase("output", 4).upper()}, {"ids": phrase("id", 4)}])
def test_one_record_goes_and_the_others_stay(judge: Judge, kept: Kept, selection: dict[str, Any]) -> None:
    taught(judge)
    report = judge.purge(**selection)
    assert (report.withdrawn, report.residue) == (1, {})
    gone = {phrase(kind, 4) for kind in KINDS}
    assert not set(found_in(*kept())) & gone
    assert set(found_in(*kept())) >= {phrase("input", number) for number in (1, 2, 3, 5)}
    assert len(judge.memory.episodes()) == 15
    cited = {each for guideline in judge.memory.guidelines() for each in guideline.evidence_for}
    assert cited >= {phrase("id", number) for number in (1, 2, 3, 5, 6, 7, 8, 9)}, "those that shared its prompt are distilled again"


def test_what_a_memory_in_ram_keeps(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(copying), memory=None)
    taught(judge)
    report = judge.purge(annotator="ann", search="zq")
    assert (report.erased, report.residue) == (True, {})
    assert judge.memory.store.find([each.encode() for each in PHRASES]) == {}


def test_what_stands_elsewhere_in_the_file_is_told(make_judge: MakeJudge, db: str, kept: Kept) -> None:
    """Another judge's memory is its own: the purge of one says so, instead of claiming that nothing is left."""
    one, two = (make_judge(ScriptedChatModel(copying), memory=db, name=name) for name in ("one", "two"))
    one.align([planted(1)])
    two.align([planted(1)])
    report = one.purge(phrase("id", 1))
    assert sum(report.residue.values()) > 0
    assert not report.complete
    assert "still finds" in "\n".join(report.lines())
    assert two.purge(phrase("id", 1)).residue == {}
    assert found_in(*kept()) == []


def test_another_process_that_reads_on_delays_the_scrubbing_only(make_judge: MakeJudge, db: str, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    for store in ("sqlite.SqliteStore", "postgres.PostgresStore"):
        monkeypatch.setattr(f"memalign.stores.{store}.__init__.__kwdefaults__", {"wait_seconds": 0.3})
    judge, other = (make_judge(ScriptedChatModel(copying), memory=db) for _ in range(2))
    taught(judge)
    with other.memory.store.reading() as connection:
        connection.execute(select(schema.feedback)).all()
        report = judge.purge(search="zq")
        assert report.erased is False
        assert "could not be cleared" in report.note
        assert found_in([str(judge.memory.guidelines(all_states=True)), str(judge.memory.episodes())]) == []
    other.close()
    assert make_judge(memory=db).memory.waiting() == 0  # opening it goes on with the scrubbing
    assert found_in(*kept()) == []


PURGE_ELSEWHERE = """
import os, signal, sys
path, tests, point = sys.argv[1:]
sys.path.insert(0, tests)
from test_residue import copying
from memalign import Judge, Scale
from memalign.embedders.scripted import HashEmbedder
from memalign.memory import purging
from memalign.models.scripted import ScriptedChatModel
from memalign.stores import open_store

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def answer(request):
    return die() if point == "distilling" and request.purpose == "distil" else copying(request)

store = type(open_store(path))
vacuum = store.vacuum
if point == "deleting":
    purging.tombstones.bury = die
elif point == "deleted":
    store.vacuum = die
elif point == "scrubbed":
    store.vacuum = lambda one: (vacuum(one), die())
judge = Judge("polite", "Is the reply polite?", Scale.boolean(), ScriptedChatModel(answer), memory=path, embedder=HashEmbedder(), floor=0.0)
judge.purge(search="zq")
"""


@pytest.mark.parametrize(("point", "purged"), [("deleting", False), ("deleted", True), ("scrubbed", True), ("distilling", True)])
def test_a_purge_that_is_killed_is_all_or_nothing_and_opening_finishes_it(
    make_judge: MakeJudge, db: str, kept: Kept, point: str, purged: bool
) -> None:
    judge = make_judge(ScriptedChatModel(copying), memory=db)
    judge.align([planted(number) for number in range(10)])
    judge.align([record(number, f"reason {number}") for number in range(6)])
    judge.close()
    child = subprocess.run([sys.executable, "-c", PURGE_ELSEWHERE, db, str(Path(__file__).parent), point], timeout=60, check=False)
    assert child.returncode == -signal.SIGKILL
    judge = make_judge(ScriptedChatModel(copying), memory=db)
    assert len(judge.memory.episodes()) == (6 if purged else 16)
    if purged:
        assert found_in(*kept()) == [], "opening it went on with the scrubbing"
    assert judge.purge(search="zq").residue == {}
    assert judge.align().unconsumed == 0
    assert found_in(*kept()) == []
    assert len({each for guideline in judge.memory.guidelines() for each in guideline.evidence_for}) == 6
