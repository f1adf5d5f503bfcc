"""What a call costs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from memalign.records import Usage


def cost_usd(model: str, usage: Usage) -> float | None:
    """US dollars at the provider's list price; 0.0 for a model in process, None when the price is unknown. Source: the genai-prices tables."""
    provider, _, name = model.partition("/")
    if provider in ("local", "scripted"):
        return 0.0
    return _priced(provider, name, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) if _listed(provider, name) else None


@lru_cache(maxsize=64)
def _listed(provider: str, model: str) -> bool:
    """Whether the tables have a price; the search for a model that they do not know compares it with all, which takes half a millisecond."""
    try:
        _priced(provider, model, 1, 0, 1)
    except LookupError:
        return False
    return True


@lru_cache(maxsize=4096)
def _priced(provider: str, model: str, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
    from genai_prices import Usage as Tokens
    from genai_prices import calc_price

    tokens: Any = Tokens(input_tokens=prompt_tokens, cache_read_tokens=cached_tokens, output_tokens=completion_tokens)
    return float(calc_price(tokens, model_ref=model, provider_id=provider).total_price)
