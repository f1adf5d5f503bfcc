"""A real OpenAI-compatible endpoint on the loopback address, scripted by tests: statuses, delays, dropped connections, cut bodies."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from aiohttp import web


@dataclass
class Asked:
    """One request as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


@dataclass
class Scripted:
    """What one request gets in place of the default answer."""

    status: int = 200
    body: Any = None
    """JSON, or bytes as they are; None with status 200: the default answer."""
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    drop: bool = False
    """Close the connection without a word."""
    cut: bool = False
    """Promise the whole body, send half of it, close the connection."""


def completion(text: str | None, *, finish_reason: str = "stop", logprobs: Any = None, **message: Any) -> dict[str, Any]:
    """A chat completion in OpenAI's form; ``message`` adds fields, e.g. ``tool_calls`` or ``refusal``."""
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 7}}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish_reason,
        "logprobs": logprobs,
    }
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


def tool_call(arguments: str) -> dict[str, Any]:
    """A completion that calls the forced function."""
    call = {"id": "t", "type": "function", "function": {"name": "reply", "arguments": arguments}}
    return completion(None, finish_reason="tool_calls", tool_calls=[call])


def fault(message: str, **more: Any) -> dict[str, Any]:
    """An error body in OpenAI's form."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **more}}


def embedding(text: str, dimension: int = 8) -> list[float]:
    """A fixed vector of a text (not of length 1)."""
    digest = hashlib.blake2b(text.encode(), digest_size=dimension).digest()
    return [byte - 127.5 for byte in digest]


class ScriptedEndpoint:
    """Serves from its own thread and loop, so that tests of sync code can use it as well.

    ``script`` is used up first, one entry a request; then ``chat`` (request body -> text or whole answer) answers, and /embeddings gives
    fixed vectors, last text first, as the protocol allows. ``requests`` holds what arrived, ``most_in_flight`` how many at once.
    """

    def __init__(self, chat: Callable[[dict[str, Any]], str | dict[str, Any]] = lambda body: "ok") -> None:
        self.chat = chat
        self.script: deque[Scripted] = deque()
        self.requests: list[Asked] = []
        self.in_flight = self.most_in_flight = 0
        self.delay_seconds = 0.0
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> ScriptedEndpoint:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def then(self, status: int = 200, body: Any = None, **more: Any) -> ScriptedEndpoint:
        """Append one entry to the script."""
        self.script.append(Scripted(status, body, **more))
        return self

    async def _open(self) -> None:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(Asked(request.match_info["path"], dict(request.headers), body))
        step = self.script.popleft() if self.script else Scripted(delay_seconds=self.delay_seconds)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(step.delay_seconds)
        finally:
            self.in_flight -= 1
        if step.drop:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        said = step.body
        if said is None:
            said = self._default(request.match_info["path"], body) if step.status == 200 else fault(f"scripted {step.status}")
        content = said if isinstance(said, bytes) else json.dumps(said).encode()
        headers = {"Content-Type": "application/json", **step.headers}
        if step.cut:
            return await self._half(request, content, headers)
        return web.Response(status=step.status, body=content, headers=headers)

    async def _half(self, request: web.Request, content: bytes, headers: dict[str, str]) -> web.StreamResponse:
        response = web.StreamResponse(headers={**headers, "Content-Length": str(len(content))})
        await response.prepare(request)
        await response.write(content[: len(content) // 2])
        assert request.transport is not None
        request.transport.close()
        return response

    def _default(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "embeddings":
            data = [{"index": place, "embedding": embedding(text)} for place, text in enumerate(body["input"])]
            return {"object": "list", "model": "m", "data": data[::-1], "usage": {"prompt_tokens": 2 * len(data)}}
        said = self.chat(body)
        return completion(said) if isinstance(said, str) else said
