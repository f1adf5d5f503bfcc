"""Questions that only the experts can answer: between guidelines, and on contested items."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from conftest import MakeJudge, distilled, expert, record, shown_cases
from memalign import ConfigurationError, Judge, NotFound, Scale
from memalign.cli import app
from memalign.memory import episodic, questions, revisions, semantic
from memalign.models import ChatRequest
from memalign.models.scripted import ScriptedChatModel

pytestmark = pytest.mark.both_stores


def quarrel(judge: Judge) -> None:
    """Two guidelines in quarantine, with a question about them."""
    judge.align([record(1, "Name a date"), record(2, "Never name a date", annotator="ben")])
    with judge.memory.store.writing() as connection:
        judge_id = judge.memory.judge_id
        revision = revisions.current(connection, judge_id) + 1
        for key in ("g1", "g2"):
            semantic.change(connection, judge_id, revision, key, state="quarantined")
        questions.ask(connection, judge_id, revision, "g1", "g2")
        revisions.commit(connection, judge_id, revision, verb="align", actor="", counts={})


def test_a_question_shows_both_guidelines_with_their_cases(make_judge: MakeJudge) -> None:
    judge = make_judge()
    quarrel(judge)
    (question,) = judge.memory.questions()
    assert [g.id for g in question.guidelines] == ["g1", "g2"]
    assert [[e.feedback.rationale for e in side] for side in question.sides] == [["Name a date"], ["Never name a date"]]
    assert judge.memory.guidelines() == []


@pytest.mark.parametrize("keep", [("g2",), ("g1", "g2"), ()])
def test_an_answer_is_one_revision_that_can_be_undone(make_judge: MakeJudge, keep: tuple[str, ...]) -> None:
    judge = make_judge()
    quarrel(judge)
    before = judge.memory.view().revision
    decided = judge.memory.answer("q1", keep=keep, actor="lead")
    assert {g.id: (g.state, g.pinned) for g in decided} == {key: ("active", True) if key in keep else ("superseded", False) for key in ("g1", "g2")}
    assert {g.id for g in judge.memory.guidelines()} == set(keep)
    assert judge.memory.questions() == []
    change = judge.memory.history()[-1]
    assert (change.number, change.verb, change.actor) == (before + 1, "answer", "lead")
    judge.memory.rollback(before)
    assert [question.id for question in judge.memory.questions()] == ["q1"]


def test_a_question_about_a_purged_guideline_is_none(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "Name a date")])
    quarrel(judge)
    asked = judge.memory.view().revision
    judge.purge(record(1).id)
    assert judge.at(asked).memory.questions() == []
    judge.memory.rollback(asked)
    assert judge.memory.questions() == []
    assert [g.id for g in judge.memory.guidelines()] == ["g2"], "it has no rival any longer"
    judge.memory.rollback(asked - 1)
    assert [g.id for g in judge.memory.guidelines()] == ["g2"]


def contradicted(request: ChatRequest) -> Any:
    """Learns from cases with the verdict no; those with yes contradict the first guideline."""
    if request.purpose != "distil":
        return expert(request)
    labels = {number: label for number, label, _ in shown_cases(request)}
    return {
        "operations": [
            {"op": "contradict", "guideline": "g1", "cases": found["cases"]} if labels[found["cases"][0]] == "yes" else found
            for found in distilled(request)["operations"]
        ]
    }


@pytest.mark.parametrize("verb", ["unalign", "overwrite", "purge"])
def test_a_guideline_that_its_cases_no_longer_outvote_is_back(make_judge: MakeJudge, verb: str) -> None:
    judge = make_judge(ScriptedChatModel(contradicted), weights={"cat": 0.0})
    judge.align([record(1, "apologise"), record(2, "apologise")])
    judge.align([record(number, "never apologise", value=True) for number in (3, 4)])
    asked = judge.memory.view().revision
    assert ([question.id for question in judge.memory.questions()], judge.memory.guidelines()) == (["q1"], [])
    judge.unalign(judge.align([record(5, "apologise", annotator="cat")]).joined[0].evidence_for[-1])
    assert len(judge.memory.questions()) == 1, "one that does not count settles nothing"
    if verb == "overwrite":
        judge.overwrite(record(4, "apologise"))
    else:
        getattr(judge, verb)(record(4).id)
    assert [guideline.id for guideline in judge.memory.guidelines()] == ["g1"]
    assert judge.memory.questions() == []
    judge.memory.rollback(asked)
    assert len(judge.memory.questions()) == (verb != "purge")


def test_while_a_rival_is_left_a_guideline_stays_in_quarantine(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(contradicted))
    quarrel(judge)
    judge.align([record(3, "never", value=True)])
    with judge.memory.store.writing() as connection:
        judge_id = judge.memory.judge_id
        questions.ask(connection, judge_id, revisions.current(connection, judge_id), "g1")
    judge.unalign(record(3).id)
    assert [len(question.guidelines) for question in judge.memory.questions()] == [2]
    assert judge.memory.guidelines() == []


@pytest.mark.parametrize("first", ["pin", "retire"])
def test_what_contradicts_a_pinned_guideline_is_superseded_whatever_else_is_asked_about_it(make_judge: MakeJudge, first: str) -> None:
    judge = make_judge()
    judge.align([record(number, f"reason {number}") for number in (1, 2, 3)])
    with judge.memory.store.writing() as connection:
        judge_id, revision = judge.memory.judge_id, 2
        for key in ("g1", "g2", "g3"):
            semantic.change(connection, judge_id, revision, key, state="quarantined")
        questions.ask(connection, judge_id, revision, "g1", "g2")
        questions.ask(connection, judge_id, revision, "g2", "g3")
        revisions.commit(connection, judge_id, revision, verb="align", actor="", counts={})
    if first == "pin":
        judge.memory.pin("g1")
        assert [g.id for g in judge.memory.guidelines()] == ["g1", "g3"], "nothing contradicts g3 any longer"
    judge.memory.retire("g3")
    judge.memory.pin("g1")
    assert [g.id for g in judge.memory.guidelines()] == ["g1"]
    assert judge.memory.questions() == []


def test_what_is_not_asked_cannot_be_answered(make_judge: MakeJudge) -> None:
    judge = make_judge()
    quarrel(judge)
    with pytest.raises(NotFound, match="no question 'q9' is open"):
        judge.memory.answer("q9", keep=["g1"])
    with pytest.raises(NotFound, match="q1 does not ask about g7, but about g1 and g2"):
        judge.memory.answer("q1", keep=["g7"])
    with pytest.raises(ConfigurationError, match="read-only"):
        judge.at(1).memory.answer("q1", keep=["g1"])
    assert len(judge.memory.questions()) == 1


def test_a_contested_item_is_a_question_until_the_experts_agree(make_judge: MakeJudge) -> None:
    judge = make_judge(scale=Scale.score(1, 5))
    judge.align([record(1, value=2, annotator="ann"), record(1, value=5, annotator="ben"), record(1, value=5, annotator="cat"), record(2, value=1)])
    (question,) = judge.memory.questions()
    assert question.guidelines == ()
    assert [[e.feedback.annotator for e in side] for side in question.sides] == [["ann"], ["ben", "cat"]]
    with pytest.raises(ConfigurationError, match="overwriting or taking back"):
        judge.memory.answer(question.id)
    judge.align([record(1, value=5, annotator="ann")])
    assert judge.memory.questions() == []


@pytest.mark.parametrize("weight", [0, 0.5])
def test_who_carries_no_weight_contests_nothing(make_judge: MakeJudge, weight: float) -> None:
    judge = make_judge(weights={"temp": weight})
    report = judge.align([record(1, value=True, annotator="ann"), record(1, value=False, annotator="temp")])
    assert (bool(report.contested), bool(judge.memory.questions())) == (weight > 0, weight > 0)
    assert len(judge.panel().contested) == 1, "how far they agree is measured whatever they weigh"


def test_a_waiting_correction_weighs_nothing_yet(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(contradicted), weights={"boss": 5})
    judge.align([record(1, "apologise", id="r1")])
    judge.align([record(number, "never apologise", value=True) for number in (3, 4)])
    assert len(judge.memory.questions()) == 1
    with judge.memory.store.writing(judge.memory.judge_id) as connection:
        episodic.record(connection, judge.memory.judge_id, record(1, "do apologise", id="r1", annotator="boss"))
    judge.unalign(record(4, value=True).id)
    assert len(judge.memory.questions()) == 1, "one case on either side"


@pytest.mark.parametrize("annotator", ["", "ann"])
def test_records_with_ids_of_their_own_that_differ_on_an_item_are_a_question(make_judge: MakeJudge, annotator: str) -> None:
    judge = make_judge()
    given = [record(1, value=True, annotator=annotator, id="r1"), record(1, value=False, annotator=annotator, id="r2")]
    assert judge.align([*given, record(2, annotator=annotator, id="r3")]).contested == (given[0].item.id,)
    (question,) = judge.memory.questions()
    assert [[e.feedback.id for e in side] for side in question.sides] == [["r1"], ["r2"]]
    judge.unalign(["r2"])
    assert judge.memory.questions() == []


def test_questions_on_items_come_oldest_first(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(number, value=value, annotator=who) for number in range(9) for value, who in ((True, "ann"), (False, "ben"))])
    asked = [question.sides[0][0].feedback.outputs for question in judge.memory.questions()]
    assert asked == [f"reply {number}" for number in range(9)]


def test_near_verdicts_on_an_item_are_no_question(make_judge: MakeJudge) -> None:
    judge = make_judge(scale=Scale.score(1, 5))
    report = judge.align([record(1, value=4), record(1, value=5, annotator="ben"), record(2, value=1), record(2, value=5, annotator="ben")])
    assert report.contested == (record(2).item.id,)
    assert [[e.feedback.value for side in question.sides for e in side] for question in judge.memory.questions()] == [[1, 5]]
    assert [[f.value for f in contested] for contested in judge.panel().contested] == [[1, 5]]
    assert set(judge.align([record(1, value=3, annotator="cat")]).contested) == {record(1).item.id, record(2).item.id}


def test_the_command_shows_both_sides_and_takes_the_answer(make_judge: MakeJudge, db: str) -> None:
    judge = make_judge(memory=db)
    quarrel(judge)
    judge.align([record(3, value=True, annotator="ann"), record(3, value=False, annotator="ben")])
    judge.close()

    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["memory", *arguments, "--db", db])
        assert done.exit_code == code, done.output
        return done.stdout

    # the scripted embedder cannot be opened by name, and nothing here needs one
    named = Judge("polite", "Is the reply polite?", Scale.boolean(), "openai/none", memory=db)
    named.memory.view()
    named.close()
    shown = run("questions", code=1)
    assert "q1: which of these shall stand?" in shown
    assert "Name a date" in shown
    assert "Never name a date [ben," in shown
    assert "memalign memory answer q1 --keep g1 or g2" in shown
    assert "the verdicts on one item differ: input: question 3 output: reply 3" in shown
    assert "2 open question(s)" in shown
    assert "g2 is active and pinned" in run("answer", "q1", "--keep", "g2")
    left = json.loads(run("questions", "--json", code=1))
    assert [question["guidelines"] for question in left] == [[]]
    assert "no question" not in run("questions", code=1)
