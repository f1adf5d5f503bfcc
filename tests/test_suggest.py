"""What to label next."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

from conftest import MakeJudge, record
from memalign import ConfigurationError, Failure, Item, Scale, labelling
from memalign.alignment import record as store_feedback
from memalign.labelling import chosen, doubt, near, nearest, spread, value_of_asking
from memalign.models import ChatReply, ChatRequest, TokenLogprobs
from memalign.models.scripted import ScriptedChatModel

YES_NO, SCORE = Scale.boolean(), Scale.score(1, 5)


def told(yes: float) -> ChatReply:
    top = (("yes", math.log(yes)), ("no", math.log(1 - yes)))
    label = "yes" if yes >= 0.5 else "no"
    return ChatReply(text=label, logprobs=(TokenLogprobs(label, dict(top)[label], top),))


def unit(*rows: list[float]) -> Any:
    found = np.array(rows, dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


# Pure


def test_spread_is_of_labels_or_of_numbers() -> None:
    assert spread(YES_NO, np.array([[0.5, 0.5], [1.0, 0.0]])) == pytest.approx([1.0, 0.0])
    near_miss, far = spread(SCORE, np.array([[0, 0, 0, 0.5, 0.5], [0.5, 0, 0, 0, 0.5]]))
    assert near_miss < 0.1 < far == pytest.approx(1.0)


def test_doubt_of_a_confidence() -> None:
    assert [doubt(YES_NO, share) for share in (1.0, 0.75, 0.5, 0.3)] == [0.0, 0.5, 1.0, 1.0]


def test_near_cases_that_differ_contest_an_item() -> None:
    cases = unit([1, 0.1], [1, -0.1], [-1, 0.0])
    found = near(YES_NO, unit([1, 0], [-1, 0.1], [0, 1]), cases, [[True], [False], [True]])
    assert found.contested[0] > 0.9
    assert found.contested[1] < 0.1
    assert found.distance[2] > 0.8
    assert list(found.places[0][:2]) in ([0, 1], [1, 0])
    empty = near(YES_NO, unit([1, 0]), None, [])
    assert (empty.distance[0], empty.contested[0], empty.places.shape) == (1.0, 0.0, (1, 0))


@pytest.mark.parametrize("compared", [1, 100, 4_000_000])
@pytest.mark.parametrize("count", [1, 5, 40, 60])
def test_the_nearest_by_blocks_are_those_of_a_stable_sort(monkeypatch: pytest.MonkeyPatch, compared: int, count: int) -> None:
    """Small whole numbers: products are exact, and many are equal."""
    monkeypatch.setattr(labelling, "MOST_COMPARED", compared)
    rng = np.random.default_rng(0)
    items, cases = (rng.integers(-1, 2, size=(rows, 4)).astype(np.float32) for rows in (23, 40))
    similarity = np.maximum(items @ cases.T, 0.0)
    plain = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    places, closeness = nearest(items, cases, count)
    assert places.tolist() == plain.tolist()
    assert closeness.tolist() == np.take_along_axis(similarity, plain, axis=1).tolist()


def test_a_large_memory_is_compared_within_bounds() -> None:
    rng = np.random.default_rng(0)
    items, cases = (rng.normal(size=(rows, 8)).astype(np.float32) for rows in (500, 50_000))
    tracemalloc.start()
    try:
        nearest(items, cases, 5)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000, "all at once: 200 MB for each copy"
    finally:
        tracemalloc.stop()


def test_what_is_chosen_is_typical_and_not_the_same_twice() -> None:
    crowd = [[1, 0.01 * n, 0] for n in range(6)]
    vectors = unit(*crowd, [0, 1, 0], [0, 1, 0.05], [0, 0, 1])
    value = np.ones(len(vectors))
    picked = [place for place, _ in chosen(vectors, value, np.ones(len(vectors)), 3)]
    assert [place < 6 for place in picked] == [True, False, False]
    assert picked[1] in (6, 7)
    assert picked[2] == 8
    gains = [gain for _, gain in chosen(vectors, value, np.ones(len(vectors)), 9)]
    assert gains == sorted(gains, reverse=True)
    assert sum(gains) == pytest.approx(1.0, abs=1e-3)


def test_what_memory_knows_is_not_asked_again() -> None:
    vectors = unit([1, 0, 0], [0.99, 0.1, 0], [0, 1, 0])
    distance = np.array([0.0, 0.01, 1.0])
    value = value_of_asking(np.zeros(3), np.zeros(3), distance)
    assert chosen(vectors, value, distance, 1)[0][0] == 2


def test_a_large_pool_is_sampled_and_the_same_at_every_call() -> None:
    rng = np.random.default_rng(0)
    vectors = unit(*rng.normal(size=(5000, 8)).tolist())
    value = rng.random(5000)
    first = chosen(vectors, value, np.ones(5000), 5)
    assert first == chosen(vectors, value, np.ones(5000), 5)
    assert len({place for place, _ in first}) == 5


# With a judge


def items(*texts: str) -> list[Item]:
    return [Item(outputs=text) for text in texts]


def test_without_calls_nothing_is_asked_and_what_memory_holds_is_left_out(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(lambda request: {"operations": []} if request.purpose == "distil" else "yes")
    judge = make_judge(model, explain=False)
    judge.align([record(1, outputs="we are sorry for the delay", value=True), record(2, outputs="we are sorry for the long delay", value=False)])
    model.requests.clear()
    held = record(1, outputs="we are sorry for the delay").item
    found = judge.suggest([held, *items("we are sorry for the big delay", "buy now", "buy now", "sorry for the delay today")], n=9)
    assert model.requests == []
    assert sorted(suggestion.place for suggestion in found) == [1, 2, 4], "no record of memory, and equal items once"
    assert found[0].score >= found[-1].score
    contested = next(suggestion for suggestion in found if suggestion.place == 1)
    assert contested.parts["contested"] > 0.5
    assert any("experts judged similar cases differently" in reason for reason in contested.reasons)
    assert set(contested.similar_ids) == {record(1, outputs="we are sorry for the delay").id, record(2, outputs="we are sorry for the long delay").id}
    far = next(suggestion for suggestion in found if suggestion.place == 2)
    assert any("little in memory resembles it" in reason for reason in far.reasons)
    assert json.dumps([suggestion.to_dict() for suggestion in found])


def test_what_an_expert_judged_and_no_alignment_learned_yet_is_left_out_as_well(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1)])
    store_feedback(judge.memory, [record(2)])
    assert [found.item.inputs for found in judge.suggest([record(number).item for number in (1, 2, 3)])] == ["question 3"]


def test_logged_confidence_counts_and_fresh_ones_stay_within_the_budget(make_judge: MakeJudge) -> None:
    def answer(request: ChatRequest) -> Any:
        return told(0.55 if "odd" in request.messages[-1].content else 0.98)

    model = ScriptedChatModel(answer)
    judge = make_judge(model, explain=False)
    pool = items("an odd thing entirely", "plain words here", "other words there", "something else again")
    judge(outputs="an odd thing entirely")
    judge(outputs="plain words here")
    model.requests.clear()
    found = judge.suggest(pool, n=4)
    assert model.requests == []
    assert found[0].place == 0
    assert found[0].confidence == pytest.approx(0.55)
    assert "the judge's confidence is 0.55" in found[0].reasons
    judge.suggest(pool, n=4, calls=1)
    assert len(model.requests) == 1
    judge.suggest(pool, n=4, calls=10)
    assert len(model.requests) == 2, "only those without a verdict are judged"
    assert all(suggestion.confidence is not None for suggestion in judge.suggest(pool, n=4))
    assert len(model.requests) == 2


def test_a_judgement_that_fails_leaves_the_item_without_confidence(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(lambda request: "nonsense"), explain=False)
    found = judge.suggest(items("one thing", "another"), n=2, calls=2)
    assert [suggestion.confidence for suggestion in found] == [None, None]
    assert isinstance(judge.batch(items("one thing"))[0], Failure)


@pytest.mark.parametrize(("calls", "spent", "known"), [(1, 1, 0), (5, 1, 0), (6, 6, 1), (20, 16, 3), (100, 21, 4)])
def test_where_the_model_tells_no_probabilities_votes_are_counted_within_the_budget(
    make_judge: MakeJudge, calls: int, spent: int, known: int
) -> None:
    """One call shows that it tells none; then five an item."""
    model = ScriptedChatModel(lambda request: "yes" if request.seed % 2 else "no")
    judge = make_judge(model, explain=False)
    found = judge.suggest(items("an odd thing", "plain words here", "other words there", "something else"), n=4, calls=calls)
    assert len(model.requests) == spent <= calls
    assert sum(suggestion.confidence is not None for suggestion in found) == known


def test_both_orders_of_a_pair_are_two_calls_of_the_budget(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(lambda request: "A")
    judge = make_judge(model, explain=False, scale=Scale.pairwise(), both_orders=True)
    pool = [Item(outputs={"a": f"one {n}", "b": f"other {n}"}) for n in range(4)]
    judge.suggest(pool, calls=1)
    assert model.requests == []
    found = judge.suggest(pool, calls=5)
    assert len(model.requests) == 4
    assert sum(suggestion.confidence is not None for suggestion in found) == 2


def test_empty_memory_empty_pool_and_wrong_settings(make_judge: MakeJudge) -> None:
    judge = make_judge()
    assert judge.suggest([]) == []
    assert "memory is empty" in judge.suggest(items("one"), n=3)[0].reasons
    with pytest.raises(ConfigurationError, match="n >= 1"):
        judge.suggest(items("one"), n=0)
    with pytest.raises(ConfigurationError, match="calls >= 0"):
        judge.suggest(items("one"), calls=-1)
    judge.align([record(1)])
    assert judge.suggest([record(1)]) == [], "all of it is labelled"


def test_once_calibrated_the_cases_vote_tells_uncertainty_without_calls(make_judge: MakeJudge) -> None:
    def answer(request: ChatRequest) -> Any:
        return {"operations": []} if request.purpose == "distil" else told(0.6)

    model = ScriptedChatModel(answer)
    judge = make_judge(model, explain=False, k=0)
    words = {True: "kind warm thanks", False: "rude cold blame"}
    judge.align([record(n, outputs=f"{words[bool(n % 2)]} {n}", value=bool(n % 2)) for n in range(20)])
    assert judge.calibrate().decision.vote_weight > 0
    model.requests.clear()
    found = {s.place: s for s in judge.suggest(items("kind warm thanks indeed", "kind rude thanks blame"), n=2)}
    assert model.requests == []
    assert found[1].parts["uncertainty"] > found[0].parts["uncertainty"]
