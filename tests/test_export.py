"""A memory as one file: there and back, into another memory, and files that must change nothing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from conftest import MakeJudge, expert, record
from memalign import ConfigurationError, Feedback, Judge, Scale, StoreError
from memalign.embedders.scripted import HashEmbedder
from memalign.memory import archive
from memalign.models.scripted import ScriptedChatModel
from memalign.stores import open_store, schema
from test_past import RUDE, SLOW, WARM, decided, state

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

THEN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def full(make_judge: MakeJudge, db: str) -> Judge:
    """A memory with all that one can hold."""
    return filled(make_judge, db)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of such a memory."""
    folder = tmp_path_factory.mktemp("exported")
    judge = filled(plain, str(folder / "judge.db"))
    judge.memory.export(folder / "out.memalign", log=True)
    judge.close()
    return (folder / "out.memalign").read_bytes()


def plain(**settings: Any) -> Judge:
    chosen = {"embedder": HashEmbedder(), "floor": 0.0} | settings
    return Judge("polite", "Is the reply polite?", Scale.boolean(), ScriptedChatModel(expert), **chosen)


def filled(make: Any, db: str) -> Judge:
    judge: Judge = make(memory=db)
    judge.align([record(1, RUDE), record(2, RUDE), record(4, "", value=True, inputs={"né": [1, 2.5, None, "\x00"]})], actor="ann")
    judge.align([record(3, SLOW)], actor="bob")
    judge(inputs="question 3", outputs="reply 3")
    judge.align([record(1, WARM, value=True)])
    judge.unalign([record(2).id])
    judge.memory.add("Be brief.", "the customer is in a hurry")
    decided(judge, offsets=(1.5, 0.0))
    judge.memory.rollback(5)
    with pytest.raises(RuntimeError):
        make(memory=db, embedder=_Broken()).align([record(5, "Waits.")])
    return judge


class _Broken:
    id = "scripted/hash-64"

    async def embed(self, texts: Any) -> Any:
        raise RuntimeError("no power")

    async def aclose(self) -> None:
        pass


def lines_of(path: Path) -> list[dict[str, Any]]:
    with zstd.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    """An archive with a checksum that fits, whatever the lines say."""
    with archive.writing(path, overwrite=True) as writer:
        for line in lines:
            if line["kind"] != "end":
                writer.write(line["kind"], {name: value for name, value in line.items() if name != "kind"})
    return path


# There and back


def test_an_empty_judge_gets_the_memory_as_it_was(full: Judge, make_judge: MakeJudge, tmp_path: Path) -> None:
    out = tmp_path / "out.memalign"
    report = full.memory.export(out, log=True)
    assert report.counts == {kind: sum(line["kind"] == kind for line in lines_of(out)) for kind in archive.KINDS}
    other = make_judge(memory=str(tmp_path / "other.db"))
    made = other.memory.import_(out)
    assert (made.how, made.revision, made.waiting) == ("restored", 7, 1)
    assert other.memory.history() == full.memory.history()
    for revision in range(8):
        assert state(other.at(revision).memory) == state(full.at(revision).memory)
    assert other.memory.provenance("g1") == full.memory.provenance("g1")
    assert other.memory.spent() == full.memory.spent()
    assert other.memory.secret == full.memory.secret
    again = tmp_path / "again.memalign"
    other.memory.export(again, log=True)
    assert lines_of(again) == lines_of(out)
    assert again.read_bytes() == out.read_bytes(), "the same memory is the same file, byte for byte"
    assert other.align().unconsumed == 0
    assert record(5).id in {e.feedback.id for e in other.memory.episodes()}, "what waited is learned"
    assert len({e.feedback.item.id for e in other.memory.episodes()}) == other.memory.view().items, "vectors came along"


def test_verdicts_can_still_be_explained_after_a_move(full: Judge, make_judge: MakeJudge, tmp_path: Path) -> None:
    verdict = full(inputs="question 1", outputs="reply 1")
    full.memory.export(tmp_path / "out.memalign", log=True)
    other = make_judge(memory=str(tmp_path / "other.db"))
    assert other.memory.import_(tmp_path / "out.memalign").verdicts == 2
    assert other.memory.explain(verdict.id) == full.memory.explain(verdict.id)


def test_vectors_and_log_can_be_left_out(full: Judge, make_judge: MakeJudge, tmp_path: Path) -> None:
    report = full.memory.export(tmp_path / "out.memalign", vectors=False)
    assert not {"vector", "verdict", "call"} & set(report.counts)
    other = make_judge(memory=str(tmp_path / "other.db"))
    other.memory.import_(tmp_path / "out.memalign")
    assert other(inputs="question 3", outputs="reply 3").episode_ids, "embedded anew when they are needed"
    assert other.memory.view().items == full.memory.view().items


def test_one_judge_of_several_is_exported(full: Judge, make_judge: MakeJudge, db: str, tmp_path: Path) -> None:
    second = make_judge(memory=db, name="second")
    second.align([record(9, "Only of the second.")])
    second(inputs="question 9", outputs="reply 9")
    full.memory.export(tmp_path / "out.memalign", log=True)
    assert "Only of the second" not in json.dumps(lines_of(tmp_path / "out.memalign"))
    third = make_judge(memory=db, name="third")
    third.memory.import_(tmp_path / "out.memalign")
    assert state(third.memory) == state(full.memory), "into the same database, under another name"


def test_an_empty_memory(make_judge: MakeJudge, tmp_path: Path) -> None:
    make_judge().memory.export(tmp_path / "out.memalign")
    other = make_judge()
    assert other.memory.import_(tmp_path / "out.memalign").added == 0
    assert other.memory.history() == []


@pytest.mark.both_stores
def test_a_memory_moves_between_stores(full: Judge, make_judge: MakeJudge, make_db: Callable[[], str], tmp_path: Path) -> None:
    """From a file to a server, from a server to a file, and back to where it came from."""
    full.memory.export(tmp_path / "1.memalign", log=True)
    for number, place in enumerate((make_db(), str(tmp_path / "other.db"), make_db()), start=1):
        other = make_judge(memory=place)
        assert other.memory.import_(tmp_path / f"{number}.memalign").how == "restored"
        assert state(other.memory) == state(full.memory)
        other.memory.export(tmp_path / f"{number + 1}.memalign", log=True)
        assert (tmp_path / f"{number + 1}.memalign").read_bytes() == (tmp_path / "1.memalign").read_bytes()
        assert other(inputs="question 3", outputs="reply 3").episode_ids
        other.close()


# Merging


def merged(ours: Judge, theirs: Judge, path: Path, **how: Any) -> Any:
    theirs.memory.export(path, overwrite=True)
    return ours.memory.import_(path, **how)


@pytest.mark.both_stores
def test_two_memories_become_one(make_judge: MakeJudge, tmp_path: Path) -> None:
    ours, theirs = make_judge(), make_judge()
    ours.align([record(1, RUDE), record(2, RUDE)])
    theirs.align([record(3, RUDE), record(4, SLOW)])
    made = merged(ours, theirs, tmp_path / "out.memalign", actor="lead")
    assert (made.how, made.revision, made.added, made.same, made.conflicts) == ("merged", 2, 2, 0, ())
    assert (made.guidelines_joined, made.guidelines_added) == (("g1",), 1)
    guidelines = {g.text: set(g.evidence_for) for g in ours.memory.guidelines()}
    assert guidelines == {
        f"When a reply is judged, heed {RUDE}": {record(n).id for n in (1, 2, 3)},
        f"When a reply is judged, heed {SLOW}": {record(4).id},
    }
    newest = ours.memory.history()[-1]
    assert (newest.verb, newest.actor) == ("import", "lead")
    assert ours.memory.waiting() == 0
    assert ours.memory.view().items == 4
    again = merged(ours, theirs, tmp_path / "out.memalign")
    assert (again.revision, again.added, again.same, again.guidelines_same) == (2, 0, 2, 2)
    assert len(ours.memory.history()) == 2
    ours.memory.rollback(1)
    assert [g.id for g in ours.memory.guidelines()] == ["g1"], "an import can be undone"


@pytest.mark.both_stores
@pytest.mark.parametrize(
    ("policy", "newer", "taken"),
    [("newer", "theirs", "theirs"), ("newer", "ours", "ours"), ("ours", "theirs", "ours"), ("theirs", "ours", "theirs")],
)
def test_one_record_with_two_contents(make_judge: MakeJudge, tmp_path: Path, policy: Any, newer: str, taken: str) -> None:
    ours, theirs = make_judge(), make_judge()
    ours.align([record(1, RUDE, created_at=THEN), record(2, RUDE)])
    offset = timedelta(hours=1 if newer == "theirs" else -1)
    theirs.align([record(1, WARM, value=True, created_at=THEN + offset)])
    made = merged(ours, theirs, tmp_path / "out.memalign", on_conflict=policy)
    (conflict,) = made.conflicts
    assert (conflict.id, conflict.kind, conflict.taken) == (record(1).id, "changed", taken)
    held = {e.feedback.id: e.feedback.rationale for e in ours.memory.episodes()}
    assert held == {record(1).id: WARM if taken == "theirs" else RUDE, record(2).id: RUDE}
    texts = {g.text for g in ours.memory.guidelines()}
    if taken == "theirs":
        assert made.retired == ("g1",), "it rested on our record"
        assert texts == {f"When a reply is judged, heed {WARM}"}
        assert ours.memory.waiting() == 1, "what remains of its evidence is distilled again"
    else:
        assert made.guidelines_left_out == ("g1",), "theirs rested on a record that was not taken"
        assert texts == {f"When a reply is judged, heed {RUDE}"}
        assert made.revision == 1


def test_a_conflict_can_be_an_error(make_judge: MakeJudge, tmp_path: Path) -> None:
    ours, theirs = make_judge(), make_judge()
    ours.align([record(1, RUDE)])
    theirs.align([record(7, SLOW), record(1, WARM)])
    before = state(ours.memory)
    with pytest.raises(ConfigurationError, match="says something else here; nothing was changed"):
        merged(ours, theirs, tmp_path / "out.memalign", on_conflict="error")
    assert state(ours.memory) == before
    with pytest.raises(ConfigurationError, match="is not known"):
        merged(ours, theirs, tmp_path / "out.memalign", on_conflict="both")


@pytest.mark.parametrize(
    ("hours", "policy", "back"), [(-1, "newer", False), (48 * 365 * 24, "newer", True), (-1, "theirs", True), (1, "ours", False)]
)
def test_what_was_withdrawn_here_comes_back_only_by_policy(make_judge: MakeJudge, tmp_path: Path, hours: int, policy: Any, back: bool) -> None:
    ours, theirs = make_judge(), make_judge()
    ours.align([record(1, RUDE, created_at=THEN), record(2, SLOW)])
    ours.unalign([record(1).id])
    theirs.align([record(1, RUDE, created_at=THEN + timedelta(hours=hours))])
    made = merged(ours, theirs, tmp_path / "out.memalign", on_conflict=policy)
    assert [conflict.kind for conflict in made.conflicts] == ["withdrawn"]
    assert (record(1).id in {e.feedback.id for e in ours.memory.episodes()}) is back


def test_what_waits_on_either_side_still_waits(make_judge: MakeJudge, tmp_path: Path) -> None:
    def waiting(path: str, *records: Feedback) -> Judge:
        with pytest.raises(RuntimeError):
            make_judge(memory=path, embedder=_Broken()).align(records)
        return make_judge(memory=path)

    ours, theirs = str(tmp_path / "ours.db"), str(tmp_path / "theirs.db")
    make_judge(memory=ours).align([record(1, RUDE)])
    mine = waiting(ours, record(2, SLOW), record(3, RUDE, created_at=THEN))
    other = waiting(theirs, record(2, SLOW), record(3, WARM, created_at=THEN + timedelta(1)), record(4, WARM))
    made = merged(mine, other, tmp_path / "out.memalign")
    assert (made.same, made.waiting) == (1, 2)
    assert mine.memory.waiting() == 3
    mine.align()
    assert {e.feedback.id: e.feedback.rationale for e in mine.memory.episodes()} == {
        record(1).id: RUDE,
        record(2).id: SLOW,
        record(3).id: WARM,
        record(4).id: WARM,
    }
    assert mine.memory.waiting() == 0


def test_a_guideline_keeps_what_stood_in_its_prompt(make_judge: MakeJudge, tmp_path: Path) -> None:
    """Taint travels, that of withdrawn records too, so that a purge here finds what came from them."""
    ours, theirs = make_judge(), make_judge()
    ours.align([record(1, RUDE)])
    theirs.align([record(2, SLOW), record(3, SLOW)])
    theirs.unalign([record(3).id])
    merged(ours, theirs, tmp_path / "out.memalign")
    came = ours.memory.provenance("g2")
    assert {(link.record_id, link.role) for link in came.links} == {(record(2).id, "for"), (record(3).id, "seen")}
    assert {e.feedback.id for e in ours.memory.episodes()} == {record(1).id, record(2).id}
    assert ours.align([record(3, SLOW)]).new == 1


def test_a_preview_changes_nothing(make_judge: MakeJudge, tmp_path: Path) -> None:
    ours, theirs = make_judge(memory=str(tmp_path / "ours.db")), make_judge()
    theirs.align([record(1, WARM, value=True, created_at=THEN + timedelta(1)), record(2, SLOW)])
    preview = merged(ours, theirs, tmp_path / "out.memalign", dry_run=True)
    assert (preview.how, preview.added, preview.dry_run) == ("restored", 2, True)
    assert (ours.memory.history(), ours.memory.waiting()) == ([], 0)
    ours.align([record(1, RUDE, created_at=THEN)])
    before = state(ours.memory)
    preview = merged(ours, theirs, tmp_path / "out.memalign", dry_run=True)
    assert state(ours.memory) == before
    assert replace(preview, dry_run=False) == ours.memory.import_(tmp_path / "out.memalign")


# Purges


@pytest.mark.both_stores
def test_what_was_purged_there_is_purged_here(make_judge: MakeJudge, db: str, tmp_path: Path) -> None:
    ours, theirs = make_judge(memory=db), make_judge()
    both = [record(1, "Never say zqxjkv."), record(2, SLOW)]
    ours.align([*both, record(3, WARM)])
    theirs.align(both)
    theirs.purge([record(1).id])
    preview = merged(ours, theirs, tmp_path / "out.memalign", dry_run=True)
    assert (preview.purged, preview.erased) == (1, None)
    assert record(1).id in {e.feedback.id for e in ours.memory.episodes()}
    made = ours.memory.import_(tmp_path / "out.memalign", actor="lead")
    assert (made.purged, made.erased, made.same) == (1, True, 1)
    assert {e.feedback.id for e in ours.memory.episodes()} == {record(2).id, record(3).id}
    assert "zqxjkv" not in " ".join(g.text for g in ours.memory.guidelines(all_states=True))
    assert ("purge", "lead") in [(change.verb, change.actor) for change in ours.memory.history()]
    if "://" not in db:
        assert not any(b"zqxjkv" in path.read_bytes() for path in tmp_path.glob("judge.db*"))
    assert b"zqxjkv" not in json.dumps(lines_of(tmp_path / "out.memalign")).encode()
    assert ours.memory.import_(tmp_path / "out.memalign").purged == 0
    ours.memory.rollback(1)
    assert record(1).id not in {e.feedback.id for e in ours.memory.episodes()}, "a rollback does not bring it back"


def test_an_old_export_does_not_bring_back_what_was_purged(make_judge: MakeJudge, tmp_path: Path) -> None:
    judge = make_judge()
    judge.align([record(1, RUDE), record(2, SLOW)])
    judge.memory.export(tmp_path / "old.memalign")
    judge.purge([record(1).id])
    made = judge.memory.import_(tmp_path / "old.memalign", on_conflict="theirs")
    assert (made.buried, made.added) == (1, 0)
    assert {e.feedback.id for e in judge.memory.episodes()} == {record(2).id}
    assert f"When a reply is judged, heed {RUDE}" not in {g.text for g in judge.memory.guidelines(all_states=True)}


def test_tombstones_and_seals_move_with_a_memory(make_judge: MakeJudge, tmp_path: Path) -> None:
    judge, other = make_judge(), make_judge()
    judge.align([record(1, RUDE), record(2, SLOW)])
    judge.purge([record(1).id])
    judge.memory.export(tmp_path / "out.memalign")
    other.memory.import_(tmp_path / "out.memalign")
    assert other.memory.audit() == judge.memory.audit()
    assert other.memory.audit().intact
    other.align([record(1, RUDE)])
    assert record(1).id not in {e.feedback.id for e in other.memory.episodes()}, "its tombstone came along"
    assert other.memory.audit().intact


def test_another_scale_is_refused(full: Judge, make_judge: MakeJudge, tmp_path: Path) -> None:
    full.memory.export(tmp_path / "out.memalign")
    with pytest.raises(ConfigurationError, match="two scales cannot be mixed"):
        make_judge(scale=Scale.score(1, 5)).memory.import_(tmp_path / "out.memalign")


def test_a_pinned_judge_exports_everything_and_imports_nothing(full: Judge, tmp_path: Path) -> None:
    full.at(1).memory.export(tmp_path / "out.memalign")
    with pytest.raises(ConfigurationError, match="read-only"):
        full.at(1).memory.import_(tmp_path / "out.memalign")


# Bad files


def bad(path: Path, how: str) -> Path:
    good = path.read_bytes()
    lines = lines_of(path)
    if how == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif how == "without its end":
        with zstd.open(path, "wb") as stream:
            stream.writelines(json.dumps(line).encode() + b"\n" for line in lines[:-1])
    elif how == "cut in a line":
        with zstd.open(path, "wb") as stream:
            stream.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines)[:-400])
    elif how == "a flipped byte":
        path.write_bytes(good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :])
    elif how == "an edited reason":
        with zstd.open(path, "wb") as stream:
            stream.writelines(json.dumps(line, ensure_ascii=False).replace(SLOW, "Be slow.").encode() + b"\n" for line in lines)
    elif how == "newer":
        written(path, [lines[0] | {"version": 99, "memalign": "7.0"}, *lines[1:]])
    elif how == "a column of tomorrow":
        written(path, [line | ({"mood": "good"} if line["kind"] == "feedback" else {}) for line in lines])
    elif how == "foreign zstd":
        path.write_bytes(zstd.compress(b'{"hello": "world"}\n'))
    elif how == "foreign":
        path.write_bytes(b"PK\x03\x04 a zip")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "wrong type":
        written(path, [line | ({"version": "1"} if line["kind"] == "feedback" else {}) for line in lines])
    elif how == "a missing column":
        written(path, [{name: value for name, value in line.items() if name != "rationale" or line["kind"] != "feedback"} for line in lines])
    elif how == "a missing part of an item":
        written(path, [{name: value for name, value in line.items() if name != "expectations"} for line in lines])
    elif how == "a verdict without its value":
        written(path, [{name: value for name, value in line.items() if name != "value" or line["kind"] != "verdict"} for line in lines])
    elif how == "a value off the scale":
        written(path, [line | ({"value": "maybe"} if line["kind"] == "feedback" else {}) for line in lines])
    elif how == "another item":
        written(path, [line | ({"outputs": "swapped"} if line["kind"] == "feedback" else {}) for line in lines])
    elif how == "evidence that is not there":
        written(path, [line for line in lines if line["kind"] != "feedback"])
    elif how == "the same line twice":
        written(path, [each for line in lines for each in ([line, line] if line["kind"] == "revision" else [line])])
    elif how == "out of order":
        written(path, [lines[0], *reversed(lines[1:-1])])
    elif how == "a short vector":
        written(path, [line | ({"dimension": 3} if line["kind"] == "vector" else {}) for line in lines])
    else:
        raise AssertionError(how)
    return path


BAD = {
    "truncated": "truncated",
    "without its end": "truncated",
    "cut in a line": "truncated",
    "a flipped byte": "damaged|changed after|truncated",
    "an edited reason": "changed after it was written",
    "newer": "format 99, written by memalign 7.0.*upgrade memalign",
    "a column of tomorrow": "'mood' is not known here.*upgrade memalign",
    "foreign zstd": "no export of memalign",
    "foreign": "no export of memalign",
    "empty": "no export of memalign",
    "wrong type": "'version' is of a wrong type",
    "a missing column": "'rationale' is missing",
    "a missing part of an item": "'expectations' is missing",
    "a verdict without its value": "'value' is missing",
    "a value off the scale": "line 9",
    "another item": "'item_id' is not the digest",
    "evidence that is not there": "which the file lacks",
    "the same line twice": "UNIQUE",
    "out of order": "does not belong here",
    "a short vector": "4 bytes a dimension",
}


@pytest.mark.parametrize("how", sorted(BAD))
def test_a_bad_file_changes_nothing(exported: bytes, make_judge: MakeJudge, tmp_path: Path, how: str) -> None:
    out = tmp_path / "out.memalign"
    out.write_bytes(exported)
    path = bad(out, how)
    fresh, held = make_judge(memory=str(tmp_path / "fresh.db")), make_judge(memory=str(tmp_path / "held.db"))
    held.align([record(8, SLOW)])
    before = state(held.memory)
    with pytest.raises(StoreError, match=BAD[how]):
        fresh.memory.import_(path)
    assert (fresh.memory.history(), fresh.memory.waiting()) == ([], 0)
    if how not in ("evidence that is not there", "the same line twice"):  # a merge does not read those
        with pytest.raises(StoreError, match=BAD[how]):
            held.memory.import_(path)
        assert state(held.memory) == before


def test_files_that_are_not_there(full: Judge, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no file"):
        full.memory.import_(tmp_path / "nothing.memalign")
    with pytest.raises(ConfigurationError, match="does not exist"):
        full.memory.export(tmp_path / "no" / "folder.memalign")
    with pytest.raises(ConfigurationError, match="it is a folder"):
        full.memory.export(tmp_path)


def test_a_file_that_exists_is_replaced_only_on_demand_and_at_once(full: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.memalign"
    out.write_bytes(b"mine")
    with pytest.raises(ConfigurationError, match="exists; name another file"):
        full.memory.export(out)

    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(StoreError, match="No space left on device"):
            full.memory.export(out, overwrite=True)
    assert out.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == [], "no draft is left"
    full.memory.export(out, overwrite=True)
    assert lines_of(out)[0]["format"] == "memalign memory"


def test_every_table_is_carried_or_left_out_on_purpose() -> None:
    carried = {table.name for table in archive.KINDS.values()} | {"judge", "evidence", "taint", "trial"}
    left_out = {
        "draft": "a distilled batch of an alignment under way: paid for again if need be",
        "draft_record": "see draft",
        "replay": "a cache of answers: paid for again if need be",
    }
    assert carried | set(left_out) == {table.name for table in schema.metadata.tables.values()}


def test_the_format_is_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
    for kind in archive.KINDS:
        assert f"`{kind}`" in page
        for name in archive.columns(kind):
            assert f"`{name}`" in page, f"{kind}.{name}"
    for name in [*archive.LINKS, *(column.name for column in schema.trial.columns if column.name not in ("row", "guideline_row"))]:
        assert f"`{name}`" in page
    judge = {column.name for column in schema.judge.columns} - {"id"}
    assert all(f"`{name}`" in page for name in judge)


def test_old_exports_are_read_for_ever(make_judge: MakeJudge) -> None:
    """The file was written by the first release."""
    judge = make_judge()
    made = judge.memory.import_(Path(__file__).parent / "data" / "format1.memalign")
    assert (made.how, made.added) == ("restored", 3)
    assert {g.text for g in judge.memory.guidelines()} >= {f"When a reply is judged, heed {SLOW}"}
    assert judge.memory.rollback(1).revision == made.revision + 1


def test_a_store_that_another_process_opened_sees_the_import(full: Judge, make_judge: MakeJudge, tmp_path: Path) -> None:
    path = str(tmp_path / "other.db")
    reader = make_judge(memory=path)
    assert reader(inputs="question 3", outputs="reply 3").episode_ids == ()
    full.memory.export(tmp_path / "out.memalign")
    make_judge(memory=path).memory.import_(tmp_path / "out.memalign")
    assert record(3).id in reader(inputs="question 3", outputs="reply 3").episode_ids
    store = open_store(path)
    store.close()
