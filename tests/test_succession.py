"""A change of embedder: the former one serves until the present one knows all that memory holds."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from conftest import MakeJudge
from memalign import Feedback, Judge, Verdict
from memalign.embedders import Embedder
from memalign.embedders.scripted import HashEmbedder
from memalign.errors import ConfigurationError, EmbeddingError, ModelUnavailable

pytestmark = pytest.mark.both_stores

COUNT = 12
OLD, NEW = 64, 32
"""Dimensions, and with them the ids, of the former and the present embedder."""


class Gated(HashEmbedder):
    """Waits, with several cases, until the gate is open; fails while ``error`` is set."""

    def __init__(self, dimension: int = NEW) -> None:
        super().__init__(dimension)
        self.gate = threading.Event()
        self.error: Exception | None = None
        self.calls = 0

    async def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.calls += 1
        if sum(text.startswith("input: ") for text in texts) > 2:
            await asyncio.to_thread(self.gate.wait, 5)
        if self.error is not None:
            raise self.error
        return await super().embed(texts)


Known = dict[str, Embedder]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Known:
    """The embedders that can be opened by their names."""
    found: Known = {}

    def opened(name: str) -> Embedder:
        if name not in found:
            raise ConfigurationError(f"unknown embedder {name!r}")
        return found[name]

    monkeypatch.setattr("memalign.embedders.open_embedder", opened)
    monkeypatch.setattr("memalign.session.AT_ONCE", 4)
    monkeypatch.setattr("memalign.space._BATCH_HOSTED", 3)
    monkeypatch.setattr("memalign.succession.GRACE_SECONDS", 0.5)
    return found


def record(number: int, **more: object) -> Feedback:
    return Feedback(inputs=f"question {number}", outputs=f"reply {number}", value=False, rationale=f"reason {number}", id=f"f{number}", **more)  # type: ignore[arg-type]


@pytest.fixture
def changed(make_judge: MakeJudge, db: str, known: Known) -> tuple[Judge, HashEmbedder, Gated]:
    """A judge with a memory of another embedder, that one, and its own."""
    make_judge(memory=db, embedder=HashEmbedder(OLD)).align([record(number) for number in range(COUNT)])
    former, present = HashEmbedder(OLD), Gated()
    known[former.id] = former
    return make_judge(memory=db, embedder=present), former, present


def asked(judge: Judge, text: str = "a reply nobody saw") -> Verdict:
    return judge(inputs="question 3", outputs=text)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def over(judge: Judge) -> Callable[[], bool]:
    return lambda: judge.session.serving is judge.session.space


def test_the_former_embedder_serves_and_the_present_one_takes_over_at_once(changed: tuple[Judge, HashEmbedder, Gated]) -> None:
    judge, former, present = changed
    assert len(asked(judge).episode_ids) == 5
    assert len(former.texts) == 1, "the item alone: what memory holds has its vectors"
    assert present.texts == []
    assert judge.memory.embedded().former == former.id
    present.gate.set()
    until(over(judge))
    assert sorted(present.texts) == sorted(f"input: question {n}\noutput: reply {n}" for n in range(COUNT)), "each once"
    assert judge.memory.embedded().lacking == 0
    assert len(asked(judge, "another reply").episode_ids) == 5
    assert len(former.texts) == 1
    assert present.texts[-1] == "input: question 3\noutput: another reply"


def test_what_is_learned_meanwhile_is_followed_at_once(changed: tuple[Judge, HashEmbedder, Gated]) -> None:
    judge, _, present = changed
    asked(judge)
    judge.align([record(100)])
    assert asked(judge, "reply 3").episode_ids[-1] == "f3"
    assert judge(inputs="question 100", outputs="reply 100").episode_ids[-1] == "f100"
    judge.unalign(["f3"])
    assert "f3" not in asked(judge, "reply 3").episode_ids
    present.gate.set()
    until(over(judge))
    assert judge(inputs="question 100", outputs="reply 100").episode_ids[-1] == "f100"
    assert "f3" not in asked(judge, "reply 3").episode_ids
    assert max(map(present.texts.count, present.texts)) == 1


def test_judgements_in_flight_keep_to_one_embedder(changed: tuple[Judge, HashEmbedder, Gated]) -> None:
    judge, _, present = changed
    threading.Timer(0.05, present.gate.set).start()
    results = judge.batch([record(number) for number in range(COUNT)] * 20)
    assert all(isinstance(result, Verdict) for result in results)
    assert all(result.episode_ids[-1] == f"f{place % COUNT}" for place, result in enumerate(results) if isinstance(result, Verdict))


def test_it_goes_on_where_another_process_ended(make_judge: MakeJudge, db: str, changed: tuple[Judge, HashEmbedder, Gated]) -> None:
    judge, _, present = changed
    asked(judge)
    until(lambda: present.calls > 0)
    threading.Timer(0.05, present.gate.set).start()
    judge.close()
    first = list(present.texts)
    assert 0 < len(first) < COUNT, "the part under way is stored, no other is begun"
    again = Gated()
    again.gate.set()
    resumed = make_judge(memory=db, embedder=again)
    asked(resumed)
    until(over(resumed))
    assert resumed.memory.embedded().lacking == 0
    assert not set(first) & set(again.texts)


def test_two_at_once_share_the_work(make_judge: MakeJudge, db: str, changed: tuple[Judge, HashEmbedder, Gated]) -> None:
    judge, _, present = changed
    other = Gated()
    second = make_judge(memory=db, embedder=other)
    asked(judge), asked(second)
    present.gate.set(), other.gate.set()
    until(over(judge)), until(over(second))
    texts = {text for text in present.texts + other.texts if "reply nobody" not in text}
    assert len(texts) == COUNT
    assert asked(judge, "reply 5").episode_ids == asked(second, "reply 5").episode_ids


def test_an_embedder_that_fails_is_told_once_and_does_not_stop_judging(
    changed: tuple[Judge, HashEmbedder, Gated], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, _, present = changed
    present.gate.set()
    present.error = ModelUnavailable("the endpoint is down")
    with pytest.warns(UserWarning, match=r"hash-32' fails \(the endpoint is down\); judgements go on with .* mend it, or choose another") as told:
        until(lambda: bool(asked(judge, "one").episode_ids) and bool(told))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asked(judge, "two").episode_ids
    present.error = None
    monkeypatch.setattr("memalign.succession.RETRIED_AFTER_SECONDS", 0.0)
    asked(judge, "three")
    until(over(judge))
    assert asked(judge, "four").episode_ids


def test_vectors_with_nan_are_never_stored(changed: tuple[Judge, HashEmbedder, Gated]) -> None:
    judge, _, present = changed
    present.gate.set()
    present.error = EmbeddingError("NaN")
    with pytest.warns(UserWarning, match="fails") as told:
        until(lambda: bool(asked(judge).episode_ids) and bool(told))
    assert judge.memory.embedded().lacking == COUNT


def test_without_the_former_embedder_the_first_judgement_waits(changed: tuple[Judge, HashEmbedder, Gated], known: Known) -> None:
    judge, _, present = changed
    known.clear()
    present.gate.set()
    with pytest.warns(UserWarning, match=r"has to embed 12 texts before .* cannot be opened any more .* memalign memory index"):
        assert len(asked(judge).episode_ids) == 5
    assert len(present.texts) == COUNT + 1


def test_a_former_embedder_that_fails_is_given_up(changed: tuple[Judge, HashEmbedder, Gated], known: Known) -> None:
    judge, former, present = changed
    gone = Gated(OLD)
    gone.error = ModelUnavailable("no such host")
    known[former.id] = gone
    threading.Timer(0.1, present.gate.set).start()
    with pytest.warns(UserWarning, match=r"hash-64' fails \(no such host\); judging waits for the present one"):
        assert len(asked(judge).episode_ids) == 5
    assert judge.memory.embedded().lacking == 0
    assert gone.calls == 1


def test_when_both_fail_the_error_is_that_of_the_present_one(changed: tuple[Judge, HashEmbedder, Gated], known: Known) -> None:
    judge, _, present = changed
    known.clear()
    present.gate.set()
    present.error = ModelUnavailable("the endpoint is down")
    with pytest.warns(UserWarning, match="has to embed"), pytest.raises(ModelUnavailable, match="the endpoint is down"):
        asked(judge)
    present.error = None
    assert len(asked(judge).episode_ids) == 5


def test_an_old_revision_is_searched_meanwhile_too(changed: tuple[Judge, HashEmbedder, Gated]) -> None:
    judge, _, present = changed
    asked(judge)
    judge.unalign(["f3"])
    assert asked(judge.at(1), "reply 3").episode_ids[-1] == "f3"
    present.gate.set()
    until(over(judge))
    assert asked(judge.at(1), "reply 3").episode_ids[-1] == "f3"


def test_records_are_selected_by_meaning_meanwhile(changed: tuple[Judge, HashEmbedder, Gated]) -> None:
    judge, _, present = changed
    assert judge.preview("unalign", like="input: question 7\noutput: reply 7", nearest=1).records == ("f7",)
    assert judge.suggest([record(3), record(200)], n=1)[0].item.outputs == "reply 200"
    present.gate.set()


def test_what_is_purged_meanwhile_gets_no_vector(changed: tuple[Judge, HashEmbedder, Gated]) -> None:
    judge, _, present = changed
    asked(judge)
    until(lambda: present.calls > 0)
    judge.purge([f"f{number}" for number in range(4)])
    present.gate.set()
    until(over(judge))
    assert judge.memory.embedded().texts == COUNT - 4
    texts = [f"input: question {n}\noutput: reply {n}" for n in range(4)]
    from memalign.records import content_hash

    assert judge.memory.known_vectors([content_hash(text) for text in texts]) == {}


def test_embedding_in_the_foreground(changed: tuple[Judge, HashEmbedder, Gated]) -> None:
    judge, former, present = changed
    asked(judge)
    present.gate.set()
    told: list[tuple[str, int, int]] = []
    left = judge.embed(progress=lambda *now: told.append(now))
    assert over(judge)()
    assert judge.memory.embedded().lacking == 0
    assert left == 0 or told[-1] == ("embed", left, left)
    assert judge.embed() == 0
    assert len(asked(judge, "another").episode_ids) == 5
    assert len(former.texts) == 1
