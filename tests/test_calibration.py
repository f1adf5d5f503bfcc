"""Reliability, fitting on the experts' labels, and what is kept of it."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest

from conftest import MakeJudge, record
from memalign import ConfigurationError, Scale
from memalign.fitting import Case, fitted, softmax
from memalign.memory import judge_settings
from memalign.memory.revisions import Decision
from memalign.memory.vote import cast, held, point, support
from memalign.models import ChatReply, ChatRequest, TokenLogprobs
from memalign.models.scripted import ScriptedChatModel
from memalign.reliability import coverage_curve, reliability, wilson
from memalign.trial import Judged, case_of, rounds, tried
from memalign.verdicts import stacked

YES_NO = Scale.boolean()
SCORE = Scale.score(1, 5)
WORDS = Scale.categories("good", "fair", "poor")
PAIR = Scale.pairwise(tie=False)


def told(shares: dict[str, float]) -> ChatReply:
    top = tuple((name, math.log(share)) for name, share in shares.items())
    label = max(shares, key=lambda name: shares[name])
    return ChatReply(text=label, logprobs=(TokenLogprobs(label, dict(top)[label], top),))


# Reliability


def test_figures_of_two_labels_by_hand() -> None:
    found = reliability(YES_NO, [True, True, False, False], [True, True, True, False], [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
    assert found.accuracy == 0.75
    assert found.balanced_accuracy == 0.75
    assert found.brier == pytest.approx((0.01 + 0.04 + 0.49 + 0.16) / 4)
    assert found.log_loss == pytest.approx(-(math.log(0.9) + math.log(0.8) + math.log(0.3) + math.log(0.6)) / 4)
    assert [(part.low, part.n, part.confidence, part.right.value) for part in found.bins] == [
        (0.6, 1, 0.6, 1.0),
        (0.7, 1, 0.7, 0.0),
        (0.8, 1, 0.8, 1.0),
        (0.9, 1, 0.9, 1.0),
    ]
    assert found.ece == pytest.approx((0.4 + 0.7 + 0.2 + 0.1) / 4)
    assert json.dumps(found.to_dict())
    assert "accuracy .75" in found.line()
    assert found.line().endswith("n = 4")


def test_coverage_and_the_threshold_that_reaches_an_agreement() -> None:
    found = reliability(YES_NO, [True, True, False, True], [True] * 4, [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    point = found.coverage_at(0.9)
    assert point is not None
    assert (point.threshold, point.coverage, point.n, point.agreement.value) == (0.8, 0.5, 2, 1.0)
    assert found.coverage_at(0.75).coverage == 1.0  # type: ignore[union-attr]
    assert reliability(YES_NO, [False], [True], [[0.9, 0.1]]).coverage_at(0.5) is None
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        found.coverage_at(90)


def test_what_never_gets_a_verdict_is_covered_by_no_threshold() -> None:
    found = reliability(YES_NO, [True] * 4, [True] * 4, [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]], undecided=[True, False, True, False])
    assert [(point.threshold, point.coverage, point.n) for point in found.curve] == [(0.8, 0.25, 1), (0.6, 0.5, 2)]
    assert found.n == 4
    assert reliability(YES_NO, [True], [True], [[0.9, 0.1]], undecided=[True]).coverage_at(0.5) is None


def test_equal_confidences_are_one_threshold() -> None:
    curve = coverage_curve([0.8, 0.8, 0.9], [True, False, True])
    assert [(point.threshold, point.n, point.agreement.value) for point in curve] == [(0.9, 1, 1.0), (0.8, 3, pytest.approx(2 / 3))]


def test_wilsons_interval() -> None:
    found = wilson(8, 10)
    assert (found.value, round(found.low, 3), round(found.high, 3)) == (0.8, 0.490, 0.943)
    assert wilson(0, 5).low == 0.0


def test_scores_have_errors_of_value_and_mean() -> None:
    found = reliability(SCORE, [5, 1], [4, 1], [[0, 0, 0, 0.6, 0.4], [1, 0, 0, 0, 0]])
    assert (found.mae, found.mae_expected) == (0.5, pytest.approx(0.3))


# Fitting


def sampled(scale: Scale, n: int, *, sharp: float, bias: list[float], seed: int = 0) -> list[Case]:
    """Cases whose labels follow the model's probabilities after tempering by ``sharp`` and offsets."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, len(scale.labels)))
    told = np.log(softmax(logits))
    true = softmax(told * sharp + np.array(bias))
    labels = [rng.choice(len(scale.labels), p=row) for row in true]
    return [Case(tuple(np.eye(len(scale.labels))[label]), tuple(row), ()) for label, row in zip(labels, told, strict=True)]


def test_an_overconfident_model_is_trusted_less() -> None:
    decision = fitted(WORDS, sampled(WORDS, 600, sharp=0.4, bias=[0, 0, 0]), "trust")
    assert decision is not None
    assert decision.model_weight == pytest.approx(0.4, abs=0.12)
    assert (decision.offsets, decision.changes_values) == ((), False)


def test_offsets_undo_a_label_that_is_said_too_seldom() -> None:
    decision = fitted(WORDS, sampled(WORDS, 600, sharp=1.0, bias=[0, 0, 2.0]), "model")
    assert decision is not None
    assert decision.offsets[2] < decision.offsets[0] + 2.0, "labels weigh the same, so not the full bias of their frequency"
    assert sum(decision.offsets) == pytest.approx(0.0, abs=1e-9)
    lenient = [Case((0.0, 1.0), (math.log(0.9 - 0.02 * (i % 5)), math.log(0.1 + 0.02 * (i % 5))), ()) for i in range(20)]
    fair = [Case((1.0, 0.0), (math.log(0.97), math.log(0.03)), ()) for _ in range(20)]
    found = fitted(YES_NO, [*lenient, *fair], "model")
    assert found is not None
    assert stacked(YES_NO, {"yes": 0.86, "no": 0.14}, (), found)["no"] > 0.5


def test_a_model_that_is_wrong_way_round_gets_no_weight() -> None:
    cases = [
        Case((1.0, 0.0) if i % 2 else (0.0, 1.0), (math.log(0.2), math.log(0.8)) if i % 2 else (math.log(0.8), math.log(0.2)), ()) for i in range(40)
    ]
    assert fitted(YES_NO, cases, "whole").model_weight == 0.0  # type: ignore[union-attr]


def test_equal_labels_fit_nothing() -> None:
    assert fitted(YES_NO, [Case((1.0, 0.0), (-0.1, -2.0), ())] * 10, "whole") is None


def test_both_orders_leave_a_and_b_alike() -> None:
    cases = sampled(PAIR, 60, sharp=1.0, bias=[1.5, 0])
    found = fitted(PAIR, cases, "model", mirrored=True)
    assert found is not None
    assert found.offsets == pytest.approx((0.0, 0.0), abs=1e-6)
    one = fitted(PAIR, cases, "model")
    assert one is not None
    assert abs(one.offsets[0] - one.offsets[1]) > 0.3, "a position bias of one order is fitted away"


def test_folds_take_one_of_each_label() -> None:
    assert rounds([True, True, False, True, False]) == [[0, 2], [1, 4], [3]]
    assert rounds([]) == []


def trial(scale: Scale, cases: list[Case], values: list[Any]) -> Any:
    judged = []
    for place, (case, value) in enumerate(zip(cases, values, strict=True)):
        shares = dict(zip(scale.labels, np.exp(case.model or ()), strict=True))
        said = scale.value_of(max(shares, key=lambda label: shares[label]))
        judged.append(Judged(place=place, truth=value, said=said, shares=shares, bare=False))
    return tried(scale, cases, judged, mirrored=False)


def test_a_misleading_vote_takes_no_part() -> None:
    rng = random.Random(1)
    cases, values = [], []
    for number in range(40):
        value = bool(number % 2)
        yes = 0.85 if value else 0.15
        vote = rng.choice([-1.0, 1.0])
        values.append(value)
        cases.append(case_of(YES_NO, {value: 1.0}, {"yes": yes, "no": 1 - yes}, (vote / 2, -vote / 2)))
    found = trial(YES_NO, cases, values)
    assert found.after.accuracy == 1.0
    assert found.after.brier < found.before.brier
    assert found.decision.vote_weight < 0.3


def test_a_telling_vote_is_kept_and_helps() -> None:
    rng = random.Random(2)
    cases, values = [], []
    for number in range(40):
        value = bool(number % 2)
        yes = rng.uniform(0.3, 0.7)
        vote = (0.6 if value else -0.6) + rng.gauss(0, 0.2)
        values.append(value)
        cases.append(case_of(YES_NO, {value: 1.0}, {"yes": yes, "no": 1 - yes}, (vote / 2, -vote / 2)))
    found = trial(YES_NO, cases, values)
    assert found.decision.vote_weight > 0
    assert found.after.accuracy > 0.9 > found.before.accuracy
    assert found.note == ""


def test_noise_does_not_change_verdicts_in_silence() -> None:
    """Labels that nothing predicts: whatever is kept, falling behind the model alone is said."""
    for seed in range(12):
        rng = random.Random(seed)
        cases, values = [], []
        for _ in range(16):
            value, yes = rng.random() < 0.5, rng.uniform(0.2, 0.8)
            values.append(value)
            cases.append(case_of(YES_NO, {value: 1.0}, {"yes": yes, "no": 1 - yes}, ()))
        found = trial(YES_NO, cases, values)
        if found is not None and found.after.balanced_accuracy < found.before.balanced_accuracy:
            assert "does worse than the model alone" in found.note


# The vote on every scale


def vectors(n: int) -> Any:
    angle = np.linspace(0, math.pi / 2, n)
    return np.column_stack([np.cos(angle), np.sin(angle)]).astype(np.float32)


def wordless(_: str) -> str:
    return ""


def test_the_vote_on_scores_is_a_number_between_its_neighbours() -> None:
    rows = vectors(5)
    ballot = held(SCORE, {str(n): [(1.0, n + 1)] for n in range(5)}, lambda item: rows[int(item)], wordless)
    assert ballot is not None
    votes = [ballot.count("new", row, "", own=True)[0][0] for row in rows]
    assert votes == sorted(votes)
    assert votes[0] < -0.3 < 0.3 < votes[-1]
    near = ballot.count("new", (rows[3] + rows[4]) / np.linalg.norm(rows[3] + rows[4]), "", own=True)[0]
    assert max(zip(support(SCORE, near), SCORE.labels, strict=True))[1] in ("4", "5")


def test_the_vote_on_categories_names_the_cases_of_the_winner() -> None:
    rows = np.eye(3, dtype=np.float32)
    ballot = held(WORDS, {"0": [(1.0, "good")], "1": [(1.0, "fair")], "2": [(1.0, "poor")]}, lambda item: rows[int(item)], wordless)
    assert ballot is not None
    vote, carried = ballot.count("new", rows[1], "", own=True)
    assert int(np.argmax(support(WORDS, vote))) == 1
    assert carried[0] == "1"


def test_the_vote_without_its_own_case_is_what_refitting_without_it_and_its_twins_gives() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, 6))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    for scale, level in ((WORDS, 0.0), (SCORE, 1.0)):
        values = [scale.values[number % len(scale.values)] for number in range(12)]
        points = {str(number): point(scale, [(1.0, value)]) for number, value in enumerate(values)}
        ballot = cast(points, lambda item: rows[int(item)], wordless, level=level)
        from memalign.memory.vote import twins

        out = twins(rows, ballot.points, 4)
        rest = {key: value for key, value in points.items() if int(key) not in out}
        again = cast(rest, lambda item: rows[int(item)], wordless, level=level)
        assert ballot.left_out[4] == pytest.approx(np.array(again.count("4", rows[4], "", own=True)[0]), abs=1e-5)


def test_a_phrase_counts_that_the_embedding_does_not_tell_apart() -> None:
    texts = {"0": "Your parcel comes soon.", "1": "Your parcel comes on Monday.", "2": "We will call you soon.", "3": "We will call you on Monday."}
    alike = np.ones(4, dtype=np.float32) / 2
    said = {key: [(1.0, "Monday" in text)] for key, text in texts.items()}
    ballot = held(YES_NO, said, lambda _: alike, texts.__getitem__)
    assert ballot is not None
    votes = {day: ballot.count("new", alike, f"The lamp is sent {day}.", own=False)[0] for day in ("soon", "on Monday")}
    yes = YES_NO.labels.index("yes")
    assert votes["on Monday"][yes] > 0.05 > -0.05 > votes["soon"][yes]


def test_nothing_votes_on_pairs() -> None:
    assert held(PAIR, {"0": [(1.0, "a")]}, lambda item: np.ones(2), wordless) is None


# With a judge


def lenient(scale: Scale) -> Any:
    """Finds everything good, but tells that it finds some things less good; the item's number modulo 3 is the truth."""

    def answer(request: ChatRequest) -> Any:
        if request.purpose == "distil":
            return {"operations": []}
        number = int(request.messages[-1].content.split("reply ")[1].split()[0])
        worse = number % 3
        if scale.kind == "score":
            rows = [[0.02, 0.03, 0.05, 0.2, 0.7], [0.03, 0.07, 0.15, 0.3, 0.45], [0.15, 0.15, 0.15, 0.25, 0.3]]
        else:
            rows = [[0.9, 0.07, 0.03], [0.7, 0.25, 0.05], [0.6, 0.15, 0.25]]
        return told(dict(zip(scale.labels, rows[worse], strict=True)))

    return answer


@pytest.mark.parametrize("scale", [WORDS, Scale.categories("good", "fair", "poor", ordered=True), SCORE], ids=["nominal", "ordered", "score"])
def test_every_scale_is_calibrated(make_judge: MakeJudge, scale: Scale) -> None:
    truth = {0: 5, 1: 3, 2: 1} if scale.kind == "score" else dict(enumerate(WORDS.values))
    judge = make_judge(ScriptedChatModel(lenient(scale)), scale=scale, explain=False, k=0)
    judge.align([record(number, value=truth[number % 3]) for number in range(36)])
    news = [record(number, value=truth[number % 3]) for number in range(100, 130)]
    before = judge.evaluate(news).balanced_accuracy.value
    calibration = judge.calibrate(sample=30)
    after = judge.evaluate(news).balanced_accuracy.value
    assert calibration.judged == 30
    assert before == pytest.approx(1 / 3)
    assert after > 0.6
    assert calibration.after.brier < calibration.before.brier
    assert calibration.left_out > calibration.model_alone
    assert judge(outputs="reply 300").confidence is not None
    assert json.dumps(calibration.to_dict())
    covered = calibration.coverage_at(0.5)
    assert covered is not None
    assert 0 < covered.coverage <= 1


def reader(*, heeds: bool) -> Any:
    """Knows odd from even where it is told the rule and ``heeds`` it; else it guesses."""

    def answer(request: ChatRequest) -> Any:
        if request.purpose == "distil":
            return {"operations": [{"op": "add", "when": "a reply has a number", "decide": "require an even one", "because": "odd", "cases": [1]}]}
        number = int(request.messages[-1].content.split("reply ")[1].split()[0])
        knows = heeds and "even one" in request.messages[0].content
        yes = (0.9 if number % 2 == 0 else 0.1) if knows else 0.5 + random.Random(number).uniform(-0.3, 0.3)
        return told({"yes": yes, "no": 1 - yes})

    return answer


@pytest.mark.parametrize("heeds", [True, False])
def test_a_model_reads_guidelines_only_if_that_helps(make_judge: MakeJudge, heeds: bool) -> None:
    model = ScriptedChatModel(reader(heeds=heeds))
    judge = make_judge(model, explain=False, k=0)
    judge.align(
        [record(number, value=number % 2 == 0, rationale="An even number is required, not an odd one.") for number in range(24)], verify="off"
    )
    first = judge.memory.guidelines()[0]
    calls = len(model.requests)
    calibration = judge.calibrate(sample=20, ablate=True)
    assert len(model.requests) == calls + 40
    assert calibration.decision is not None
    assert calibration.decision.guidelines is heeds
    assert ("reading guidelines helps" in calibration.note) is heeds
    assert ("does not help this model" in calibration.note) is not heeds
    verdict = judge(outputs="reply 300")
    assert (verdict.guideline_ids == (first.id,)) is heeds
    assert ("even one" in model.requests[-1].messages[0].content) is heeds
    judge.memory.pin(first.id)  # an expert's own word is always read
    assert judge(outputs="reply 300").guideline_ids == (first.id,)
    assert judge.batch([record(301).item], memory="guidelines")[0].guideline_ids == (first.id,)
    if not heeds:
        judge.memory.unpin(first.id)
        assert judge(outputs="reply 300").guideline_ids == ()
        judge.calibrate(sample=20)  # without ablation, as for hosted models: guidelines are read
        assert judge(outputs="reply 300").guideline_ids == (first.id,)


def test_a_model_without_probabilities_is_calibrated_on_its_bare_labels(make_judge: MakeJudge) -> None:
    def answer(request: ChatRequest) -> Any:
        if request.purpose == "distil":
            return {"operations": []}
        return "no" if request.messages[-1].content.split("reply ")[1].split()[0].endswith("0") else "yes"

    judge = make_judge(ScriptedChatModel(answer), explain=False, k=0)
    judge.align([record(number, value=number % 10 != 0) for number in range(40)])
    calibration = judge.calibrate()
    assert calibration.decision.votes == 1
    assert calibration.before.brier == 0.0, "a bare label claims certainty, and here it is right"
    verdict = judge(outputs="reply 501", abstain_below=0.5)
    assert (verdict.value, verdict.abstained, verdict.votes) == (True, False, 1)
    assert verdict.confidence > 0.5


def test_calibration_with_votes_is_followed_by_judgements_with_as_many(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(lambda request: {"operations": []} if request.purpose == "distil" else "yes" if request.seed % 2 else "no")
    judge = make_judge(model, explain=False, k=0)
    judge.align([record(number, value=bool(number % 2)) for number in range(10)])
    calibration = judge.calibrate(votes=3)
    assert calibration.decision.votes == 3
    model.requests.clear()
    verdict = judge(outputs="something else")
    assert (verdict.votes, len(model.requests)) == (3, 3)
    assert verdict.confidence is not None


@pytest.mark.parametrize("sample", [-1, 0, 7])
def test_a_sample_too_small_to_fit_anything_is_refused_and_not_blamed_on_memory(make_judge: MakeJudge, sample: int) -> None:
    model = ScriptedChatModel(lambda _: "yes")
    judge = make_judge(model, explain=False)
    judge.align([record(number, value=number % 2 == 0) for number in range(12)])
    with pytest.raises(ConfigurationError, match=f"a sample of {sample} is too small"):
        judge.calibrate(sample=sample)
    assert model.requests == []


def test_calibration_with_other_votes_than_the_judge_counts_is_refused_before_any_call(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(lambda _: "yes")
    judge = make_judge(model, explain=False, votes=3)
    judge.align([record(number, value=number % 2 == 0) for number in range(12)])
    with pytest.raises(ConfigurationError, match="counts 3 replies"):
        judge.calibrate(votes=5)
    assert (model.requests, len(judge.memory.history())) == ([], 1)
    assert judge.calibrate().decision == judge.calibrate(votes=3).decision


def test_what_was_fitted_on_one_model_does_not_hold_for_another(make_judge: MakeJudge, db: str) -> None:
    scale = WORDS
    judge = make_judge(ScriptedChatModel(lenient(scale), name="local/one"), scale=scale, explain=False, k=0, memory=db)
    judge.align([record(number, value=WORDS.values[number % 3]) for number in range(36)])
    judge.calibrate()
    assert judge(outputs="reply 2 new").value == "poor"
    judge.close()
    other = make_judge(ScriptedChatModel(lenient(scale), name="local/two"), scale=scale, explain=False, k=0, memory=db)
    assert other(outputs="reply 2 new").value == "good"
    assert Decision(model="a", offsets=(1.0,), cases=3).of("b") == Decision(cases=3)


def test_pairs_are_calibrated_in_both_orders(make_judge: MakeJudge) -> None:
    def answer(request: ChatRequest) -> Any:
        if request.purpose == "distil":
            return {"operations": []}
        better_first = "a: better" in request.messages[-1].content
        return told({"A": 0.9, "B": 0.1} if better_first else {"A": 0.6, "B": 0.4})

    judge = make_judge(ScriptedChatModel(answer), scale=PAIR, explain=False, k=0)
    records = [
        record(n, outputs={"a": f"better {n}", "b": f"worse {n}"} if n % 2 else {"a": f"worse {n}", "b": f"better {n}"}, value="a" if n % 2 else "b")
        for n in range(20)
    ]
    judge.align(records)
    news = [record(99, outputs={"a": "worse x", "b": "better x"}, value="b")]
    assert judge.evaluate(news).abstained == 1, "the orders disagree"
    calibration = judge.calibrate()
    assert calibration.decision.offsets in ((), (0.0, 0.0)) or calibration.decision.offsets == pytest.approx((0.0, 0.0), abs=1e-6)
    assert calibration.after.accuracy == 1.0


@pytest.mark.parametrize("seed", range(8))
def test_interchangeable_outputs_have_no_offset_at_all(seed: int) -> None:
    chance = random.Random(seed)
    shares = [chance.uniform(0.05, 0.95) for _ in range(40)]
    cases = [case_of(PAIR, {"a" if chance.random() < share else "b": 1.0}, {"A": share, "B": 1 - share}, ()) for share in shares]
    decision = fitted(PAIR, cases, "model", mirrored=True)
    assert decision is not None
    assert decision.offsets == (0.0, 0.0)
    assert not decision.changes_values


def test_pairs_whose_orders_disagree_are_not_covered_where_the_judge_abstains(make_judge: MakeJudge) -> None:
    """Knows the better one of odd pairs, and prefers the first of the others."""

    def answer(request: ChatRequest) -> Any:
        if request.purpose == "distil":
            return {"operations": []}
        first = "a: better" in request.messages[-1].content or not int(request.messages[-1].content.split("question ")[1].split()[0]) % 2
        return told({"A": 0.9, "B": 0.1} if first else {"A": 0.1, "B": 0.9})

    def pair(n: int) -> Any:
        sides = (f"better {n}", f"worse {n}")
        return record(n, outputs=dict(zip("ab", sides if n % 4 < 2 else sides[::-1], strict=True)), value="a" if n % 4 < 2 else "b")

    judge = make_judge(ScriptedChatModel(answer), scale=PAIR, explain=False, k=0)
    judge.align([pair(n) for n in range(40)])
    calibration = judge.calibrate()
    served = judge.evaluate([pair(n) for n in range(100, 140)])
    assert served.abstained == (0 if calibration.decision.changes_values else 20)
    assert calibration.before.curve[-1].coverage == 0.5
    assert calibration.after.curve[-1].coverage == served.coverage == 0.5


def test_scores_are_calibrated_as_they_are_read(make_judge: MakeJudge) -> None:
    """The likeliest score is right, the mean is in the middle: where the judge gives the mean, no confidence can be relied on."""

    def answer(request: ChatRequest) -> Any:
        if request.purpose == "distil":
            return {"operations": []}
        low = int(request.messages[-1].content.split("reply ")[1].split()[0]) % 2
        return told(dict(zip(SCORE.labels, [0.5, 0.02, 0.02, 0.02, 0.44] if low else [0.44, 0.02, 0.02, 0.02, 0.5], strict=True)))

    judge = make_judge(ScriptedChatModel(answer), scale=SCORE, explain=False, k=0, expected_score=True)
    judge.align([record(n, value=1 if n % 2 else 5) for n in range(30)])
    news = [record(n, value=1 if n % 2 else 5) for n in range(100, 130)]
    before = judge.evaluate(news)
    calibration = judge.calibrate(sample=30)
    after = judge.evaluate(news)
    assert (calibration.before.accuracy, calibration.before.mae) == (before.accuracy.value, before.mae.value) == (0.0, 2.0)
    assert calibration.after.accuracy == after.accuracy.value
    assert calibration.after.mae == pytest.approx(after.mae.value, abs=0.3)


def test_calibration_asks_at_the_judges_temperature(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(heeds_the_boss)
    judge = make_judge(model, explain=False, k=0, temperature=0.8)
    judge.align([record(n, value=n % 2 == 0) for n in range(12)])
    model.requests.clear()
    judge.calibrate()
    assert {request.temperature for request in model.requests} == {0.8}


def test_an_annotator_counts_by_weight_in_the_vote() -> None:
    near = np.array([1.0, 0.0])
    said = {"0": [(1.0, 1), (3.0, 5)], "1": [(0.0, 5)]}
    ballot = held(SCORE, said, lambda _: near, wordless)
    assert ballot is not None
    assert list(ballot.place) == ["0"]  # an annotator of weight 0 is not heard
    assert ballot.points[0] == pytest.approx((1 * -1 + 3 * 1) / 4)


def heeds_the_boss(request: ChatRequest) -> Any:
    """Says of a reply what the boss says: yes of even numbers."""
    if request.purpose == "distil":
        return {"operations": []}
    yes = 0.1 if int(request.messages[-1].content.split("reply ")[1].split()[0]) % 2 else 0.9
    return told({"yes": yes, "no": 1 - yes})


@pytest.mark.parametrize("temp", [0.0, 1.0])
def test_labels_count_by_weight_when_the_judge_is_calibrated(make_judge: MakeJudge, temp: float) -> None:
    judge = make_judge(ScriptedChatModel(heeds_the_boss), explain=False, k=0, weights={"boss": 5, "temp": temp})
    judge.align([record(n, value=(n % 2 == 0) == (who == "boss"), annotator=who) for n in range(20) for who in ("boss", "temp")])
    calibration = judge.calibrate()
    assert (calibration.judged, calibration.model_alone) == (20, 1.0)
    assert calibration.decision.model_weight > 0.5


def test_labels_of_no_weight_are_no_ground_for_calibration(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(heeds_the_boss)
    judge = make_judge(model, explain=False, k=0, weights={"temp": 0})
    judge.align([record(n, value=n % 2 == 0, annotator="temp" if n < 15 else "boss") for n in range(20)])
    model.requests.clear()
    assert judge.calibrate().note.startswith("5 labelled records can be judged")
    assert model.requests == []


def test_an_item_is_as_its_experts_label_it_by_weight() -> None:
    assert case_of(YES_NO, {True: 3.0, False: 1.0}, None, ()).label == (0.75, 0.25)


def test_weights_are_settings_of_the_judge(make_judge: MakeJudge, db: str) -> None:
    judge = make_judge(memory=db, weights={"ann": 2.0, "ben": 0})
    judge.memory.view()
    assert (judge.memory.weight("ann"), judge.memory.weight("ben"), judge.memory.weight("cat")) == (2.0, 0.0, 1.0)
    assert judge_settings(judge.memory.store, "polite")["weights"] == {"ann": 2.0, "ben": 0}
    with pytest.raises(ConfigurationError, match="weights must be numbers from 0"):
        make_judge(weights={"ann": -1})
