"""Memory: revisions that can all be read, the index that finds similar items, and the choice of exemplars."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from conftest import MakeJudge, add, distilled, expert, record, says
from memalign import Feedback, Judge, Scale
from memalign.embedders.scripted import HashEmbedder
from memalign.errors import BadRecord, ConfigurationError, EmbeddingError, NotFound
from memalign.memory import judge_names, judge_settings
from memalign.memory.exemplars import Candidate, choose
from memalign.memory.log import spent
from memalign.models import ChatRequest
from memalign.models.scripted import ScriptedChatModel
from memalign.stores import open_store, schema

pytestmark = pytest.mark.both_stores

ALIGN_ELSEWHERE = """
import sys
sys.path.insert(0, sys.argv[2])
from conftest import expert, record
from memalign import Judge, Scale
from memalign.embedders.scripted import HashEmbedder
from memalign.models.scripted import ScriptedChatModel
judge = Judge("polite", "Is the reply polite?", Scale.boolean(), ScriptedChatModel(expert), memory=sys.argv[1], embedder=HashEmbedder(), floor=0.0)
judge.align([record(2, "greet first")], actor="elsewhere")
judge.unalign([record(1).id])
judge.close()
"""


# Revisions


def test_an_empty_memory_is_revision_0_and_holds_nothing(make_judge: MakeJudge) -> None:
    memory = make_judge().memory
    view = memory.view()
    assert (view.revision, view.guidelines, view.exemplars, view.items) == (0, (), (), 0)
    assert (memory.guidelines(), memory.episodes(), memory.history()) == ([], [], [])


def test_every_revision_can_be_read_again(make_judge: MakeJudge) -> None:
    judge = make_judge()
    first = judge.align([record(1, "apologise")]).revision
    second = judge.align([record(2, "greet first")]).revision
    third = judge.unalign([record(1).id]).revision
    assert (first, second, third) == (1, 2, 3)

    def held(revision: int) -> tuple[list[str], list[str]]:
        memory = judge.memory.at(revision)
        return [episode.feedback.outputs for episode in memory.episodes()], [guideline.id for guideline in memory.guidelines()]

    assert held(0) == ([], [])
    assert held(1) == (["reply 1"], ["g1"])
    assert held(2) == (["reply 1", "reply 2"], ["g1", "g2"])
    assert held(3) == (["reply 2"], ["g2"])
    assert held(1) == (["reply 1"], ["g1"]), "reading changes nothing"


def test_a_replaced_record_holds_in_the_revisions_before_its_replacement(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "apologise")])
    judge.align([record(1, "greet first", value=True)])
    old, new = (judge.memory.at(revision).episodes()[0].feedback for revision in (1, 2))
    assert (old.value, old.rationale) == (False, "apologise")
    assert (new.value, new.rationale) == (True, "greet first")


def test_what_a_record_says_comes_back_as_it_went_in(make_judge: MakeJudge) -> None:
    said = Feedback(
        inputs={"a": [1, 2.5, None, True], "ü": "日本\x00"},
        outputs=["x", {"y": "🙂"}],
        expectations=0,
        value=True,
        rationale="  why\nnot ",
        annotator="ann",
        id="my id",
        source="f.csv",
    )
    judge = make_judge()
    judge.align([said])
    assert judge.memory.episodes()[0].feedback == said


def test_a_text_that_is_no_unicode_is_refused_before_anything_is_stored(make_judge: MakeJudge) -> None:
    judge = make_judge()
    for bad in (record(2, "half \ud800"), record(2, outputs="half \ud800"), record(2, inputs={"when": object()}, id="given")):
        with pytest.raises(BadRecord, match="row 2"):
            judge.align([record(1), bad])
    assert judge.align().unconsumed == 0
    assert judge.memory.episodes() == []


def test_an_id_that_no_index_can_hold_is_refused_with_its_field() -> None:
    assert record(1, id="ü" * 500).id == "ü" * 500
    with pytest.raises(BadRecord, match="field 'id': has 501 characters; at most 500"):
        record(1, id="x" * 501)


def test_history_tells_who_did_what(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "apologise"), record(2, "greet first")], actor="mia")
    judge.unalign([record(1).id], actor="ben")
    one, two = judge.memory.history()
    assert (one.number, one.verb, one.actor) == (1, "align", "mia")
    assert (one.counts["admitted"], one.counts["added"]) == (2, 2)
    assert (two.number, two.verb, two.actor) == (2, "unalign", "ben")
    assert two.counts == {"withdrawn": 1, "retired": 1}
    assert one.at < two.at


@pytest.mark.parametrize("revision", [-1, 2, 10**9])
def test_a_revision_that_never_was_is_not_found(make_judge: MakeJudge, revision: int) -> None:
    judge = make_judge()
    judge.align([record(1)])
    with pytest.raises(NotFound, match=f"has no revision {revision}; its newest is 1"):
        judge.memory.at(revision)


def test_guidelines_are_in_order_of_age_also_beyond_nine(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(number, f"reason {number}") for number in range(12)])
    assert [guideline.id for guideline in judge.memory.guidelines()] == [f"g{number}" for number in range(1, 13)]


def test_retired_guidelines_are_kept_but_not_active(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "apologise")])
    judge.unalign([record(1).id])
    assert judge.memory.guidelines() == []
    (gone,) = judge.memory.guidelines(all_states=True)
    assert (gone.state, gone.version, gone.evidence_for) == ("retired", 2, ())


def test_judges_in_one_file_do_not_see_each_other(make_judge: MakeJudge, db: str) -> None:
    one, two = make_judge(memory=db), make_judge(memory=db, name="kind")
    one.align([record(1, "apologise")])
    two.align([record(2, "greet first"), record(3)])
    assert [episode.feedback.outputs for episode in one.memory.episodes()] == ["reply 1"]
    assert [guideline.id for guideline in two.memory.guidelines()] == ["g1"]
    assert (one.memory.view().revision, one.memory.view().items, two.memory.view().items) == (1, 1, 2)
    with closing(open_store(db)) as store:
        assert judge_names(store) == ["polite", "kind"]


def test_the_settings_of_a_judge_can_be_asked_for(make_judge: MakeJudge, db: str) -> None:
    make_judge(memory=db).align([record(1)])
    with closing(open_store(db)) as store:
        assert judge_settings(store, "polite")["instructions"] == "Is the reply polite?"
        with pytest.raises(NotFound, match=r"no judge 'rude' in .*judge.*; it holds: 'polite'"):
            judge_settings(store, "rude")


def test_a_name_that_differs_in_case_alone_is_a_slip(make_judge: MakeJudge, db: str) -> None:
    make_judge(memory=db, name="polite").align([record(1)])
    with pytest.raises(ConfigurationError, match=r"holds a judge 'polite'.*write 'polite' to go on with it"):
        make_judge(memory=db, name=" Polite").memory.episodes()
    assert len(make_judge(memory=db, name="polite").memory.episodes()) == 1


def test_verdicts_of_two_scales_are_not_mixed(make_judge: MakeJudge, db: str) -> None:
    make_judge(memory=db).align([record(1)])
    with pytest.raises(ConfigurationError, match="give this judge another name"):
        make_judge(memory=db, scale=Scale.score(1, 5)).memory.view()


# Other processes


def test_changes_by_another_process_are_seen_by_an_open_judge(make_judge: MakeJudge, db: str) -> None:
    seen: list[ChatRequest] = []

    def model(request: ChatRequest) -> object:
        seen.append(request)
        return distilled(request) if request.purpose == "distil" else says("yes")

    judge = make_judge(ScriptedChatModel(model), memory=db)
    judge.align([record(1, "apologise")])
    assert judge(outputs="anything").guideline_ids == ("g1",)
    command = [sys.executable, "-c", ALIGN_ELSEWHERE, db, str(Path(__file__).parent)]
    subprocess.run(command, check=True, timeout=30)
    verdict = judge(inputs="question 2", outputs="reply nobody saw")
    assert verdict.revision == 3
    assert verdict.guideline_ids == ("g2",)
    assert verdict.episode_ids == (record(2).id,)
    assert "apologise" not in str(seen[-1].messages)
    assert judge.memory.history()[1].actor == "elsewhere"


def test_readers_beside_a_writer_see_whole_revisions(make_judge: MakeJudge, db: str) -> None:
    """In each revision n there are n items and n guidelines."""
    writer, reader = make_judge(memory=db), make_judge(memory=db)
    reader.memory.view()

    def write() -> None:
        for number in range(1, 9):
            writer.align([record(number, f"reason {number}")])

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        seen = set()
        while not writing.done():
            view = reader.memory.view()
            assert view.revision == view.items == len(view.guidelines)
            seen.add(view.revision)
        writing.result()
    assert reader.memory.view().revision == 8
    assert len(seen) > 1


# Embedding


def test_equal_text_is_embedded_once(make_judge: MakeJudge) -> None:
    embedder = HashEmbedder()
    judge = make_judge(embedder=embedder)
    judge.align([record(1, annotator="ann"), record(1, annotator="ben"), record(2)])
    assert len(embedder.texts) == len(set(embedder.texts)) == 2
    judge.align([record(1, annotator="eve")])
    assert len(embedder.texts) == 2
    assert judge.memory.view().items == 2


def test_equal_text_is_embedded_once_for_all_judges_of_a_file_and_after_opening_again(make_judge: MakeJudge, db: str) -> None:
    make_judge(memory=db).align([record(1), record(2)])
    embedder = HashEmbedder()
    make_judge(memory=db, embedder=embedder, name="kind").align([record(1), record(2)])
    make_judge(memory=db, embedder=embedder)(inputs="question 1", outputs="reply 1")
    assert embedder.texts == []


def test_a_new_embedder_embeds_what_memory_holds_once(make_judge: MakeJudge, db: str) -> None:
    make_judge(memory=db).align([record(number) for number in range(6)])
    other = HashEmbedder(32)
    judge = make_judge(memory=db, embedder=other)
    verdict = judge(inputs="question 3", outputs="a reply nobody saw")
    assert len(verdict.episode_ids) == 5
    assert len(other.texts) == 7
    judge(inputs="question 4", outputs="another reply")
    assert len(other.texts) == 8
    again = HashEmbedder(32)
    make_judge(memory=db, embedder=again).memory.view()
    assert again.texts == []


def test_a_batch_after_a_change_of_embedder_embeds_memory_once(make_judge: MakeJudge, db: str) -> None:
    make_judge(memory=db).align([record(number) for number in range(6)])
    other = HashEmbedder(32)
    judge = make_judge(memory=db, embedder=other)
    results = judge.batch([record(number) for number in range(100, 110)])
    assert all(result.episode_ids for result in results)
    assert max(Counter(other.texts).values()) == 1


def test_the_old_embedder_still_finds_its_vectors(make_judge: MakeJudge, db: str) -> None:
    first = HashEmbedder()
    make_judge(memory=db, embedder=first).align([record(1)])
    make_judge(memory=db, embedder=HashEmbedder(32))(outputs="x")
    before = len(first.texts)
    make_judge(memory=db, embedder=first)(inputs="question 1", outputs="reply 1")
    assert len(first.texts) == before


def test_an_embedder_that_gives_nonsense_is_an_error_and_stores_nothing(make_judge: MakeJudge) -> None:
    class Broken(HashEmbedder):
        answer = np.full((1, 8), np.nan, dtype=np.float32)

        async def embed(self, texts: object) -> np.ndarray:
            return self.answer

    broken = Broken()
    judge = make_judge(embedder=broken)
    for answer in (broken.answer, np.ones((3, 8), np.float32), np.ones(8, np.float32)):
        broken.answer = answer
        with pytest.raises(EmbeddingError, match="scripted/hash-64 gave"):
            judge.align([record(1)])
    with judge.memory.store.reading() as connection:
        assert connection.execute(select(schema.vector)).all() == []
    assert judge.memory.episodes() == []


# The log


def test_the_ledger_keeps_what_was_spent_and_no_prompt(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(1, "a rationale like no other")])
    judge(inputs="a question like no other", outputs="x")
    with judge.memory.store.reading() as connection:
        usage, cost, seconds = spent(connection, judge.memory.judge_id)
        rows = connection.execute(select(schema.ledger)).all()
    assert Counter(row.purpose for row in rows) == {"distil": 1, "embed": 2, "judge": 1}
    assert (usage.calls, usage.embedded_texts, cost) == (4, 2, 0.0)
    assert seconds >= 0
    assert "like no other" not in str(rows)


def test_the_judges_own_last_verdict_stands_beside_the_experts(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(lambda request: says("no")))
    judge(inputs="question 1", outputs="reply 1")
    judge.align([record(1, value=True), record(2, value=True)])
    assert [episode.judged for episode in judge.memory.episodes()] == [False, None]


# Exemplars

CANDIDATES = st.lists(
    st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans(), st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: sum(map(abs, v)) > 0.1)),
    max_size=20,
)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f4")


def candidates(rows: list[tuple[str, bool, bool, tuple[float, ...]]]) -> list[Candidate]:
    return [
        Candidate(str(place), label, explained, missed, unit(np.array([vector]))[0]) for place, (label, explained, missed, vector) in enumerate(rows)
    ]


@settings(deadline=None, max_examples=50)
@given(rows=CANDIDATES, n=st.integers(-1, 25))
def test_exemplars_are_balanced_explained_first_and_in_order(rows: list[tuple[str, bool, bool, tuple[float, ...]]], n: int) -> None:
    all_of_them = candidates(rows)
    chosen = choose(all_of_them, n)
    assert chosen == choose(all_of_them, n), "deterministic"
    assert len(chosen) == len(set(chosen)) == max(0, min(n, len(rows)))
    assert chosen == sorted(chosen, key=int), "the order of the candidates"
    picked = [all_of_them[int(key)] for key in chosen]
    left = [candidate for candidate in all_of_them if candidate.item_id not in chosen]
    counts = Counter(candidate.label for candidate in picked)
    for candidate in left if n > 0 else []:
        assert counts[candidate.label] >= max(counts.values()) - 1, "a label that has more to give is not behind"
        same = [other for other in picked if other.label == candidate.label]
        assert all(other.explained >= candidate.explained for other in same), "explained first"


def test_exemplars_spread() -> None:
    rows = [("a", True, False, (1.0, 0.0, 0.0)), ("a", True, False, (1.0, 0.01, 0.0)), ("a", True, False, (0.0, 1.0, 0.0))]
    assert choose(candidates(rows), 2) == ["0", "2"]


def test_exemplars_prefer_what_the_judge_missed() -> None:
    rows = [("a", True, False, (1.0, 0.0, 0.0)), ("a", True, True, (0.0, 1.0, 0.0)), ("b", False, False, (0.0, 0.0, 1.0))]
    assert choose(candidates(rows), 2) == ["1", "2"]


def test_on_a_long_scale_a_verdict_near_the_experts_is_not_missed(make_judge: MakeJudge) -> None:
    def judges(request: ChatRequest) -> Any:
        return says(12 if "reply 2" in request.messages[-1].content else 70) if request.purpose == "judge" else expert(request)

    judge = make_judge(ScriptedChatModel(judges), scale=Scale.score(0, 100), exemplars=1, k=1, floor=-1.0)
    records = [record(number, f"reason {number}", value=72) for number in (1, 2, 3)]
    judge.batch([each.item for each in records])
    judge.align(records)
    assert [episode.feedback.outputs for episode in judge.memory.view().exemplars] == ["reply 2"]
    assert judge(inputs="question", outputs="reply").episode_ids[-1:] == (record(2).id,), "of equally near cases"


@pytest.mark.parametrize(
    ("scale", "label", "value"),
    [
        (Scale.boolean(), "yes", False),
        (Scale.score(1, 5), 5, 1),
        (Scale.categories("good", "fair", "poor"), "good", "poor"),
        (Scale.categories("poor", "fair", "good", ordered=True), "good", "poor"),
        (Scale.pairwise(), "A", "b"),
    ],
)
def test_a_verdict_that_an_expert_corrects_is_known_as_missed_on_every_scale(make_judge: MakeJudge, scale: Scale, label: Any, value: Any) -> None:
    model = ScriptedChatModel(lambda request: says(label) if request.purpose == "judge" else expert(request))
    judge = make_judge(model, scale=scale, both_orders=False, exemplars=1)
    corrected = record(1, "name the date", value=value)
    verdict = judge(inputs=corrected.inputs, outputs=corrected.outputs)
    judge.align([corrected])
    (episode,) = judge.memory.view().exemplars
    assert scale.wrong(episode.feedback.value, episode.judged)
    assert judge(inputs=corrected.inputs, outputs=corrected.outputs).value == verdict.value


def test_a_label_that_is_rare_fills_up_from_the_others() -> None:
    rows = [("a", True, False, (1.0, 0.0, 0.1 * n)) for n in range(9)] + [("b", False, False, (0.0, 1.0, 0.0))]
    chosen = choose(candidates(rows), 6)
    assert len(chosen) == 6
    assert "9" in chosen


def test_exemplars_stay_while_memory_stays_and_follow_its_changes(make_judge: MakeJudge) -> None:
    judge = make_judge(exemplars=2)
    judge.align([record(1, "apologise"), record(2, value=True), record(3)])
    assert [episode.feedback.outputs for episode in judge.memory.view().exemplars] == ["reply 1", "reply 2"]
    judge.unalign([record(1).id])
    assert [episode.feedback.outputs for episode in judge.memory.view().exemplars] == ["reply 2", "reply 3"]


def test_exemplars_of_a_contested_item_show_all_opinions(make_judge: MakeJudge) -> None:
    judge = make_judge(exemplars=1)
    judge.align([record(1, "apologise"), record(1, "fine", value=True, annotator="ben")])
    assert len(judge.memory.view().exemplars) == 2


def test_a_memory_is_safe_for_threads(make_judge: MakeJudge, db: str) -> None:
    judge = make_judge(memory=db, exemplars=2)
    judge.align([record(number, f"reason {number}") for number in range(4)])

    def work(number: int) -> int:
        if number % 4 == 0:
            judge.align([record(number + 100)])
        return len(judge(inputs=f"question {number}").episode_ids)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(24)))
    assert judge.memory.view().revision <= 7, "an align may take up what another one has just recorded"
    assert judge.memory.view().items == 10


def test_two_threads_that_open_a_judge_at_once_share_its_memory() -> None:
    for _ in range(20):
        judge = Judge("polite", "Polite?", Scale.boolean(), ScriptedChatModel(lambda request: {"operations": []}), embedder=HashEmbedder())
        with ThreadPoolExecutor(4) as pool:
            sessions = set(pool.map(lambda _, judge=judge: id(judge.session), range(4)))
        judge.close()
        assert len(sessions) == 1


def test_ids_stay_unique_when_a_reason_returns(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel([{"operations": [add(1, decide="greet the customer")]}] * 2))
    judge.align([record(1, "greet")])
    judge.unalign([record(1).id])
    judge.align([record(1, "greet")])
    assert [guideline.id for guideline in judge.memory.guidelines(all_states=True)] == ["g1", "g2"]
    assert [guideline.id for guideline in judge.memory.guidelines()] == ["g2"]
    assert asyncio.run(judge.aalign()).unconsumed == 0
