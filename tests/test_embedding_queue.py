"""The queue before an embedder: requests that come while it works share a call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from memalign import EmbeddingError
from memalign.embedders.queue import HOSTED_CALLS, MOST_TEXTS, Queue


class Slow:
    """Embeds a text as its length; notes each call; waits until it is let go."""

    def __init__(self, id_: str = "local/slow") -> None:
        self.id = id_
        self.calls: list[list[str]] = []
        self.go = asyncio.Event()

    async def embed(self, texts: Sequence[str]) -> Any:
        self.calls.append(list(texts))
        await self.go.wait()
        if "odd" in texts:
            raise RuntimeError("against its contract")
        if any("bad" in text for text in texts):
            raise EmbeddingError("a bad text")
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    async def aclose(self) -> None:
        pass


async def started(queue: Queue, *requests: Sequence[str]) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.ensure_future(queue.embed(texts)) for texts in requests]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


def test_an_idle_one_is_asked_at_once_and_latecomers_share_the_next_call() -> None:
    async def main() -> None:
        slow = Slow()
        queue = Queue(slow)
        tasks = await started(queue, ["a"])
        assert slow.calls == [["a"]]
        tasks += await started(queue, ["bb", "ccc"], ["ccc", "a"])
        slow.go.set()
        rows = await asyncio.gather(*tasks)
        assert slow.calls == [["a"], ["bb", "ccc", "a"]]  # each text once
        assert [row[:, 0].tolist() for row in rows] == [[1], [2, 3], [3, 1]]

    asyncio.run(main())


def test_who_asks_again_the_moment_an_answer_comes_is_answered() -> None:
    async def main() -> None:
        slow = Slow()
        slow.go.set()
        queue = Queue(slow)

        async def twice(text: str) -> None:
            await queue.embed([text])
            await queue.embed([text + "!"])

        await asyncio.wait_for(asyncio.gather(*(twice("x" * n) for n in range(1, 5))), 10)
        assert {text for call in slow.calls for text in call} == {"x" * n + end for n in range(1, 5) for end in ("", "!")}

    asyncio.run(main())


def test_an_error_that_is_none_of_ours_belongs_to_one_request() -> None:
    async def main() -> None:
        slow = Slow()
        queue = Queue(slow)
        tasks = await started(queue, ["a"], ["odd"], ["b"])
        slow.go.set()
        first, odd, last = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert isinstance(odd, RuntimeError)
        assert len(first) == len(last) == 1

    asyncio.run(main())


def test_hosted_calls_run_side_by_side_before_any_request_waits() -> None:
    async def main() -> None:
        slow = Slow("openai/slow")
        queue = Queue(slow)
        tasks = [task for number in range(HOSTED_CALLS + 3) for task in await started(queue, [f"text {number}"])]
        assert [len(call) for call in slow.calls] == [1] * HOSTED_CALLS
        slow.go.set()
        await asyncio.gather(*tasks)
        assert len(slow.calls) == HOSTED_CALLS + 1

    asyncio.run(main())


def test_shared_calls_are_bounded_and_large_requests_stay_whole() -> None:
    async def main() -> None:
        slow = Slow()
        many = [str(number) for number in range(MOST_TEXTS + 50)]
        queue = Queue(slow)
        tasks = await started(queue, ["first"])
        tasks += await started(queue, many, ["x"], ["y"])
        slow.go.set()
        await asyncio.gather(*tasks)
        assert [len(call) for call in slow.calls] == [1, len(many), 2]

    asyncio.run(main())


def test_requests_of_one_moment_share_a_call() -> None:
    async def main() -> None:
        slow = Slow("openai/slow")
        slow.go.set()
        await asyncio.gather(*await started(Queue(slow), ["a"], ["b"], ["c"]))
        assert slow.calls == [["a", "b", "c"]]

    asyncio.run(main())


def test_one_bad_text_fails_its_own_request_only() -> None:
    async def main() -> None:
        slow = Slow()
        tasks = await started(Queue(slow), ["a"], ["good"], ["bad"])
        slow.go.set()
        first, good, bad = await asyncio.gather(*tasks, return_exceptions=True)
        assert first[0, 0] == 1
        assert good[0, 0] == 4
        assert isinstance(bad, EmbeddingError)

    asyncio.run(main())


def test_a_caller_that_goes_away_does_not_stop_the_others() -> None:
    async def main() -> None:
        slow = Slow()
        tasks = await started(Queue(slow), ["a"], ["bb"], ["ccc"])
        tasks[1].cancel()
        slow.go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[1], asyncio.CancelledError)
        assert results[2][0, 0] == 3

    asyncio.run(main())


def test_it_serves_one_loop_after_the_other() -> None:
    slow = Slow()
    slow.go.set()
    queue = Queue(slow)
    for text in ("a", "bb"):
        assert asyncio.run(queue.embed([text]))[0, 0] == len(text)


@pytest.mark.parametrize("texts", [[], ["a", "a"]])
def test_no_text_and_equal_texts(texts: list[str]) -> None:
    slow = Slow()
    slow.go.set()
    assert len(asyncio.run(Queue(slow).embed(texts))) == len(texts)
