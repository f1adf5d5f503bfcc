"""Chat models in this process, through llama.cpp (the package xllamacpp): no network, no key."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from memalign.errors import (
    ConfigurationError,
    ItemTooLong,
    MemalignError,
    MissingExtra,
    ModelRefused,
    ModelUnavailable,
    UnreadableReply,
)
from memalign.models import ChatReply, ChatRequest
from memalign.models.weights import Progress, find_weights
from memalign.models.wire import read_logprobs, read_usage
from memalign.records import Usage, content_hash

BATCH_TOKENS = 256
"""Prompt tokens read at a stretch: a call can be given up only between two stretches."""
PREFIX_CACHE_MIB = 512
"""RAM for the states of earlier prompts, so that judging and distilling in turn do not read their common prefixes anew."""
MOST_LABELS = 10_000
"""Replies kept, some 2 kB each."""
STOP_SECONDS = 60.0
SEED = 1

T = TypeVar("T")

_models: dict[str, LocalChatModel] = {}
_models_lock = threading.Lock()


def local_chat_model(name: str) -> LocalChatModel:
    """The one model of this name in this process, since weights fill a gigabyte.

    ``name``: ``qwen2.5-coder-1.5b`` (pinned, the default weights), ``qwen2.5-coder-0.5b``, a path ending in ``.gguf``, or
    ``hf:owner/repo/file.gguf``. Opening is cheap: a wrong name shows at the first call.
    """
    with _models_lock:
        if name not in _models:
            _models[name] = LocalChatModel(name)
        return _models[name]


class LocalChatModel:
    """A GGUF model, run by one thread: one call at a time, others wait their turn; weights are loaded by the first call.

    A bare label at temperature 0 is not worked out twice: the same request has the same reply, at no cost, until the model is closed.
    A cancelled call is given up between two stretches of 256 prompt tokens, or at the next generated token. No time limit applies: how
    long a call takes depends on the machine. A forked process loads its own copy; it must end by ``os._exit``, as those of ``multiprocessing`` do.
    """

    def __init__(self, weights: str, *, context_tokens: int | None = None, threads: int | None = None) -> None:
        """``context_tokens`` and ``threads`` default to MEMALIGN_CONTEXT_TOKENS and MEMALIGN_THREADS. Loads nothing."""
        self.weights = weights
        self.progress: Progress | None = None
        """Told how far the weights are put together, at the first use on a machine."""
        self._context_tokens = context_tokens
        self._threads = threads
        self._server: Any = None
        self._labels: dict[str | None, ChatReply] = {}
        """Digest of a request -> its reply, a label and the likelihoods of its tokens."""
        self._worker = _Worker(f"memalign {weights}")

    @property
    def name(self) -> str:
        """``local/<weights>``."""
        return f"local/{self.weights}"

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Answer one request; ``seconds`` leaves out the wait for a turn and the loading of weights.

        Raises MissingExtra, ConfigurationError (weights), ItemTooLong, ModelRefused (e.g. a schema the engine cannot follow),
        UnreadableReply, ModelUnavailable (the engine failed).
        """
        self._forget_parent_process()
        key = content_hash(_body(request)) if request.choices is not None and request.temperature == 0 else None
        if key in self._labels:
            return self._labels[key]
        abandoned = threading.Event()
        future = self._worker.submit(lambda: self._complete(request, abandoned))
        try:
            reply = await asyncio.wrap_future(future)
        finally:
            abandoned.set()
        if key is not None:
            if len(self._labels) >= MOST_LABELS:
                self._labels.clear()
            self._labels[key] = replace(reply, usage=Usage(), seconds=0.0)
        return reply

    async def aclose(self) -> None:
        """Wait for the call in hand and free the weights; the next call loads them again."""
        self._forget_parent_process()
        await asyncio.wrap_future(self._worker.submit(self._close))

    def _complete(self, request: ChatRequest, abandoned: threading.Event) -> ChatReply:
        if self._server is None:
            self._server = self._open()
            self._worker.at_stop(self._close)
        started = time.monotonic()
        chunks: list[Mapping[str, Any]] = []

        def hear(chunk: Mapping[str, Any]) -> bool:
            chunks.append(chunk)
            return abandoned.is_set() or self._worker.stopping

        try:
            returned = self._server.handle_chat_completions(_body(request), hear)
        except ValueError as error:
            raise ModelRefused(f"{self.name} cannot do what was asked: {error}") from error
        except Exception as error:  # whatever else the engine's C++ threw
            raise ModelUnavailable(f"the engine of {self.name} failed: {type(error).__name__}: {error}") from error
        if isinstance(returned, Mapping):
            chunks.append(returned)
        if self._worker.stopping:
            raise ModelUnavailable("the process is ending")
        if abandoned.is_set():
            raise ModelUnavailable("the call was given up")
        return self._reply(chunks, request, time.monotonic() - started)

    def _reply(self, chunks: list[Mapping[str, Any]], request: ChatRequest, seconds: float) -> ChatReply:
        """One reply from the engine's stream."""
        text, finish, usage = "", "stop", None
        tokens: list[Any] = []
        for chunk in chunks:
            if "error" in chunk:
                raise self._failure(chunk["error"])
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices") or ():
                text += choice["delta"].get("content") or ""
                finish = choice.get("finish_reason") or finish
                tokens += (choice.get("logprobs") or {}).get("content") or []
        if not text:
            cut = f": max_tokens={request.max_tokens} was used up before any text" if finish == "length" else ""
            raise UnreadableReply(f"the reply of {self.name} is empty{cut}", usage=read_usage(usage))
        return ChatReply(
            text=text,
            usage=read_usage(usage),
            logprobs=read_logprobs({"content": tokens}) if request.top_logprobs else None,
            finish_reason="length" if finish == "length" else "stop",
            seconds=seconds,
        )

    def _failure(self, fault: Mapping[str, Any]) -> MemalignError:
        said = str(fault.get("message", fault))[:500]
        if fault.get("type") == "exceed_context_size_error":
            return ItemTooLong(
                f"the request has {fault.get('n_prompt_tokens', 'too many')} tokens, the window of {self.name} is {fault.get('n_ctx')}; "
                "shorten the item, or raise MEMALIGN_CONTEXT_TOKENS if the model allows"
            )
        if fault.get("code") in {400, 404, 422, 501}:
            return ModelRefused(f"{self.name} cannot do what was asked: {said}")
        return ModelUnavailable(f"the engine of {self.name} failed: {said}")

    def _open(self) -> Any:
        try:
            import xllamacpp
        except ImportError as error:
            raise MissingExtra("xllamacpp", "local") from error
        from memalign.settings import read_settings

        settings = read_settings()
        threads = self._threads or settings.threads
        params = xllamacpp.CommonParams()
        params.model.path = str(find_weights(self.weights, cache_dir=settings.cache_dir, progress=self.progress))
        params.n_ctx = self._context_tokens or settings.context_tokens
        params.n_parallel = 1
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.cache_ram_mib = PREFIX_CACHE_MIB
        params.cpuparams_batch.n_threads = threads
        # Generating waits for all threads at every layer of every token: with no core to spare, any other load on the machine makes it
        # 15 times slower (0.7 against 10 tokens/s measured on 2 cores). A core left free costs up to half when nothing else runs.
        params.cpuparams.n_threads = max(1, threads - 1)
        params.warmup = False
        params.verbosity = -1
        # The engine also listens on a loopback port, which cannot be switched off: a key nobody knows shuts it to others.
        params.api_keys = [secrets.token_hex(32)]
        params.endpoint_slots = params.ui = False
        try:
            return xllamacpp.Server(params)
        except Exception as error:  # whatever the engine's C++ threw
            raise ConfigurationError(
                f"cannot load {params.model.path}: {error}; the file may be damaged or of a kind the engine does not know, or a window of "
                f"{params.n_ctx} tokens may need more memory than there is (MEMALIGN_CONTEXT_TOKENS)"
            ) from error

    def _close(self) -> None:
        self._server = None
        self._labels.clear()

    def _forget_parent_process(self) -> None:
        """After a fork the engine's threads are gone: leave its object untouched for ever, since closing it would wait for them."""
        if self._worker.process_id != os.getpid():
            if self._server is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._server))
            self._server = None
            self._worker = _Worker(self._worker.title)


class _Worker:
    """One thread for work that blocks. At the end of the process what runs is told to stop and what waits is dropped.

    An executor of the standard library would do all that waits before it lets the process end.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.process_id = os.getpid()
        self.stopping = False
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._at_stop: Callable[[], None] | None = None

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Queue ``work``; cancelling the future drops it while it waits."""
        future: Future[Any] = Future()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self.title, daemon=True)
                self._thread.start()
                atexit.register(self.stop)
        self._tasks.put((future, work))
        return future

    def at_stop(self, work: Callable[[], None]) -> None:
        """Do ``work`` in the thread when the process ends."""
        self._at_stop = work

    def stop(self) -> None:
        """Let the running work end (it looks at ``stopping``) and drop the rest."""
        self.stopping = True
        self._tasks.put(None)
        if self._thread is not None and self.process_id == os.getpid():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None and not self.stopping:
            future, work = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)
            del task, future, work  # so that a reply does not live until the next call
        if self._at_stop is not None:
            self._at_stop()


def _body(request: ChatRequest) -> dict[str, Any]:
    """The request in the engine's form. Half a surrogate pair is no Unicode text: the engine would refuse it."""
    body: dict[str, Any] = {
        "messages": [{"role": message.role, "content": message.content.encode("utf-8", "replace").decode()} for message in request.messages],
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": SEED + request.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,  # the engine then speaks up between stretches of the prompt, where a call can be given up
    }
    if request.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if request.schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": request.schema}}
    if request.choices is not None:
        body["grammar"] = choices_grammar(request.choices)
    return body


def choices_grammar(choices: tuple[str, ...]) -> str:
    """A llama.cpp grammar (GBNF) that allows exactly these texts."""
    return "root ::= " + " | ".join(f'"{"".join(map(_escaped, choice))}"' for choice in choices)


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() and character.isascii() else f"\\U{ord(character):08X}"
