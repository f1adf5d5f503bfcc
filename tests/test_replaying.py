"""Replays: judging under guidelines that are not stored, each answer paid for once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from conftest import MakeJudge, expert, record, says
from memalign import Failure, Guideline, Item, Judge, Verdict
from memalign.errors import ModelUnavailable
from memalign.memory import replays
from memalign.models import ChatReply, ChatRequest, TokenLogprobs
from memalign.models.scripted import ScriptedChatModel
from memalign.recalling import Recall
from memalign.replaying import Replayer
from memalign.session import Meter
from memalign.stores import schema

pytestmark = pytest.mark.both_stores

BRIEF = Guideline(id="new1", version=0, text="When a reply is judged, be brief.")
ITEM = Item(inputs="question 1", outputs="reply 1")


def obeys(request: ChatRequest) -> Any:
    """Says no where the guideline about brevity is read, else yes."""
    return says("no" if "be brief" in request.messages[0].content else "yes") if request.purpose in ("judge", "verify") else expert(request)


def replayed(judge: Judge, guidelines: list[Guideline] | None, *, draw: int = 0, item: Item = ITEM, meter: Meter | None = None) -> Any:
    replayer = Replayer(judge.session, judge.task, Recall(k=judge.k, floor=0.0), temperature=0.0)
    return asyncio.run(replayer(meter or Meter(), item, guidelines, draw=draw))


def test_guidelines_that_are_not_stored_decide(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(obeys))
    judge.align([record(2, "greet first")])
    active = judge.memory.guidelines()
    assert replayed(judge, None).value is True
    tried = replayed(judge, [*active, BRIEF])
    assert (tried.value, tried.guideline_ids) == (False, ("g1", "new1"))
    assert replayed(judge, []).guideline_ids == ()
    assert judge.memory.guidelines() == active
    assert judge(inputs="question 1", outputs="reply 1").guideline_ids == ("g1",)


def test_an_items_own_case_is_hidden_and_no_verdict_is_logged(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1), record(2)])
    assert replayed(judge, None).episode_ids == (record(2).id,)
    with judge.memory.store.reading() as connection:
        assert connection.execute(select(schema.verdict)).all() == []


def test_the_same_question_is_paid_for_once(make_judge: MakeJudge, db: str) -> None:
    model = ScriptedChatModel(obeys)
    judge, meter = make_judge(model, memory=db), Meter()
    first = replayed(judge, [BRIEF], meter=meter)
    again = replayed(judge, [replace(BRIEF, id="g7", version=3)], meter=meter)
    assert (first.value, again.value, again.usage.calls) == (False, False, 0)
    assert [call.purpose for call in meter.calls] == ["verify"]
    judge.close()
    assert replayed(make_judge(model, memory=db), [BRIEF]).usage.calls == 0, "in another process as well"
    assert len(model.requests) == 1


def test_what_changes_the_prompt_or_the_answer_asks_again(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(obeys)
    judge = make_judge(model)
    replayed(judge, [BRIEF])
    replayed(judge, [BRIEF], draw=1)
    replayed(judge, [])
    replayed(judge, [BRIEF], item=Item(outputs="another"))
    judge.align([record(5)])
    replayed(judge, [BRIEF])
    assert [request.purpose for request in model.requests] == ["verify"] * 5, "the new case is read with the item"


def test_failures_are_data_and_are_asked_again(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel([ModelUnavailable("down", attempts=4), ZeroDivisionError("oops"), says("no")])
    judge, meter = make_judge(model), Meter()
    assert replayed(judge, None, meter=meter) == Failure(error="ModelUnavailable: down", retryable=True, attempts=4)
    assert replayed(judge, None) == Failure(error="ZeroDivisionError: oops", retryable=False)
    assert replayed(judge, None).value is False
    assert [call.error for call in meter.calls] == ["ModelUnavailable"]


def test_a_remembered_answer_is_weighed_as_a_fresh_one(make_judge: MakeJudge) -> None:
    """What is remembered is what the model said; how it is weighed may be fitted anew meanwhile."""
    reply = ChatReply(text="yes", logprobs=(TokenLogprobs("yes", -0.4, (("yes", -0.4), ("no", -1.11))),))
    judge = make_judge(ScriptedChatModel(lambda _: reply), explain=False, k=0)
    fresh, known = replayed(judge, None), replayed(judge, None)
    assert (known.value, known.probabilities, known.confidence) == (fresh.value, fresh.probabilities, fresh.confidence)
    assert isinstance(known, Verdict)
    assert known.confidence is not None
    from memalign.judging import decide
    from memalign.memory.revisions import Decision

    decide(judge.memory, Decision(offsets=(-5.0, 0.0)), actor="", judged=0)
    weighed = replayed(judge, None)
    assert (weighed.value, weighed.usage.calls) == (False, 0)


def test_replays_can_be_forgotten_and_are_not_kept_without_end(make_judge: MakeJudge, monkeypatch: Any) -> None:
    judge = make_judge()
    for number in range(4):
        replayed(judge, None, draw=number)
    monkeypatch.setattr(replays, "KEPT", 3)
    with judge.memory.store.writing() as connection:
        replays.trim(connection, judge.memory.judge_id)
        assert connection.execute(select(schema.replay.c.draw)).scalars().all() == [1, 2, 3]
        replays.forget(connection, judge.memory.judge_id)
        assert connection.execute(select(schema.replay)).all() == []
