"""Verified alignment, end to end: guidelines that do not prove themselves are kept, but not read."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from conftest import MakeJudge, expert, record, related, says, shown_cases, shown_guidelines
from memalign import Judge
from memalign.errors import ModelUnavailable
from memalign.judging import decide
from memalign.memory.revisions import Decision
from memalign.models import ChatReply, ChatRequest
from memalign.models.scripted import ScriptedChatModel
from memalign.records import Feedback
from memalign.stores import schema

pytestmark = pytest.mark.both_stores


def number_of(request: ChatRequest) -> int:
    """Of the item that is judged."""
    return int(request.messages[-1].content.split("reply ")[1].split()[0])


def judged(request: ChatRequest) -> Any:
    """Bad replies have numbers below 100; the judge sees that only once it reads a good guideline, and a bad one blinds it to item 100."""
    if request.purpose not in ("judge", "verify", "screen"):
        return expert(request)
    number, system = number_of(request), request.messages[0].content
    if number == 100 and "heed bad" in system:
        return says("no")
    return says("no" if number < 100 and "heed good" in system else "yes")


def lessons(*reasons: str) -> list[Feedback]:
    """Records 1, 2 ... that experts call bad, with these reasons, and 100 to 105, which are fine."""
    return [*(record(number, reason) for number, reason in enumerate(reasons, start=1)), *(record(number, value=True) for number in range(100, 106))]


def states(judge: Judge) -> dict[str, str]:
    return {guideline.text.split("heed ")[1].rstrip("."): guideline.state for guideline in judge.memory.guidelines(all_states=True)}


def asked(model: ScriptedChatModel) -> int:
    return Counter(request.purpose for request in model.requests)["verify"]


def test_a_guideline_that_fixes_stands(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(judged))
    report = judge.align(lessons("good", "good", "good"), verify="full")
    proof = report.verification
    assert states(judge) == {"good": "active"}
    assert (proof.outcome, len(proof.fixed), proof.unchanged, proof.errors, proof.protected) == ("accepted", 3, 6, 3, 6)
    assert proof.p_value == 0.25
    assert judge(inputs="question 1", outputs="reply 1").value is False
    (tried,) = judge.memory.trials("g1")
    assert (tried.outcome, tried.fixed, tried.broken, tried.p_value, tried.revision) == ("accepted", 3, 0, 0.25, 1)


def test_the_word_of_an_annotator_without_weight_need_not_be_kept(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(judged), weights={"temp": 0})
    wrong = [record(number, value=True, annotator="temp") for number in range(10, 13)]  # the good guideline breaks these verdicts
    proof = judge.align([*lessons("good", "good", "good"), *wrong], verify="full").verification
    assert (proof.outcome, len(proof.fixed), len(proof.broken), proof.protected) == ("accepted", 3, 0, 6)


@pytest.mark.parametrize(
    ("of", "verify", "said"), [("scripted/model", "full", True), ("another/model", "full", False), ("scripted/model", "off", False)]
)
def test_that_the_model_reads_no_guidelines_is_said_beside_what_replays_found(make_judge: MakeJudge, of: str, verify: Any, said: bool) -> None:
    judge = make_judge(ScriptedChatModel(judged))
    judge.align([record(90)])
    decide(judge.memory, Decision(guidelines=False, model=of), actor="", judged=1)
    report = judge.align(lessons("good", "good", "good"), verify=verify)
    assert states(judge) == {"good": "active"}, "else calibration could never find out that guidelines help"
    assert report.unread is said
    assert any("reads pinned guidelines only" in line for line in report.remarks()) is said
    assert ("reads pinned guidelines only" in report.to_html()) is said


def test_a_guideline_that_breaks_is_kept_as_a_candidate_and_not_read(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(judged))
    report = judge.align(lessons("good", "bad"), verify="full")
    (refused,) = report.verification.refused
    assert states(judge) == {"good": "active", "bad": "candidate"}
    assert report.verification.outcome == "partly"
    assert (refused.guideline_id, refused.reason) == ("g2", "breaks 1 record(s) that the judge gets right without it")
    assert [replayed.feedback_id for replayed in refused.broken] == [record(100).id]
    assert judge(outputs="reply 100", inputs="question 100").guideline_ids == ("g1",)
    (tried,) = judge.memory.trials("g2")
    assert (tried.outcome, tried.broken, tried.reason) == ("refused", 1, refused.reason)
    assert (report.unconsumed, len(judge.memory.episodes())) == (0, 8), "the records are learned as cases"
    assert report.to_dict()["verification"]["refused"][0]["guideline_id"] == "g2"


def test_records_of_a_rule_that_a_newer_word_supersedes_protect_nothing(make_judge: MakeJudge) -> None:
    """Else a reversal could never stand: the verdicts that the experts turned away from would all be broken by it."""

    def answer(request: ChatRequest) -> Any:
        if request.purpose == "relate":
            return related(conflicts=[(1, 2)])
        if request.purpose != "verify":
            return expert(request)
        system = request.messages[0].content
        return says("no" if number_of(request) < 100 and "heed brevity" in system and "heed length" not in system else "yes")

    judge = make_judge(ScriptedChatModel(answer))
    judge.align(lessons(*["brevity"] * 4), verify="full")
    assert states(judge) == {"brevity": "active"}
    report = judge.align([record(number, "length", value=True) for number in range(11, 17)], verify="full")
    assert states(judge) == {"brevity": "superseded", "length": "active"}
    assert (len(report.verification.fixed), report.verification.refused) == (6, ())


def test_each_records_own_case_is_hidden(make_judge: MakeJudge) -> None:
    """Else a guideline would seem to fix the records that it was distilled from."""
    model = ScriptedChatModel(judged)
    judge = make_judge(model)
    judge.align(lessons("good"), verify="off")
    model.requests.clear()
    judge.align([record(2, "greet first")], verify="full")
    replays = [request for request in model.requests if request.purpose == "verify"]
    assert replays
    for request in replays:
        turns = [message.content for message in request.messages[1:-1] if message.role == "user"]
        assert turns, "other cases are shown"
        assert not [turn for turn in turns if turn == request.messages[-1].content]


def test_replays_are_on_the_account(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(judged))
    seen: list[str] = []
    report = judge.align(lessons("good", "good"), verify="full", screen=False, progress=lambda stage, *_: seen.append(stage))
    with judge.memory.store.reading() as connection:
        purposes = Counter(connection.execute(select(schema.ledger.c.purpose)).scalars())
    assert purposes["verify"] == asked(judge.session.model) == report.verification.replays == 8 * 2 + 2 * 4  # type: ignore[arg-type]
    assert report.usage.calls == sum(purposes.values())
    assert seen[-1] == "verify"


def test_what_was_judged_before_is_not_paid_for_again(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(judged)
    judge = make_judge(model, k=0)
    judge.align(lessons("good", "good"), verify="full", screen=False)
    model.requests.clear()
    report = judge.align([record(3, "idle")], verify="full", screen=False)
    assert (report.verification.outcome, report.verification.replays) == ("accepted", 18)
    assert asked(model) == 9 + 1, "with the new guideline, and the new record without it"


def test_verdicts_that_flip_do_not_stop_a_guideline(make_judge: MakeJudge) -> None:
    """Every third answer about a good reply is wrong."""
    count = Counter[int]()

    def flips(request: ChatRequest) -> Any:
        if request.purpose != "verify" or number_of(request) < 100:
            return judged(request)
        count[number_of(request)] += 1
        return says("no" if count[number_of(request)] % 3 == 2 else "yes")

    judge = make_judge(ScriptedChatModel(flips))
    report = judge.align(lessons("good", "good"), verify="full", screen=False)
    assert states(judge) == {"good": "active"}
    assert len(report.verification.unsteady) == 6


def test_calls_that_fail_decide_nothing_and_nothing_is_lost(make_judge: MakeJudge) -> None:
    down = True

    def failing(request: ChatRequest) -> Any:
        return ModelUnavailable("down") if down and request.purpose == "verify" else judged(request)

    model = ScriptedChatModel(failing)
    judge = make_judge(model)
    report = judge.align(lessons("good", "good"), verify="full")
    assert report.verification.outcome == "undone"
    assert report.verification.note == "8 of 8 records could not be judged again; the first: ModelUnavailable: down"
    assert (states(judge), report.unconsumed, len(judge.memory.episodes())) == ({}, 2, 8)
    assert "verification could not be done" in "\n".join(report.lines())
    down = False
    report = judge.align(verify="full")
    assert (states(judge), report.unconsumed, report.verification.outcome) == ({"good": "active"}, 0, "accepted")


def test_an_expert_may_override(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(judged))
    report = judge.align(lessons("good", "bad"), verify="full", override=True)
    proof = report.verification
    assert states(judge) == {"good": "active", "bad": "active"}
    assert (proof.outcome, len(proof.fixed), len(proof.broken), proof.p_value) == ("overridden", 2, 1, 1.0)
    assert {tried.outcome for key in ("g1", "g2") for tried in judge.memory.trials(key)} == {"overridden"}


def test_a_refused_guideline_can_be_accepted_later(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(judged))
    judge.align(lessons("good", "bad"), verify="full")
    accepted = judge.memory.accept("g2", actor="lead")
    assert (accepted.state, accepted.pinned) == ("active", False)
    assert states(judge) == {"good": "active", "bad": "active"}
    newest = judge.memory.history()[-1]
    assert (newest.verb, newest.actor) == ("accept", "lead")
    assert len(judge.memory.trials("g2")) == 1, "what was found about it stays in sight"


def test_a_candidate_whose_evidence_grows_is_tried_again(make_judge: MakeJudge) -> None:
    """Item 100 was the expert's mistake; once it is corrected, the guideline breaks nothing."""
    judge = make_judge(ScriptedChatModel(judged))
    judge.align(lessons("good", "bad"), verify="full")
    judge.align([record(100, value=False)], verify="full")
    assert states(judge)["bad"] == "candidate"
    report = judge.align([record(3, "bad")], verify="full")
    assert states(judge)["bad"] == "active"
    assert [guideline.id for guideline in report.joined] == ["g2"]
    assert [tried.outcome for tried in judge.memory.trials("g2")] == ["refused", "accepted"]


def test_contradictions_count_though_a_new_wording_beside_them_is_refused(make_judge: MakeJudge) -> None:
    """The wording blinds the judge to item 100, so it goes; the cases against the guideline stay."""

    def answer(request: ChatRequest) -> Any:
        if request.purpose != "distil" or not shown_guidelines(request):
            return judged(request)
        return {
            "operations": [
                {"op": "refine", "guideline": "g1", "when": "a reply is judged", "decide": "heed bad", "because": "", "cases": [number]}
                if reason == "bad"
                else {"op": "contradict", "guideline": "g1", "cases": [number]}
                for number, _, reason in shown_cases(request)
            ]
        }

    judge = make_judge(ScriptedChatModel(answer))
    judge.align(lessons("good"), verify="off")
    report = judge.align([record(2, "bad"), record(3, "no", value=True), record(4, "no", value=True)], verify="full")
    assert report.verification.outcome == "refused"
    (guideline,) = report.quarantined
    assert (guideline.text, len(guideline.evidence_for), len(guideline.evidence_against)) == ("When a reply is judged, heed good.", 2, 2)
    assert (len(judge.memory.questions()), report.unconsumed) == (1, 0)


def test_records_that_are_replaced_are_judged_as_they_will_be(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(judged))
    judge.align(lessons("good"), verify="off")
    report = judge.align([record(100, "good", value=False), record(2, "greet first")], verify="full")
    assert (report.verification.errors, report.verification.protected) == (1, 7)


def test_ctrl_c_in_the_middle_of_verification_stores_nothing_by_halves(make_judge: MakeJudge, db: str) -> None:
    class Slow(ScriptedChatModel):
        async def complete(self, request: ChatRequest) -> ChatReply:
            if request.purpose == "verify" and number_of(request) == 103:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                await asyncio.sleep(30)
            return await super().complete(request)

    judge = make_judge(Slow(judged), memory=db)
    with pytest.raises(KeyboardInterrupt):
        judge.align(lessons("good", "good"), verify="full")
    assert (judge.memory.guidelines(all_states=True), judge.memory.episodes(), judge.memory.history()) == ([], [], [])
    assert judge.memory.waiting() == 8
    judge.close()
    model = ScriptedChatModel(judged)
    again = make_judge(model, memory=db)
    assert again.align(verify="full").verification.outcome == "accepted"
    assert asked(model) < 8 * 2 + 2 * 4, "what was answered before Ctrl-C is known"


VERIFY_ELSEWHERE = """
import sys
path, tests = sys.argv[1:]
sys.path.insert(0, tests)
from test_verified_align import judged, lessons, number_of
from memalign import Judge, Scale
from memalign.embedders.scripted import HashEmbedder
from memalign.models.scripted import ScriptedChatModel
class Slow(ScriptedChatModel):
    async def complete(self, request):
        if request.purpose == "verify" and number_of(request) == 103:
            print("verifying", flush=True)
            import asyncio
            await asyncio.sleep(60)
        return await super().complete(request)
judge = Judge("polite", "Is the reply polite?", Scale.boolean(), Slow(judged), memory=path, embedder=HashEmbedder(), floor=0.0)
judge.align(lessons("good", "good"), verify="full")
"""


def test_a_process_killed_in_the_middle_of_verification_loses_nothing(make_judge: MakeJudge, db: str) -> None:
    arguments = [sys.executable, "-c", VERIFY_ELSEWHERE, db, str(Path(__file__).parent)]
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "verifying\n"
        time.sleep(0.3)
        child.send_signal(signal.SIGKILL)
        assert child.wait(10) == -signal.SIGKILL
    finally:
        child.kill()
        child.communicate()
    judge = make_judge(ScriptedChatModel(judged), memory=db)
    assert (judge.memory.history(), judge.memory.waiting()) == ([], 8)
    report = judge.align(verify="full")
    assert (report.verification.outcome, states(judge), report.unconsumed) == ("accepted", {"good": "active"}, 0)
