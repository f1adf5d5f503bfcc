"""Asking a model to distil: the pace, the prompts, and replies read strictly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memalign.alignment.operations import parse, schema
from memalign.alignment.opposites import Beside
from memalign.errors import UnreadableReply
from memalign.memory.episodic import Stored
from memalign.models import ChatRequest, Message
from memalign.prompts import render
from memalign.records import Guideline, storable
from memalign.rendering import item_text, trimmed
from memalign.session import Meter, Session
from memalign.working import Task, fenced

_ATTEMPTS = 3
_SHOTS = (
    ("Verdict: no. Reason: Mocks the author. We respect them, whoever is right.", "Never mock an author."),
    ("Verdict: yes. Reason: Good, the source stands right beside the claim.", "Name the source beside each claim."),
    ("Verdict: no. Reason: Makes him look it up himself. That is our work.", "Look things up ourselves, never leave it to the reader."),
)
"""From a field far away, so that none of it is right by chance."""
_LONGEST_CASE = 2000
"""Characters of a case, and of a reason, that the distilling model reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How much a distilling model is asked at once."""

    batch_size: int = 4
    """Cases in one call, as long as all calls can be made at once."""
    largest_batch: int = 8
    """Cases in one call when there are more."""
    width: int = 16
    """Calls at once; each later round sees what the earlier ones proposed."""
    alike: int = 4
    """Cases that are read of those with the same verdict and the same reason."""
    max_tokens: int = 1200
    gist: bool = False
    """Ask for nothing but the rule behind each single reason; rules that are alike become one. On the boolean scale only reasons for a no are asked
    about: they name a fault, where a small model makes platitudes of praise."""

    def cases_a_call(self, cases: int) -> int:
        """How many of some cases go into one call."""
        return min(self.largest_batch, max(self.batch_size, math.ceil(cases / self.width)))


HOSTED = Pace()
IN_PROCESS = Pace(batch_size=1, largest_batch=1, width=1, alike=1, max_tokens=40, gist=True)
"""A small model on a processor writes some ten tokens a second, and loses the thread among several cases, but puts one reason into a rule well."""


async def ask(
    session: Session,
    meter: Meter,
    task: Task,
    pace: Pace,
    batch: Sequence[Stored],
    sizes: Sequence[int],
    seen: Sequence[Guideline],
    others: Sequence[Beside] = (),
) -> list[dict[str, object]]:
    """The model's proposals for a batch, unchecked. ``sizes``: for how many records each case stands.

    ``seen``, ``others``: the guidelines and the cases of memory that it is shown.
    Raises what the model raises, and UnreadableReply after three unusable replies.
    """
    if pace.gist:
        return await _gist(session, meter, task, batch[0])
    request = _request(task, pace, batch, sizes, seen, others)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return parse((await session.ask(meter, session.reflection_model, request)).text)
        except UnreadableReply:
            if attempt == _ATTEMPTS:
                raise
            request = ChatRequest(
                messages=request.messages,
                schema=request.schema,
                max_tokens=request.max_tokens * 2,
                temperature=0.3 * attempt,
                purpose="distil",
            )
    raise AssertionError


async def _gist(session: Session, meter: Meter, task: Task, stored: Stored) -> list[dict[str, object]]:
    """One reason as a rule. The case itself is left out: a small model would copy it."""
    given = f"Verdict: {task.scale.label_of(stored.feedback.value)}. Reason: {_reason(stored)}"
    shots = [message for reason, rule in _SHOTS for message in (Message("user", reason), Message("assistant", rule))]
    messages = (Message("system", render("gist")), *shots, Message("user", given))
    reply = await session.ask(meter, session.reflection_model, ChatRequest(messages=messages, max_tokens=IN_PROCESS.max_tokens, purpose="distil"))
    return [{"op": "rule", "rule": storable(reply.text).strip().partition("\n")[0], "cases": [1]}]


def _request(
    task: Task, pace: Pace, batch: Sequence[Stored], sizes: Sequence[int], seen: Sequence[Guideline], others: Sequence[Beside]
) -> ChatRequest:
    cases = [_shown(task, stored) | {"others": size - 1} for stored, size in zip(batch, sizes, strict=True)]
    known = [_shown(task, other.stored) | {"against": ", ".join(str(place + 1) for place in other.places)} for other in others]
    return ChatRequest(
        messages=(
            Message("system", render("distil_system", instructions=task.instructions, scale=task.scale.prompt())),
            Message("user", render("distil_user", guidelines=seen, cases=cases, known=known)),
        ),
        schema=schema([guideline.id for guideline in seen]),
        max_tokens=pace.max_tokens,
        purpose="distil",
    )


def _shown(task: Task, stored: Stored) -> dict[str, Any]:
    return {
        "item": fenced(task.secret, trimmed(item_text(stored.feedback.item), _LONGEST_CASE)),
        "label": task.scale.label_of(stored.feedback.value),
        "rationale": _reason(stored),
    }


def _reason(stored: Stored) -> str:
    """The reason on one line: with line breaks of its own it could pass for another case."""
    return trimmed(" ".join(stored.feedback.rationale.split()), _LONGEST_CASE)
