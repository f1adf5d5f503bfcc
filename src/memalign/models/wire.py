"""Parts of a chat reply in OpenAI's form, which hosted endpoints and the in-process engine share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memalign.models import TokenLogprobs
from memalign.records import Usage


def read_logprobs(said: Mapping[str, Any] | None) -> tuple[TokenLogprobs, ...] | None:
    """Log probabilities in OpenAI's form; None when there are none."""
    tokens = (said or {}).get("content")
    if not tokens:
        return None
    return tuple([_token(token) for token in tokens])


def _token(said: Mapping[str, Any]) -> TokenLogprobs:
    top = tuple([(other["token"], float(other["logprob"])) for other in said.get("top_logprobs") or ()])  # some 800 a reply: no generator
    return TokenLogprobs(said["token"], float(said["logprob"]), top)


def read_usage(said: Mapping[str, Any] | None) -> Usage:
    """Usage of one call in OpenAI's form; what the endpoint does not say counts as 0."""
    usage = said or {}
    return Usage(
        calls=1,
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
    )
