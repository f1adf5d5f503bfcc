"""Finding cases: exact search, words, fusion, collapse, diversity, filters, and the settings that say which."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import MakeJudge, expert, record, says
from memalign import ConfigurationError, EmbeddingError, Failure, Feedback, Item, Judge, Retrieval, Verdict, edge, judging
from memalign.embedders.scripted import HashEmbedder
from memalign.errors import ItemTooLong
from memalign.judging import decide
from memalign.memory.retrieval import Fact, ItemIndex
from memalign.memory.retrieval.candidates import Candidate
from memalign.memory.retrieval.collapse import collapsed
from memalign.memory.retrieval.diversity import errors_first, every_verdict
from memalign.memory.retrieval.exact import Exact
from memalign.memory.retrieval.fusion import fused
from memalign.memory.retrieval.ids import Ids, packed
from memalign.memory.retrieval.lexical import Lexical
from memalign.memory.retrieval.products import along, among
from memalign.memory.retrieval.tokens import words
from memalign.memory.revisions import Decision
from memalign.models import ChatRequest
from memalign.models.scripted import ScriptedChatModel
from memalign.recalling import Recall

ALL = Retrieval(verdict_margin=0, error_margin=0, alike=2)
"""Settings that choose by similarity alone."""


def digest(name: object) -> str:
    return hashlib.blake2b(str(name).encode(), digest_size=16).hexdigest()


def unit(rows: Any) -> np.ndarray:
    found = np.asarray(rows, dtype=np.float32)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def fact(row: int, value: str = "true", annotator: str = "ann", source: str = "", missed: bool = False, time: float = 0.0) -> Fact:
    return Fact(row=row, value=value, annotator=annotator, source=source, missed=missed, time=time)


def enter(index: ItemIndex, vectors: dict[Any, Any], **facts: Any) -> None:
    """One record an item, its row counted from the records there are."""
    first = len(index.facts)
    fresh, places = index.enter([digest(name) for name in vectors], [fact(first + place, **facts) for place in range(len(vectors))])
    if len(fresh):
        index.put(fresh, unit([list(vectors.values())[place] for place in places.tolist()]))


def names(found: list[tuple[str, float]], known: Any) -> list[Any]:
    by_digest = {digest(name): name for name in known}
    return [by_digest[key] for key, _ in found]


AXES = {"x": (1, 0, 0), "y": (0, 1, 0), "xy": (0.6, 0.8, 0)}
X = np.array([1, 0, 0], np.float32)


# The index


def test_nearest_gives_the_best_first_above_the_floor() -> None:
    index = ItemIndex()
    enter(index, AXES)
    found = index.nearest(X, 3, retrieval=ALL)
    assert names(found, AXES) == ["x", "xy", "y"]
    assert [score for _, score in found] == pytest.approx([1, 0.6, 0], abs=1e-4)
    assert names(index.nearest(X, 3, floor=0.5, retrieval=ALL), AXES) == ["x", "xy"]
    assert names(index.nearest(X, 1, exclude=digest("x"), retrieval=ALL), AXES) == ["xy"]
    assert index.nearest(X, 5, floor=0.9, exclude=digest("x")) == []
    assert index.nearest(X, 0) == index.nearest(X, -1) == ItemIndex().nearest(X, 3) == []


def said(index: ItemIndex, name: object) -> list[str]:
    """The verdicts on an item, oldest first."""
    slot = index.ids.slot(digest(name))
    assert slot is not None
    return [index.facts.texts[index.facts["label"][place]] for place in reversed([*index.facts.of(slot)])]


def test_an_item_of_two_experts_stands_once_and_goes_with_its_last_record() -> None:
    index = ItemIndex()
    enter(index, {"x": AXES["x"]}, value="true")
    enter(index, {"x": AXES["y"], "y": AXES["y"]}, value="false")
    assert len(index) == 2
    assert said(index, "x") == ["true", "false"]
    assert index.vector(digest("x")) == pytest.approx(X)
    index.remove_records([0])
    assert said(index, "x") == ["false"]
    index.remove_records([1, 99])
    assert digest("x") not in index
    assert names(index.nearest(X, 5, retrieval=ALL), AXES) == ["y"]
    enter(index, {"x": AXES["x"]})
    assert names(index.nearest(X, 5, retrieval=ALL), AXES) == ["x", "y"]


def test_vectors_that_cannot_be_compared_are_an_error() -> None:
    index = ItemIndex()
    enter(index, AXES)
    with pytest.raises(EmbeddingError, match="memory holds vectors of 3 dimensions, the query has 2"):
        index.nearest(np.ones(2, np.float32), 1)
    with pytest.raises(EmbeddingError, match="NaN"):
        index.nearest(np.array([1, np.nan, 0], np.float32), 1)
    fresh, _ = index.enter([digest("new")], [fact(9)])
    with pytest.raises(EmbeddingError, match="memory holds vectors of 3 dimensions, new ones have 2"):
        index.put(fresh, np.ones((1, 2), np.float32))
    with pytest.raises(EmbeddingError, match="NaN or infinity"):
        index.put(fresh, np.full((1, 3), np.nan, np.float32))


def test_adding_a_row_copies_no_earlier_block() -> None:
    exact = Exact(1024)
    exact.grow(1000)
    exact.put(np.arange(1000), unit(np.random.default_rng(0).normal(size=(1000, 1024))))
    assert len(exact._blocks) > 1
    before, planes = list(exact._blocks), exact.planes()
    room = len(exact._blocks) * exact._rows - 1000
    exact.grow(room + 1)
    exact.put(np.array([1000 + room]), unit(np.ones((1, 1024))))
    assert len(exact._blocks) == len(before) + 1
    for block, earlier in zip(exact._blocks, before, strict=False):
        assert all(plane is same for plane, same in zip(block, earlier, strict=True))
    assert all((exact.planes()[name][:1000] == plane).all() for name, plane in planes.items())


STEPS = st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.lists(st.integers(0, 200), max_size=40)), max_size=8)


@settings(deadline=None, max_examples=40)
@given(steps=STEPS, k=st.integers(0, 12), floor=st.floats(-1, 1), exclude=st.integers(0, 200), seed=st.integers(0, 5))
def test_the_index_agrees_with_brute_force(steps: list[tuple[str, list[int]]], k: int, floor: float, exclude: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors, query = unit(random.normal(size=(201, 5))), unit(random.normal(size=5))
    index, held = ItemIndex(), dict[int, list[int]]()
    for verb, numbers in steps:
        if verb == "add" and numbers:
            for row, number in enumerate(numbers, start=len(index.facts)):
                held.setdefault(number, []).append(row)
            first = len(index.facts)
            fresh, places = index.enter([digest(number) for number in numbers], [fact(first + place) for place in range(len(numbers))])
            if len(fresh):
                index.put(fresh, vectors[[numbers[place] for place in places.tolist()]])
        elif verb == "remove":
            index.remove_records([row for number in numbers for row in held.pop(number, [])])
    assert len(index) == len(held)
    assert all(digest(number) in index for number in held)
    scores = {number: float(vectors[number] @ query) for number in held if number != exclude}
    expected = sorted((score for score in scores.values() if score >= floor + 1e-3), reverse=True)[:k]
    found = index.nearest(query, k, floor=floor, exclude=digest(exclude), retrieval=ALL)
    close = [(name, score) for name, (_, score) in zip(names(found, range(201)), found, strict=True) if score >= floor + 1e-3]
    assert [score for _, score in close] == pytest.approx(expected, abs=1e-3)
    assert all(score == pytest.approx(scores[name], abs=1e-3) for name, score in close)
    assert len({name for name, _ in found}) == len(found)


def test_two_bytes_a_number_find_what_float32_finds() -> None:
    random = np.random.default_rng(1)
    rows = unit(random.normal(size=(60, 96))[random.integers(0, 60, 3000)] + 0.6 * random.normal(size=(3000, 96)))
    exact = Exact(96)
    exact.grow(len(rows))
    exact.put(random.permutation(3000), rows[np.argsort(random.permutation(3000))])
    exact.put(np.arange(3000), rows)
    for query in rows[:40]:
        slots, scores = exact.nearest(query, 5, np.ones(3000, np.bool_))
        assert slots.tolist() == np.argsort(-(rows @ query), kind="stable")[:5].tolist()
        assert scores == pytest.approx((rows @ query)[slots], abs=1e-4)


def test_products_in_pieces_are_products() -> None:
    rows = unit(np.random.default_rng(2).normal(size=(500, 1536)))
    assert along(rows, rows[7]) == pytest.approx(rows @ rows[7], abs=1e-6)
    assert along(rows[:0], rows[7]).shape == (0,)
    assert among(rows[:40]) == pytest.approx(rows[:40] @ rows[:40].T, abs=1e-6)


# Searches with pauses between, in which threads that BLAS has waked would spin; prints the seconds that threads but the caller's were busy.
SEARCHES = """
import time
import numpy as np
from memalign.memory.retrieval import Fact, ItemIndex
from memalign.memory.vote import cast

rows = np.random.default_rng(0).standard_normal((400, 1536)).astype(np.float32)
rows /= np.linalg.norm(rows, axis=1, keepdims=True)
ids = [f"{number:016x}" * 2 for number in range(400)]
index = ItemIndex()
index.put(index.enter(ids, [Fact(row, "true", "", "", False, 0.0) for row in range(400)])[0], rows)
points = {key: np.array([0.5, -0.5]) * (-1) ** place for place, key in enumerate(ids)}
ballot = cast(points, lambda key: rows[ids.index(key)], lambda key: f"text {key}")
time.sleep(1.0)
before = time.process_time() - time.thread_time()
for row in rows[:5]:
    assert len(index.nearest(row, 20)) == 20
    ballot.count("", row, "text", own=True)
    time.sleep(0.2)
print(time.process_time() - time.thread_time() - before)
"""


def test_no_thread_spins_after_a_search_or_a_vote() -> None:
    ran = subprocess.run([sys.executable, "-c", SEARCHES], capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 0.1  # some .5 s with two cores if BLAS used its threads


def test_ids_beyond_those_that_wait_in_a_dictionary_are_found_and_forgotten() -> None:
    ids, every = Ids(), packed([digest(number) for number in range(5000)])
    for start in range(0, 5000, 700):
        ids.add(every[start : start + 700])
    assert ids.slots(every).tolist() == list(range(5000))
    ids.remove(np.arange(0, 5000, 2))
    assert ids.slots(every)[:4].tolist() == [-1, 1, -1, 3]
    assert ids.add(every[:2000:2]).tolist() == list(range(5000, 6000))
    assert ids.slots(every)[:4].tolist() == [5000, 1, 5001, 3]
    assert ids.slot(digest("unknown")) is ids.slot("") is ids.slot("no id") is None
    assert not ids.held[4998].tobytes().strip(b"\0"), "the id of a removed item stays in RAM"
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        packed(["ab"])


# Words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The ﬁnal Straße, naïve!", ["the", "final", "strasse", "naïve"]),
        ("退款金额", ["退款", "款金", "金额"]),
        ("退", ["退"]),
        ("GPT4模型 ok", ["gpt4", "模型", "ok"]),
        ("환불해 주세요", ["환불", "불해", "주세", "세요"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("สวัสดี", ["สว", "วั", "ัส", "สด", "ดี"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("  …!", []),
        ("\ud800 half", ["half"]),
    ],
)
def test_words_of_many_languages(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def everything(count: int) -> np.ndarray:
    return np.ones(count, dtype=np.bool_)


def test_rare_words_count_more_and_removed_items_are_never_found() -> None:
    lexical = Lexical()
    lexical.add(0, ["the refund is late", "the kettle is late", "the lamp is fine", "the refund of the kettle"])
    assert lexical.nearest("refund kettle", 4, everything(4))[0].tolist() == [3, 0, 1]
    assert lexical.nearest("refund kettle", 4, np.array([True, True, True, False]))[0].tolist() == [0, 1]
    lexical.remove(np.array([3]))
    assert lexical.nearest("refund kettle", 4, everything(4))[0].tolist() == [0, 1]
    assert lexical.nearest("nothing of this", 4, everything(4))[0].tolist() == []
    assert lexical.nearest("", 4, everything(4))[0].tolist() == []
    assert Lexical().nearest("refund", 4, everything(0))[0].tolist() == []
    lexical.add(6, ["退款金额不对", "a refund"])
    assert lexical.nearest("我要退款", 9, everything(8))[0].tolist() == [6]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=60),
    st.lists(st.integers(0, 30), max_size=32),
    st.sets(st.integers(0, 59)),
    st.integers(1, 7),
)
def test_the_scores_are_those_of_bm25(texts: list[list[int]], query: list[int], gone: set[int], step: int) -> None:
    lexical = Lexical()
    for start in range(0, len(texts), step):
        lexical.add(start, [" ".join(f"w{n}" for n in text) for text in texts[start : start + step]])
    removed = np.array(sorted(place for place in gone if place < len(texts)), dtype=np.int64)
    lexical.remove(removed)
    stored = Lexical.of_arrays(lexical.arrays())
    held = {place: text for place, text in enumerate(texts) if text and place not in gone}
    mean = sum(map(len, held.values())) / max(1, len(held))
    expected = {}
    for place, text in held.items():
        score = 0.0
        for term in set(query):
            with_term = sum(term in other for other in held.values())
            idf = np.log(1 + (len(held) - with_term + 0.5) / (with_term + 0.5))
            score += idf * text.count(term) * 2.2 / (text.count(term) + 1.2 * (0.25 + 0.75 * len(text) / mean))
        if score:
            expected[place] = score
    slots, scores = stored.nearest(" ".join(f"w{n}" for n in query), 60, everything(len(texts)))
    assert dict(zip(slots.tolist(), scores.tolist(), strict=True)) == pytest.approx(expected, rel=1e-4)
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


# One decision after the other


def test_fusion_prefers_what_both_rankings_hold() -> None:
    assert fused([[1, 2, 3], [3, 4]]) == [3, 1, 2, 4]
    assert fused([[1, 2], []]) == [1, 2]
    assert fused([]) == []


def candidate(slot: int, similarity: float, label: int = 0, missed: bool = False) -> Candidate:
    return Candidate(slot, similarity, frozenset([label]), missed)


def slots(candidates: list[Candidate]) -> list[int]:
    return [one.slot for one in candidates]


def test_near_duplicates_of_one_verdict_are_shown_once() -> None:
    twins, vectors = [candidate(0, 0.9, 0), candidate(1, 0.8, 0), candidate(2, 0.7, 1)], unit(np.array([(1, 0), (1, 0.01), (1, 0.01)]))
    assert slots(collapsed(twins, vectors, 0.98)) == [0, 2]
    assert slots(collapsed(twins, vectors, 0.99999)) == [0, 1, 2]


def test_errors_come_before_what_is_hardly_more_similar() -> None:
    found = [candidate(0, 0.9), candidate(1, 0.8), candidate(2, 0.78, missed=True), candidate(3, 0.7, missed=True)]
    assert slots(errors_first(found, 0.05)) == [0, 2, 1, 3]
    assert slots(errors_first(found, 0.5)) == [2, 3, 0, 1]
    assert slots(errors_first(found, 0)) == [0, 1, 2, 3]


def test_a_verdict_that_is_close_enough_is_not_absent() -> None:
    found = [candidate(place, 0.9 - place / 100, label=0) for place in range(5)] + [candidate(5, 0.8, label=1), candidate(6, 0.5, label=2)]
    assert slots(every_verdict(found, 3, 0.2)) == [0, 1, 5]
    assert slots(every_verdict(found, 3, 0.05)) == [0, 1, 2]
    assert slots(every_verdict(found, 3, 0.5)) == [0, 5, 6]
    assert slots(every_verdict(found, 2, 0.5)) == [0, 5]
    assert slots(every_verdict(found, 1, 0.5)) == [0]
    assert every_verdict([], 3, 0.5) == []


def test_filters_by_annotator_source_and_time() -> None:
    index = ItemIndex()
    enter(index, {"x": AXES["x"]}, annotator="ann", source="a.csv", time=10)
    enter(index, {"y": AXES["y"], "x": AXES["x"]}, annotator="bob", source="b.csv", time=20)
    seen = {
        "ann": Retrieval(annotators=("ann",)),
        "bob": Retrieval(annotators=("bob", "eve")),
        "none": Retrieval(annotators=("eve",)),
        "b.csv": Retrieval(sources=("b.csv",)),
        "late": Retrieval(since=datetime.fromtimestamp(20, UTC)),
        "early": Retrieval(until=datetime.fromtimestamp(20, UTC)),
        "both": Retrieval(annotators=("ann",), since=datetime.fromtimestamp(20, UTC)),
    }
    found = {name: names(index.nearest(X, 5, retrieval=wanted), AXES) for name, wanted in seen.items()}
    assert found == {"ann": ["x"], "bob": ["x", "y"], "none": [], "b.csv": ["x", "y"], "late": ["x", "y"], "early": ["x"], "both": []}
    index.remove_records([2])
    assert names(index.nearest(X, 5, retrieval=seen["bob"]), AXES) == ["y"]


def test_settings_make_a_round_trip_and_say_what_is_wrong() -> None:
    chosen = Retrieval(words=True, annotators=("ann",), since=datetime(2026, 1, 1))
    assert chosen.since == datetime(2026, 1, 1, tzinfo=UTC)
    assert Retrieval.from_dict(chosen.to_dict()) == chosen
    assert Retrieval().to_dict() == {}
    for wrong in ({"annotators": "ann"}, {"verdict_margin": -1}, {"sources": [1]}, {"word": True}, {"since": "yesterday"}):
        with pytest.raises(ConfigurationError, match="retrieval"):
            Retrieval.from_dict(wrong)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"since": "2026-01-01"}, "since is a datetime, not '2026-01-01'"),
        ({"until": date(2026, 1, 1)}, "until is a datetime"),
        ({"annotators": None}, "annotators is a list of texts, not None"),
        ({"sources": b"ab"}, "sources is a list of texts"),
        ({"verdict_margin": "x"}, "verdict_margin is a difference of cosine similarity, from 0 to 2, not 'x'"),
        ({"error_margin": float("nan")}, "error_margin"),
        ({"alike": "x"}, "alike is a cosine similarity, or above 1, not 'x'"),
        ({"alike": float("nan")}, "alike"),
        ({"words": "yes"}, "words is True or False"),
    ],
)
def test_settings_of_another_type_are_refused_when_they_are_made(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=f"retrieval: {reason}"):
        Retrieval(**wrong)


def test_names_may_come_from_any_collection() -> None:
    assert Retrieval(annotators=(name for name in ("ann", "ben"))).annotators == ("ann", "ben")  # type: ignore[arg-type]


# In a judge


def shown(judge: Judge, text: str) -> list[str]:
    return list(judge(inputs="what?", outputs=text).episode_ids)


def reply(number: int, text: str, value: bool = True, **more: Any) -> Feedback:
    return record(number, value=value, outputs=text, id=f"f{number}", **more)


def test_a_judge_of_some_experts_shows_their_cases_alone(make_judge: MakeJudge, db: str) -> None:
    feedback = [reply(1, "please send the kettle back to us now or never", annotator="ann")]
    feedback += [reply(2, "please send the kettle back to us soon or later", annotator="bob")]
    first = make_judge(memory=db, retrieval=Retrieval(annotators=("ann",)))
    first.align(feedback)
    assert shown(first, "please send the kettle back to us at once today") == ["f1"]
    first.close()
    second = make_judge(memory=db)
    assert set(shown(second, "please send the kettle back to us at once today")) == {"f1", "f2"}
    own = make_judge(memory=db, retrieval={"annotators": ["bob"]})
    verdict = own(inputs=feedback[0].inputs, outputs=feedback[0].outputs)
    assert list(verdict.episode_ids) == ["f2"], "an item's own case by another expert passes no filter"


def test_filters_hold_for_exemplars_and_for_the_vote(make_judge: MakeJudge, db: str) -> None:
    feedback = [reply(n, f"a plain reply number {n}", value=n % 2 == 0, annotator="ann" if n < 8 else "bob", source=f"s{n % 3}") for n in range(16)]
    make_judge(memory=db).align([*feedback, reply(99, "a plain reply number 1", inputs=feedback[1].inputs, annotator="bob")])
    chosen = make_judge(memory=db, exemplars=4, k=0, retrieval=Retrieval(annotators=("ann",), sources=("s1", "s2")))
    wanted = {f"f{n}" for n in range(8) if n % 3}
    verdict = chosen(outputs="a plain reply number 17")
    assert len(verdict.episode_ids) == 4
    assert set(verdict.episode_ids) <= wanted
    ballot = chosen.memory.ballot(chosen.memory.view())
    assert ballot is not None
    assert set(ballot.place) == {f.item.id for f in feedback if f.id in wanted}
    assert ballot.points[ballot.place[feedback[1].item.id]].tolist() == [-0.5, 0.5], "what another expert said of the item does not count"
    decide(chosen.memory, Decision(vote_weight=5.0), actor="ann", judged=16)
    fitted = chosen(outputs="a plain reply number 17")
    assert fitted.voter_ids
    assert set(fitted.voter_ids) <= wanted
    nobody = make_judge(memory=db, exemplars=4, retrieval=Retrieval(annotators=("eve",)))
    assert nobody(outputs="a plain reply number 17").episode_ids == ()
    assert nobody.memory.ballot(nobody.memory.view()) is None


def test_words_find_a_case_that_the_vectors_rank_last() -> None:
    index = ItemIndex(words=True)
    enter(index, {place: (1, place / 100, 0) for place in range(80)} | {"far": (-1, 0, 0)})
    index.lexical.add(0, [f"the parcel number {place}" for place in range(80)] + ["a warranty of zanzibar"])
    both = Retrieval(words=True, alike=2)
    assert names(index.nearest(X, 2, retrieval=both, text="zanzibar"), [*range(80), "far"]) == [0, "far"]
    assert names(index.nearest(X, 2, retrieval=both, text="zanzibar", floor=0), [*range(80), "far"]) == [0, 1], "the floor holds for words too"
    assert names(index.nearest(X, 2, retrieval=Retrieval(alike=2), text="zanzibar"), range(80)) == [0, 1]


def test_a_judge_that_searches_words_follows_its_memory(make_judge: MakeJudge, db: str) -> None:
    query = "a word about zanzibar and nothing else at all"
    judge = make_judge(memory=db, retrieval={"words": True}, floor=-1.0, k=2)
    judge.align([reply(place, f"please send the parcel number {place} back to us right away") for place in range(5)])
    judge.align([reply(99, "your zanzibar warranty covers this lamp in every case")])
    assert "f99" in shown(judge, query)
    loaded = make_judge(name="polite", memory=db, retrieval=judge.retrieval, floor=-1.0, k=2)
    assert shown(loaded, query) == shown(judge, query)
    judge.unalign(["f99"])
    assert "f99" not in shown(judge, query)
    assert "f99" not in shown(loaded, query)


def test_the_other_verdict_is_shown_when_it_is_close(make_judge: MakeJudge) -> None:
    feedback = [reply(place, f"please send the kettle back to us in {place} days") for place in range(6)]
    feedback += [reply(9, "please send the kettle back to me in some days", value=False)]
    query = "please send the kettle back to us in 7 days"
    plain = make_judge(retrieval=Retrieval(verdict_margin=0), k=3)
    plain.align(feedback)
    assert "f9" not in shown(plain, query)
    labelled = make_judge(retrieval=Retrieval(verdict_margin=0.5), k=3)
    labelled.align(feedback)
    assert "f9" in shown(labelled, query)
    assert len(shown(labelled, query)) == 3


def test_one_episode_and_episodes_that_are_all_equal(make_judge: MakeJudge) -> None:
    judge = make_judge()
    text = "the very same words in each and every single reply"
    assert shown(judge, text) == []
    judge.align([reply(0, text)])
    assert shown(judge, text) == ["f0"]
    judge.align([reply(place, text) for place in range(1, 200)])
    assert len(shown(judge, text)) == 1, "of 200 equal texts with one verdict, one is shown"
    judge.align([reply(500, text, value=False)])
    assert "f500" in shown(judge, text), "the same text with another verdict teaches"


class Changing:
    """An embedder whose vectors have another dimension from its second call on, or hold NaN."""

    id = "scripted/changing"

    def __init__(self, *calls: np.ndarray) -> None:
        self.calls = list(calls)

    async def embed(self, texts: Any) -> np.ndarray:
        row = self.calls.pop(0) if len(self.calls) > 1 else self.calls[0]
        return np.tile(row, (len(texts), 1)).astype(np.float32)

    async def aclose(self) -> None:
        pass


def test_an_embedder_that_changes_its_dimension_spoils_nothing(make_judge: MakeJudge, db: str) -> None:
    judge = make_judge(memory=db, embedder=Changing(np.eye(4)[0], np.eye(5)[0]))
    judge.align([reply(1, "one two three four five six seven eight nine")])
    with pytest.raises(EmbeddingError, match="gave vectors of 4 and 5 dimensions; nothing was stored"):
        judge.align([reply(2, "nine eight seven six five four three two one")])
    judge.close()
    mended = make_judge(memory=db, embedder=Changing(np.eye(4)[1]))
    assert mended.memory.waiting() == 1
    mended.align()
    assert mended.memory.waiting() == 0
    assert shown(mended, "nine eight seven six five four three two one")[-1] == "f2"


def test_nan_from_an_embedder_is_an_error_and_no_feedback_is_lost(make_judge: MakeJudge) -> None:
    judge = make_judge(embedder=Changing(*[np.full(4, np.nan)] * 2, np.eye(4)[0]))
    with pytest.raises(EmbeddingError, match="NaN"):
        judge.align([reply(1, "one two three four five six seven eight nine")])
    assert judge.memory.waiting() == 1
    judge.align()
    assert shown(judge, "one two three four five six seven eight nine") == ["f1"]


def test_vectors_of_any_length_are_compared_by_their_direction(make_judge: MakeJudge, db: str) -> None:
    class Long(HashEmbedder):
        id = "scripted/long"

        async def embed(self, texts: Any) -> np.ndarray:
            return await super().embed(texts) * np.float32(30)

    long, unit_length = make_judge(memory=db, embedder=Long()), make_judge(embedder=HashEmbedder())
    feedback = [reply(1, "please send the kettle back to us right now"), reply(2, "nothing in common with that at all, really not one")]
    for judge in (long, unit_length):
        judge.align(feedback)
    item = Item(outputs="please send the kettle back to us in some days")
    expected = unit_length(outputs=item.outputs).trace
    for judge in (long, make_judge(memory=db, embedder=Long())):
        found = judge(outputs=item.outputs).trace
        assert found is not None
        assert expected is not None
        assert found.similarity == pytest.approx(expected.similarity, abs=1e-3)
    vector = next(iter(long.memory.item_vectors([feedback[0].item.id]).values()))
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-3)


def test_a_vector_of_zeros_is_refused_and_no_feedback_is_lost(make_judge: MakeJudge) -> None:
    judge = make_judge(embedder=Changing(*[np.zeros(4)] * 2, np.eye(4)[0]))
    with pytest.raises(EmbeddingError, match="gave zeros for text 1 of 1"):
        judge.align([reply(1, "one two three four five six seven eight nine")])
    assert judge.memory.waiting() == 1
    judge.align()
    assert shown(judge, "one two three four five six seven eight nine") == ["f1"]


def test_an_item_whose_vector_cannot_be_compared_is_an_error_not_a_verdict_without_cases(make_judge: MakeJudge) -> None:
    """The embedder fails at one item only: the others of the batch are judged with their cases."""

    class Moody(HashEmbedder):
        async def embed(self, texts: Any) -> np.ndarray:
            rows = await super().embed(texts)
            if any("other dimension" in text for text in texts):
                return np.ones((len(texts), 3), dtype=np.float32)
            for row, text in zip(rows, texts, strict=True):
                if "nan" in text.split():
                    row[0] = np.nan
            return rows

    judge = make_judge(embedder=Moody())
    judge.align([reply(1, "one two three four five six seven eight nine")])
    good, nan = judge.batch([Item(outputs=f"one two three four five six seven eight {last}") for last in ("ten", "nan")])
    assert getattr(good, "episode_ids", None) == ("f1",)
    assert isinstance(nan, Failure)
    assert "NaN" in nan.error
    assert not nan.retryable
    with pytest.raises(EmbeddingError, match="memory holds vectors of 64 dimensions, the query has 3"):
        judge(outputs="of some other dimension all of a sudden here")


def test_an_item_beyond_the_models_window_is_a_failure_and_is_never_cut(make_judge: MakeJudge) -> None:
    seen: list[str] = []

    def model(request: ChatRequest) -> object:
        if request.purpose != "judge":
            return expert(request)
        seen.append(request.messages[-1].content)
        return ItemTooLong("the window holds 8,192 tokens") if len(seen[-1]) > 50_000 else says("yes")

    judge = make_judge(ScriptedChatModel(model))
    judge.align([reply(1, "one two three four five six seven eight nine")])
    long = " ".join(f"word{place}" for place in range(10_000))
    fits, beyond = judge.batch([Item(outputs="one two three four five six seven eight ten"), Item(outputs=long)])
    assert isinstance(fits, Verdict)
    assert isinstance(beyond, Failure)
    assert beyond.error.startswith("ItemTooLong: the window holds")
    assert not beyond.retryable
    assert any(long in text for text in seen), "the model was shown all of it"


@pytest.mark.parametrize("votes", [None, 3])
def test_an_item_that_fits_alone_is_judged_without_cases(make_judge: MakeJudge, votes: int | None) -> None:
    asked: list[int] = []

    def model(request: ChatRequest) -> object:
        if request.purpose != "judge":
            return expert(request)
        asked.append(sum(len(message.content) for message in request.messages))
        return ItemTooLong("the window holds 8,192 tokens") if asked[-1] > 20_000 else says("yes")

    judge = make_judge(ScriptedChatModel(model), exemplars=1, k=4, votes=votes, retrieval={"alike": 2})
    judge.align([reply(n, f"one two three four five six seven eight {n} " + "case " * 800, rationale=f"Say {n}") for n in range(4)])
    item = Item(outputs="one two three four five six seven eight nine " + "item " * 1_200)
    verdict = judge(outputs=item.outputs)
    assert [size > 20_000 for size in asked] == [True] + [False] * (votes or 1)
    assert verdict.episode_ids == ()
    assert verdict.guideline_ids == tuple(guideline.id for guideline in judge.memory.guidelines())
    assert verdict.trace is not None
    assert verdict.trace.similarity == {}
    assert {left.kind for left in verdict.trace.left_out} == {"case"}
    assert {left.id for left in verdict.trace.left_out} == {"f0", "f1", "f2", "f3"}
    assert "left out: case f0: the model's window does not hold it beside the item" in verdict.explain()
    assert len(judge(outputs="one two three four five six seven eight nine").episode_ids) == 4
    with pytest.raises(ItemTooLong):
        judge(outputs="item " * 5_000)


def test_guidelines_chosen_for_an_item_give_way_to_it(make_judge: MakeJudge) -> None:
    requests: list[ChatRequest] = []

    def model(request: ChatRequest) -> object:
        if request.purpose != "judge":
            return expert(request)
        requests.append(request)
        return ItemTooLong("too long") if "subject" in request.messages[-1].content.split("<item")[0] else says("yes")

    judge = make_judge(ScriptedChatModel(model), k=0)
    judge.align([record(number, f"mention subject{number}") for number in range(20)])
    recall, task = Recall(k=0, floor=0.0), dataclasses.replace(judge.task, guideline_tokens=100)
    verdict = edge.run(judging.judge(judge.session, task, Item(outputs="subject17 " * 9), recall, temperature=0.0))
    assert len(requests) == 2
    assert requests[0].messages[0] == requests[1].messages[0], "what every item is judged by stays"
    assert verdict.trace is not None
    reasons = {left.reason for left in verdict.trace.left_out}
    assert len(verdict.guideline_ids) + len(verdict.trace.left_out) == 20
    assert "the model's window does not hold it beside the item" in reasons
    assert len(reasons) == 2


def test_an_old_revision_is_searched_as_it_was(make_judge: MakeJudge, db: str) -> None:
    judge = make_judge(memory=db)
    judge.align([reply(1, "please send the kettle back to us right away", created_at=datetime.now(UTC) - timedelta(days=1))])
    judge.align([reply(2, "please send the kettle back to us right now")])
    judge.unalign(["f1"])
    query = "please send the kettle back to us right here"
    assert shown(judge, query) == ["f2"]
    assert shown(judge.at(1), query) == ["f1"]
    assert set(shown(judge.at(2), query)) == {"f1", "f2"}
