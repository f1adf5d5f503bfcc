"""What ``memalign doctor`` finds out by asking: whether models and embedders answer, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from memalign.cli.checks import DEFAULT_WEIGHTS, Check
from memalign.errors import MemalignError

if TYPE_CHECKING:
    from memalign.embedders import Embedder
    from memalign.models import ChatModel, ChatReply

Tell = Callable[[str, int, int], None]

DEFAULT_EMBEDDER = "local/minilm"
_QUESTION = "Count from 1 to 20 in digits, separated by spaces."
_PARAGRAPH = (
    "The customer writes that the lamp arrived on Tuesday with a cracked shade, that nobody answered the first two letters, and that "
    "the shop should either send a new shade this week or take the lamp back and return the whole sum, postage included. "
)
_SHORT_TEXT = "Where is my order? It should have been here on Monday."
_MAX_TOKENS = 64
_MAX_TOKENS_HOSTED = 2048
"""Some models write many tokens of thought, which count, before the first of the answer."""


def chat(name: str, tell: Tell) -> list[Check]:
    """One tiny request to a hosted model; to a model in process two, which measure reading and writing."""
    from memalign.cli.weights import watch
    from memalign.models import open_chat_model

    try:
        model = open_chat_model(name)
        watch(model, tell)
        return [_finished(_local(model) if name.startswith("local/") else _hosted(model), model)]
    except MemalignError as error:
        return [_failed(f"model {name}", error)]


def default_chat(tell: Tell) -> list[Check]:
    """The in-process default, if it is installed: no word about it otherwise, as the extra's own line says what is missing."""
    from memalign.models.weights import PINNED, locate_parts

    try:
        locate_parts(PINNED[DEFAULT_WEIGHTS])
    except MemalignError:
        return []
    return chat(f"local/{DEFAULT_WEIGHTS}", tell) if find_spec("xllamacpp") else []


def embedder(name: str) -> list[Check]:
    """Milliseconds for a short and for a long text."""
    from memalign.embedders import open_embedder

    try:
        opened = open_embedder(name)
        return [_finished(_embedded(name, opened), opened)]
    except MemalignError as error:
        return [_failed(f"embedder {name}", error)]


def default_embedder() -> list[Check]:
    """The in-process default, if it is installed."""
    from memalign.embedders.minilm import is_installed

    return embedder(DEFAULT_EMBEDDER) if is_installed() else []


def _finished(probe: Coroutine[Any, Any, Check], part: ChatModel | Embedder) -> Check:
    """The outcome of a probe, with its part closed afterwards, unless Ctrl-C ends all."""
    from memalign import edge

    try:
        found = edge.run(probe)
    except MemalignError:
        edge.run(part.aclose())
        raise
    edge.run(part.aclose())
    return found


async def _hosted(model: ChatModel) -> Check:
    started = time.perf_counter()
    reply = await _ask(model, _QUESTION, _MAX_TOKENS_HOSTED)
    seconds = time.perf_counter() - started
    read, written = reply.usage.prompt_tokens, reply.usage.completion_tokens
    rates = f"{read / seconds:,.0f} tokens/s in, {written / seconds:,.0f} tokens/s out, the whole call counted"
    return Check(name=f"model {model.name}", status="ok", detail=f"answered in {seconds:.2f} s ({read} + {written} tokens): {rates}", needed=True)


async def _local(model: ChatModel) -> Check:
    """``seconds`` of a reply leaves out loading; the second prompt differs from its first word on, so that no cache helps to read it."""
    started = time.perf_counter()
    first = await _ask(model, _QUESTION, _MAX_TOKENS)
    loading = time.perf_counter() - started - first.seconds
    reading = await _ask(model, f"{_PARAGRAPH * 4}\nIs this a complaint?", 1)
    in_rate = (reading.usage.prompt_tokens - reading.usage.cached_tokens) / max(reading.seconds, 1e-9)
    writing = first.seconds - (first.usage.prompt_tokens - first.usage.cached_tokens) / in_rate
    out_rate = first.usage.completion_tokens / max(writing, 1e-9)
    told = f"loaded in {loading:.1f} s; reads {in_rate:,.0f} tokens/s ({reading.usage.prompt_tokens} tokens), writes {out_rate:,.1f} tokens/s"
    return Check(name=f"model {model.name}", status="ok", detail=told, needed=True)


async def _ask(model: ChatModel, question: str, max_tokens: int) -> ChatReply:
    from memalign.models import ChatRequest, Message

    return await model.complete(ChatRequest(messages=(Message("user", question),), max_tokens=max_tokens, purpose="doctor"))


async def _embedded(name: str, embedder: Embedder) -> Check:
    started = time.perf_counter()
    await embedder.embed(["to load the weights or to connect"])
    first = time.perf_counter() - started
    times = []
    for text in (_SHORT_TEXT, _PARAGRAPH * 4):
        started = time.perf_counter()
        vectors = await embedder.embed([text])
        times.append((time.perf_counter() - started) * 1000)
    told = f"first call {first:.2f} s; short text {times[0]:.0f} ms, long text {times[1]:.0f} ms, {vectors.shape[1]} dimensions"
    return Check(name=f"embedder {name}", status="ok", detail=told, needed=True)


def _failed(name: str, error: MemalignError) -> Check:
    return Check(name=name, status="failed", detail=str(error), needed=True)
