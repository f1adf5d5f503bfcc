"""Time that a judgement takes beyond the model call, in process: embedding, recall, assembly, log."""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import Row, median, milliseconds, percentile
from benchmarks.workload import INSTRUCTIONS, answer, item, records
from memalign import Judge, Scale, judging, recalling, space
from memalign.embedders.minilm import MiniLM
from memalign.memory import Memory
from memalign.models import ChatReply, ChatRequest
from memalign.models.scripted import ScriptedChatModel
from memalign.records import Usage

DIMENSION = 384
FEW, MANY = 1_000, 10_000


class FixedEmbedder:
    """Vectors drawn from a hash of the text, with no delay, under any id: fills memory, and stands in for an embedder that costs nothing."""

    def __init__(self, id_: str = "scripted/fixed", dimension: int = DIMENSION) -> None:
        self.id = id_
        self.dimension = dimension

    async def embed(self, texts: Sequence[str]) -> Any:
        """One unit vector a text."""
        rows = np.stack([np.random.default_rng(zlib.crc32(text.encode())).standard_normal(self.dimension, dtype=np.float32) for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    async def aclose(self) -> None:
        """Nothing to give back."""


class Limited(ScriptedChatModel):
    """A scripted model that serves so many calls at once; the others wait."""

    def __init__(self, script: Callable[[ChatRequest], ChatReply], *, delay_seconds: float, at_once: int) -> None:
        super().__init__(script, delay_seconds=delay_seconds)
        self._slots = asyncio.Semaphore(at_once)

    async def complete(self, request: ChatRequest) -> ChatReply:
        """The next reply, when a slot is free."""
        async with self._slots:
            return await super().complete(request)


def scripted(*, delay_seconds: float = 0.0, at_once: int = 1_000) -> ScriptedChatModel:
    """The workload's model, in process."""

    def reply(request: ChatRequest) -> ChatReply:
        _, text = answer([{"content": message.content} for message in request.messages], request.schema)
        return ChatReply(text=text, usage=Usage(calls=1, prompt_tokens=1500, completion_tokens=35))

    return Limited(reply, delay_seconds=delay_seconds, at_once=at_once)


def judge_on(path: Path, embedder: Any, *, model: Any = None) -> Judge:
    """A judge of the workload; with the floor below every similarity, so that five cases are always shown."""
    scale = Scale.boolean()
    return Judge(name="bench", instructions=INSTRUCTIONS, scale=scale, model=model or scripted(), memory=str(path), embedder=embedder, floor=-1.0)


def fill(path: Path, episodes: int, embedder_id: str = "scripted/fixed") -> float:
    """A memory of some episodes, a tenth of them with reasons that were distilled; gives the seconds it took."""
    started = time.perf_counter()
    judge = judge_on(path, FixedEmbedder(embedder_id))
    judge.align([*records(episodes // 10), *records(episodes - episodes // 10, start=episodes // 10, reasons=False)])
    judge.close()
    return time.perf_counter() - started


class Stopwatch:
    """Adds up the seconds of parts of a judgement."""

    def __init__(self) -> None:
        self.parts: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def on(self, places: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
        """While it runs, functions (owner, name) are timed as a part."""
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
        for owner, name, part in places:
            setattr(owner, name, self._timed(getattr(owner, name), part))
        try:
            yield
        finally:
            for owner, name, function in before:
                setattr(owner, name, function)

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def sync(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.parts[part].append(time.perf_counter() - started)

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return await function(*args, **kwargs)
            finally:
                self.parts[part].append(time.perf_counter() - started)

        return awaited if asyncio.iscoroutinefunction(function) else sync


_PLACES = (
    (space.Space, "_embed", "embed"),
    (Memory, "view_and_vector", "recall"),
    (Memory, "cases", "recall"),
    (recalling, "assemble", "assemble"),
    (judging, "request", "assemble"),
    (judging, "read", "assemble"),
    (Memory, "log", "log"),
)


def added(judge: Judge, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of sequential judgements with a model that answers at once; the first five do not count."""
    watch, seconds = Stopwatch(), list[float]()
    for one in items[:5]:
        judge(**one)
    cpu = time.process_time()
    with watch.on(_PLACES):
        for one in items[5:]:
            started = time.perf_counter()
            verdict = judge(**one)
            seconds.append(time.perf_counter() - started)
    cpu = time.process_time() - cpu
    assert len(verdict.episode_ids) >= 5, "too few cases were recalled to measure anything"
    parts = {name: sum(spent) / len(seconds) for name, spent in watch.parts.items()}
    embedding = watch.parts["embed"] or [0.0]
    return {
        "p50": median(seconds),
        "p95": percentile(seconds, 0.95),
        "best": min(seconds),
        "processor": cpu / len(seconds),
        "embed_p50": median(embedding),
        "mean_parts": parts,
        "judgements": len(seconds),
    }


def beyond(result: dict[str, Any]) -> float:
    """The median without the embedder's own."""
    return float(result["p50"] - result["embed_p50"])


def measure(*, quick: bool = False) -> list[Row]:
    count = 60 if quick else 220
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for episodes in (FEW, MANY):
            rows += _at(Path(folder), episodes, count)
    return rows


def _at(folder: Path, episodes: int, count: int) -> list[Row]:
    plain, local = folder / f"plain-{episodes}.db", folder / f"local-{episodes}.db"
    seconds = fill(plain, episodes)
    fill(local, episodes, MiniLM().id)
    stored = [{"inputs": f.inputs, "outputs": f.outputs} for f in records(count)]
    unseen = [item(number) for number in range(count)]
    cases: list[tuple[str, Path, Any, list[dict[str, Any]], float]] = [
        ("scripted embedder without delay", plain, FixedEmbedder(), unseen, 0.003),
        ("vector stored", plain, FixedEmbedder(), stored, 0.005),
    ]
    try:
        asyncio.run(MiniLM().embed(["warm"]))
        cases.append(("local MiniLM", local, MiniLM(), unseen, 0.003))
    except Exception as error:
        print(f"local MiniLM is not measured: {error}")
    rows = []
    for name, path, embedder, items, limit in cases:
        judge = judge_on(path, embedder)
        result = added(judge, items) | {"fill_seconds": seconds}
        judge.close()
        own = beyond(result)
        parts = ", ".join(f"{part} {milliseconds(spent)}" for part, spent in sorted(result["mean_parts"].items()))
        whole = f"p95 {milliseconds(result['p95'])}, best {milliseconds(result['best'])}, processor {milliseconds(result['processor'])}"
        shown = f"p50 {milliseconds(own)} + embedder {milliseconds(result['embed_p50'])}; whole: {whole} ({parts})"
        target = "embedder + 5 ms" if limit == 0.005 else "embedder + 3 ms"
        rows.append(Row(f"judgement, {episodes:,} episodes, {name}", shown, target, own <= limit, result))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    for row in measure(quick=parser.parse_args().quick):
        print(json.dumps(row.to_dict()))
