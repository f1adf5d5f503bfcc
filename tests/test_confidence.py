"""Confidence, votes, abstention, scores as means: what several answers say together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import MakeJudge, record
from memalign import Agreement, ConfigurationError, Item, Judge, Scale, Verdict
from memalign.memory.revisions import Decision
from memalign.models import ChatReply, ChatRequest, TokenLogprobs
from memalign.models.scripted import ScriptedChatModel
from memalign.verdicts import Answer, pooled, settled, stacked

YES_NO = Scale.boolean()
SCORE = Scale.score(1, 5)
WORDS = Scale.categories("good", "fair", "poor")


def told(shares: Mapping[str, float], label: str = "") -> ChatReply:
    """A bare label with the likelihood of each; the likeliest, if none is named."""
    top = tuple((name, math.log(share)) for name, share in shares.items())
    label = label or max(shares, key=lambda name: shares[name])
    return ChatReply(text=label, logprobs=(TokenLogprobs(label, dict(top)[label], top),))


def answers(*values: Any) -> list[Answer]:
    return [Answer(value, f"because {value}", None) for value in values]


# Pure: many answers, one reading


def test_one_bare_label_has_no_confidence() -> None:
    reading = settled(YES_NO, answers(True), decision=Decision())
    assert (reading.value, reading.confidence, reading.probabilities, reading.votes) == (True, None, None, 1)


def test_votes_are_smoothed_shares_and_the_majority_decides() -> None:
    reading = settled(YES_NO, answers(False, True, True, True, False), decision=Decision())
    assert (reading.value, reading.votes) == (True, 5)
    assert reading.confidence == pytest.approx(3.5 / 6)
    assert reading.rationale == "because True", "of an answer that gave the value"
    unanimous = settled(WORDS, answers(*["good"] * 5), decision=Decision())
    assert unanimous.confidence == pytest.approx((5 + 1 / 3) / 6)


def test_on_a_split_the_first_answer_decides() -> None:
    assert settled(YES_NO, answers(False, True), decision=Decision()).value is False
    assert settled(YES_NO, answers(True, False), decision=Decision()).value is True


def test_token_probabilities_are_averaged() -> None:
    said = [Answer(True, "", {"yes": 0.9, "no": 0.1}), Answer(False, "", {"yes": 0.3, "no": 0.7})]
    reading = settled(YES_NO, said, decision=Decision())
    assert (reading.value, reading.votes) == (True, 0)
    assert reading.confidence == pytest.approx(0.6)


def test_one_answer_without_probabilities_makes_all_of_them_votes() -> None:
    said = [Answer(True, "", {"yes": 0.9, "no": 0.1}), *answers(True, True)]
    assert settled(YES_NO, said, decision=Decision()).votes == 3


def test_what_was_fitted_holds_for_the_number_of_votes_it_was_fitted_with() -> None:
    decision = Decision(offsets=(-5.0, 0.0), votes=3)
    assert settled(YES_NO, answers(True), decision=decision).value is True
    assert settled(YES_NO, answers(True, True, True), decision=decision).value is False
    one = settled(YES_NO, answers(True), decision=replace(decision, votes=1))
    assert one.value is False
    assert one.confidence == pytest.approx(1 - one_minus_sigmoid(math.log(3) - 5), abs=1e-9), "fitted confidences need no second call"


def one_minus_sigmoid(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


def test_trusting_less_changes_confidence_and_never_the_value() -> None:
    said = [Answer("fair", "", {"good": 0.3, "fair": 0.5, "poor": 0.2})]
    reading = settled(WORDS, said, decision=Decision(model_weight=0.2))
    assert reading.value == "fair"
    assert 1 / 3 < reading.confidence < 0.5
    assert reading.probabilities == {"good": 0.3, "fair": 0.5, "poor": 0.2}, "as the model gave them"


@settings(deadline=None)
@given(st.floats(0.01, 0.99), st.floats(0.0, 3.0), st.floats(-3.0, 3.0), st.floats(0.0, 3.0), st.floats(-1.0, 1.0))
def test_on_the_boolean_scale_it_is_logistic_regression(yes: float, weight: float, bias: float, vote_weight: float, vote: float) -> None:
    decision = Decision(model_weight=weight, vote_weight=vote_weight, offsets=(bias, 0.0))
    found = stacked(YES_NO, {"yes": yes, "no": 1 - yes}, (vote / 2, -vote / 2), decision)
    odds = weight * math.log(yes / (1 - yes)) + vote_weight * vote + bias
    assert found["yes"] == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-9)
    assert sum(found.values()) == pytest.approx(1.0)


def test_scores_have_a_mean_and_may_be_read_as_the_nearest_score() -> None:
    said = [Answer(5, "", {"1": 0.0, "2": 0.05, "3": 0.3, "4": 0.3, "5": 0.35})]
    likeliest = settled(SCORE, said, decision=Decision())
    assert (likeliest.value, likeliest.confidence) == (5, 0.35)
    assert likeliest.expected == pytest.approx(3.95)
    mean = settled(SCORE, said, decision=Decision(), expected_score=True)
    assert (mean.value, mean.confidence) == (4, 0.3)
    assert settled(SCORE, answers(4), decision=Decision(), expected_score=True).expected is None
    assert settled(SCORE, answers(4, 4, 5), decision=Decision()).expected == pytest.approx((4 * 2.2 + 5 * 1.2 + (1 + 2 + 3) * 0.2) / 4)
    assert settled(WORDS, [Answer("fair", "", {"good": 0.3, "fair": 0.5, "poor": 0.2})], decision=Decision()).expected is None


def test_near_scores_share_a_vote() -> None:
    flat = dict.fromkeys(SCORE.labels, 0.2)
    found = stacked(SCORE, flat, (0.5,), Decision(vote_weight=3.0))
    assert max(found, key=lambda label: found[label]) == "4"
    assert found["4"] > found["5"] == pytest.approx(found["3"])
    assert found["3"] > found["2"] > found["1"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS.values), min_size=1, max_size=9))
def test_shares_of_votes_are_probabilities(values: list[str]) -> None:
    shares, votes = pooled(WORDS, answers(*values))
    assert sum(shares.values()) == pytest.approx(1.0)
    assert votes == len(values)
    assert all(0 < share < 1 for share in shares.values())


# With a judge


def script(*labels: str) -> ScriptedChatModel:
    return ScriptedChatModel(list(labels))


def test_a_judge_is_asked_once_unless_more_is_wanted(make_judge: MakeJudge) -> None:
    model = script("yes")
    verdict = make_judge(model, explain=False)(outputs="x")
    assert (verdict.confidence, verdict.abstained, verdict.votes) == (None, False, 1)
    assert len(model.requests) == 1


def test_votes_when_asked(make_judge: MakeJudge) -> None:
    model = script("yes", "no", "no", "no", "yes")
    verdict = make_judge(model, explain=False)(outputs="x", votes=5)
    assert (verdict.value, verdict.votes, verdict.usage.calls) == (False, 5, 5)
    assert verdict.confidence == pytest.approx(3.5 / 6)
    assert [request.temperature for request in model.requests] == [0.0, 0.7, 0.7, 0.7, 0.7]
    assert [request.seed for request in model.requests] == [0, 1, 2, 3, 4]


def test_abstaining_asks_for_votes_only_when_nothing_else_tells(make_judge: MakeJudge) -> None:
    model = script("yes", "no", "yes", "no", "yes")
    verdict = make_judge(model, explain=False, abstain_below=0.8)(outputs="x")
    assert (verdict.value, verdict.abstained, verdict.votes) == (True, True, 5)
    sure = ScriptedChatModel([told({"yes": 0.9, "no": 0.1})])
    verdict = make_judge(sure, explain=False)(outputs="x", abstain_below=0.8)
    assert (verdict.abstained, verdict.votes, len(sure.requests)) == (False, 0, 1)
    unsure = make_judge(ScriptedChatModel([told({"yes": 0.7, "no": 0.3})]), explain=False)(outputs="x", abstain_below=0.8)
    assert (unsure.value, unsure.abstained, unsure.confidence) == (True, True, pytest.approx(0.7))


def test_without_any_confidence_it_abstains(make_judge: MakeJudge) -> None:
    assert make_judge(script("yes"), explain=False)(outputs="x", abstain_below=0.1, votes=1).abstained is True


def shown(request: ChatRequest) -> list[str]:
    """The numbers of the cases in a prompt, in their order."""
    items = [message.content for message in request.messages if message.role == "user" and "reply " in message.content]
    return [item.split("reply ")[1].split()[0] for item in items[:-1]]


def test_each_vote_is_shown_other_cases_the_same_at_every_call_and_its_own_always(make_judge: MakeJudge) -> None:
    def seen(own: bool) -> list[list[str]]:
        model = ScriptedChatModel(lambda request: "yes")
        judge = make_judge(model, explain=False, k=4, floor=-1.0)
        judge.align([record(number, value=True) for number in range(10)])
        model.requests.clear()
        number = 3 if own else 77
        judge(inputs=f"question {number}", outputs=f"reply {number}", votes=6)
        return [shown(request) for request in model.requests]

    first = seen(own=True)
    assert first == seen(own=True)
    assert len({tuple(cases) for cases in first}) > 2, "different cases"
    assert all(cases[-1] == "3" for cases in first), "the item's own case stands last"
    assert all(len(cases) == 5 for cases in first)
    assert all(len(cases) == 4 for cases in seen(own=False))


def test_settings_are_kept_and_checked(make_judge: MakeJudge, db: str) -> None:
    make_judge(memory=db, abstain_below=0.7, votes=3).memory.view()
    loaded = Judge.load(db, "polite", model="openai/b", embedder="local/minilm")
    assert (loaded.abstain_below, loaded.votes, loaded.expected_score, loaded.both_orders) == (0.7, 3, False, False)
    for wrong in ({"abstain_below": 1.5}, {"votes": 0}):
        with pytest.raises(ConfigurationError):
            make_judge(**wrong)
    with pytest.raises(ConfigurationError, match="votes must be 1 or more"):
        make_judge()(outputs="x", votes=0)
    with pytest.raises(ConfigurationError, match="abstain_below is a confidence"):
        make_judge()(outputs="x", abstain_below=80)


def by_word(request: ChatRequest) -> Any:
    item = request.messages[-1].content
    sure = 0.9 if "clear" in item else 0.6
    return told({"yes": sure, "no": 1 - sure} if "good" in item else {"yes": 1 - sure, "no": sure})


def test_evaluate_measures_what_the_judge_decides_and_counts_the_rest(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(by_word), explain=False)
    words = [("clear good", True), ("clear bad", False), ("good", False), ("bad", True)]
    records = [record(place, outputs=f"{word} {place}", value=value) for place, (word, value) in enumerate(words)]
    everything = judge.evaluate(records)
    assert (everything.n, everything.abstained, everything.coverage, everything.accuracy.value) == (4, 0, 1.0, 0.5)
    covered = judge.evaluate(records, abstain_below=0.8)
    assert (covered.n, covered.abstained, covered.coverage, covered.accuracy.value) == (2, 2, 0.5, 1.0)
    assert "abstained 2 of 4, not counted above (coverage .50)" in covered.lines()
    assert covered.to_dict()["coverage"] == 0.5
    verdicts = judge.batch(records, abstain_below=0.8, own=False)
    assert [verdict.abstained for verdict in verdicts if isinstance(verdict, Verdict)] == [False, False, True, True]
    nothing = judge.evaluate(records, abstain_below=0.99)
    assert (nothing.n, nothing.abstained, nothing.accuracy) == (0, 4, None)


def test_agreement_of_nothing_has_no_coverage() -> None:
    assert Agreement(n=0, failures=0, confidence=0.95, confusion={}).coverage is None


def test_items_of_any_kind_can_be_judged_with_votes(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(lambda request: "good"), scale=WORDS, explain=False)
    verdicts = judge.batch([Item(outputs={"text": "x"}), Item(outputs=["y"])], votes=3)
    assert [verdict.confidence for verdict in verdicts if isinstance(verdict, Verdict)] == [pytest.approx(10 / 12)] * 2
