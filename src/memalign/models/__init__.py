"""Chat models: the protocol, and the one place that turns a model's name into an implementation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from memalign.errors import ConfigurationError
from memalign.records import Usage


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """What is asked of a chat model. At most one of ``schema`` and ``choices`` is given."""

    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None = None
    """The reply must be JSON of this JSON schema."""
    choices: tuple[str, ...] | None = None
    """The reply must be exactly one of these labels."""
    max_tokens: int = 512
    temperature: float = 0.0
    top_logprobs: int = 0
    """How many alternatives per token to return; 0: none."""
    purpose: str = "judge"
    """For the ledger: judge, distil, relate ..."""
    seed: int = 0
    """Above temperature 0, requests with different seeds may have different replies, and equal ones the same if the endpoint can."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One generated token and its likeliest alternatives (natural logarithms)."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReply:
    """What a chat model answered. The text is as received: callers parse it strictly."""

    text: str
    usage: Usage = field(default_factory=lambda: Usage(calls=1))
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: str = "stop"
    """``stop``, or ``length`` when ``max_tokens`` cut the reply."""
    seconds: float = 0.0


class ChatModel(Protocol):
    """A chat model.

    ``complete`` either returns a reply or raises: ModelUnavailable (after its own retries), ModelRefused, ItemTooLong, ConfigurationError.
    It may be called concurrently from one event loop, or from several; it limits its own concurrency. It must not change the request.
    """

    @property
    def name(self) -> str:
        """``provider/model``, as in the ledger and the price list."""

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Answer one request."""

    async def aclose(self) -> None:
        """Give back connections and memory; the model may be used again afterwards."""


def open_chat_model(name: str) -> ChatModel:
    """The model of a ``provider/model`` name: ``openai/...`` (any OpenAI-compatible endpoint) or ``local/...`` (in process).

    Opening is cheap: connections and weights are loaded at the first call. Raises ConfigurationError for an unknown provider.
    """
    provider, _, model = name.partition("/")
    if not model:
        raise ConfigurationError(f"model {name!r} is not of the form provider/model, e.g. openai/gpt-4.1-mini or local/qwen2.5-coder-1.5b")
    if provider == "openai":
        from memalign.models.openai import OpenAIChatModel

        return OpenAIChatModel(model)
    if provider == "local":
        from memalign.models.local import local_chat_model

        return local_chat_model(model)
    raise ConfigurationError(f"unknown provider {provider!r} in model {name!r}; known: openai/..., local/...")
