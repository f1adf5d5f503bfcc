"""Alignment: no record is lost, none is learned twice, and nothing stands that should have gone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from conftest import MakeJudge, add, distilled, expert, record, related, says, shown_cases, shown_guidelines, support
from memalign import Judge, edge
from memalign.alignment import record as store
from memalign.alignment.operations import check, guideline_text, parse
from memalign.embedders.scripted import HashEmbedder
from memalign.errors import BadRecord, ConfigurationError, EmbeddingError, ModelRefused, ModelUnavailable, NotFound, UnreadableReply
from memalign.memory import episodic
from memalign.models import ChatReply, ChatRequest
from memalign.models.scripted import ScriptedChatModel
from memalign.stores import open_store, schema

pytestmark = pytest.mark.both_stores

# Aligns records from the first number up to, but not with, the last, with a model that takes a while.
ALIGN_ELSEWHERE = """
import sys, time
from pathlib import Path
path, tests, delay, go, first, last = sys.argv[1:]
sys.path.insert(0, tests)
from conftest import expert, record
from memalign import Judge, Scale
from memalign.embedders.scripted import HashEmbedder
from memalign.models.scripted import ScriptedChatModel
model = ScriptedChatModel(expert, delay_seconds=float(delay))
judge = Judge("polite", "Is the reply polite?", Scale.boolean(), model, memory=path, embedder=HashEmbedder(), floor=0.0)
print("ready", flush=True)
while not Path(go).exists():
    time.sleep(0.01)
report = judge.align([record(number, f"reason {number}") for number in range(int(first), int(last))])
print(len(report.added), report.unconsumed, flush=True)
judge.close()
"""


class Waiting:
    """A model that answers only once ``together`` requests have arrived, so that they are in flight at once."""

    name = "scripted/waiting"

    def __init__(self, together: int, answer: Callable[[ChatRequest], Any] = expert) -> None:
        self.together = together
        self.requests: list[ChatRequest] = []
        self._inner = ScriptedChatModel(answer)
        self._all_here: asyncio.Event | None = None
        self._first: asyncio.Event | None = None

    async def complete(self, request: ChatRequest) -> ChatReply:
        self._all_here = self._all_here or asyncio.Event()
        self.requests.append(request)
        if self._first is not None:
            self._first.set()
        if len(self.requests) >= self.together:
            self._all_here.set()
        await asyncio.wait_for(self._all_here.wait(), 5)
        return await self._inner.complete(request)

    async def first_request(self) -> None:
        self._first = self._first or asyncio.Event()
        await asyncio.wait_for(self._first.wait(), 5)

    async def aclose(self) -> None:
        pass


def purposes(model: Any) -> Counter[str]:
    return Counter(request.purpose for request in model.requests)


def rows(judge: Judge) -> list[Any]:
    with judge.memory.store.reading() as connection:
        return list(connection.execute(select(schema.feedback).order_by(schema.feedback.c.row)))


def texts(judge: Judge) -> list[str]:
    return [guideline.text for guideline in judge.memory.guidelines()]


# Learning


def test_reasons_become_guidelines_and_records_become_episodes(make_judge: MakeJudge) -> None:
    judge = make_judge()
    report = judge.align([record(1, "apologise"), record(2, "apologise"), record(3, "greet first")])
    assert (report.revision, report.new, report.changed, report.unchanged, report.unconsumed) == (1, 3, 0, 0, 0)
    assert [guideline.text for guideline in report.added] == ["When a reply is judged, heed apologise.", "When a reply is judged, heed greet first."]
    assert report.added[0].evidence_for == (record(1).id, record(2).id)
    assert tuple(judge.memory.guidelines()) == report.added
    assert len(judge.memory.episodes()) == 3
    assert (report.usage.calls, report.usage.embedded_texts, report.cost_usd) == (2, 3, 0.0)
    assert report.lines()[0] == "revision 1: 3 new, 0 changed, 0 unchanged"
    assert report.to_dict()["added"][0]["id"] == "g1"


def test_unchanged_feedback_costs_no_call_and_no_revision(make_judge: MakeJudge) -> None:
    model, embedder = ScriptedChatModel(expert), HashEmbedder()
    judge = make_judge(model, embedder=embedder)
    judge.align([record(1, "apologise"), record(2)])
    model.requests.clear()
    embedder.texts.clear()
    report = judge.align([record(1, "apologise", source="another file"), record(2)])
    assert (report.revision, report.unchanged, report.new, report.usage.calls) == (1, 2, 0, 0)
    assert model.requests == []
    assert embedder.texts == []
    assert len(judge.memory.history()) == 1
    assert judge.align().revision == 1


@pytest.mark.parametrize("number", [True, 1.0])
def test_what_differs_in_json_alone_is_a_change(make_judge: MakeJudge, number: Any) -> None:
    judge = make_judge()
    judge.align([record(1, inputs={"urgent": 1}, id="r1")])
    assert judge.align([record(1, inputs={"urgent": number}, id="r1")]).changed == 1
    (episode,) = judge.memory.episodes()
    assert type(episode.feedback.inputs["urgent"]) is type(number)
    assert judge.align([record(1, inputs={"urgent": number}, id="r1")]).unchanged == 1


def test_nothing_to_learn_is_revision_0(make_judge: MakeJudge) -> None:
    assert make_judge().align().revision == 0


def test_ten_more_embed_ten_texts(make_judge: MakeJudge) -> None:
    embedder = HashEmbedder()
    judge = make_judge(embedder=embedder)
    judge.align([record(number) for number in range(30)])
    embedder.texts.clear()
    judge.align([record(number) for number in range(40)])
    assert len(embedder.texts) == 10


def test_the_same_record_twice_in_one_call_is_one_record(make_judge: MakeJudge) -> None:
    judge = make_judge()
    report = judge.align([record(1, "apologise"), record(1, "apologise"), record(1, "greet first")])
    assert (report.new, report.unchanged, report.changed) == (1, 1, 1)
    assert [episode.feedback.rationale for episode in judge.memory.episodes()] == ["greet first"]
    assert texts(judge) == ["When a reply is judged, heed greet first."]


def test_a_label_alone_becomes_an_episode_without_a_call(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel()
    report = make_judge(model).align([record(1), record(2, "   \n")])
    assert model.requests == []
    assert (report.revision, report.new, report.unconsumed, report.added) == (1, 2, 0, ())


def test_any_iterable_will_do(make_judge: MakeJudge) -> None:
    assert make_judge().align(record(number) for number in range(3)).new == 3


def test_a_value_off_the_scale_is_named_and_nothing_is_stored(make_judge: MakeJudge) -> None:
    judge = make_judge()
    with pytest.raises(BadRecord, match=r"row 2, field 'value': 'maybe' is not on the scale; accepted: true"):
        judge.align([record(1), record(2, value="maybe")])
    assert rows(judge) == []


def test_values_are_kept_in_the_scales_own_form(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, value="Yes"), record(2, value="fail")])
    assert [episode.feedback.value for episode in judge.memory.episodes()] == [True, False]
    assert judge.align([record(1, value=True)]).unchanged == 1


def test_what_exists_is_shown_and_supported(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(expert)
    judge = make_judge(model)
    judge.align([record(1, "apologise")])
    report = judge.align([record(2, "apologise")])
    assert shown_guidelines(model.requests[-1]) == {"g1": "When a reply is judged, heed apologise."}
    assert report.added == ()
    (joined,) = report.joined
    assert (joined.id, joined.version, joined.evidence_for) == ("g1", 2, (record(1).id, record(2).id))


def test_a_guideline_that_gains_evidence_twice_in_one_alignment_is_reported_once(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "apologise")])
    model = ScriptedChatModel(
        lambda request: {"operations": [support("g1", 1)] if shown_cases(request)[0][2] == "one" else [add(1, decide="heed apologise")]}
    )
    judge.session.reflection_model = model
    report = judge.align([record(number, "one" if number < 14 else "two") for number in range(10, 18)])
    assert purposes(model)["distil"] == 2
    assert [guideline.id for guideline in report.joined] == ["g1"]
    assert len(report.joined[0].evidence_for) == 3


def test_a_reason_and_a_case_that_are_very_long_are_trimmed_in_the_prompt(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(expert)
    make_judge(model).align([record(1, "very " * 50_000, outputs="long " * 50_000)])
    assert len(model.requests[0].messages[-1].content) < 6_000


def test_progress_counts_records(make_judge: MakeJudge) -> None:
    seen: list[tuple[str, int, int]] = []
    make_judge().align([record(number, f"reason {number}") for number in range(10)], progress=lambda *step: seen.append(step))
    assert [step[0] for step in seen] == ["distil"] * 3
    assert seen[-1] == ("distil", 10, 10)


def test_an_unknown_way_to_verify_is_an_error(make_judge: MakeJudge) -> None:
    with pytest.raises(ConfigurationError, match="verify='maximal' is not known; known: 'off', 'fast', 'full'"):
        make_judge().align([record(1)], verify="maximal")


# Overwriting and retracting


def test_a_changed_record_takes_its_guideline_with_it_and_the_old_reason_is_never_read_again(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(expert)
    judge = make_judge(model)
    judge.align([record(1, "apologise"), record(2, "apologise")])
    judge.align([record(3, "greet first")])
    model.requests.clear()
    report = judge.align([record(1, "be brief", value=True)])
    prompt = str([request.messages for request in model.requests if request.purpose == "distil"])
    assert sorted((label, reason) for _, label, reason in shown_cases(model.requests[0])) == [("no", "apologise"), ("yes", "be brief")]
    assert "heed apologise" not in prompt, "the guideline that rested on it is not shown"
    assert shown_guidelines(model.requests[0]) == {"g2": "When a reply is judged, heed greet first."}
    assert [guideline.id for guideline in report.retired] == ["g1"]
    assert sorted(guideline.text for guideline in report.added) == [
        "When a reply is judged, heed apologise.",
        "When a reply is judged, heed be brief.",
    ]
    assert next(g for g in report.added if "apologise" in g.text).evidence_for == (record(2).id,)
    assert [episode.feedback.value for episode in judge.memory.episodes()] == [False, False, True]
    assert (report.changed, report.unconsumed) == (1, 0)


def test_the_old_reason_of_a_changed_record_is_in_no_later_prompt(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(expert)
    judge = make_judge(model, exemplars=5)
    judge.align([record(1, "an obsolete reason")])
    model.requests.clear()
    judge.overwrite(record(1, "greet first"))
    judge(inputs="question 1", outputs="reply 1")
    judge.align([record(2, "be brief")])
    assert purposes(model) == {"distil": 2, "judge": 1, "relate": 1}
    assert "obsolete" not in str([request.messages for request in model.requests])


def copying(request: ChatRequest) -> dict[str, Any]:
    """Takes over the word marmalade, from cases or guidelines, into every guideline it writes."""
    if request.purpose != "distil":
        return related()
    word = " like marmalade" if "marmalade" in str(request.messages) else ""
    return {"operations": [add(number, decide=f"heed {reason}{word}") for number, _, reason in shown_cases(request)]}


def told(model: ScriptedChatModel) -> str:
    return str([request.messages for request in model.requests])


def test_an_overwrite_is_distilled_by_a_call_that_reads_no_guideline_with_the_old_text(make_judge: MakeJudge) -> None:
    """Neither one that came from a prompt with the old text, nor one that took its words over from such a one."""
    model = ScriptedChatModel(copying)
    judge = make_judge(model)
    judge.align([record(1, "no marmalade"), record(2, "greet first")])
    judge.align([record(3, "sign it")])
    judge.align([record(4, "date it")])
    assert all("marmalade" in text for text in texts(judge))
    judge.memory.edit(judge.memory.guidelines()[3].id, "Write the date.")
    model.requests.clear()
    judge.overwrite(record(1, "be brief"))
    assert purposes(model) == {"distil": 1}
    assert "marmalade" not in told(model)
    assert shown_guidelines(model.requests[0]) == {"g4": "Write the date."}
    assert [guideline.id for guideline in judge.memory.guidelines()] == ["g2", "g3", "g4", "g5"], "those that were withheld hold on"
    judge.align([record(5, "thank them")])
    assert set(shown_guidelines(model.requests[1])) == {"g2", "g3", "g4", "g5"}, "and are shown again when nothing replaced is distilled"


def test_what_an_overwrite_could_not_distil_at_once_is_distilled_without_the_old_text_too(make_judge: MakeJudge) -> None:
    down = [False]

    def answer(request: ChatRequest) -> Any:
        return ModelUnavailable("down") if down[0] else copying(request)

    model = ScriptedChatModel(answer)
    judge = make_judge(model)
    judge.align([record(1, "no marmalade"), record(2, "no marmalade"), record(3, "greet first")])
    down[0] = True
    assert judge.overwrite(record(1, "be brief")).unconsumed == 2
    assert judge.unalign(record(1).id).unconsumed == 1, "of what rested on the old text, one record is left"
    model.requests.clear()
    down[0] = False
    judge.align()
    assert [reason for _, _, reason in shown_cases(model.requests[0])] == ["no marmalade"]
    assert shown_guidelines(model.requests[0]) == {}


def test_what_is_distilled_again_joins_a_withheld_guideline_that_says_the_same(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(expert)
    judge = make_judge(model)
    judge.align([record(1, "apologise"), record(2, "always greet them first")])
    model.requests.clear()
    report = judge.overwrite(record(1, "do greet them first, always"))
    assert purposes(model) == {"distil": 1}, "likeness decides, and no model reads what is withheld"
    assert ([g.id for g in report.joined], report.added) == (["g2"], ())
    assert texts(judge) == ["When a reply is judged, heed always greet them first."]
    assert judge.memory.guidelines()[0].evidence_for == (record(2).id, record(1).id)


def test_a_change_back_before_it_was_learned_is_learned_as_it_stands(make_judge: MakeJudge) -> None:
    replies: list[Any] = [
        {"operations": [add(1, decide="heed apologise")]},
        ModelUnavailable("down"),
        {"operations": [add(1, decide="heed apologise")]},
    ]
    judge = make_judge(ScriptedChatModel(replies))
    judge.align([record(1, "apologise")])
    judge.align([record(1, "be brief")])
    judge.align([record(1, "apologise")])
    assert [episode.feedback.rationale for episode in judge.memory.episodes()] == ["apologise"]
    assert texts(judge) == ["When a reply is judged, heed apologise."]
    assert judge.align().unconsumed == 0


def contradicting(request: ChatRequest) -> dict[str, Any]:
    """A case whose reason begins with "against" contradicts the first guideline, any other supports it or makes it."""
    if request.purpose != "distil":
        return dict(expert(request))
    known = next(iter(shown_guidelines(request)), None)
    return {
        "operations": [
            {"op": "contradict", "guideline": known, "cases": [number]}
            if reason.startswith("against")
            else support(known, number)
            if known
            else add(number, decide="apologise first")
            for number, _, reason in shown_cases(request)
        ]
    }


def test_the_change_of_a_record_that_only_contradicts_leaves_the_guideline_standing(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(contradicting)
    judge = make_judge(model)
    judge.align([record(number, "apologise first") for number in (1, 2, 3)])
    judge.align([record(4, "against apologies", value=True)])
    model.requests.clear()
    report = judge.overwrite(record(4, "apologise first"))
    assert (report.retired, report.unconsumed) == ((), 0)
    assert [len(shown_cases(request)) for request in model.requests] == [1], "what supports it is not distilled again"
    (guideline,) = judge.memory.guidelines()
    assert (guideline.id, len(guideline.evidence_for), guideline.evidence_against) == ("g1", 4, ())


def test_overwrite_is_for_records_that_exist(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "apologise")])
    with pytest.raises(NotFound, match="use align for a new record"):
        judge.overwrite(record(2, "greet first"))
    assert judge.overwrite(record(1, "greet first")).changed == 1
    assert texts(judge) == ["When a reply is judged, heed greet first."]


def test_when_the_overwriting_fails_the_old_guideline_is_gone_and_the_rest_waits(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel([{"operations": [add(1, 2, decide="heed apologise")]}, ModelUnavailable("down")])
    judge = make_judge(model)
    judge.align([record(1, "apologise"), record(2, "apologise")])
    report = judge.align([record(1, "be brief", value=True)])
    assert [guideline.id for guideline in report.retired] == ["g1"]
    assert texts(judge) == []
    assert report.unconsumed == 2
    assert [episode.feedback.value for episode in judge.memory.episodes()] == [False, True]
    model.add({"operations": [add(1, decide="heed apologise"), add(2, decide="stay brief")]})
    assert judge.align().unconsumed == 0
    assert len(texts(judge)) == 2


def test_unalign_takes_records_out_of_retrieval_and_evidence(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(expert)
    judge = make_judge(model)
    judge.align([record(1, "apologise"), record(2, "greet first"), record(3, "greet first")])
    model.requests.clear()
    report = judge.unalign([record(1).id, record(2).id, record(2).id])
    assert (report.revision, report.withdrawn, report.usage.calls) == (2, 2, 0)
    assert [guideline.id for guideline in report.retired] == ["g1"]
    assert [guideline.evidence_for for guideline in judge.memory.guidelines()] == [(record(3).id,)]
    verdict = judge(inputs="question 1", outputs="reply 1")
    assert verdict.guideline_ids == ("g2",)
    assert verdict.episode_ids == (record(3).id,)
    assert "apologise" not in str(model.requests[-1].messages)
    assert report.lines()[0] == "revision 2: 2 record(s) withdrawn"


def test_a_single_id_will_do(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, id="one")])
    assert judge.unalign("one").withdrawn == 1


def test_a_retracted_record_can_come_back(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "apologise")])
    judge.unalign([record(1).id])
    report = judge.align([record(1, "apologise")])
    assert (report.new, len(report.added)) == (1, 1)
    assert len(judge.memory.episodes()) == 1


def test_unaligning_everything_leaves_a_judge_that_works(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(number, f"reason {number}") for number in range(5)])
    judge.unalign([record(number).id for number in range(5)])
    assert judge(outputs="x").value is True
    assert (judge.memory.guidelines(), judge.memory.episodes()) == ([], [])


def test_an_id_that_is_unknown_leaves_everything_as_it_is(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel([{"operations": [add(1, decide="heed apologise")]}, ModelUnavailable("down")])
    judge = make_judge(model)
    judge.align([record(1, "apologise")])
    judge.align([record(2, "greet first")])
    before = rows(judge), judge.memory.guidelines(), judge.memory.history()
    with pytest.raises(NotFound, match="no feedback 'typo' in judge 'polite'; nothing was changed"):
        judge.unalign([record(1).id, record(2).id, "typo"])
    with pytest.raises(NotFound):
        judge.unalign(["typo"])
    assert (rows(judge), judge.memory.guidelines(), judge.memory.history()) == before


# Failures


@pytest.mark.parametrize(
    ("replies", "retryable", "message"),
    [
        ([ModelUnavailable("the line is dead", attempts=5)], True, "the line is dead"),
        ([ModelRefused("no such model")], False, "no such model"),
        (["nonsense", '{"operations": 3}', '{"operations": ["add"]}'], True, "not a list of objects"),
        (["[" * 100_000] * 3, True, "not the JSON that was asked for"),
        (["", "null", "[]"], True, "not the JSON that was asked for"),
    ],
)
def test_a_failed_batch_stands_in_the_report_and_is_picked_up_later(make_judge: MakeJudge, replies: list[Any], retryable: bool, message: str) -> None:
    model = ScriptedChatModel(replies)
    judge = make_judge(model)
    report = judge.align([record(1, "apologise"), record(2)])
    (failed,) = report.failed_batches
    assert (failed.feedback_ids, failed.retryable) == ((record(1).id,), retryable)
    assert message in failed.error
    assert (report.revision, report.unconsumed, report.added) == (1, 1, ())
    assert "nothing is lost" in report.lines()[-1]
    assert len(judge.memory.episodes()) == 2, "episodic memory has learned already"
    assert len(model.requests) == len(replies)
    model.add({"operations": [add(1, decide="heed apologise")]})
    again = judge.align(())
    assert (again.new, again.unchanged, again.unconsumed, len(again.added)) == (0, 0, 0, 1)
    assert shown_cases(model.requests[-1]) == [(1, "no", "apologise")]
    assert judge.align().usage.calls == 0


def test_trying_again_in_vain_makes_no_revision(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel([ModelUnavailable("down")] * 3))
    assert [judge.align([record(1, "apologise")]).revision for _ in range(3)] == [1, 1, 1]
    assert len(judge.memory.history()) == 1


def test_an_unreadable_distillation_is_asked_again_warmer_with_more_room(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(["nonsense", {"operations": [add(1, decide="heed apologise")]}])
    report = make_judge(model).align([record(1, "apologise")])
    assert len(report.added) == 1
    first, second = model.requests
    assert second.temperature > first.temperature == 0.0
    assert second.max_tokens > first.max_tokens
    assert first.messages == second.messages


def test_a_distillation_without_any_text_is_asked_for_again(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel([UnreadableReply("the model's reply is empty"), {"operations": [add(1, decide="heed apologise")]}])
    report = make_judge(model).align([record(1, "apologise")])
    assert (len(report.added), report.failed_batches, report.usage.calls) == (1, (), 3)


def test_batches_run_at_once_and_one_that_fails_does_not_stop_the_others(make_judge: MakeJudge) -> None:
    def answer(request: ChatRequest) -> Any:
        if request.purpose == "distil" and "poison" in request.messages[-1].content:
            return ModelUnavailable("down")
        return expert(request)

    judge = make_judge(Waiting(3, answer))
    records = [record(number, "poison" if number == 5 else f"reason {number}") for number in range(12)]
    report = judge.align(records)
    assert len(report.added) == 8
    (failed,) = report.failed_batches
    assert failed.feedback_ids == tuple(feedback.id for feedback in records[4:8])
    assert (report.unconsumed, report.revision, len(judge.memory.episodes())) == (4, 1, 12)


def test_a_model_that_breaks_its_contract_fails_one_batch_only(make_judge: MakeJudge) -> None:
    def answer(request: ChatRequest) -> Any:
        if "poison" in request.messages[-1].content:
            return ZeroDivisionError("a bug of the model's author")
        return expert(request)

    report = make_judge(ScriptedChatModel(answer)).align([record(number, "poison" if number == 0 else f"reason {number}") for number in range(8)])
    assert len(report.added) == 4
    assert "ZeroDivisionError" in report.failed_batches[0].error


@pytest.mark.parametrize("error", [ModelUnavailable("embedder down"), ZeroDivisionError("bug")])
def test_an_embedder_that_fails_loses_nothing(make_judge: MakeJudge, error: Exception) -> None:
    class Flaky(HashEmbedder):
        broken = True

        async def embed(self, texts: Any) -> Any:
            if self.broken:
                raise error
            return await super().embed(texts)

    flaky = Flaky()
    judge = make_judge(embedder=flaky)
    with pytest.raises(type(error)):
        judge.align([record(1, "apologise"), record(2)])
    assert len(rows(judge)) == 2, "recorded"
    assert judge.memory.episodes() == [], "and not half there"
    flaky.broken = False
    report = judge.align()
    assert (report.revision, len(report.added), report.unconsumed, len(judge.memory.episodes())) == (1, 1, 0, 2)


class Picky(HashEmbedder):
    """Refuses every call with a text that holds a word, by an error or by a vector of zeros."""

    word, zeros = "endless", False

    async def embed(self, texts: Any) -> Any:
        if any(self.word in text for text in texts):
            if not self.zeros:
                raise EmbeddingError("a text does not fit the window")
            return np.array([row * (self.word not in text) for row, text in zip(await super().embed(texts), texts, strict=True)])
        return await super().embed(texts)


@pytest.mark.parametrize(("zeros", "reason"), [(False, "does not fit the window"), (True, "gave zeros")])
def test_a_text_that_the_embedder_refuses_waits_and_stops_no_other(make_judge: MakeJudge, zeros: bool, reason: str) -> None:
    model, picky = ScriptedChatModel(expert), Picky()
    picky.zeros = zeros
    judge = make_judge(model, embedder=picky)
    endless = replace(record(2, "be brief", outputs="endless " * 9), id="long")
    report = judge.align([record(1, "apologise"), endless, *(record(number, f"reason {number}") for number in range(3, 9))])
    (failed,) = report.failed_batches
    assert (failed.feedback_ids, failed.retryable, report.unconsumed, len(judge.memory.episodes())) == (("long",), False, 1, 7)
    (line,) = [line for line in report.remarks() if "record(s) not distilled (long): scripted/hash-64 refuses the item" in line]
    assert reason in line
    assert "shorten the item, or name an embedder that reads long texts in windows" in line
    assert not any("be brief" in text for text in texts(judge))
    before = len(model.requests)
    again = judge.align()
    assert (again.failed_batches, again.revision, len(model.requests)) == (report.failed_batches, 1, before), "told again, at no cost of the model"
    more = judge.align([record(9, "greet")])
    assert (more.failed_batches, more.unconsumed, len(more.added)) == (report.failed_batches, 1, 1)
    judge.align([replace(endless, outputs="a short text")])
    assert (judge.memory.waiting(), len(judge.memory.episodes())) == (0, 9)


def test_a_change_that_the_embedder_refuses_leaves_the_earlier_version_as_it_is(make_judge: MakeJudge) -> None:
    judge = make_judge(embedder=Picky())
    judge.align([replace(record(1, "apologise"), id="a")])
    report = judge.align([replace(record(1, "be warm", outputs="endless " * 9), id="a"), record(2, "greet")])
    assert ([batch.feedback_ids for batch in report.failed_batches], report.retired) == ([("a",)], ())
    assert [episode.feedback.rationale for episode in judge.memory.episodes()] == ["apologise", "greet"]
    assert len(texts(judge)) == 2


def test_an_embedder_that_refuses_every_text_is_an_error(make_judge: MakeJudge) -> None:
    judge = make_judge(embedder=(picky := Picky()))
    picky.word = ""
    with pytest.raises(EmbeddingError, match="does not fit"):
        judge.align([record(1, "apologise"), record(2)])
    assert judge.memory.waiting() == 2


def test_calls_of_an_alignment_that_failed_stand_in_the_ledger(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel([ModelUnavailable("down")]))
    judge.align([record(1, "apologise")])
    with judge.memory.store.reading() as connection:
        (call,) = [row for row in connection.execute(select(schema.ledger)) if row.purpose == "distil"]
    assert (call.error, call.calls, call.cost_usd) == ("ModelUnavailable", 1, 0.0)


def test_a_process_killed_in_the_middle_loses_nothing(make_judge: MakeJudge, db: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.touch()
    child = elsewhere(db, go, 0, 20, delay=60)
    try:
        _wait_until(lambda: _recorded(db) == 20)
        child.send_signal(signal.SIGKILL)
        assert child.wait(10) == -signal.SIGKILL
    finally:
        child.kill()
        child.communicate()
    judge = make_judge(memory=db)
    assert judge.memory.episodes() == []
    report = judge.align()
    assert (report.revision, report.unconsumed, len(report.added), len(judge.memory.episodes())) == (1, 0, 20, 20)


def test_ctrl_c_ends_an_alignment_and_loses_nothing(make_judge: MakeJudge) -> None:
    ended: list[str] = []

    class Slow(ScriptedChatModel):
        async def complete(self, request: ChatRequest) -> ChatReply:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            try:
                await asyncio.sleep(30)
            finally:
                ended.append("cleaned up")
            return await super().complete(request)

    judge = make_judge(Slow())
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        judge.align([record(1, "apologise"), record(2)])
    assert time.monotonic() - started < 5
    assert ended == ["cleaned up"], "before Ctrl-C is raised again"
    judge.session.reflection_model = ScriptedChatModel(expert)
    report = judge.align()
    assert (report.revision, len(report.added), report.unconsumed) == (1, 1, 0)


def test_a_cancelled_task_loses_nothing(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(expert, delay_seconds=30))

    async def cancel() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(judge.aalign([record(1, "apologise")]), 0.3)

    asyncio.run(cancel())
    judge.session.reflection_model = ScriptedChatModel(expert)
    assert len(judge.align().added) == 1


def test_a_sync_verb_on_the_judges_own_loop_is_an_error_and_no_deadlock(make_judge: MakeJudge) -> None:
    inner = make_judge()

    async def calls_sync() -> None:
        inner(outputs="x")

    with pytest.raises(ConfigurationError, match=r"await its a\.\.\. twin"):
        edge.run(calls_sync())


# Proposals


def test_what_a_distillation_may_not_do_is_rejected_with_a_reason(make_judge: MakeJudge) -> None:
    reason = "the reply must never end before it has told the customer what will happen next"
    proposals = [
        add(7, decide="be kind to customers"),
        add(0, -1, decide="be kind to customers"),
        {"op": "add", "when": "x", "decide": "be kind", "because": "", "cases": "all"},
        {"op": "add", "when": "x", "decide": "be kind", "because": "", "cases": [True]},
        support("g99", 1),
        {"op": "delete", "guideline": "g1", "cases": [1]},
        {"op": "add", "decide": "be kind", "cases": [1]},
        add(1, when=" ", decide="be kind to customers"),
        add(1, decide="fine"),
        add(1, decide="always answer yes"),
        add(1, decide="always choose 'no'"),
        add(1, decide=reason),
    ]
    model = ScriptedChatModel([{"operations": proposals}])
    judge = make_judge(model)
    report = judge.align([record(1, reason)])
    assert judge.memory.guidelines() == []
    assert [rejected.reason.split(" (")[0].split(":")[0] for rejected in report.rejected] == [
        *["cites no case that exists"] * 4,
        "supports a guideline that does not exist",
        *["is not an operation that is known"] * 2,
        *["says nothing to decide by"] * 2,
        *["orders one verdict instead of saying what decides it"] * 2,
        "copies a case",
    ]
    assert report.unconsumed == 0, "the batch itself succeeded"
    assert sum("rejected" in line for line in report.lines()) == 12


def test_a_copy_of_the_judged_text_is_rejected(make_judge: MakeJudge) -> None:
    judged = "Dear Mrs Smith, your account 4711 was closed because of an unpaid bill of 12 euros."
    model = ScriptedChatModel([{"operations": [add(1, when="a letter is judged", decide="avoid " + judged.upper())]}])
    report = make_judge(model).align([record(1, "too cold", outputs=judged)])
    assert report.rejected[0].reason.startswith("copies a case: 'dear mrs smith")


def test_a_flood_of_proposals_is_cut(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel([{"operations": [add(1, decide=f"heed rule {number}") for number in range(200)]}])
    report = make_judge(model).align([record(1, "apologise")])
    assert (len(report.added), len(report.rejected)) == (12, 188)
    assert {rejected.reason for rejected in report.rejected} == {"more than 12 proposals in one reply"}


def test_a_proposal_that_cites_real_and_unreal_cases_keeps_the_real_ones(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel([{"operations": [add(2, 9, 2, decide="heed apologise")]}])
    (guideline,) = make_judge(model).align([record(1, "one"), record(2, "two")]).added
    assert guideline.evidence_for == (record(2).id,)


@pytest.mark.parametrize(
    ("decide", "ordered"),
    [
        ("always answer yes", True),
        ("never say no.", True),
        ("always choose A", True),
        ("Always decide 'tie'", True),
        ("always return 5", True),
        ("always choose a polite tone", False),
        ("never say a word about prices", False),
        ("require an apology", False),
    ],
)
def test_orders_of_a_verdict_are_told_from_principles(decide: str, ordered: bool) -> None:
    accepted, rejected = check([add(1, decide=decide)], texts=["x"], known_ids=(), labels=("A", "B", "tie"))
    assert bool(rejected) == ordered
    assert bool(accepted) != ordered


def test_a_guideline_is_one_sentence() -> None:
    assert guideline_text("When it rains, ", "Say so. ", "Because people get wet.") == "When it rains, say so, because people get wet."
    assert guideline_text("if NASA writes", "ask back", "") == "When NASA writes, ask back."


def test_a_reply_in_a_fence_is_read_and_surrogates_are_replaced() -> None:
    assert parse('```json\n{"operations": [{"op": "add"}]}\n```') == [{"op": "add"}]
    parse('{"operations": [{"op": "\\ud800"}]}')[0]["op"].encode()
    with pytest.raises(UnreadableReply):
        parse("[" * 100_000)


def test_a_surrogate_in_a_proposal_does_not_stop_the_alignment(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(['{"operations": [{"op": "add", "when": "x \\ud800", "decide": "be kind", "because": "", "cases": [1]}]}'])
    assert len(make_judge(model).align([record(1, "apologise")]).added) == 1


# Duplicates


def test_batches_side_by_side_that_say_the_same_make_one_guideline(make_judge: MakeJudge) -> None:
    model = Waiting(2, lambda request: {"operations": [add(1, decide="heed the Apology" + "!" * len(model.requests))]})
    judge = make_judge(model)
    report = judge.align([record(number, f"reason {number}") for number in range(8)])
    assert len(report.added) == 1
    assert set(report.added[0].evidence_for) == {record(0).id, record(4).id}
    assert purposes(model) == {"distil": 2}, "equal texts need no call"


def test_batches_that_mean_the_same_are_merged_by_the_relate_call(make_judge: MakeJudge) -> None:
    def answer(request: ChatRequest) -> Any:
        if request.purpose == "relate":
            assert request.messages[-1].content.count("When a reply is judged, heed") == 8
            return related(duplicates=[[1, 5], [2, 2], [3, 99], ["x"], [5, 4]])
        return expert(request)

    model = Waiting(2, answer)
    judge = make_judge(model)
    report = judge.align([record(number, f"reason {number}") for number in range(8)])
    assert purposes(model) == {"distil": 2, "relate": 1}
    assert len(report.added) == 7
    assert max(len(guideline.evidence_for) for guideline in report.added) == 2
    assert report.unconsumed == 0


@pytest.mark.parametrize(
    "reply",
    [
        "nonsense",
        {"duplicates": 5, "narrower": [], "conflicts": []},
        {"duplicates": [3], "narrower": [[1]], "conflicts": ["x", {"pair": 3}]},
        {},
        ZeroDivisionError("a bug of the model's author"),
        "[" * 100_000,
    ],
)
def test_a_relate_call_that_fails_leaves_guidelines_apart(make_judge: MakeJudge, reply: Any) -> None:
    judge = make_judge(Waiting(2, lambda request: reply if request.purpose == "relate" else expert(request)))
    report = judge.align([record(number, f"reason {number}") for number in range(16)])
    assert (len(report.added), report.failed_batches, report.unconsumed) == (16, (), 0)
    assert len(report.unrelated) == 1
    assert any("were not compared" in line for line in report.lines())
    assert "Not compared with the other guidelines" in report.to_html()


def test_while_no_model_compares_them_new_guidelines_wait(make_judge: MakeJudge) -> None:
    replies = iter([ModelUnavailable("down"), related(duplicates=[[1, 5]])])
    model = Waiting(2, lambda request: next(replies) if request.purpose == "relate" else expert(request))
    judge = make_judge(model)
    records = [record(number, f"reason {number}") for number in range(8)]
    report = judge.align(records)
    assert (report.new, report.added, report.unrelated, report.unconsumed) == (8, (), (), 8)
    assert [(len(batch.feedback_ids), batch.retryable) for batch in report.failed_batches] == [(8, True)]
    assert any("could not be compared" in line and "run align again" in line for line in report.lines())
    report = judge.align([])
    assert (len(report.added), report.failed_batches, report.unconsumed) == (7, (), 0)
    assert purposes(model) == {"distil": 2, "relate": 2}, "what was distilled is not paid for twice"


def test_new_guidelines_wait_once_for_a_comparison(make_judge: MakeJudge) -> None:
    """An endpoint that always fails here, and only here, would keep everything waiting."""
    model = ScriptedChatModel(lambda request: ModelUnavailable("down") if request.purpose == "relate" else expert(request))
    judge = make_judge(model)
    records = [record(number, f"reason {number}") for number in range(8)]
    assert judge.align(records).unconsumed == 8
    report = judge.align([record(8, "reason 8")])
    assert (len(report.added), report.failed_batches, report.unconsumed) == (9, (), 0)
    assert all("down" in why for why in report.unrelated)
    assert report.unrelated
    assert purposes(model)["distil"] == 3
    assert judge.align([record(9, "reason 9")]).unconsumed == 1, "the next ones wait once as well"


def test_a_new_guideline_that_the_next_cases_contradict_is_quarantined_and_asked_about(make_judge: MakeJudge) -> None:
    replies = iter([ModelUnavailable("down")])

    def answer(request: ChatRequest) -> Any:
        if request.purpose == "relate":
            return next(replies, related())
        against = [number for number, _, reason in shown_cases(request) if reason.startswith("no apology")]
        return {"operations": [{"op": "contradict", "guideline": "new1", "cases": against}]} if against else expert(request)

    judge = make_judge(ScriptedChatModel(answer))
    judge.align([record(1, "greet first")])
    judge.align([record(2, "apologise first")])
    report = judge.align([record(number, f"no apology {number}", value=True) for number in (3, 4, 5)])
    (guideline,) = report.quarantined
    assert (guideline.text, len(guideline.evidence_against)) == ("When a reply is judged, heed apologise first.", 3)
    assert [[one.id for one in question.guidelines] for question in judge.memory.questions()] == [[guideline.id]]


def test_relations_of_guidelines_that_do_not_exist_are_none(make_judge: MakeJudge) -> None:
    reply = {"duplicates": [], "narrower": [["a", "b"], [1, 1]], "conflicts": [{"pair": [1, None]}]}
    judge = make_judge(Waiting(2, lambda request: reply if request.purpose == "relate" else expert(request)))
    report = judge.align([record(number, f"reason {number}") for number in range(16)])
    assert (len(report.added), report.unrelated) == (16, ())


def test_an_unreadable_relate_call_is_asked_again_with_more_room(make_judge: MakeJudge) -> None:
    replies = iter(["cut short", {"duplicates": "no list"}, related(duplicates=[[1, 5]])])
    model = Waiting(2, lambda request: next(replies) if request.purpose == "relate" else expert(request))
    report = make_judge(model).align([record(number, f"reason {number}") for number in range(8)])
    assert [request.max_tokens for request in model.requests if request.purpose == "relate"] == [1200, 2400, 4800]
    assert (len(report.added), report.unrelated) == (7, ())


def test_in_process_each_reason_becomes_a_rule_and_alike_rules_are_one(make_judge: MakeJudge) -> None:
    def rule(request: ChatRequest) -> str:
        return "Never blame the customer." if "blame" in request.messages[-1].content else "Name a day for the delivery."

    model = ScriptedChatModel(rule, name="local/scripted")
    judge = make_judge(model, explain=True)
    reasons = ["blames him", "no date", "she is blamed", "blames her"]
    report = judge.align([record(number, reason) for number, reason in enumerate(reasons)])
    assert purposes(model) == {"distil": 4}
    assert {guideline.text: len(guideline.evidence_for) for guideline in report.added} == {
        "Never blame the customer.": 3,
        "Name a day for the delivery.": 1,
    }
    later = judge.align([record(9, "blames again")])
    assert (len(later.added), [len(guideline.evidence_for) for guideline in later.joined]) == (0, [4])


def test_a_rule_that_forbids_never_joins_one_that_demands(make_judge: MakeJudge) -> None:
    rules = iter(["Always name the courier.", "Never name the courier."])
    judge = make_judge(ScriptedChatModel(lambda request: next(rules), name="local/scripted"), explain=True)
    assert len(judge.align([record(1, "first"), record(2, "second")]).added) == 2


def test_later_rounds_see_what_earlier_ones_proposed(make_judge: MakeJudge) -> None:
    """16 calls of 8 records run at once; the 17th sees what they made."""
    model = ScriptedChatModel(lambda request: {"operations": [add(1, decide="heed the Apology")]} if request.purpose == "distil" else related())
    report = make_judge(model).align([record(number, f"apology {number}") for number in range(136)])
    assert purposes(model) == {"distil": 17}
    assert shown_guidelines(model.requests[15]) == {}
    assert shown_guidelines(model.requests[16]) == {"new1": "When a reply is judged, heed the Apology."}
    (guideline,) = report.added
    assert len(guideline.evidence_for) == 17


# Several experts


def test_several_experts_on_one_item_stand_side_by_side(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(expert)
    judge = make_judge(model)
    report = judge.align(
        [record(1, "too cold", annotator="ann"), record(1, "fine", value=True, annotator="ben"), record(1, "cold", annotator="eve"), record(2)]
    )
    assert report.contested == (record(1).item.id,)
    assert "experts disagree on 1 item(s)" in report.lines()
    assert [(episode.feedback.annotator, episode.feedback.value) for episode in judge.memory.episodes()] == [
        ("ann", False),
        ("ben", True),
        ("eve", False),
        ("ann", False),
    ]
    judge(inputs="question 1", outputs="reply 1")
    turns = [message.content for message in model.requests[-1].messages if message.role == "assistant"]
    assert [turn for turn in turns if "too cold cold" in turn]
    assert [turn for turn in turns if '"rationale": "fine", "verdict": "yes"' in turn]


def test_the_newest_of_several_verdicts_stands_last(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, annotator="ann"), record(1, annotator="ben", value=True)])
    judge.align([record(1, "changed my mind", annotator="ann", value=True)])
    verdict = judge(inputs="question 1", outputs="reply 1")
    assert verdict.episode_ids == (record(1, annotator="ben").id, record(1, annotator="ann").id)
    assert judge.align().contested == ()


def test_one_experts_second_verdict_replaces_the_first(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1)])
    report = judge.align([record(1, value=True)])
    assert (report.changed, report.contested, len(judge.memory.episodes())) == (1, (), 1)


@pytest.mark.parametrize("key", ["r1", ""])
def test_a_corrected_annotator_is_an_overwrite_that_keeps_the_other_guidelines_in_sight(make_judge: MakeJudge, key: str) -> None:
    model = ScriptedChatModel(expert)
    judge = make_judge(model)
    judge.align([record(1, "greet", annotator="", id=key), record(2, "name a date")])
    named = replace(judge.memory.episodes()[0].feedback, annotator="ann")
    report = judge.overwrite([named])
    assert (report.changed, report.unchanged, report.unconsumed) == (1, 0, 0)
    assert {episode.feedback.id: episode.feedback.annotator for episode in judge.memory.episodes()}[named.id] == "ann"
    assert sorted(texts(judge)) == [f"When a reply is judged, heed {reason}." for reason in ("greet", "name a date")]
    asked = [request for request in model.requests if request.purpose == "distil"][-1]
    assert list(shown_guidelines(asked).values()) == ["When a reply is judged, heed name a date."]
    assert judge.align([named]).unchanged == 1


# Two at once


def test_two_judges_that_distil_the_same_records_learn_them_once(make_judge: MakeJudge, db: str) -> None:
    """Both have read what waits before either commits."""
    model = Waiting(2)
    one, two = make_judge(model, memory=db), make_judge(model, memory=db)
    records = [record(number, f"reason {number}") for number in range(4)]

    async def both() -> list[Any]:
        return list(await asyncio.gather(one.aalign(records), two.aalign(records)))

    reports = asyncio.run(both())
    assert sorted(len(report.added) for report in reports) == [0, 4]
    assert {report.revision for report in reports} == {1}
    assert [report.unconsumed for report in reports] == [0, 0]
    assert len(one.memory.guidelines()) == len(one.memory.episodes()) == 4


def test_a_record_retracted_while_it_is_distilled_leaves_no_guideline(make_judge: MakeJudge, db: str) -> None:
    model = Waiting(2)
    judge, other = make_judge(model, memory=db), make_judge(memory=db)

    async def retract_meanwhile() -> Any:
        aligning = asyncio.create_task(judge.aalign([record(1, "apologise"), record(2, "greet first")]))
        await model.first_request()
        await asyncio.to_thread(other.unalign, [record(1).id])
        await model.complete(model.requests[0])
        return await aligning

    report = asyncio.run(retract_meanwhile())
    assert [guideline.text for guideline in report.added] == ["When a reply is judged, heed greet first."]
    assert [episode.feedback.outputs for episode in judge.memory.episodes()] == ["reply 2"]
    assert report.unconsumed == 0


def test_support_for_a_guideline_that_retires_meanwhile_is_distilled_again(make_judge: MakeJudge, db: str) -> None:
    model = Waiting(2)
    judge, other = make_judge(model, memory=db), make_judge(memory=db)
    other.align([record(1, "apologise")])

    async def retract_meanwhile() -> Any:
        aligning = asyncio.create_task(judge.aalign([record(2, "apologise")]))
        await model.first_request()
        await asyncio.to_thread(other.unalign, [record(1).id])
        await model.complete(model.requests[0])
        return await aligning

    report = asyncio.run(retract_meanwhile())
    assert (report.joined, report.unconsumed) == ((), 1)
    assert len(judge.align().added) == 1


@pytest.mark.parametrize("withdrawn", [False, True])
def test_a_record_that_changes_while_it_is_distilled_teaches_only_its_new_words(make_judge: MakeJudge, db: str, withdrawn: bool) -> None:
    other = make_judge(memory=db)

    def change() -> None:
        if withdrawn:
            other.unalign([record(1).id])
        store(other.memory, [record(1, "greet first", value=True)])

    judge = make_judge(meanwhile(change), memory=db)
    report = asyncio.run(judge.aalign([record(1, "apologise")]))
    assert (report.added, report.unconsumed, judge.memory.episodes()) == ((), 1, [])
    assert [guideline.text for guideline in judge.align().added] == ["When a reply is judged, heed greet first."]
    assert [episode.feedback.value for episode in judge.memory.episodes()] == [True]


@pytest.mark.parametrize("name", ["polite", "another judge of the file"])
def test_a_record_in_the_place_of_a_withdrawn_one_is_not_taken_for_it(make_judge: MakeJudge, db: str, name: str) -> None:
    other, third = make_judge(memory=db), make_judge(memory=db, name=name)

    def swap() -> None:
        other.unalign([record(1).id])
        store(third.memory, [record(2, "name a date", annotator="ben")])

    judge = make_judge(meanwhile(swap), memory=db)
    assert asyncio.run(judge.aalign([record(1, "apologise")])).added == ()
    assert (third.memory.waiting(), third.memory.episodes()) == (1, [])
    (added,) = third.align().added
    assert (added.text, added.evidence_for) == ("When a reply is judged, heed name a date.", (record(2, annotator="ben").id,))


def test_what_rests_on_words_that_changed_meanwhile_is_distilled_again(make_judge: MakeJudge, db: str) -> None:
    other = make_judge(memory=db)
    judge = make_judge(meanwhile(lambda: store(other.memory, [record(2, "greet first")])), memory=db)
    report = asyncio.run(judge.aalign([record(1, "apologise"), record(2, "apologise"), record(3, "name a date")]))
    assert [guideline.text for guideline in report.added] == ["When a reply is judged, heed name a date."]
    assert (report.unconsumed, len(judge.memory.episodes())) == (2, 2)
    judge.align()
    assert sorted(texts(judge)) == [f"When a reply is judged, heed {reason}." for reason in ("apologise", "greet first", "name a date")]


def test_a_record_that_enters_memory_while_it_is_distilled_stays_there(make_judge: MakeJudge, db: str) -> None:
    other = make_judge(ScriptedChatModel(lambda _: ModelRefused("no")), memory=db)
    judge = make_judge(meanwhile(lambda: other.align()), memory=db)
    report = asyncio.run(judge.aalign([record(1, "apologise")]))
    assert [guideline.text for guideline in report.added] == ["When a reply is judged, heed apologise."]
    assert ([episode.feedback.rationale for episode in judge.memory.episodes()], report.unconsumed) == (["apologise"], 0)


def meanwhile(work: Callable[[], Any]) -> ScriptedChatModel:
    """A model beside which something happens when it distils for the first time."""
    left = [work]

    def answer(request: ChatRequest) -> Any:
        if request.purpose == "distil" and left:
            left.pop()()
        return expert(request)

    return ScriptedChatModel(answer)


def test_two_processes_aligning_at_once_learn_each_record_once(make_judge: MakeJudge, db: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    children = [elsewhere(db, go, 0, 12, delay=0.3), elsewhere(db, go, 4, 16, delay=0.3)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    go.touch()
    assert [child.wait(30) for child in children] == [0, 0]
    for child in children:
        child.communicate()
    judge = make_judge(memory=db)
    report = judge.align()
    assert report.unconsumed == 0
    assert len(judge.memory.episodes()) == 16
    assert sorted(texts(judge)) == sorted({f"When a reply is judged, heed reason {number}." for number in range(16)})
    live = [row for row in rows(judge) if row.until is None]
    assert Counter(row.id for row in live).most_common(1)[0][1] == 1
    assert all(row.since is not None and row.distilled is not None for row in live)


def elsewhere(db: str, go: Path, first: int, last: int, *, delay: float) -> subprocess.Popen[str]:
    arguments = [db, str(Path(__file__).parent), str(delay), str(go), str(first), str(last)]
    return subprocess.Popen([sys.executable, "-c", ALIGN_ELSEWHERE, *arguments], stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def _recorded(db: str) -> int:
    with closing(open_store(db)) as store:
        if not store.exists():
            return 0
        with store.reading() as connection:
            return len(episodic.waiting(connection, 1))


def _wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "waited too long"
        time.sleep(0.05)


# Size


def test_more_records_than_a_query_has_room_for_parameters(make_judge: MakeJudge) -> None:
    """SQLite takes 32,766 parameters by default, PostgreSQL 65,535."""
    judge = make_judge(ScriptedChatModel(), memory=None)
    limit = 600
    judge.memory.view()
    with judge.memory.store.reading() as connection:
        connection.connection.dbapi_connection.setlimit(9, limit)
    judge.align([record(number) for number in range(limit + 60)])
    assert judge.memory.view().items == limit + 60
    report = judge.unalign([record(number).id for number in range(limit + 50)])
    assert (report.withdrawn, judge.memory.view().items) == (limit + 50, 10)


def test_distilled_says_is_used(make_judge: MakeJudge) -> None:
    """The doubles of these tests do what their names say."""
    model = ScriptedChatModel(expert)
    judge = make_judge(model)
    judge.align([record(1, "apologise")])
    assert distilled(model.requests[0]) == {"operations": [add(1, decide="heed apologise")]}
    assert says("yes")["verdict"] == "yes"
