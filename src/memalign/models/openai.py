"""Chat models behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import SecretStr

from memalign.errors import UnreadableReply
from memalign.models import ChatReply, ChatRequest
from memalign.models.http import Endpoint, EndpointRefused
from memalign.models.wire import read_logprobs, read_usage
from memalign.records import Usage

MAX_TOP_LOGPROBS = 20
TOOL_NAME = "reply"
FORMAT_WORDS = ("response_format", "json_schema", "json schema", "structured output", "guided", "schema")
FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Dialect:
    """What the endpoint has been found to accept; it only ever goes down."""

    structured: Literal["schema", "tool", "prompt"] = "schema"
    logprobs: bool = True
    temperature: bool = True
    seed: bool = True
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    def without(self, refusal: EndpointRefused, request: ChatRequest) -> _Dialect | None:
        """The dialect that leaves out what the refusal names; None when it names nothing that can be left out."""
        said = refusal.detail.lower()
        if refusal.status not in {400, 404, 422, 501}:
            return None
        if self.limit_field == "max_tokens" and "max_completion_tokens" in said:
            return replace(self, limit_field="max_completion_tokens")
        if self.logprobs and request.top_logprobs and "logprobs" in said:
            return replace(self, logprobs=False)
        if self.temperature and "temperature" in said:
            return replace(self, temperature=False)
        if self.seed and request.seed and "seed" in said:
            return replace(self, seed=False)
        if request.schema is None:
            return None
        if self.structured == "schema" and any(word in said for word in FORMAT_WORDS):
            return replace(self, structured="tool")
        if self.structured == "tool" and any(word in said for word in ("tool", "function", "schema")):
            return replace(self, structured="prompt")
        return None


class OpenAIChatModel:
    """A chat model of an endpoint that speaks the OpenAI protocol.

    JSON schema is asked for by ``response_format``; an endpoint that refuses it, or from the first pays it no heed, is asked by a forced tool
    call, then by words. Refused log probabilities, temperature and ``max_tokens`` are left out or renamed. What was found is remembered for the
    life of the instance.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | SecretStr | None = None,
        concurrency: int | None = None,
        timeout_seconds: float | None = None,
        retries: int | None = None,
    ) -> None:
        """Unset arguments come from the environment; nothing is opened. Raises ConfigurationError."""
        self.model = model
        self._endpoint = Endpoint(base_url=base_url, api_key=api_key, concurrency=concurrency, timeout_seconds=timeout_seconds, retries=retries)
        self._dialect = _Dialect()
        self._heeded = False
        """Whether any reply had the form that was asked for: from then on one without it is the model's fault, not the endpoint's."""

    @property
    def name(self) -> str:
        """``openai/<model>``, whoever serves it."""
        return f"openai/{self.model}"

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Answer one request. Raises UnreadableReply for a refusal or an empty reply, else what ``Endpoint.post`` raises."""
        started, spent = time.monotonic(), Usage()
        while True:
            dialect = self._dialect
            try:
                answer = await self._endpoint.post("chat/completions", _body(self.model, request, dialect))
            except EndpointRefused as refusal:
                # Each step leaves something out for good, so this ends; a concurrent call may have taken the step already.
                if (lower := dialect.without(refusal, request)) is None:
                    raise
            else:
                reply = _reply(answer, request, dialect, time.monotonic() - started)
                if (lower := self._unheeded(reply, request, dialect)) is None:
                    return replace(reply, usage=spent + reply.usage)
                spent += reply.usage
            if self._dialect == dialect:
                self._dialect = lower

    def _unheeded(self, reply: ChatReply, request: ChatRequest, dialect: _Dialect) -> _Dialect | None:
        """The next way to ask for JSON, when the endpoint took the request but seems to know nothing of this one."""
        if request.schema is None or self._heeded or dialect.structured == "prompt" or reply.finish_reason == "length":
            return None
        self._heeded = _has_form(reply.text, request.schema)
        return None if self._heeded else replace(dialect, structured="tool" if dialect.structured == "schema" else "prompt")

    async def aclose(self) -> None:
        """Close the running loop's connections; the model may be used again."""
        await self._endpoint.aclose()


def _body(model: str, request: ChatRequest, dialect: _Dialect) -> dict[str, Any]:
    messages = [{"role": message.role, "content": message.content} for message in request.messages]
    body: dict[str, Any] = {"model": model, "messages": messages, dialect.limit_field: request.max_tokens}
    if dialect.temperature:
        body["temperature"] = request.temperature
    if request.seed and dialect.seed:
        body["seed"] = request.seed
    if request.top_logprobs and dialect.logprobs:
        body |= {"logprobs": True, "top_logprobs": min(request.top_logprobs, MAX_TOP_LOGPROBS)}
    if request.schema is None:
        return body
    if dialect.structured == "schema":
        described = {"name": TOOL_NAME, "strict": True, "schema": strict(request.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": described}
    elif dialect.structured == "tool":
        function = {"name": TOOL_NAME, "description": "Give the reply.", "parameters": request.schema}
        body["tools"] = [{"type": "function", "function": function}]
        body["tool_choice"] = {"type": "function", "function": {"name": TOOL_NAME}}
    else:
        _ask_in_words(messages, request.schema)
    return body


def strict(schema: Any) -> Any:
    """The schema without limits of length, which strict mode refuses."""
    if isinstance(schema, Mapping):
        return {key: strict(part) for key, part in schema.items() if key not in ("minLength", "maxLength")}
    return [strict(part) for part in schema] if isinstance(schema, list) else schema


def _ask_in_words(messages: list[dict[str, str]], schema: Mapping[str, Any]) -> None:
    wish = f"Reply with one JSON object that follows this JSON schema, and with nothing else:\n{json.dumps(schema, ensure_ascii=False)}"
    last = next((message for message in reversed(messages) if message["role"] == "user"), None)
    if last is None:
        messages.append({"role": "user", "content": wish})
    else:
        last["content"] += f"\n\n{wish}"


def _reply(answer: Mapping[str, Any], request: ChatRequest, dialect: _Dialect, seconds: float) -> ChatReply:
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        finish = choice.get("finish_reason")
        text = _text(message)
        logprobs = read_logprobs(choice.get("logprobs"))
        usage = read_usage(answer.get("usage"))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UnreadableReply(f"the endpoint's reply has no message in the expected form ({type(error).__name__}: {error})") from error
    if message.get("refusal"):
        raise UnreadableReply(f"the model declined to answer: {str(message['refusal'])[:200]}", usage=usage)
    if finish == "content_filter":
        raise UnreadableReply("the endpoint's content filter removed the reply", usage=usage)
    if not text:
        cut = f": max_tokens={request.max_tokens} was used up before any text" if finish == "length" else ""
        raise UnreadableReply(f"the model's reply is empty{cut}", usage=usage)
    if request.schema is not None and (fenced := FENCED.fullmatch(text)):
        text = fenced[1]
    return ChatReply(
        text=text,
        usage=usage,
        logprobs=logprobs if request.top_logprobs else None,
        finish_reason="length" if finish == "length" else "stop",
        seconds=seconds,
    )


def _has_form(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether a text is one JSON object, bare or in a fence, with all that a schema requires at its top."""
    try:
        found = json.loads(fenced[1] if (fenced := FENCED.fullmatch(text)) else text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and set(schema.get("required", ())) <= found.keys()


def _text(message: Mapping[str, Any]) -> str:
    """The arguments of a tool call, else the content, which some endpoints send in parts."""
    for call in message.get("tool_calls") or ():
        arguments = call["function"]["arguments"]
        return arguments if isinstance(arguments, str) else json.dumps(arguments)
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content)
    return content if isinstance(content, str) else ""
