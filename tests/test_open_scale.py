"""The open scale, and what was learned elsewhere entering memory."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import MakeJudge, record, says
from memalign import BadRecord, ConfigurationError, NotFound, Scale, UnreadableReply, edge
from memalign.agreement import measure
from memalign.alignment import Learned, adopt
from memalign.models.scripted import ScriptedChatModel
from memalign.open_scale import OpenScale

NUMBER = OpenScale.of({"type": "number"})
TEXT = OpenScale.of({"type": "string", "title": "Result"})
MAYBE = OpenScale.of({"anyOf": [{"type": "integer"}, {"type": "null"}]})
CHOICE = OpenScale.of({"enum": ["a", 1, True]})
LIST = OpenScale.of({"type": "array", "items": {"type": "string"}})
TABLE = OpenScale.of({"type": "object", "additionalProperties": {"type": "integer"}})


@pytest.mark.parametrize(
    ("scale", "said", "value"),
    [
        (NUMBER, 4, 4.0),
        (NUMBER, "0.5", 0.5),
        (TEXT, "fine", "fine"),
        (TEXT, True, "true"),
        (TEXT, 4, "4"),
        (MAYBE, 4.0, 4),
        (MAYBE, "9007199254740993", 9007199254740993),
        (MAYBE, 10**400, 10**400),
        (MAYBE, None, None),
        (CHOICE, 1, 1),
        (CHOICE, True, True),
        (LIST, ["a", "b"], ["a", "b"]),
        (TABLE, {"tone": 2}, {"tone": 2}),
    ],
)
def test_values_are_read(scale: OpenScale, said: Any, value: Any) -> None:
    read = scale.check(said)
    assert read == value
    assert type(read) is type(value)
    assert scale.check(scale.value_of(scale.label_of(read))) == value


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (NUMBER, True),
        (NUMBER, "many"),
        (NUMBER, float("nan")),
        (NUMBER, 10**400),
        (TEXT, ["a"]),
        (MAYBE, 4.5),
        (CHOICE, 2),
        (LIST, [1]),
        (TABLE, {"tone": "x"}),
    ],
)
def test_values_off_the_scale_are_named(scale: OpenScale, said: Any) -> None:
    with pytest.raises(BadRecord, match="is not on the scale; accepted: "):
        scale.check(said)


@pytest.mark.parametrize("scale", [NUMBER, TEXT, MAYBE, CHOICE, LIST, TABLE])
def test_it_is_kept_with_the_judge(scale: OpenScale) -> None:
    assert Scale.from_dict(scale.to_dict()) == scale


def test_replies_are_read_strictly() -> None:
    assert NUMBER.parse('{"rationale": "Good.", "verdict": 0.5}', rationale=True) == (0.5, "Good.")
    assert TEXT.parse_label(" fine ") == "fine"
    for reply in ('{"rationale": "Good."}', '{"verdict": "many"}', "0.5"):
        with pytest.raises(UnreadableReply):
            NUMBER.parse(reply, rationale=True)


def test_a_schema_that_cannot_be_checked_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot be made of the JSON schema"):
        OpenScale.of({"type": "array"})


def test_agreement_counts_equal_verdicts() -> None:
    found = measure(TABLE, [({"tone": 1}, {"tone": 1}), ({"tone": 1}, {"tone": 2})])
    assert found.accuracy is not None
    assert found.accuracy.value == 0.5


def test_a_judge_learns_and_judges_on_it(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel([{"operations": []}, says(0.25)]), scale=NUMBER, k=1)
    judge.align([record(1, "too cold", value=0.5)])
    verdict = judge(inputs="question 1", outputs="reply 1")
    assert verdict.value == 0.25
    assert verdict.episode_ids
    with pytest.raises(BadRecord):
        judge.align([record(2, value="many")])
    for counting in (judge.calibrate, judge.panel, lambda: judge.suggest([])):
        with pytest.raises(ConfigurationError, match="open scale"):
            counting()


def adopted(judge: Any, *args: Any, **more: Any) -> Any:
    return edge.run(adopt(judge.session, *args, **more))


@pytest.mark.parametrize("explain", [True, False])
def test_half_a_surrogate_pair_in_a_verdict_is_replaced_and_logged(make_judge: MakeJudge, explain: bool) -> None:
    reply = '{"rationale": "r", "verdict": "fine \\ud83d"}' if explain else "fine \ud83d"
    judge = make_judge(ScriptedChatModel(lambda _: reply), scale=TEXT, explain=explain)
    verdict = judge(outputs="a reply")
    assert verdict.value == "fine ?"
    assert judge.memory.explain(verdict.id).value == "fine ?"
    assert judge.align([record(1, value="fine")], screen=True).new == 1


def test_half_a_surrogate_pair_in_an_experts_verdict_is_refused_before_anything_is_stored(make_judge: MakeJudge) -> None:
    judge = make_judge(scale=TEXT)
    with pytest.raises(BadRecord, match="surrogate") as found:
        judge.align([record(1, value="fine"), record(2, value="fine \ud83d")])
    assert (found.value.row, found.value.field) == (2, "value")
    assert judge.memory.waiting() == 0


def test_what_was_learned_elsewhere_enters_in_one_revision_without_a_call(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel())
    one, two = record(1, "too cold"), record(2, "too long")
    report = adopted(judge, [one, two], [Learned("Be warm.", evidence=(one.id,), pinned=True), Learned("Be kind.")], unlearned=frozenset({two.id}))
    assert (report.revision, report.new, report.unconsumed) == (1, 2, 1)
    warm, kind = judge.memory.guidelines()
    assert (warm.text, warm.evidence_for, warm.pinned) == ("Be warm.", (one.id,), True)
    assert (kind.text, kind.evidence_for) == ("Be kind.", ())
    assert [revision.verb for revision in judge.memory.history()] == ["import"]


def test_a_guideline_that_is_there_already_gains_evidence(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel())
    one, two = record(1, "too cold"), record(2, "too long")
    adopted(judge, [one], [Learned("Be warm.", evidence=(one.id,))])
    report = adopted(judge, [one, two], [Learned("be warm", evidence=(two.id,))])
    assert (report.new, report.unchanged, report.added) == (1, 1, ())
    assert [guideline.evidence_for for guideline in judge.memory.guidelines()] == [(one.id, two.id)]


def test_what_was_taken_over_can_be_withdrawn(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel())
    one = record(1, "too cold")
    adopted(judge, [one], [Learned("Be warm.", evidence=(one.id,))])
    judge.unalign([one.id])
    assert (judge.memory.guidelines(), judge.memory.episodes()) == ([], [])
    with pytest.raises(NotFound):
        judge.unalign([one.id])
