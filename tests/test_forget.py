"""Taking back: what is named, what it touches, what goes, and what stays gone."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, update
from typer.testing import CliRunner

from conftest import MakeJudge, add, expert, record, says, support
from memalign import Judge, Retention, Usage
from memalign.alignment import forget
from memalign.cli import app
from memalign.embedders.scripted import HashEmbedder
from memalign.errors import ConfigurationError, ModelUnavailable, NotFound, StoreBusy
from memalign.memory import episodic
from memalign.memory.revisions import Decision, commit
from memalign.memory.selection import Selection
from memalign.memory.traces import carries, distinctive, passages
from memalign.models import ChatReply, ChatRequest
from memalign.models.scripted import ScriptedChatModel
from memalign.stores import schema

pytestmark = pytest.mark.both_stores

MONDAY = datetime(2026, 3, 2, 12, tzinfo=UTC)


def rows(judge: Judge, *tables: Any) -> list[Any]:
    with judge.memory.store.reading() as connection:
        return [tuple(row) for table in tables or schema.metadata.sorted_tables for row in connection.execute(select(table))]


def texts(judge: Judge) -> list[str]:
    return [guideline.text for guideline in judge.memory.guidelines()]


def held(judge: Judge) -> list[str]:
    return [episode.feedback.outputs for episode in judge.memory.episodes()]


def heed(reason: str) -> str:
    return f"When a reply is judged, heed {reason}."


class Gated:
    """A model whose first call of a purpose waits until it is let through."""

    name = "scripted/gated"

    def __init__(self, purpose: str) -> None:
        self.inner, self.purpose = ScriptedChatModel(expert), purpose
        self.arrived, self.go = asyncio.Event(), asyncio.Event()

    async def complete(self, request: ChatRequest) -> ChatReply:
        if request.purpose == self.purpose and not self.arrived.is_set():
            self.arrived.set()
            await asyncio.wait_for(self.go.wait(), 20)
        return await self.inner.complete(request)

    async def aclose(self) -> None:
        pass


# Naming


@pytest.mark.parametrize(
    ("named", "numbers"),
    [
        ({"ids": ["1", "3", "1"]}, [1, 3]),
        ({"ids": "2"}, [2]),
        ({"annotator": "ben"}, [3, 4]),
        ({"source": "b.csv"}, [2, 4]),
        ({"annotator": "ben", "source": "b.csv"}, [4]),
        ({"before": "2026-03-03"}, [1]),
        ({"after": "2026-03-04T12:00"}, [3, 4]),
        ({"after": MONDAY + timedelta(days=1), "before": MONDAY + timedelta(days=3)}, [2, 3]),
        ({"after": "2026-03-03T14:00:00+02:00", "before": "2026-03-04"}, [2]),
        ({"search": "GREET"}, [2, 3]),
        ({"search": "question 4"}, [4]),
        ({"ids": ["1", "2"], "search": "greet"}, [2]),
        ({"like": "reply 3 greet", "nearest": 1}, [3]),
        ({"search": "nowhere"}, []),
        ({"ids": []}, []),
        ({"everything": True}, [1, 2, 3, 4]),
    ],
)
def test_one_selection_serves_preview_retraction_and_purge(make_judge: MakeJudge, named: dict[str, Any], numbers: list[int]) -> None:
    judge = make_judge()
    judge.align(
        [
            record(
                number,
                {1: "apologise", 2: "greet first", 3: "Greet last", 4: "be brief"}[number],
                id=str(number),
                annotator="ben" if number > 2 else "ann",
                source="ab"[number % 2 == 0] + ".csv",
                created_at=MONDAY + timedelta(days=number - 1),
                outputs=f"reply {number} {'greet' if number == 3 else ''}",
            )
            for number in range(1, 5)
        ]
    )
    wanted = tuple(map(str, numbers))
    assert judge.preview("unalign", **named).records == judge.preview("purge", **named).records == wanted
    selection = Selection.of(**named)
    if selection.like is None:
        assert [episode.feedback.id for episode in judge.memory.find(selection)] == list(wanted)
    assert judge.unalign(**named, dry_run=True).done is False
    assert len(judge.memory.episodes()) == 4
    report = judge.unalign(**named)
    assert (report.records, report.withdrawn, report.done) == (wanted, len(numbers), True)
    assert len(judge.memory.episodes()) == 4 - len(numbers)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({}, "name the records"),
        ({"before": "yesterday"}, "'yesterday' is not a time"),
        ({"search": " "}, "need a text"),
        ({"ids": "1", "everything": True}, "exclude each other"),
        ({"like": "x", "nearest": 0}, "nearest must be 1"),
    ],
)
def test_a_selection_that_cannot_be_meant_is_refused(make_judge: MakeJudge, named: dict[str, Any], message: str) -> None:
    judge = make_judge()
    judge.align([record(1, id="1")])
    for verb in (judge.unalign, judge.purge):
        with pytest.raises(ConfigurationError, match=message):
            verb(**named)
    assert len(judge.memory.episodes()) == 1


def test_one_unknown_id_and_nothing_is_purged(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "apologise", id="1")])
    before = rows(judge)
    for named in (["1", "typo"], ["typo"]):
        with pytest.raises(NotFound, match="no feedback 'typo' in judge 'polite'; nothing was changed"):
            judge.purge(named)
        with pytest.raises(NotFound, match="typo"):
            judge.preview("purge", named)
    assert rows(judge) == before


# Previews


def test_a_preview_names_records_and_guidelines_by_evidence_and_by_taint_and_changes_nothing(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "apologise"), record(2, "greet first")])
    judge.align([record(3, "be brief")])
    judge(inputs="question 1", outputs="reply 1")
    before = rows(judge)
    found = judge.preview("purge", record(1).id)
    assert (found.done, found.withdrawn, found.verdicts, found.revision) == (False, 1, 1, 2)
    assert [g.id for g in found.by_evidence] == ["g1"]
    assert [g.id for g in found.by_taint] == ["g1", "g2"], "both came from one prompt"
    assert found.lines()[0] == "revision 2: 1 record(s) would be purged"
    assert [g.id for g in judge.preview("unalign", record(1).id).retired] == ["g1"]
    over = judge.preview("overwrite", record(1, "greet first"))
    assert (over.records, [g.id for g in over.by_evidence]) == ((record(1).id,), ["g1"])
    with pytest.raises(NotFound):
        judge.preview("overwrite", record(9))
    with pytest.raises(ConfigurationError, match="preview of unalign"):
        judge.preview("align", record(1).id)  # type: ignore[arg-type]
    assert rows(judge) == before


def test_a_purge_does_what_its_preview_said(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(number, f"reason {number % 3}") for number in range(9)])
    judge(inputs="question 1", outputs="reply 1")
    said, done = judge.preview("purge", record(1).id), judge.purge(record(1).id)
    assert [g.id for g in said.by_taint] == [g.id for g in done.by_taint]
    assert (said.withdrawn, said.versions, said.verdicts) == (done.withdrawn, done.versions, done.verdicts)
    assert done.records == ()
    assert {g.text for g in done.by_taint} == {""}, "after a purge the report holds no content"
    assert json.loads(json.dumps(done.to_dict(), default=str))["done"] is True


# Overwriting


def test_a_waiting_correction_by_someone_else_stays(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "apologise", id="r1", annotator="ann"), record(2, "be brief", id="r2", annotator="ben")])
    with judge.memory.store.writing(judge.memory.judge_id) as connection:
        episodic.record(connection, judge.memory.judge_id, record(1, "greet first", id="r1", annotator="ben"))
    report = judge.unalign(annotator="ann")
    assert (report.records, report.unconsumed, [episode.feedback.id for episode in judge.memory.episodes()]) == (("r1",), 1, ["r2"])
    judge.align()
    assert [episode.feedback.annotator for episode in judge.memory.episodes()] == ["ben", "ben"]
    assert judge.unalign("r1").unconsumed == 0
    assert [episode.feedback.id for episode in judge.memory.episodes()] == ["r2"]


def test_a_record_that_waits_can_be_overwritten(make_judge: MakeJudge) -> None:
    class Broken(HashEmbedder):
        broken = True

        async def embed(self, texts: Any) -> Any:
            if self.broken:
                raise ModelUnavailable("down")
            return await super().embed(texts)

    embedder = Broken()
    judge = make_judge(embedder=embedder)
    with pytest.raises(ModelUnavailable):
        judge.align([record(1, "an obsolete reason")])
    assert (judge.memory.episodes(), judge.memory.waiting()) == ([], 1)
    embedder.broken = False
    assert judge.overwrite(record(1, "greet first")).changed == 1
    assert texts(judge) == [heed("greet first")]
    assert "obsolete" not in str(rows(judge))


def test_several_records_are_overwritten_at_once_or_none(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "apologise"), record(2, "greet first")])
    with pytest.raises(NotFound, match="use align for a new record"):
        judge.overwrite([record(1, "be brief"), record(3)])
    assert judge.overwrite([record(1, "be brief"), record(2, "be warm")]).changed == 2
    assert texts(judge) == [heed("be brief"), heed("be warm")]


# What goes and what stays


def test_those_that_shared_a_prompt_with_a_purged_record_are_distilled_again(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(expert)
    judge = make_judge(model)
    judge.align([record(1, "apologise"), record(2, "greet first")])
    model.requests.clear()
    report = judge.purge(record(1).id)
    assert "apologise" not in str([request.messages for request in model.requests])
    assert texts(judge) == [heed("greet first")]
    assert report.aligned is not None
    assert [g.evidence_for for g in report.aligned.added] == [(record(2).id,)]
    assert [g.id for g in judge.memory.guidelines()] == ["g3"], "no number is given twice"
    assert (report.complete, report.unconsumed, held(judge)) == (True, 0, ["reply 2"])


def test_a_record_that_only_supported_a_guideline_leaves_it_standing(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(expert)
    judge = make_judge(model)
    judge.align([record(1, "apologise")])
    judge.align([record(2, "apologise")])
    model.requests.clear()
    report = judge.purge(record(2).id)
    assert ([g.id for g in report.by_evidence], report.by_taint) == (["g1"], ())
    assert [(g.id, g.evidence_for) for g in judge.memory.guidelines()] == [("g1", (record(1).id,))]
    assert model.requests == []


def test_a_record_that_only_contradicted_a_guideline_retires_none(make_judge: MakeJudge) -> None:
    against = {"operations": [{"op": "contradict", "guideline": "g1", "cases": [1]}]}
    judge = make_judge(ScriptedChatModel(lambda request: against if request.purpose == "distil" else expert(request)))
    judge.memory.unpin(judge.memory.add("Apologise.").id)
    judge.align([record(1, "never apologise")])
    assert judge.preview("unalign", record(1).id).retired == ()
    assert judge.unalign(record(1).id).retired == ()
    assert [(g.id, g.evidence_against) for g in judge.memory.guidelines(all_states=True) if g.state != "retired"] == [("g1", ())]


def test_a_later_guideline_that_copied_from_a_tainted_one_goes_too(make_judge: MakeJudge) -> None:
    rules = iter(["mention Rumpelstiltskin by name", "greet first as Rumpelstiltskin would", "greet first"])
    judge = make_judge(
        ScriptedChatModel(lambda request: {"operations": [add(1, decide=next(rules))]} if request.purpose == "distil" else expert(request))
    )
    judge.align([record(1, "he is called Rumpelstiltskin")])
    judge.align([record(2, "greet first")])
    report = judge.purge(record(1).id)
    assert len(report.by_taint) == 2
    assert texts(judge) == ["When a reply is judged, greet first."]


def test_guidelines_by_hand_go_only_when_they_quote(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "mention the purple elephant of Mrs Smith")])
    judge.memory.add("Always mention animals, such as an elephant.")
    judge.memory.add("Mention the purple elephant of Mrs Smith first.")
    judge.purge(record(1).id)
    assert texts(judge) == ["Always mention animals, such as an elephant."]


def test_emptying_memory_gives_back_the_generic_judge(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(expert)
    judge = make_judge(model, exemplars=2)
    judge(inputs="question 1", outputs="reply 1")
    generic = model.requests[-1]
    judge.align([record(number, f"reason {number}") for number in range(4)])
    judge.memory.add("Be kind to animals.")
    judge_id, revision = judge.memory.judge_id, judge.memory.history()[-1].number + 1
    with judge.memory.store.writing() as connection:
        commit(connection, judge_id, revision, verb="calibrate", actor="", counts={}, decision=Decision(vote_weight=9.0))
    assert judge.memory.view().decision.vote_weight == 9.0
    report = judge.purge(everything=True)
    assert (report.withdrawn, report.complete) == (4, True)
    view = judge.memory.view()
    assert (view.guidelines, view.exemplars, view.items, view.decision) == ((), (), 0, Decision())
    judge(inputs="question 1", outputs="reply 1")
    assert model.requests[-1] == generic
    assert rows(judge, schema.feedback, schema.guideline, schema.evidence, schema.taint, schema.vector) == []
    assert judge.align([record(7, "greet first")]).new == 1


def test_unaligning_everything_forgets_what_was_decided_on_it(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1)])
    with judge.memory.store.writing() as connection:
        commit(connection, judge.memory.judge_id, 2, verb="calibrate", actor="", counts={}, decision=Decision(vote_weight=9.0))
    judge.unalign(everything=True)
    assert judge.memory.view().decision == Decision()
    assert judge.memory.at(2).view().decision.vote_weight == 9.0


def test_another_experts_record_on_the_item_keeps_what_it_needs(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, annotator="ann"), record(1, annotator="ben", value=True)])
    judge.purge(annotator="ann")
    assert [episode.feedback.annotator for episode in judge.memory.episodes()] == ["ben"]
    assert len(rows(judge, schema.vector)) == 1
    assert judge(inputs="question 1", outputs="reply 1").episode_ids == (record(1, annotator="ben").id,)


def test_a_purged_record_is_not_learned_again_until_it_is_lifted(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "apologise"), record(2, "greet first")])
    judge.purge(record(1).id)
    report = judge.align([record(1, "apologise"), record(3)])
    assert (report.purged, report.new) == (1, 1)
    assert "1 record(s) left out: they were purged from this memory before" in report.lines()
    assert held(judge) == ["reply 2", "reply 3"]
    assert record(1).id not in str(rows(judge)), "the tombstone is a digest"
    assert judge.purge(record(1).id).withdrawn == 0, "purging again is no error"
    assert judge.memory.lift([record(1).id, "never seen"]) == 1
    assert judge.align([record(1, "apologise")]).new == 1


def test_when_what_remains_cannot_be_distilled_the_purge_stands_and_says_so(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel([{"operations": [add(1, 2, decide="heed apologise")]}, ModelUnavailable("down")])
    judge = make_judge(model)
    judge.align([record(1, "apologise"), record(2, "apologise")])
    report = judge.purge(record(1).id)
    assert (report.complete, report.unconsumed, texts(judge), held(judge)) == (False, 1, [], ["reply 2"])
    model.add({"operations": [add(1, decide="heed apologise")]})
    assert judge.align().unconsumed == 0
    assert texts(judge) == [heed("apologise")]


def test_rollback_across_a_purge_brings_back_the_rest_only(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "apologise"), record(2, "greet first")])
    judge.unalign(record(2).id)
    judge.purge(record(1).id)
    judge.memory.rollback(1)
    assert held(judge) == ["reply 2"]
    assert "apologise" not in str(rows(judge))


def test_a_guideline_whose_evidence_was_purged_does_not_come_back(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "apologise"), record(3, "greet first")])
    judge.align([record(2, "apologise")])
    judge.memory.unpin(judge.memory.add("Be kind to animals.").id)
    judge.memory.unpin(judge.memory.add("Sign it.").id)
    judge.unalign(record(1).id)
    before = judge.memory.view().revision
    judge.memory.retire("g4")
    assert [guideline.id for guideline in judge.purge(record(2).id).retired] == ["g1"]
    foretold = judge.memory.rollback(before, dry_run=True)
    report = judge.memory.rollback(before)
    assert texts(judge) == [heed("greet first"), "Be kind to animals.", "Sign it."], "by hand there never was any"
    for told in (foretold, report):
        assert [(change.kind, change.id) for change in told.difference.guidelines] == [("added", "g4")], "what does not come back is not promised"
    assert not judge.memory.rollback(before).difference, "again there is nothing to do"
    judge.memory.rollback(2)
    assert texts(judge) == [heed("apologise"), heed("greet first")], "record 1 is back"


# Others at work


def test_an_align_under_way_throws_away_what_it_said_before_a_purge(make_judge: MakeJudge, db: str) -> None:
    async def scenario() -> tuple[Any, Gated]:
        model = Gated("distil")
        judge = make_judge(model, memory=db)
        aligning = asyncio.create_task(judge.aalign([record(2, "greet first"), record(3, "a secret reason", id="secret")]))
        await asyncio.wait_for(model.arrived.wait(), 20)
        await asyncio.to_thread(other.purge, search="secret")
        model.go.set()
        return await aligning, model

    other = make_judge(memory=db)
    other.align([record(1, "the secret of record one")])
    report, model = asyncio.run(scenario())
    assert "secret" not in str(rows(other))
    assert texts(other) == [heed("greet first")]
    assert (report.unconsumed, held(other)) == (0, ["reply 2"])
    (prompt,) = [str(request.messages) for request in model.inner.requests if request.purpose == "distil"]
    assert "secret" in prompt, "what it said was thrown away; the purge has distilled the rest"


def test_an_align_that_is_purged_again_and_again_gives_up_and_loses_nothing(make_judge: MakeJudge, db: str) -> None:
    model = ScriptedChatModel(lambda request: ModelUnavailable("down"))
    other = make_judge(model, memory=db)
    other.align([record(number, id=str(number)) for number in range(9)])
    numbers = iter(range(9))

    def answer(request: ChatRequest) -> Any:
        if request.purpose == "distil":
            other.memory.view()
            asyncio.run(other.apurge(str(next(numbers))))
        return expert(request)

    judge = make_judge(Threaded(answer), memory=db)
    with pytest.raises(StoreBusy, match="its feedback is stored"):
        judge.align([record(20, "greet first", id="new")])
    judge = make_judge(memory=db)
    assert judge.align().unconsumed == 0
    assert texts(judge) == [heed("greet first")]


class Threaded:
    """Answers in a thread, where an answer may itself run an event loop."""

    name = "scripted/threaded"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def complete(self, request: ChatRequest) -> ChatReply:
        return ChatReply(text=json.dumps(await asyncio.to_thread(self.answer, request)))

    async def aclose(self) -> None:
        pass


def test_a_verdict_under_way_is_given_but_not_logged(make_judge: MakeJudge, db: str) -> None:
    async def scenario() -> Any:
        model = Gated("judge")
        judge = make_judge(model, memory=db)
        judging = asyncio.create_task(judge.acall(inputs="question 1", outputs="reply 1"))
        await asyncio.wait_for(model.arrived.wait(), 20)
        await asyncio.to_thread(other.purge, record(1).id)
        model.go.set()
        verdict = await judging
        judge.memory.store  # noqa: B018 - writes what is to be logged
        return verdict

    other = make_judge(memory=db)
    other.align([record(1, "apologise"), record(2)])
    verdict = asyncio.run(scenario())
    assert record(1).id in verdict.episode_ids
    assert rows(other, schema.verdict) == []


def test_other_readers_drop_what_they_hold_in_ram(make_judge: MakeJudge, db: str) -> None:
    judge, reader = make_judge(memory=db), make_judge(memory=db, exemplars=3)
    judge.align([record(1, "apologise"), record(2, "greet first")])
    pinned = reader.at(1)
    for each in (reader, pinned):
        each(inputs="question 1", outputs="reply 1")
        assert len(each.memory.view().exemplars) == 2
    reader.batch([record(5).item])
    judge.purge(record(1).id)
    for each in (reader, pinned):
        verdict = each(inputs="question 1", outputs="reply 1")
        assert verdict.episode_ids == (record(2).id,)
        view = each.memory.view()
        assert "apologise" not in str(view)
        assert view.items == 1
        assert record(1).item.id not in each.memory._search
    query = np.zeros(64, dtype=np.float32)
    assert reader.memory.cases(reader.memory.view(), record(1).item.id, query, k=5, floor=-1.0, own=True).episodes[0].feedback.outputs == "reply 2"


def test_vectors_of_purged_texts_do_not_come_back_with_a_new_embedder(make_judge: MakeJudge, db: str) -> None:
    judge = make_judge(memory=db)
    judge.align([record(1), record(2)])
    other = make_judge(memory=db, embedder=HashEmbedder(32))
    missing = other.memory.texts(other.memory.lacking())
    assert len(missing) == 2
    judge.purge(record(1).id)
    other.memory.store_vectors({key: np.ones(32, dtype=np.float32) for key in missing})
    assert len(rows(judge, schema.vector)) == 2


# Retention


def test_retention_purges_by_age_and_number_at_align(make_judge: MakeJudge, db: str) -> None:
    now = datetime.now(UTC)
    judge = make_judge(memory=db, retention=Retention(max_age_days=30, max_records=3))
    report = judge.align([record(number, f"reason {number}", created_at=now - timedelta(days=10 * number)) for number in range(7)])
    assert (report.expired, report.unconsumed) == (4, 0)
    assert "4 record(s) purged: beyond the retention limits" in report.lines()
    assert held(judge) == ["reply 0", "reply 1", "reply 2"]
    assert sorted(texts(judge)) == [heed(f"reason {number}") for number in range(3)]
    loaded = Judge.load(db, "polite", model=ScriptedChatModel(expert), embedder=HashEmbedder())
    assert loaded.retention == Retention(max_age_days=30, max_records=3)
    assert (loaded.preview("purge", expired=True).withdrawn, loaded.purge(expired=True).withdrawn) == (0, 0)
    loaded.close()
    assert judge.align([record(8, created_at=now - timedelta(days=1))]).expired == 1
    assert held(judge) == ["reply 0", "reply 1", "reply 8"]


@pytest.mark.parametrize("days", [1e6, 1e12, float("inf")])
def test_a_limit_older_than_the_calendar_keeps_everything(make_judge: MakeJudge, days: float) -> None:
    judge = make_judge(retention=Retention(max_age_days=days))
    assert judge.align([record(1, created_at=datetime(1, 1, 1, tzinfo=UTC))]).expired == 0
    assert held(judge) == ["reply 1"]


def test_what_retention_costs_and_leaves_undone_stands_in_the_report(make_judge: MakeJudge) -> None:
    asked = []

    def answer(request: ChatRequest) -> Any:
        if request.purpose == "distil":
            asked.append(request)
            if len(asked) == 2:
                raise ModelUnavailable("the line is dead")
        return ChatReply(text=json.dumps(expert(request)), usage=Usage(calls=1, prompt_tokens=1000))

    judge = make_judge(ScriptedChatModel(answer, name="openai/gpt-4.1-mini"), retention=Retention(max_age_days=30))
    old = record(1, "apologise", created_at=datetime.now(UTC) - timedelta(days=31))
    report = judge.align([old, record(2, "greet first")], verify="off")
    assert (report.expired, report.unconsumed, [batch.error for batch in report.failed_batches]) == (1, 1, ["the line is dead"])
    assert (report.added, judge.memory.guidelines()) == ((), [])
    assert report.cost_usd == pytest.approx(judge.memory.spent()[1])
    report = judge.align()
    assert [guideline.text for guideline in report.added] == [heed("greet first")]


def test_what_the_purge_of_expired_records_could_not_finish_is_told(make_judge: MakeJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_: object) -> None:
        raise StoreBusy("another process reads")

    judge = make_judge(retention=Retention(max_records=1))
    _ = judge.memory.judge_id
    monkeypatch.setattr(forget, "scrub", busy)
    report = judge.align([record(1), record(2)])
    assert "another process reads" in report.note
    assert any("another process reads" in line for line in report.lines())
    assert "another process reads" in report.to_html()


def test_retention_that_makes_no_sense_is_refused(make_judge: MakeJudge) -> None:
    for limits in ({"max_age_days": 0}, {"max_records": 0}, {"max_age_days": float("nan")}):
        with pytest.raises(ConfigurationError):
            Retention(**limits)
    with pytest.raises(ConfigurationError, match="has no limits of retention"):
        make_judge().purge(expired=True)
    with pytest.raises(ConfigurationError, match="exclude each other"):
        make_judge(retention=Retention(max_records=5)).purge("1", expired=True)


# Audit


def changed(judge: Judge) -> None:
    judge.align([record(1, "apologise"), record(2)], actor="mia")
    judge.unalign(record(2).id, actor="ben")
    judge.purge(record(1).id, actor="officer")


def test_the_audit_says_who_when_what_verb_and_how_much_but_never_what(make_judge: MakeJudge) -> None:
    judge = make_judge()
    assert (judge.memory.audit().intact, judge.memory.audit().head) == (True, "")
    changed(judge)
    log = judge.memory.audit()
    assert [(entry.number, entry.verb, entry.actor) for entry in log.entries] == [(1, "align", "mia"), (2, "unalign", "ben"), (3, "purge", "officer")]
    assert (log.intact, log.holds(log.head), log.holds(log.entries[0].hash), log.holds("0" * 64)) == (True, True, True, False)
    assert len({entry.ids for entry in log.entries}) == 3
    assert log.entries[2].counts["purged"] == 1
    assert not {record(1).id, "apologise", "reply 1"} & set(str(log.to_dict()).split("'"))
    assert judge.memory.at(1).audit().entries == log.entries


@pytest.mark.parametrize("field", ["counts", "actor", "verb", "at", "ids", "hash", "decision"])
def test_a_line_that_was_changed_shows(make_judge: MakeJudge, field: str) -> None:
    judge = make_judge()
    changed(judge)
    with judge.memory.store.writing() as connection:
        connection.execute(update(schema.revision).where(schema.revision.c.number == 2).values({field: "{}"}))
    assert judge.memory.audit().broken_at == 2


def test_a_line_that_was_taken_out_shows_and_a_cut_end_against_a_noted_seal(make_judge: MakeJudge) -> None:
    judge = make_judge()
    changed(judge)
    head = judge.memory.audit().head
    with judge.memory.store.writing() as connection:
        connection.execute(schema.revision.delete().where(schema.revision.c.number == 3))
    assert (judge.memory.audit().intact, judge.memory.audit().holds(head)) == (True, False)
    with judge.memory.store.writing() as connection:
        connection.execute(schema.revision.delete().where(schema.revision.c.number == 1))
    assert judge.memory.audit().broken_at == 1


def test_lines_from_before_the_audit_are_covered_by_the_next_seal(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1)])
    judge.align([record(2)])
    with judge.memory.store.writing() as connection:
        connection.execute(update(schema.revision).values(hash="", ids=""))
    judge.align([record(3)])
    assert judge.memory.audit().intact
    with judge.memory.store.writing() as connection:
        connection.execute(update(schema.revision).where(schema.revision.c.number == 1).values(actor="someone else"))
    assert judge.memory.audit().broken_at == 3


# On the command line


@pytest.fixture
def cli(make_judge: MakeJudge, db: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    judge = make_judge(memory=db)
    judge.align([record(1, id="r1"), record(2, id="r2", annotator="ben"), record(3, id="r3")])
    judge.close()
    monkeypatch.setattr("memalign.models.open_chat_model", lambda name: ScriptedChatModel(expert, name=name))
    monkeypatch.setattr("memalign.embedders.open_embedder", lambda name: HashEmbedder())

    def run(*arguments: str, code: int = 0, answer: str | None = None) -> str:
        result = CliRunner().invoke(app, [*arguments, "--db", db], input=answer, env={"COLUMNS": "200"})
        assert result.exit_code == code, result.output
        return result.output

    return run


def test_the_command_line_previews_asks_and_purges(cli: Any) -> None:
    assert "would be purged" in cli("purge", "--annotator", "ben", "--dry-run")
    assert json.loads(cli("purge", "r1", "--dry-run", "--json"))["records"] == ["r1"]
    assert "say --yes" in cli("purge", "--annotator", "ben", code=2)
    told = cli("purge", "--annotator", "ben", "--yes", "--actor", "officer")
    assert "1 record(s) purged" in told
    assert "a search of the bytes finds nothing of them" in told
    assert "name the records" in cli("purge", "--yes", code=2)
    assert "nothing was changed" in cli("purge", "typo", "--yes", code=2)
    assert "no limits of retention" in cli("purge", "--expired", "--yes", code=2)
    assert json.loads(cli("purge", "--all", "--yes", "--json"))["withdrawn"] == 2


def test_the_command_line_asks_on_a_terminal(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memalign.cli.forgetting._terminal", lambda: True)
    assert "nothing was changed" in cli("purge", "r1", answer="n\n")
    assert "1 record(s) purged" in cli("purge", "r1", answer="y\n")


def test_the_command_line_unaligns_by_selection_and_audits(cli: Any) -> None:
    assert "1 record(s) would be withdrawn" in cli("memory", "unalign", "--annotator", "ben", "--dry-run")
    assert "say --yes" in cli("memory", "unalign", "--annotator", "ben", code=2)
    assert "1 record(s) withdrawn" in cli("memory", "unalign", "--annotator", "ben", "--yes")
    assert "the chain holds: 2 revision(s)" in cli("memory", "audit", "--verify")
    told = json.loads(cli("memory", "audit", "--json"))
    assert (told["intact"], [entry["verb"] for entry in told["entries"]]) == (True, ["align", "unalign"])
    assert "the chain holds" in cli("memory", "audit", "--head", told["head"])
    assert "lines were cut off" in cli("memory", "audit", "--head", "0" * 64, code=1)


def test_the_command_line_previews_an_overwrite_and_does_it(cli: Any, tmp_path: Path) -> None:
    said = {"id": "r1", "inputs": "question 1", "outputs": "reply 1", "value": True, "rationale": "Be brief."}
    file = tmp_path / "changed.jsonl"
    file.write_text(json.dumps(said) + "\n", encoding="utf-8")
    preview = json.loads(cli("memory", "overwrite", str(file), "--dry-run", "--json"))
    assert (preview["verb"], preview["done"], preview["records"], preview["revision"]) == ("overwrite", False, ["r1"], 1)
    assert json.loads(cli("memory", "overwrite", str(file), "--json"))["changed"] == 1


# Traces


def test_what_is_distinctive_of_a_text() -> None:
    grams = distinctive(["The parcel of Mrs Smith is late"], ["A parcel is late", "is it late"])
    assert ("smith",) in grams
    assert ("parcel",) not in grams
    assert ("of", "mrs", "smith") in grams
    assert carries("Call SMITH today", grams)
    assert not carries("Call SMITH today", grams, runs_only=True)
    assert not carries("A late parcel", grams)
    assert carries("parcel of Mrs Jones", grams), "a run that only this text brought, of words that others have too"


def test_scripts_without_spaces_are_compared_by_pairs() -> None:
    grams = distinctive(["包裹送到了史密斯家"], ["包裹送到了"])
    assert carries("请问史密斯", grams)
    assert not carries("包裹送到", grams)


def test_passages_can_be_found_in_bytes_as_they_are_stored() -> None:
    text = 'He said "never again, Rumpelstiltskin" and left quietly'
    found = passages([text], distinctive([text], []))
    assert found
    assert all(passage in json.dumps(text, ensure_ascii=False).encode() for passage in found)
    assert passages(["a b"], {("a",)}) == []
    many = [f"unique{number} words here" for number in range(500)]
    assert len(passages(many, distinctive(many, []))) <= 40


def test_the_doubles_are_used(tmp_path: Path) -> None:
    assert says("yes")["verdict"] == "yes"
    assert support("g1", 1)["op"] == "support"
    assert tmp_path.exists()
