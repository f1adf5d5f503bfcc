"""Aligning, aligning again and unaligning inside MLflow: the same scenarios for memalign's optimizer and for MLflow's own.

Where a test says ``defect``, MLflow's own is wrong and ours is right; it fails when MLflow mends it, so that we hear of it.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest

pytest.importorskip("mlflow", reason="the MLflow integration is tested where MLflow is installed: make integrations")

from mlflow.exceptions import MlflowException
from mlflow.genai.scorers import Scorer

import memalign
from mlflow_support import Made, Ours, Provider, Said, Theirs, make

pytest_plugins = ["mlflow_support"]

Side = Ours | Theirs


def rules(side: Side, judge: Any) -> list[str]:
    """The reasons that guidelines were distilled from."""
    return sorted(text.rpartition("about ")[2].rstrip(".") for text in side.guidelines(judge))


# Aligning for the first time


def test_no_traces_are_refused(side: Side) -> None:
    with pytest.raises(MlflowException, match="No traces provided"):
        make().align([], side.optimizer())


def test_feedback_becomes_episodes_and_guidelines(side: Side, trace: Made) -> None:
    one, two = trace(Said(False, "tone")), trace(Said(True, "length"))
    judge = make().align([one, two], side.optimizer())
    assert sorted(key for key, _ in side.episodes(judge)) == sorted([one.info.trace_id, two.info.trace_id])
    assert rules(side, judge) == ["length", "tone"]
    assert set().union(*side.guidelines(judge).values()) == {one.info.trace_id, two.info.trace_id}


def test_only_unlabelled_traces_are_refused_and_named(side: Side, trace: Made) -> None:
    bare = trace()
    with pytest.raises(MlflowException, match=bare.info.trace_id):
        make().align([bare], side.optimizer())


def test_one_unlabelled_trace_defect(side: Side, trace: Made, caplog: pytest.LogCaptureFixture) -> None:
    bare, labelled = trace(), trace(Said(False, "tone"))
    if side.name == "mlflow":
        with pytest.raises(MlflowException, match="No valid feedback"):
            make().align([bare, labelled], side.optimizer())
        return
    judge = make().align([bare, labelled], side.optimizer())
    assert rules(side, judge) == ["tone"]
    assert judge.skipped == {bare.info.trace_id: "no human assessment named 'polite'"}
    assert bare.info.trace_id in caplog.text


def test_a_trace_given_twice_counts_once(side: Side, trace: Made) -> None:
    one = trace(Said(False, "tone"))
    judge = make().align([one, one], side.optimizer())
    assert len(side.episodes(judge)) == 1


@pytest.mark.parametrize("said", [Said(False, "tone", kind="CODE"), Said(False, "tone", kind="LLM_JUDGE"), Said(False, "tone", name="other")])
def test_what_is_no_human_assessment_of_this_judge_is_not_learned(side: Side, trace: Made, said: Said) -> None:
    with pytest.raises(MlflowException):
        make().align([trace(said)], side.optimizer())


@pytest.mark.parametrize("name", ["Polite", " polite "])
def test_the_name_of_an_assessment_may_differ_in_case_and_space(side: Side, trace: Made, name: str) -> None:
    judge = make().align([trace(Said(False, "tone", name=name))], side.optimizer())
    assert rules(side, judge) == ["tone"]


def test_all_annotators_who_agree_are_kept(side: Side, trace: Made) -> None:
    judge = make().align([trace(Said(False, "tone"), Said(False, "length", "bob"))], side.optimizer())
    assert len(side.episodes(judge)) == 2
    assert rules(side, judge) == ["length", "tone"]


def test_minority_opinion_defect(side: Side, trace: Made) -> None:
    judge = make().align([trace(Said(False, "tone"), Said(False, "tone", "bob"), Said(True, "warmth", "eve"))], side.optimizer())
    kept = len(side.episodes(judge))
    assert kept == (2 if side.name == "mlflow" else 3)
    assert ("warmth" in rules(side, judge)) is (side.name == "ours")
    if side.name == "ours":
        assert len(judge.report.contested) == 1


def test_ratings_are_numbers_defect(side: Side, trace: Made) -> None:
    judge = make(value_type=int).align([trace(Said(4, "tone")), trace(Said(4.0, "length"))], side.optimizer())
    values = [value for _, value in side.episodes(judge)]
    assert values == (["4", "4.0"] if side.name == "mlflow" else [4, 4])
    assert [type(value) for value in values] == ([str, str] if side.name == "mlflow" else [int, int])


def test_a_verdict_without_a_reason_is_an_episode(side: Side, trace: Made) -> None:
    judge = make().align([trace(Said(False))], side.optimizer())
    assert len(side.episodes(judge)) == 1
    assert side.guidelines(judge) == {}


def test_the_newest_assessment_of_an_annotator_counts_defect(side: Side, trace: Made) -> None:
    judge = make().align([trace(Said(False, "tone", at=1_000), Said(True, "warmth", at=2_000))], side.optimizer())
    assert [str(value).lower() for _, value in side.episodes(judge)] == ["true"]
    three = trace(Said(False, "tone", at=1_000), Said(False, "length", at=1_500), Said(True, "warmth", at=2_000))
    judge = make().align([three], side.optimizer())
    assert [str(value).lower() for _, value in side.episodes(judge)] == (["false", "false"] if side.name == "mlflow" else ["true"])


def test_overridden_assessments_defect(side: Side, trace: Made) -> None:
    judge = make().align([trace(Said(False, "tone", valid=False), Said(True, "warmth", "bob", at=900))], side.optimizer())
    assert [str(value).lower() for _, value in side.episodes(judge)] == (["false"] if side.name == "mlflow" else ["true"])


def test_the_base_judge_is_untouched(side: Side, trace: Made) -> None:
    base = make(description="about tone")
    before = base.model_dump()
    judge = base.align([trace(Said(False, "tone"))], side.optimizer())
    assert base.model_dump() == before
    assert (judge.name, judge.model, judge.description) == (base.name, base.model, "about tone")
    assert judge.feedback_value_type is bool
    assert judge.aggregations == base.aggregations
    assert [part.name for part in judge.get_input_fields()] == ["inputs", "outputs"]
    assert base.instructions in judge.instructions
    assert "tone" in judge.instructions


def test_failed_distillation_defect(side: Side, trace: Made, provider: Provider, caplog: pytest.LogCaptureFixture) -> None:
    one = trace(Said(False, "tone"))
    provider.broken = True
    judge = make().align([one], side.optimizer())
    assert side.guidelines(judge) == {}
    assert len(side.episodes(judge)) == 1
    provider.broken = False
    again = judge.align([one], side.optimizer())
    if side.name == "mlflow":
        assert again is judge
        assert side.guidelines(again) == {}
        return
    assert judge.report.unconsumed == 1
    assert "the next align takes them up" in caplog.text
    assert rules(side, again) == ["tone"]


def test_a_guideline_that_cites_no_case_is_refused(side: Side, trace: Made, provider: Provider) -> None:
    provider.distil = lambda cases: [("Heed nothing at all.", [99]), ("Heed the rule about tone.", [number for number, _ in cases])]
    judge = make().align([trace(Said(False, "tone"))], side.optimizer())
    assert rules(side, judge) == ["tone"]


@pytest.mark.parametrize("bad", [{"retrieval_k": 0}, {"retrieval_k": -1}, {"embedding_dim": 0}])
def test_impossible_numbers_are_refused(side: Side, trace: Made, bad: dict[str, Any]) -> None:
    with pytest.raises(MlflowException, match="must be a positive integer"):
        make().align([trace(Said(False, "tone"))], side.optimizer(**bad))


# Aligning with more


def test_more_traces_keep_what_was_learned(side: Side, trace: Made) -> None:
    one, two = trace(Said(False, "tone")), trace(Said(True, "length"))
    first = make().align([one], side.optimizer())
    second = first.align([two], side.optimizer())
    assert {key for key, _ in side.episodes(second)} == {one.info.trace_id, two.info.trace_id}
    assert rules(side, second) == ["length", "tone"]


def test_the_judge_that_is_aligned_further_stays_as_it_was(side: Side, trace: Made) -> None:
    first = make().align([trace(Said(False, "tone"))], side.optimizer())
    first.align([trace(Said(True, "length"))], side.optimizer())
    assert len(side.episodes(first)) == 1
    assert rules(side, first) == ["tone"]


def test_two_judges_may_go_on_from_one(side: Side, trace: Made) -> None:
    first = make().align([trace(Said(False, "tone"))], side.optimizer())
    left = first.align([trace(Said(True, "length"))], side.optimizer())
    right = first.align([trace(Said(True, "warmth"))], side.optimizer())
    assert (rules(side, left), rules(side, right)) == (["length", "tone"], ["tone", "warmth"])
    assert (len(side.episodes(left)), len(side.episodes(right))) == (2, 2)


def test_a_new_judge_of_the_same_name_starts_from_nothing(side: Side, trace: Made) -> None:
    make().align([trace(Said(False, "tone"))], side.optimizer())
    judge = make().align([trace(Said(True, "length"))], side.optimizer())
    assert rules(side, judge) == ["length"]
    assert len(side.episodes(judge)) == 1


def test_more_traces_embed_only_themselves_defect(side: Side, trace: Made, provider: Provider) -> None:
    first = make().align([trace(Said(False, "tone")) for _ in range(4)], side.optimizer())
    provider.embedded.clear()
    first.align([trace(Said(False, "length"))], side.optimizer())
    records = [text for text in provider.embedded if "alone" in text]  # ours embeds new guidelines, too
    assert len(records) == (5 if side.name == "mlflow" else 1)


def test_guidelines_only_grow_defect(side: Side, trace: Made, provider: Provider) -> None:
    """A model that words every proposal anew: theirs knows equal text alone, ours asks what says the same."""
    wordings = iter(("Mind the tone.", "Keep to a good tone.", "The tone must be right."))
    provider.distil = lambda cases: [(next(wordings), [number for number, _ in cases])]
    provider.relate = {"duplicates": [[1, 2]], "narrower": [], "conflicts": []}
    judge = make()
    for _ in range(3):
        judge = judge.align([trace(Said(False, "tone"))], side.optimizer())
    assert [len(evidence) for evidence in side.guidelines(judge).values()] == ([1, 1, 1] if side.name == "mlflow" else [3])
    assert len(provider.asked("relate")) == (0 if side.name == "mlflow" else 2)


def test_more_evidence_joins_a_rule(side: Side, trace: Made) -> None:
    first = make().align([trace(Said(False, "tone"))], side.optimizer())
    assert len(side.guidelines(first.align([trace(Said(False, "tone"))], side.optimizer()))) == 1


@pytest.mark.parametrize("registered", [False, True])
def test_it_goes_on_verified_as_it_began(trace: Made, provider: Provider, monkeypatch: pytest.MonkeyPatch, registered: bool) -> None:
    judge = make().align([trace(Said(False, "tone"))], Ours().optimizer(verify="fast"))
    if registered:
        judge = Scorer.model_validate(judge.model_dump())
    modes = []
    align = memalign.Judge.align
    monkeypatch.setattr(memalign.Judge, "align", lambda *given, **named: (modes.append(named["verify"]), align(*given, **named))[1])
    again = judge.align([trace(Said(True, "length"))])
    again.align([trace(Said(True, "warmth"))], Ours().optimizer())
    assert modes == ["fast", "off"]


# What experts do by hand


def by_hand(judge: Any) -> memalign.Judge:
    """The judge's memory as its experts open it: by name, outside MLflow."""
    return memalign.Judge.load(judge.place.memory, judge.place.name)


def test_what_experts_changed_by_hand_is_gone_on_from(trace: Made, provider: Provider) -> None:
    one = trace(Said(False, "tone"))
    first = make().align([one], Ours().optimizer())
    by_hand(first).memory.add("Always greet the customer.")
    assert rules(Ours(), first) == ["tone"]
    assert [g.text for g in first.latest().memory.guidelines()][-1] == "Always greet the customer."
    assert first.latest().latest().place == first.latest().place
    unchanged, more = first.align([one]), first.align([trace(Said(True, "length"))])
    assert [g.text for g in unchanged.memory.guidelines()][-1] == "Always greet the customer."
    assert (more.place.name, more.place.revision) == (first.place.name, first.place.revision + 2)
    assert "Always greet the customer." in more.instructions
    assert "Always greet the customer." in first.unalign([one]).instructions  # another judge went on meanwhile: from the edit, without that one
    assert first.unalign([one]).place.name != first.place.name


def test_what_experts_changed_after_another_judge_learned_is_named(trace: Made, provider: Provider, caplog: pytest.LogCaptureFixture) -> None:
    first = make().align([trace(Said(False, "tone"))], Ours().optimizer())
    left = first.align([trace(Said(True, "length"))])
    by_hand(first).memory.add("Always greet the customer.")
    with caplog.at_level(logging.WARNING):
        right = first.align([trace(Said(True, "warmth"))])
    assert "Always greet" not in right.instructions
    assert f"from revision {first.place.revision} of" in caplog.text
    assert f"add in revision {left.place.revision + 1}" in caplog.text
    assert "Always greet" in left.align([trace(Said(True, "warmth"))]).instructions


# Aligning again


def test_unchanged_traces_cost_no_call(side: Side, trace: Made, provider: Provider) -> None:
    found = [trace(Said(False, "tone")), trace(Said(True, "length"))]
    judge = make().align(found, side.optimizer())
    provider.requests.clear()
    assert judge.align(found, side.optimizer()) is judge
    assert provider.requests == []


def test_a_changed_reason_is_learned(side: Side, trace: Made) -> None:
    one = trace(Said(False, "tone"))
    judge = make().align([one], side.optimizer())
    again = judge.align([trace.again(one, Said(False, "spelling", at=2_000))], side.optimizer())
    assert len(side.episodes(again)) == 1
    assert rules(side, again) == ["spelling"]
    assert rules(side, judge) == ["tone"]


def test_a_reversed_label_defect(side: Side, trace: Made, provider: Provider) -> None:
    """A guideline that rests on two traces, one of which says the opposite now."""
    one, two = trace(Said(False, "tone")), trace(Said(False, "tone"))
    judge = make().align([one, two], side.optimizer())
    assert rules(side, judge) == ["tone"]
    provider.distil = lambda cases: [("Heed the rule about " + " and ".join(sorted({reason for _, reason in cases})) + ".", [n for n, _ in cases])]
    again = judge.align([trace.again(one, Said(True, "warmth", at=2_000))], side.optimizer())
    assert ("tone" in rules(side, again)) is (side.name == "mlflow")
    assert len(side.episodes(again)) == 2


def test_another_majority_is_learned(side: Side, trace: Made) -> None:
    one = trace(Said(False, "tone"), Said(True, "warmth", "bob", at=900))
    judge = make().align([one], side.optimizer())
    again = judge.align([trace.again(one, Said(True, "humour", at=2_000), Said(True, "warmth", "bob", at=900))], side.optimizer())
    assert {str(value).lower() for _, value in side.episodes(again)} == {"true"}
    assert rules(side, again) == ["humour", "warmth"]


def test_one_of_two_assessments_removed(side: Side, trace: Made) -> None:
    one = trace(Said(False, "tone"), Said(False, "length", "bob"))
    judge = make().align([one], side.optimizer())
    again = judge.align([trace.again(one, Said(False, "tone"))], side.optimizer())
    assert len(side.episodes(again)) == 1
    assert rules(side, again) == ["tone"]


def test_all_assessments_removed_asks_for_unalign(side: Side, trace: Made) -> None:
    one = trace(Said(False, "tone"))
    judge = make().align([one], side.optimizer())
    with pytest.raises(MlflowException, match="unalign"):
        judge.align([trace.again(one)], side.optimizer())
    assert len(side.episodes(judge)) == 1


def test_unchanged_changed_and_new_together(side: Side, trace: Made, provider: Provider) -> None:
    one, two = trace(Said(False, "tone")), trace(Said(True, "length"))
    judge = make().align([one, two], side.optimizer())
    provider.requests.clear()
    again = judge.align([one, trace.again(two, Said(True, "brevity", at=2_000)), trace(Said(False, "spelling"))], side.optimizer())
    assert len(side.episodes(again)) == 3
    assert rules(side, again) == ["brevity", "spelling", "tone"]
    assert "tone" not in str(provider.asked("distil")[0]["messages"][-1]["content"]).partition("Case")[2]


def test_what_was_unaligned_can_be_learned_again(side: Side, trace: Made) -> None:
    one, two = trace(Said(False, "tone")), trace(Said(True, "length"))
    judge = make().align([one, two], side.optimizer()).unalign([one])
    again = judge.align([one], side.optimizer())
    assert len(side.episodes(again)) == 2
    assert rules(side, again) == ["length", "tone"]


# Unaligning


def test_unaligned_traces_are_forgotten(side: Side, trace: Made) -> None:
    one, two = trace(Said(False, "tone")), trace(Said(True, "length"))
    judge = make().align([one, two], side.optimizer())
    left = judge.unalign([one])
    assert [key for key, _ in side.episodes(left)] == [two.info.trace_id]
    assert rules(side, left) == ["length"]
    assert (len(side.episodes(judge)), rules(side, judge)) == (2, ["length", "tone"])


def test_unaligning_what_was_never_learned_changes_nothing(side: Side, trace: Made, caplog: pytest.LogCaptureFixture) -> None:
    judge = make().align([trace(Said(False, "tone"))], side.optimizer())
    with caplog.at_level(logging.WARNING):
        logging.getLogger("mlflow").propagate = True
        assert judge.unalign([trace(Said(True, "length"))]) is judge
    assert caplog.text


def test_unaligning_everything_defect(side: Side, trace: Made, provider: Provider) -> None:
    one = trace(Said(False, "tone"))
    judge = make().align([one], side.optimizer())
    if side.name == "mlflow":
        with pytest.raises(Exception, match=r"empty|zero|shape|dimension|concatenate|axis|array|at least|index"):
            judge.unalign([one])
        return
    empty = judge.unalign([one])
    assert (side.episodes(empty), side.guidelines(empty)) == ([], {})
    assert empty(inputs={"question": "?"}, outputs="A reply.").value is True
    assert rules(side, empty.align([one], side.optimizer())) == ["tone"]


def test_a_guideline_goes_with_the_last_of_its_traces(side: Side, trace: Made) -> None:
    one, two, three = trace(Said(False, "tone")), trace(Said(False, "tone")), trace(Said(True, "length"))
    judge = make().align([one, two, three], side.optimizer())
    assert rules(side, judge.unalign([one, two])) == ["length"]


def test_a_guideline_that_loses_one_of_two_traces_defect(side: Side, trace: Made) -> None:
    one, two = trace(Said(False, "tone")), trace(Said(False, "tone"))
    left = make().align([one, two], side.optimizer()).unalign([one])
    rests_on = set().union(*side.guidelines(left).values())
    assert (one.info.trace_id in rests_on) is (side.name == "mlflow")
    assert two.info.trace_id in rests_on


def test_unaligning_embeds_nothing_defect(side: Side, trace: Made, provider: Provider) -> None:
    found = [trace(Said(False, "tone")) for _ in range(4)]
    judge = make().align(found, side.optimizer())
    provider.embedded.clear()
    judge.unalign(found[:1])
    assert len(provider.embedded) == (3 if side.name == "mlflow" else 0)


def test_two_unalignments_of_one_judge_do_not_meet(side: Side, trace: Made) -> None:
    one, two, three = (trace(Said(False, reason)) for reason in ("tone", "length", "spelling"))
    judge = make().align([one, two, three], side.optimizer())
    left, right = judge.unalign([one]), judge.unalign([two])
    assert (rules(side, left), rules(side, right)) == (["length", "spelling"], ["spelling", "tone"])
