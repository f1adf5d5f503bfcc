"""Relating: which proposed guidelines say the same."""

from __future__ import annotations

import json
from collections.abc import Sequence

from memalign.errors import MemalignError
from memalign.models import ChatRequest, Message
from memalign.prompts import render
from memalign.session import Meter, Session

_SCHEMA = {
    "type": "object",
    "properties": {"groups": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}},
    "required": ["groups"],
    "additionalProperties": False,
}


async def duplicates(session: Session, meter: Meter, texts: Sequence[str]) -> list[tuple[int, list[int]]]:
    """Groups of texts that say the same, as (place of the oldest, places of the others); one model call.

    A failed or unreadable call gives no groups: guidelines that stay apart can be joined later, those joined wrongly would be lost.
    """
    prompt = render("relate", guidelines=texts)
    request = ChatRequest(messages=(Message("user", prompt),), schema=_SCHEMA, max_tokens=400, purpose="relate")
    try:
        reply = await session.ask(meter, session.reflection_model, request)
        groups = json.loads(reply.text)["groups"]
        return _disjoint(groups, len(texts))
    except (MemalignError, ValueError, TypeError, KeyError, RecursionError):
        return []


def _disjoint(groups: Sequence[Sequence[int]], size: int) -> list[tuple[int, list[int]]]:
    taken: set[int] = set()
    found = []
    for group in groups:
        places = sorted({number - 1 for number in group if type(number) is int and 1 <= number <= size} - taken)
        if len(places) > 1:
            taken |= set(places)
            found.append((places[0], places[1:]))
    return found
