"""What was: differences, going back, verdicts explained later, and where guidelines come from."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from conftest import MakeJudge, distilled, expert, record, says
from memalign import ConfigurationError, Judge, NotFound
from memalign.memory import Memory
from memalign.memory.revisions import Decision
from memalign.models.scripted import ScriptedChatModel

pytestmark = pytest.mark.both_stores

RUDE, SLOW, WARM = "Never be rude.", "Give a date.", "Be warm."


def state(memory: Memory) -> tuple[Any, ...]:
    """All that a revision says, whatever the rows are called."""
    records = {e.feedback.id: (e.feedback.item, e.feedback.value, e.feedback.rationale, e.judged) for e in memory.episodes()}
    guidelines = {
        g.id: (g.text, g.scope, g.state, g.pinned, frozenset(g.evidence_for), frozenset(g.evidence_against))
        for g in memory.guidelines(all_states=True)
    }
    return records, guidelines, memory.view().decision


def decided(judge: Judge, **weights: Any) -> None:
    from memalign.judging import decide

    decide(judge.memory, Decision(**weights), actor="", judged=8)


@pytest.fixture
def judge(make_judge: MakeJudge, db: str) -> Judge:
    """Revisions: 1 two rude ones, 2 a slow one, 3 the first changes its mind, 4 the second is withdrawn, 5 a decision."""
    made = make_judge(memory=db)
    made.align([record(1, RUDE), record(2, RUDE)], actor="ann")
    made.align([record(3, SLOW)], actor="bob")
    made.align([record(1, WARM, value=True)])
    made.unalign([record(2).id])
    decided(made, offsets=(1.5, 0.0))
    return made


# Differences


def test_a_difference_names_what_came_went_and_changed(judge: Judge) -> None:
    found = judge.memory.diff(1, 5)
    assert [(change.kind, change.id) for change in found.records] == [
        ("changed", record(1).id),
        ("withdrawn", record(2).id),
        ("added", record(3).id),
    ]
    before, after = found.records[0].before, found.records[0].after
    assert before is not None
    assert after is not None
    assert (before.feedback.rationale, after.feedback.rationale) == (RUDE, WARM)
    assert [made.number for made in found.revisions] == [2, 3, 4, 5]
    assert found.decision == (Decision(), Decision(offsets=(1.5, 0.0)))
    assert ("retired", "g1") in [(change.kind, change.id) for change in found.guidelines]
    assert found.purged == ()
    shown = "\n".join(found.lines(judge.scale.label_of))
    assert "was: no - Never be rude." in shown
    assert "now: yes - Be warm." in shown
    assert "- g1  When a reply is judged, heed Never be rude." in shown
    assert "offsets 1.5 0" in shown
    assert json.loads(json.dumps(found.to_dict(), default=str))["records"][0]["kind"] == "changed"


def test_a_difference_can_be_read_the_other_way_round(judge: Judge) -> None:
    there, back = judge.memory.diff(0, 5), judge.memory.diff(5, 0)
    turned = {"added": "withdrawn", "withdrawn": "added", "changed": "changed"}
    assert {change.id: turned[change.kind] for change in there.records} == {change.id: change.kind for change in back.records}
    assert back.revisions == there.revisions
    assert not judge.memory.diff(5, 5)
    assert judge.memory.diff(5, 5).lines() == ["revision 5 -> 5: nothing differs"]


def test_more_evidence_and_another_text_are_told_apart(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, RUDE)])
    judge.align([record(2, RUDE)])
    (change,) = judge.memory.diff(1, 2).guidelines
    assert (change.kind, change.id) == ("evidence", "g1")
    assert "cases: 1 for, 0 against -> 2 for, 0 against" in "\n".join(judge.memory.diff(1, 2).lines())


@pytest.mark.parametrize(("before", "after"), [(0, 6), (-1, 2), (6, 6)])
def test_revisions_that_never_were(judge: Judge, before: int, after: int) -> None:
    with pytest.raises(NotFound, match="has no revision"):
        judge.memory.diff(before, after)
    with pytest.raises(NotFound, match="has no revision"):
        judge.memory.rollback(after if after > 5 else before)
    assert len(judge.memory.history()) == 5


# Going back


@pytest.mark.parametrize("target", range(5))
def test_a_rollback_restores_a_revision_as_a_new_one(judge: Judge, target: int) -> None:
    past = [state(judge.at(number).memory) for number in range(6)]
    report = judge.memory.rollback(target, actor="lead")
    assert (report.revision, report.target) == (6, target)
    assert state(judge.memory)[0] == past[target][0]
    assert state(judge.memory)[2] == past[target][2]
    held = {key: value for key, value in state(judge.memory)[1].items() if value[2] == "active"}
    assert held == {key: value for key, value in past[target][1].items() if value[2] == "active"}
    assert not judge.memory.diff(target, 6)
    assert [state(judge.at(number).memory) for number in range(6)] == past, "the past is not rewritten"
    newest = judge.memory.history()[-1]
    assert (newest.number, newest.verb, newest.actor, newest.counts["to"]) == (6, "rollback", "lead", target)
    undone = judge.memory.rollback(5)
    assert undone.revision == 7
    assert state(judge.memory) == past[5], "going back can be undone"
    assert judge.memory.view().items == len({key for key in past[5][0]})


def test_a_preview_changes_nothing_and_says_the_same(judge: Judge, db: str) -> None:
    before = state(judge.memory)
    preview = judge.memory.rollback(1, dry_run=True)
    assert (preview.revision, preview.dry_run) == (5, True)
    assert state(judge.memory) == before
    assert len(judge.memory.history()) == 5
    done = judge.memory.rollback(1)
    assert replace(preview, revision=6, dry_run=False) == done
    assert "nothing was changed" in "\n".join(preview.lines())
    assert "to undo: rollback to 5" in "\n".join(done.lines())


def test_going_back_to_where_one_is_makes_no_revision(judge: Judge) -> None:
    report = judge.memory.rollback(5)
    assert (report.revision, bool(report.difference)) == (5, False)
    assert len(judge.memory.history()) == 5
    assert "nothing to do" in report.lines()[-1]


def test_the_judge_follows_a_rollback(judge: Judge) -> None:
    assert record(2).id not in judge(inputs="question 2", outputs="reply 2").episode_ids
    judge.memory.rollback(2)
    verdict = judge(inputs="question 2", outputs="reply 2")
    assert record(2).id in verdict.episode_ids
    assert "g1" in verdict.guideline_ids


def test_restored_guidelines_rest_on_the_restored_records(judge: Judge) -> None:
    """So that a later retraction still retires them."""
    judge.memory.rollback(1)
    judge.unalign([record(1).id])
    report = judge.unalign([record(2).id])
    assert [guideline.id for guideline in report.retired] == ["g1"]


def test_a_record_that_waits_is_still_learned_after_a_rollback(make_judge: MakeJudge, db: str) -> None:
    """Its older version is restored meanwhile; what the expert said last must win."""
    judge = make_judge(memory=db)
    judge.align([record(1, RUDE)])
    judge.unalign([record(1).id])
    failing = make_judge(memory=db, embedder=_Broken())
    with pytest.raises(RuntimeError):
        failing.align([record(1, WARM, value=True)])
    assert judge.memory.waiting() == 1
    judge.memory.rollback(1)
    assert [e.feedback.rationale for e in judge.memory.episodes()] == [RUDE]
    assert judge.memory.waiting() == 1
    judge.align()
    assert [e.feedback.rationale for e in judge.memory.episodes()] == [WARM]
    assert judge.memory.waiting() == 0
    assert judge.align([record(1, RUDE)]).changed == 1
    assert [e.feedback.rationale for e in judge.memory.episodes()] == [RUDE]
    assert judge.memory.waiting() == 0


class _Broken:
    id = "scripted/without-power"

    async def embed(self, texts: Any) -> Any:
        raise RuntimeError("no power")

    async def aclose(self) -> None:
        pass


def test_what_was_learned_after_the_target_is_learned_again(make_judge: MakeJudge, db: str) -> None:
    """At revision 1 the record was in memory, but its reason was not distilled yet."""
    asleep = True

    def sometimes(request: Any) -> Any:
        return "nonsense" if asleep and request.purpose == "distil" else expert(request)

    judge = make_judge(ScriptedChatModel(sometimes), memory=db)
    assert judge.align([record(1, RUDE)]).failed_batches
    asleep = False
    judge.align()
    assert [g.id for g in judge.memory.guidelines()] == ["g1"]
    report = judge.memory.rollback(1)
    assert report.again == 1
    assert judge.memory.guidelines() == []
    assert judge.memory.waiting() == 1
    judge.align()
    assert [g.text for g in judge.memory.guidelines()] == [f"When a reply is judged, heed {RUDE}"]


def test_a_rollback_across_a_purge_restores_what_remains_and_says_so(judge: Judge) -> None:
    judge.purge([record(1).id])
    newest = judge.memory.history()[-1].number
    report = judge.memory.rollback(2)
    (purge,) = report.purged
    assert 5 < purge <= newest
    assert {e.feedback.id for e in judge.memory.episodes()} == {record(2).id, record(3).id}, "1 was purged; 2 comes back"
    assert f"revision(s) {purge} does not come back" in "\n".join(report.lines())
    assert not any(g.text.endswith(WARM) for g in judge.memory.guidelines(all_states=True))
    assert judge.memory.diff(1, report.revision).purged == (purge,)
    assert judge.memory.audit().intact


def test_a_verdict_that_a_purge_took_is_gone(judge: Judge) -> None:
    verdict = judge(inputs="question 3", outputs="reply 3")
    judge.purge([record(3).id])
    with pytest.raises(NotFound, match="logged no verdict"):
        judge.memory.explain(verdict.id)


def test_a_pinned_judge_cannot_go_back(judge: Judge) -> None:
    with pytest.raises(ConfigurationError, match="read-only"):
        judge.at(2).memory.rollback(1)


def test_an_alignment_under_way_does_not_undo_a_rollback(make_judge: MakeJudge, db: str) -> None:
    judge = make_judge(memory=db)
    judge.align([record(1, RUDE)])
    other = make_judge(memory=db)

    def back_meanwhile(request: Any) -> Any:
        if request.purpose == "distil":
            other.memory.rollback(0)
            return distilled(request)
        return says("yes")

    report = make_judge(ScriptedChatModel(back_meanwhile), memory=db).align([record(2, RUDE)])
    assert report.revision == 3
    assert [e.feedback.id for e in judge.memory.episodes()] == [record(2).id]
    judge.align()
    assert judge.memory.waiting() == 0
    assert [g.evidence_for for g in judge.memory.guidelines()] == [(record(2).id,)]


# The clock


def test_a_clock_that_goes_backwards_breaks_nothing(make_judge: MakeJudge, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Revisions are numbers; times only inform."""
    from memalign.memory import episodic, log, revisions

    hours = iter(range(23, 0, -1))

    def backwards() -> str:
        return f"2026-01-01T{next(hours, 0):02d}:00:00.000000+00:00"

    for module in (episodic, log, revisions):
        monkeypatch.setattr(module, "now", backwards)
    judge = make_judge(memory=db)
    judge.align([record(1, RUDE)])
    judge.align([record(1, WARM, value=True)])
    judge.align([record(2, SLOW)])
    verdict = judge(inputs="question 1", outputs="reply 1")
    assert [made.number for made in judge.memory.history()] == [1, 2, 3]
    assert [made.at for made in judge.memory.history()] == sorted((made.at for made in judge.memory.history()), reverse=True)
    assert {e.feedback.rationale for e in judge.memory.episodes()} == {WARM, SLOW}
    assert judge.memory.explain(verdict.id).revision == 3
    judge.memory.rollback(1)
    assert [e.feedback.rationale for e in judge.memory.episodes()] == [RUDE]
    assert not judge.memory.diff(1, 4)
    assert judge.align([record(1, RUDE)]).unchanged == 1


# Verdicts explained later


def test_a_verdict_is_explained_by_what_memory_said_then(judge: Judge) -> None:
    then = judge(inputs="question 3", outputs="reply 3")
    assert len(then.id) == 32
    judge.align([record(3, WARM, value=True)])
    found = judge.memory.explain(then.id)
    assert (found.verdict_id, found.revision, found.value) == (then.id, 5, then.value)
    assert tuple(g.id for g in found.guidelines) == then.guideline_ids
    assert tuple(e.feedback.id for e in found.cases) == then.episode_ids
    (case,) = [e for e in found.cases if e.feedback.id == record(3).id]
    assert case.feedback.rationale == SLOW, "as it read then"
    assert record(3).id in found.outdated
    assert found.gone == ()
    assert found.made is not None
    assert found.made.verb == "calibrate"
    shown = "\n".join(found.lines(judge.scale.label_of))
    assert f"{record(3).id}  no - {SLOW}  (no longer so)" in shown
    assert json.dumps(found.to_dict(), default=str)


def test_verdicts_have_ids_of_their_own_and_evaluations_none(judge: Judge) -> None:
    items = [record(number).item for number in range(10, 14)]
    assert len({verdict.id for verdict in judge.batch(items)} - {""}) == 4
    assert {verdict.id for verdict in judge.batch(items, own=False)} == {""}
    assert judge.at(2)(inputs="question 1", outputs="reply 1").id == ""
    with pytest.raises(NotFound, match="logged no verdict"):
        judge.memory.explain("")


def test_a_verdict_of_the_unaligned_judge_rests_on_nothing(make_judge: MakeJudge) -> None:
    judge = make_judge()
    found = judge.memory.explain(judge(outputs="a reply of no renown").id)
    assert (found.revision, found.made, found.guidelines, found.cases) == (0, None, (), ())
    assert "an empty memory" in "\n".join(found.lines())


# Where guidelines come from, and what cases led to


def test_from_a_guideline_to_its_cases_in_all_versions(judge: Judge) -> None:
    verdict = judge.at(1).memory.guidelines()
    assert [g.id for g in verdict] == ["g1"]
    found = judge.memory.provenance("g1")
    assert found.kind == "guideline"
    assert [version.version for version in found.guidelines] == list(range(1, len(found.guidelines) + 1))
    assert (found.guidelines[0].state, found.guidelines[0].since, found.guidelines[-1].state) == ("active", 1, "retired")
    assert {link.record_id for link in found.links if link.role == "for"} == {record(1).id, record(2).id}
    assert {(held.id, held.version) for held in found.records} == {(record(1).id, 1), (record(2).id, 1)}, "the version it rested on"


def test_from_a_case_to_its_guidelines_and_verdicts(make_judge: MakeJudge, db: str) -> None:
    judge = make_judge(memory=db, k=1)
    judge.align([record(1, RUDE)])
    near = judge(inputs="question 1", outputs="reply 1")
    judge.align([record(2, SLOW)])
    judge.unalign([record(1).id])
    after = judge(inputs="question 2", outputs="reply 2")
    case = judge.memory.provenance(record(1).id)
    assert case.kind == "case"
    assert [(held.version, held.since, held.until) for held in case.records] == [(1, 1, 3)]
    assert {version.id for version in case.guidelines} == {"g1"}
    assert [(touched.id, touched.through) for touched in case.verdicts] == [(near.id, ("shown", "g1"))]
    assert case.verdict_count == 1
    other = judge.memory.provenance("g2")
    assert [touched.id for touched in other.verdicts] == [after.id]
    assert json.dumps(other.to_dict(), default=str)


def test_only_the_newest_verdicts_are_listed_but_all_are_counted(judge: Judge) -> None:
    given = [judge(inputs=f"question {number}", outputs="reply 3") for number in range(20, 25)]
    found = judge.memory.provenance("g2", verdicts=2)
    assert [touched.id for touched in found.verdicts] == [given[4].id, given[3].id]
    assert found.verdict_count == 5


def test_ids_that_look_alike_are_not_mixed_up(make_judge: MakeJudge) -> None:
    judge = make_judge()
    odd = ['a"b', "a_b", "a%b", "axb", "é", "\\u00e9"]
    judge.align([replace(record(number), id=key) for number, key in enumerate(odd)])
    given = {key: judge(inputs=f"question {number}", outputs=f"reply {number}") for number, key in enumerate(odd)}
    for key in odd:
        touched = {held.id for held in judge.memory.provenance(key).verdicts if "shown" in held.through}
        assert touched == {verdict.id for verdict in given.values() if key in verdict.episode_ids}
        assert given[key].id in touched


def test_a_guideline_with_a_thousand_versions(make_judge: MakeJudge) -> None:
    """The search through the verdict log must not nest a condition for each."""
    from memalign.memory import semantic

    judge = make_judge()
    judge.align([record(1, RUDE)])
    memory = judge.memory
    (stored,) = memory.stored()
    with memory.store.writing() as connection:
        for revision in range(2, 1203):
            semantic.change(connection, memory.judge_id, revision, "g1", signs={stored.row: 1})
    found = memory.provenance(record(1).id)
    assert len(found.guidelines) == 1202
    assert found.verdict_count == 0


def test_unknown_ids(judge: Judge) -> None:
    with pytest.raises(NotFound, match="no guideline or case 'g99'"):
        judge.memory.provenance("g99")


def test_it_survives_opening_again(judge: Judge, db: str, make_judge: MakeJudge) -> None:
    verdict = judge(inputs="question 3", outputs="reply 3")
    judge.memory.rollback(2)
    judge.close()
    again = make_judge(memory=db)
    assert not again.memory.diff(2, 6)
    assert again.memory.explain(verdict.id).value is True
