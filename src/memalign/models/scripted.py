"""A chat model for tests: it answers from a script and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from memalign.errors import ConfigurationError
from memalign.models import ChatReply, ChatRequest

ScriptedReply = str | Mapping[str, Any] | ChatReply | BaseException


class ScriptedChatModel:
    """Replies in the order given, or as a function of the request; no endpoint, no weights, no patching.

    A text is the reply's text, a mapping is sent as JSON, a ChatReply as it is, an exception is raised. ``requests`` holds every request in
    the order of arrival. ``delay_seconds`` passes before each reply.
    """

    def __init__(
        self,
        replies: Iterable[ScriptedReply] | Callable[[ChatRequest], ScriptedReply] = (),
        *,
        name: str = "scripted/model",
        delay_seconds: float = 0.0,
    ) -> None:
        self.requests: list[ChatRequest] = []
        self.delay_seconds = delay_seconds
        self._name = name
        self._answer = replies if callable(replies) else None
        self._queue: deque[ScriptedReply] = deque(() if callable(replies) else replies)

    @property
    def name(self) -> str:
        """The name given."""
        return self._name

    async def complete(self, request: ChatRequest) -> ChatReply:
        """The next reply. Raises ConfigurationError when the script has run out, and whatever exception the script holds."""
        self.requests.append(request)
        reply = self._next(request)
        await asyncio.sleep(self.delay_seconds)
        if isinstance(reply, BaseException):
            raise reply
        if isinstance(reply, ChatReply):
            return reply
        return ChatReply(text=reply if isinstance(reply, str) else json.dumps(reply, ensure_ascii=False), seconds=self.delay_seconds)

    def add(self, *replies: ScriptedReply) -> None:
        """Append replies to the script."""
        self._queue.extend(replies)

    async def aclose(self) -> None:
        """Nothing to give back."""

    def _next(self, request: ChatRequest) -> ScriptedReply:
        if self._answer is not None:
            return self._answer(request)
        if not self._queue:
            said = request.messages[-1].content[:120] if request.messages else ""
            which = f"request {len(self.requests)} (purpose {request.purpose!r})"
            raise ConfigurationError(f"{self._name} has no reply left for {which}: {said!r}")
        return self._queue.popleft()
