"""Guidelines in the experts' hands: pinned, edited, added, retired; and the budget that archives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from conftest import MakeJudge, record
from memalign import Guideline, Judge, Scale
from memalign.alignment.budget import Limits, over_budget
from memalign.cli import app
from memalign.errors import BadRecord, ConfigurationError, NotFound
from memalign.memory import semantic


@pytest.fixture
def judge(make_judge: MakeJudge) -> Judge:
    made = make_judge()
    made.align([record(1, "apologise"), record(2, "greet first")])
    return made


def states(judge: Judge) -> dict[str, str]:
    return {guideline.id: guideline.state for guideline in judge.memory.guidelines(all_states=True)}


def test_each_verb_is_one_revision_by_an_expert_and_can_be_undone(judge: Judge) -> None:
    before = judge.memory.guidelines(all_states=True)
    judge.memory.pin("g1", actor="ann")
    judge.memory.unpin("g1", actor="ann")
    judge.memory.edit("g1", "Say sorry first.", actor="ben")
    judge.memory.add("name a day", "a delivery is late", actor="ben")
    judge.memory.retire("g2", actor="eve")
    told = [(change.number, change.verb, change.actor) for change in judge.memory.history()[1:]]
    assert told == [(2, "pin", "ann"), (3, "unpin", "ann"), (4, "edit", "ben"), (5, "add", "ben"), (6, "retire", "eve")]
    assert [guideline.text for guideline in judge.memory.guidelines()] == ["Say sorry first.", "When a delivery is late, name a day."]
    assert judge.at(1).memory.guidelines(all_states=True) == before
    judge.memory.rollback(1)
    assert [(g.text, g.state, g.pinned) for g in judge.memory.guidelines()] == [(g.text, "active", False) for g in before]


def test_what_changes_nothing_is_no_revision(judge: Judge) -> None:
    judge.memory.unpin("g1")
    judge.memory.pin("g1")
    judge.memory.pin("g1")
    assert [change.verb for change in judge.memory.history()] == ["align", "pin"]


def test_an_edited_text_keeps_its_evidence_and_is_pinned(judge: Judge) -> None:
    edited = judge.memory.edit("g1", "  Say sorry\n first. ")
    assert (edited.text, edited.version, edited.pinned, edited.evidence_for) == ("Say sorry first.", 2, True, (record(1).id,))
    judge.unalign([record(1).id])
    assert states(judge)["g1"] == "active", "an expert answers for it"


def test_an_added_guideline_is_read_by_the_judge(judge: Judge) -> None:
    added = judge.memory.add("Sign with a first name.")
    assert (added.id, added.pinned, added.evidence_for) == ("g3", True, ())
    assert "g3" in judge(outputs="x").guideline_ids


@pytest.mark.both_stores
def test_what_an_expert_retired_is_not_learned_again(make_judge: MakeJudge, db: str) -> None:
    judge = make_judge(memory=db)
    judge.align([record(1, "never be rude")])
    judge.memory.retire("g1")
    report = judge.align([record(2, "never be rude")])
    assert (judge.memory.guidelines(), report.added, report.unconsumed) == ([], (), 0)
    assert "an expert retired g1, which says the same" in report.rejected[0].reason
    judge.unalign([record(1).id, record(2).id])
    judge.memory.pin("g1")
    assert [guideline.id for guideline in judge.memory.guidelines()] == ["g1"]


def test_what_an_expert_retired_is_not_learned_again_after_a_rollback_to_it(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "never be rude")])
    judge.memory.retire("g1")
    judge.memory.pin("g1")
    judge.memory.rollback(2)
    judge.memory.rollback(3)
    judge.memory.rollback(4)
    assert "an expert retired g1" in judge.align([record(2, "never be rude")]).rejected[0].reason


def test_what_lost_its_evidence_is_learned_again_after_a_rollback_to_its_loss(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "never be rude")])
    judge.memory.retire("g1")
    judge.memory.pin("g1")
    judge.memory.unpin("g1")
    judge.unalign([record(1).id])
    judge.memory.pin("g1")
    judge.memory.rollback(5)
    assert len(judge.align([record(2, "never be rude")]).added) == 1


def test_what_lost_its_evidence_is_learned_again(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "never be rude")])
    judge.unalign([record(1).id])
    assert len(judge.align([record(2, "never be rude")]).added) == 1


def test_a_retired_guideline_is_not_read_and_can_come_back(judge: Judge) -> None:
    judge.memory.retire("g1")
    assert "g1" not in judge(outputs="x").guideline_ids
    judge.memory.pin("g1")
    assert "g1" in judge(outputs="x").guideline_ids


def test_what_was_withdrawn_while_a_guideline_was_retired_is_not_its_evidence_when_it_comes_back(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "apologise"), record(2, "apologise")])
    judge.memory.retire("g1")
    judge.unalign([record(1).id])
    assert judge.memory.pin("g1").evidence_for == (record(2).id,)


@pytest.mark.parametrize(
    ("verb", "arguments", "error", "message"),
    [
        ("pin", ("g9",), NotFound, "no guideline 'g9'; nothing was changed"),
        ("edit", ("g1", " \n"), BadRecord, "1 to 2000 characters"),
        ("edit", ("g1", "x" * 2001), BadRecord, "1 to 2000 characters"),
        ("edit", ("g1", "half \ud800"), BadRecord, "surrogate"),
        ("add", ("",), BadRecord, "1 to 2000 characters"),
        ("add", ("when a reply is judged,  HEED apologise",), BadRecord, r"guideline g1 \(active\) says the same"),
    ],
)
def test_what_cannot_be_done_changes_nothing(judge: Judge, verb: str, arguments: tuple[str, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        getattr(judge.memory, verb)(*arguments)
    assert len(judge.memory.history()) == 1


def test_a_memory_of_the_past_is_read_only(judge: Judge) -> None:
    with pytest.raises(ConfigurationError, match="pinned to revision 1 and read-only"):
        judge.at(1).memory.pin("g1")


# The budget


def guideline(number: int, *, evidence: int = 1, **more: Any) -> Guideline:
    cases = tuple(f"case {number}-{place}" for place in range(evidence))
    return Guideline(**({"id": f"g{number}", "version": 1, "text": "x" * 40, "evidence_for": cases} | more))


def test_the_least_useful_are_archived_first() -> None:
    held = [
        guideline(1, evidence=5),
        guideline(2, utility=-0.1, evidence=9),
        guideline(3),
        guideline(4),
        guideline(5, pinned=True, evidence=0),
        guideline(6, utility=0.2),
    ]
    order = ["g2", "g3", "g4", "g1", "g6"]
    for most in range(1, 7):
        assert over_budget(held, Limits(guidelines=most)) == order[: 6 - most]
    assert over_budget(held, Limits(tokens=25)) == order[:4], "forty characters are ten tokens"
    assert over_budget([guideline(1, pinned=True), guideline(2, pinned=True)], Limits(guidelines=1)) == []


def test_alignment_archives_beyond_the_budget_and_says_so(make_judge: MakeJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMALIGN_GUIDELINES", "2")
    judge = make_judge()
    report = judge.align([record(1, "apologise"), record(2, "apologise"), record(3, "greet first"), record(4, "be brief")])
    assert states(judge) == {"g1": "active", "g2": "candidate", "g3": "active"}
    assert [guideline.id for guideline in report.archived] == ["g2"]
    assert "  . g2  When a reply is judged, heed greet first." in report.lines()
    judge.memory.rollback(0)
    assert judge.memory.guidelines() == []


def test_utility_is_kept_with_the_text_it_was_measured_on(judge: Judge) -> None:
    with judge.memory.store.writing() as connection:
        semantic.measured(connection, judge.memory.judge_id, {"g1": 0.25})
    assert judge.memory.guidelines()[0].utility == 0.25
    assert judge.memory.pin("g1").utility == 0.25
    assert judge.memory.edit("g1", "Say sorry first.").utility is None


# The command line


def test_the_verbs_on_the_command_line(tmp_path: Path) -> None:
    db = str(tmp_path / "judge.db")
    made = Judge("polite", "Is it polite?", Scale.boolean(), "openai/any", memory=db)
    made.memory.add("Apologise first.")
    made.memory.unpin("g1")
    made.close()

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["memory", *arguments, "--db", db])

    assert "g1 (version 3, active, pinned): Apologise first." in run("pin", "g1").stdout
    assert "active)" in run("unpin", "g1").stdout
    assert json.loads(run("edit", "g1", "Say sorry.", "--json").stdout)["text"] == "Say sorry."
    assert "g2 (version 1, active, pinned): When it is late, name a day." in run("add", "name a day", "--scope", "it is late").stdout
    assert "retired" in run("retire", "g2", "--actor", "ann").stdout
    missing = run("pin", "g9")
    assert missing.exit_code != 0
