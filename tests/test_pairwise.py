"""Two outputs in both orders."""

from __future__ import annotations

import math
from typing import Any

import pytest

from conftest import MakeJudge, record
from memalign import Item, Scale
from memalign.memory.revisions import Decision
from memalign.models import ChatReply, ChatRequest, TokenLogprobs
from memalign.models.scripted import ScriptedChatModel
from memalign.pairwise import mirrored, position_bias, swapped
from memalign.verdicts import Answer, settled

TIE, NO_TIE = Scale.pairwise(), Scale.pairwise(tie=False)
PAIR = {"a": "the long reply", "b": "the short reply"}


def told(label: str, a: float) -> ChatReply:
    top = (("A", math.log(a)), ("B", math.log(1 - a)))
    return ChatReply(text=label, logprobs=(TokenLogprobs(label, dict(top)[label], top),))


def longer(request: ChatRequest) -> str:
    """Prefers the long reply, wherever it stands."""
    return "A" if "a: the long" in request.messages[-1].content else "B"


def first(request: ChatRequest) -> str:
    return "A"


def test_swapping_is_its_own_inverse() -> None:
    assert [swapped(value) for value in ("a", "b", "tie")] == ["b", "a", "tie"]
    item = Item(inputs="q", outputs=PAIR)
    other = mirrored(item)
    assert other is not None
    assert other.outputs == {"a": PAIR["b"], "b": PAIR["a"]}
    assert mirrored(other) == item
    assert mirrored(Item(outputs="A: x, B: y")) is None
    assert mirrored(Item(outputs={"a": 1, "b": 2, "c": 3})) is None


def test_both_orders_share_the_prefix_and_agree(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(longer)
    judge = make_judge(model, scale=TIE, explain=False, k=3, floor=-1.0)
    judge.align([record(number, outputs={"a": f"x {number}", "b": f"y {number}"}, value="a") for number in range(3)])
    model.requests.clear()
    verdict = judge(outputs=PAIR)
    assert (verdict.value, verdict.orders, len(model.requests)) == ("a", ("a", "a"), 2)
    given, other = (request.messages for request in model.requests)
    assert given[:-1] == other[:-1], "all but the item can be served from the cache"
    assert given[-1].content.split("\n")[1:-1] == ["a: the long reply", "b: the short reply"]
    assert other[-1].content.split("\n")[1:-1] == ["a: the short reply", "b: the long reply"]


def test_where_the_orders_disagree_it_is_a_tie_or_an_abstention(make_judge: MakeJudge) -> None:
    tied = make_judge(ScriptedChatModel(first), scale=TIE, explain=False)(outputs=PAIR)
    assert (tied.value, tied.orders, tied.abstained) == ("tie", ("a", "b"), False)
    left = make_judge(ScriptedChatModel(first), scale=NO_TIE, explain=False)(outputs=PAIR)
    assert (left.value, left.orders, left.abstained) == ("a", ("a", "b"), True)
    assert make_judge(ScriptedChatModel(first), scale=TIE, explain=False)(outputs=PAIR, abstain_below=0.5).abstained is True


def test_token_probabilities_of_both_orders_are_averaged(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel([told("A", 0.9), told("B", 0.4)])
    verdict = make_judge(model, scale=NO_TIE, explain=False)(outputs=PAIR)
    assert (verdict.value, verdict.votes, verdict.abstained) == ("a", 0, False)
    assert verdict.probabilities == {"A": pytest.approx(0.75), "B": pytest.approx(0.25)}
    assert verdict.confidence == pytest.approx(0.75)


def test_votes_come_in_both_orders(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(longer)
    verdict = make_judge(model, scale=TIE, explain=False)(outputs=PAIR, votes=5)
    assert (verdict.value, verdict.votes, len(model.requests)) == ("a", 6, 6)
    assert sum("a: the long" in request.messages[-1].content for request in model.requests) == 3


@pytest.mark.parametrize(
    ("settings", "outputs", "calls"),
    [({"both_orders": False}, PAIR, 1), ({}, PAIR, 2), ({}, "A: one text, B: another", 1), ({"model": "local"}, PAIR, 1)],
)
def test_how_often_it_asks(make_judge: MakeJudge, settings: dict[str, Any], outputs: Any, calls: int) -> None:
    model = ScriptedChatModel(first, name="local/scripted" if settings.pop("model", "") else "scripted/model")
    verdict = make_judge(model, scale=TIE, explain=False, **settings)(outputs=outputs)
    assert len(model.requests) == calls
    assert verdict.value == ("tie" if calls == 2 else "a")


def test_the_items_own_case_is_turned_with_it_and_a_pair_judged_in_the_other_order_is_the_item(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(longer)
    judge = make_judge(model, scale=TIE, explain=False, k=2, floor=-1.0)
    judge.align([record(1, "A is longer", inputs="q", outputs=PAIR, value="a"), record(2, outputs={"a": "other", "b": "words"}, value="b")])
    model.requests.clear()
    judge(inputs="q", outputs=PAIR)
    given, other = (request.messages for request in model.requests)
    assert [message.content for message in given if message.role == "assistant"] == ["B", "A"]
    assert [message.content for message in other if message.role == "assistant"] == ["B", "B"]
    assert "b: the long reply" in other[-3].content
    model.requests.clear()
    verdict = judge(inputs="q", outputs={"a": PAIR["b"], "b": PAIR["a"]})
    assert [message.content for message in model.requests[0].messages if message.role == "assistant"] == ["B", "B"], "known, turned round"
    assert record(1, inputs="q", outputs=PAIR, value="a").id in verdict.episode_ids
    model.requests.clear()
    judge.batch([Item(inputs="q", outputs={"a": PAIR["b"], "b": PAIR["a"]})], own=False)
    assert [message.content for message in model.requests[0].messages if message.role == "assistant"] == ["B"], "hidden in an evaluation, turned too"


def test_position_bias_is_reported(make_judge: MakeJudge) -> None:
    records = [record(number, outputs={"a": f"x {number}", "b": f"y {number}"}, value="a") for number in range(4)]
    found = make_judge(ScriptedChatModel(first), scale=TIE, explain=False).evaluate(records).position_bias
    assert found is not None
    assert (found.pairs, found.consistent, found.first, found.second, found.bias) == (4, 0, 8, 0, 1.0)
    agreement = make_judge(ScriptedChatModel(first), scale=TIE, explain=False).evaluate(records)
    assert "both orders agree on 0 of 4 pairs; the output shown first won 8 times, the second 0 (position bias +1.00)" in agreement.lines()
    assert agreement.to_dict()["position_bias"]["consistency"] == 0.0
    assert position_bias([("a", "a"), ("b", "b"), ("tie", "tie"), None]).bias == 0.0  # type: ignore[union-attr]
    assert position_bias([None]) is None
    assert make_judge(ScriptedChatModel(first), scale=TIE, explain=False, both_orders=False).evaluate(records).position_bias is None


def test_what_was_fitted_decides_where_orders_disagree() -> None:
    said = [Answer("a", "", None), Answer("b", "", None, swapped=True)]
    assert settled(TIE, said, decision=Decision()).value == "tie"
    assert settled(TIE, said, decision=Decision(votes=2, offsets=(1.0, 0.0, 0.0))).value == "a"
    reading = settled(NO_TIE, said, decision=Decision(votes=2, offsets=(1.0, 0.0)))
    assert (reading.value, reading.disputed) == ("a", False)
