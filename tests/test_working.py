"""Working memory: what a judgement reads when not everything fits, and what is said of the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from conftest import MakeJudge, record
from memalign import Episode, Guideline, Item, Scale, Verdict, edge, judging
from memalign.embedders.scripted import HashEmbedder
from memalign.recalling import Recall
from memalign.routing import core, route
from memalign.working import CHARACTERS_PER_TOKEN, Task, assemble

TASK = Task(instructions="Is it polite?", scale=Scale.boolean(), explain=True, secret="s", budget_tokens=400, guideline_tokens=50)


def rule(number: int, *, size: int = 40, pinned: bool = False, utility: float | None = None, cases: int = 1) -> Guideline:
    text = f"Rule {number} ".ljust(size, "x")
    return Guideline(id=f"g{number}", version=1, text=text, pinned=pinned, utility=utility, evidence_for=tuple(map(str, range(cases))))


def case(number: int, size: int = 100) -> Episode:
    return Episode(feedback=record(number, "because " + "r" * size, outputs="o" * size))


def test_everything_stands_in_the_system_part_when_it_fits() -> None:
    rules = [rule(n) for n in range(5)]
    found = assemble(TASK, Item(outputs="hello"), rules)
    assert all(r.text in found.messages[0].content for r in rules)
    assert (len(found.messages), found.left_out) == (2, ())
    assert found.guideline_ids == tuple(r.id for r in rules)


def test_beyond_the_budget_the_core_stays_and_the_relevant_come_with_the_item() -> None:
    rules = [rule(n) for n in range(10)] + [rule(10, pinned=True), rule(11, cases=9)]
    near = assemble(TASK, Item(outputs="hello"), rules, relevance={f"g{n}": n / 10 for n in range(10)})
    far = assemble(TASK, Item(outputs="other"), rules, relevance={f"g{n}": -n / 10 for n in range(10)})
    assert near.messages[0] == far.messages[0]  # the same prefix for every item
    assert "Rule 10" in near.messages[0].content
    assert "Rule 11" in near.messages[0].content
    assert near.messages[-1].content.index("Rule 8") < near.messages[-1].content.index("Rule 9") < near.messages[-1].content.index("<item")
    assert "Rule 9" not in far.messages[-1].content
    shown = sum(len(r.text) for r in rules if r.id in near.guideline_ids)
    assert shown <= TASK.guideline_tokens * CHARACTERS_PER_TOKEN
    assert {left.id for left in near.left_out} == {r.id for r in rules} - set(near.guideline_ids)
    assert all(left.kind == "guideline" and "50 tokens" in left.reason for left in near.left_out)


def test_the_core_prefers_pinned_then_useful_then_well_supported_ones() -> None:
    rules = [rule(1), rule(2, cases=5), rule(3, utility=2.0), rule(4, pinned=True)]
    assert [g.id for g in core(rules, 160)] == ["g3", "g4"]
    assert [g.id for g in core(rules, 240)] == ["g2", "g3", "g4"]


def test_a_guideline_without_relevance_is_not_chosen_but_named() -> None:
    routed = route([rule(n) for n in range(10)], {}, 100)
    assert routed.chosen == ()
    assert len(routed.core) + len(routed.left) == 10


def test_long_cases_are_cut_and_the_least_similar_dropped_but_never_the_item() -> None:
    task, item = TASK, Item(outputs="i" * 20_000)
    cases = [case(n, 900) for n in range(12)]
    found = assemble(task, item, similar=cases)
    turns = found.messages[1:-1]
    assert sum(len(turn.content) for turn in turns) < task.budget_tokens * CHARACTERS_PER_TOKEN * 1.5
    assert "i" * 20_000 in found.messages[-1].content
    kinds = [left.kind for left in found.left_out]
    assert kinds.count("case") == 12 - len(found.episode_ids) == 8
    assert kinds.count("part of case") == len(found.episode_ids)
    assert found.episode_ids[-1] == cases[-1].feedback.id  # the most similar is last, and stays


@pytest.mark.parametrize("long_part", ["item", "reason"])
def test_item_and_reason_share_the_room_of_a_case(long_part: str) -> None:
    fields = {"outputs": "o" * 9000, "reason": "short"} if long_part == "item" else {"outputs": "short", "reason": "r" * 9000}
    long = Episode(feedback=record(1, fields["reason"], outputs=fields["outputs"]))
    found = assemble(TASK, Item(outputs="hello"), similar=[long])
    assert sum(len(turn.content) for turn in found.messages[1:-1]) < TASK.budget_tokens * CHARACTERS_PER_TOKEN * 1.1
    assert "short" in found.messages[1].content + found.messages[2].content


def test_the_estimate_counts_every_part() -> None:
    found = assemble(TASK, Item(outputs="hello" * 100), [rule(1)], similar=[case(1)])
    assert set(found.tokens) == {"system", "cases", "guidelines", "item"}
    total = sum(len(message.content) for message in found.messages)
    assert abs(sum(found.tokens.values()) * CHARACTERS_PER_TOKEN - total) < 20
    assert found.tokens["guidelines"] == 0


def test_a_verdict_says_how_it_came_about(make_judge: MakeJudge) -> None:
    judge = make_judge(k=2)
    judge.align([record(1, "Name a date"), record(2, "Say sorry"), record(3, "Sign it")])
    verdict = judge(inputs="question 1", outputs="reply 1")
    trace = verdict.trace
    assert trace is not None
    assert trace.similarity[verdict.episode_ids[-1]] == 1.0  # its own case
    assert set(trace.similarity) == set(verdict.episode_ids)
    assert {"search", "assemble", "queue", "model", "read"} <= set(trace.seconds)
    assert all(seconds >= 0 for seconds in trace.seconds.values())
    told = verdict.explain()
    assert f"{verdict.episode_ids[-1]} (1.00)" in told
    assert "guidelines: g1, g2, g3" in told
    assert verdict.to_dict()["trace"]["tokens"]["item"] > 0


def test_guidelines_beyond_their_room_are_routed_by_what_the_item_says(make_judge: MakeJudge) -> None:
    judge = make_judge(embedder=HashEmbedder(1024))
    judge.align([record(number, f"mention subject{number}") for number in range(20)])
    about = {g.text.split()[-1].rstrip("."): g.id for g in judge.memory.guidelines()}
    assert len(about) == 20
    task = replace(judge.task, guideline_tokens=100)

    def verdict(number: int, part: Literal["both", "guidelines"]) -> Verdict:
        item, recall = Item(outputs=" ".join([f"subject{number}"] * 9)), Recall(k=0, floor=0.0, part=part)
        return edge.run(judging.judge(judge.session, task, item, recall, temperature=0.0))

    for number in (17, 18):
        found = verdict(number, "both")
        assert found.guideline_ids[-1] == about[f"subject{number}"]
        assert found.trace is not None
        assert len(found.guideline_ids) + len(found.trace.left_out) == 20
        assert "left out: guideline g" in found.explain()
        assert verdict(number, "guidelines").guideline_ids == found.guideline_ids
