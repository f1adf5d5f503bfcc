"""Working memory: the context of one judgement. Pure functions from records to messages.

The order serves prefix caches: system (role, instructions, scale, guidelines) and exemplars are the same for every item of a revision, then come
the cases that resemble the item, most similar last, then the item.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from memalign.models import ChatRequest, Message
from memalign.prompts import render
from memalign.records import Episode, Guideline, Item
from memalign.rendering import item_text, trimmed
from memalign.scale import Scale

CHARACTERS_PER_TOKEN = 4
_LEAST_CHARACTERS = 200
_ALTERNATIVES = 20
_LABEL_TOKENS = 12
_LETTERS = "bcdfghjklmnpqrstvwxz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a judge is asked to do, whatever the item."""

    instructions: str
    scale: Scale
    explain: bool
    """Whether a rationale is asked for, before the verdict; else the reply is the bare label."""
    secret: str
    """Keys the marks that fence items, so that judged text cannot forge them."""
    budget_tokens: int = 6000
    """Room for cases, estimated at four characters a token."""
    max_tokens: int = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingMemory:
    """The context of one judgement."""

    messages: tuple[Message, ...]
    guideline_ids: tuple[str, ...]
    episode_ids: tuple[str, ...]


def assemble(
    task: Task, item: Item, guidelines: Sequence[Guideline] = (), exemplars: Sequence[Episode] = (), similar: Sequence[Episode] = ()
) -> WorkingMemory:
    """The messages for one item, with the ids of what stands in them. Cases that exceed the budget are trimmed, then the least similar dropped."""
    system = _system(task, tuple(guideline.text for guideline in guidelines))
    cases = _by_item([*exemplars, *similar])
    characters = task.budget_tokens * CHARACTERS_PER_TOKEN
    cases = cases[-max(1, characters // _LEAST_CHARACTERS) :]
    messages = [Message("system", system)]
    for case in cases:
        messages += _turns(task, case, limit=characters // len(cases))
    messages.append(Message("user", fenced(task.secret, item_text(item))))
    return WorkingMemory(
        messages=tuple(messages),
        guideline_ids=tuple(guideline.id for guideline in guidelines),
        episode_ids=tuple(episode.feedback.id for case in cases for episode in case),
    )


def request(task: Task, memory: WorkingMemory, *, temperature: float) -> ChatRequest:
    """The call that asks for a verdict: a bare label, or JSON of the scale's schema."""
    if task.explain:
        schema = task.scale.schema(rationale=True)
        return ChatRequest(messages=memory.messages, schema=schema, max_tokens=task.max_tokens, temperature=temperature, top_logprobs=_ALTERNATIVES)
    return ChatRequest(
        messages=memory.messages, choices=task.scale.labels, max_tokens=_LABEL_TOKENS, temperature=temperature, top_logprobs=_ALTERNATIVES
    )


def fenced(secret: str, text: str) -> str:
    """A text between marks that it cannot contain: their five letters depend on the text and on a secret."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=secret.encode(), digest_size=5).digest()
    mark = "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest)
    return f"<item {mark}>\n{text}\n</item {mark}>"


@lru_cache(maxsize=64)
def _system(task: Task, guidelines: tuple[str, ...]) -> str:
    return render("judge_system", instructions=task.instructions, scale=task.scale.prompt(), guidelines=guidelines, explain=task.explain)


def _by_item(episodes: Iterable[Episode]) -> list[list[Episode]]:
    """Episodes of one item together, each record once; an item that comes again later stands at its later, more similar place."""
    items: dict[str, dict[str, Episode]] = {}
    for episode in episodes:
        seen = items.setdefault(episode.feedback.item.id, {})
        seen[episode.feedback.id] = episode
    return [list(records.values()) for records in items.values()]


def _turns(task: Task, case: Sequence[Episode], *, limit: int) -> list[Message]:
    """A judged case as earlier turns of the chat: one for each verdict that experts gave, so that disagreement is seen."""
    text = fenced(task.secret, trimmed(item_text(case[0].feedback.item), limit))
    reasons: dict[str, list[str]] = {}
    for episode in case:
        reasons.setdefault(task.scale.label_of(episode.feedback.value), []).append(episode.feedback.rationale.strip())
    return [
        message
        for label, given in reasons.items()
        for message in (Message("user", text), Message("assistant", _answer(task, label, trimmed(" ".join(filter(None, given)), limit))))
    ]


def _answer(task: Task, label: str, reason: str) -> str:
    if not task.explain:
        return label
    verdict = int(label) if task.scale.kind == "score" else label
    return json.dumps({"rationale": reason or "The expert gave no reason.", "verdict": verdict}, ensure_ascii=False)
