"""Working memory: the context of one judgement. Pure functions from records to messages.

The order serves prefix caches: system (role, instructions, scale, guidelines) and exemplars are the same for every item of a revision, then come
the cases that resemble the item, most similar last, then the item.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

from memalign.models import ChatRequest, Message
from memalign.prompts import render
from memalign.records import Episode, Guideline, Item, LeftOut
from memalign.rendering import item_text, trimmed
from memalign.routing import route
from memalign.scale import Scale

CHARACTERS_PER_TOKEN = 4
_LEAST_CHARACTERS = 400
"""Of a case; with less it would say nothing."""
_ALTERNATIVES = 20
"""Tokens whose likelihood is asked for beside the one written."""
_SPELLINGS = 3
"""Of a label that are looked for in a JSON reply, where every token brings its alternatives: twenty each would be 45 kB a reply."""
_LABEL_TOKENS = 12
_LETTERS = "bcdfghjklmnpqrstvwxz"
_ENCODER = json.JSONEncoder(ensure_ascii=False)
NOTHING: Mapping[str, float] = MappingProxyType({})


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
    guideline_tokens: int = 2000
    """Room for guidelines; when they exceed it, those that every judgement reads leave half of it to those that are relevant to the item."""
    max_tokens: int = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingMemory:
    """The context of one judgement."""

    messages: tuple[Message, ...]
    guideline_ids: tuple[str, ...]
    episode_ids: tuple[str, ...]
    tokens: Mapping[str, int]
    """What each part takes, estimated at four characters a token: system, cases, guidelines (those chosen for the item), item."""
    left_out: tuple[LeftOut, ...]
    """What memory had, but the budget or the model's window had no room for."""


def assemble(
    task: Task,
    item: Item,
    guidelines: Sequence[Guideline] = (),
    exemplars: Sequence[Episode] = (),
    similar: Sequence[Episode] = (),
    *,
    relevance: Mapping[str, float] = NOTHING,
) -> WorkingMemory:
    """The messages for one item, with the ids of what stands in them and what had no room.

    Long cases are trimmed first, then the least similar are dropped; guidelines beyond their budget are chosen by ``relevance`` (see
    ``routing.route``). The item itself is never cut.
    """
    routed = route(guidelines, relevance, task.guideline_tokens * CHARACTERS_PER_TOKEN)
    system = _system(task, tuple(guideline.text for guideline in routed.core))
    cases = _by_item([*exemplars, *similar])
    room = task.budget_tokens * CHARACTERS_PER_TOKEN
    most = max(1, room // _LEAST_CHARACTERS)
    dropped, cases = cases[:-most], cases[-most:]
    limit = room // max(1, len(cases))
    texts = [item_text(case[0].feedback.item) for case in cases]
    turns = [message for case, text in zip(cases, texts, strict=True) for message in _turns(task, case, text, limit=limit)]
    cut = [case for case, text in zip(cases, texts, strict=True) if len(text) + _reasons(case) > limit]
    extra = render("judge_guidelines", guidelines=routed.chosen) + "\n\n" if routed.chosen else ""
    text = fenced(task.secret, item_text(item))
    parts = {"system": len(system), "cases": sum(len(turn.content) for turn in turns), "guidelines": len(extra), "item": len(text)}
    return WorkingMemory(
        messages=(Message("system", system), *turns, Message("user", extra + text)),
        guideline_ids=tuple(guideline.id for guideline in (*routed.core, *routed.chosen)),
        episode_ids=tuple(episode.feedback.id for case in cases for episode in case),
        tokens={name: -(-size // CHARACTERS_PER_TOKEN) for name, size in parts.items()},
        left_out=(
            *(LeftOut("guideline", g.id, f"no room in {task.guideline_tokens} tokens, less relevant than those shown") for g in routed.left),
            *(LeftOut("case", e.feedback.id, f"no room in {task.budget_tokens} tokens, least similar") for case in dropped for e in case),
            *(LeftOut("part of case", e.feedback.id, f"cut to {limit} characters") for case in cut for e in case),
        ),
    )


def spared(full: WorkingMemory, less: WorkingMemory) -> WorkingMemory:
    """The smaller of two contexts, which names all that the full one had beyond it."""
    reason = "the model's window does not hold it beside the item"
    return replace(
        less,
        left_out=(
            *(left for left in full.left_out if left.kind != "part of case"),
            *(LeftOut("guideline", key, reason) for key in full.guideline_ids if key not in less.guideline_ids),
            *(LeftOut("case", key, reason) for key in full.episode_ids if key not in less.episode_ids),
        ),
    )


def request(task: Task, memory: WorkingMemory, *, temperature: float) -> ChatRequest:
    """The call that asks for a verdict: a bare label, or JSON of the scale's schema."""
    if task.explain:
        schema, alternatives = task.scale.schema(rationale=True), min(_ALTERNATIVES, _SPELLINGS * len(task.scale.labels))
        return ChatRequest(messages=memory.messages, schema=schema, max_tokens=task.max_tokens, temperature=temperature, top_logprobs=alternatives)
    return ChatRequest(
        messages=memory.messages, choices=task.scale.labels or None, max_tokens=_LABEL_TOKENS, temperature=temperature, top_logprobs=_ALTERNATIVES
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
        seen = items.setdefault(episode.item_id, {})
        seen[episode.feedback.id] = episode
    return [list(records.values()) for records in items.values()]


def _turns(task: Task, case: Sequence[Episode], text: str, *, limit: int) -> list[Message]:
    """A judged case as earlier turns of the chat: one for each verdict that experts gave, so that disagreement is seen.

    Of a case that is too long the item keeps three quarters of the room, the reasons one.
    """
    long = len(text) + _reasons(case) > limit
    shown = fenced(task.secret, trimmed(text, limit * 3 // 4) if long else text)
    reasons: dict[str, list[str]] = {}
    for episode in case:
        reasons.setdefault(task.scale.label_of(episode.feedback.value), []).append(episode.feedback.rationale.strip())
    turns = []
    for label, given in reasons.items():
        reason = " ".join(filter(None, given))
        answer = _answer(task, label, trimmed(reason, limit // 4 // len(reasons)) if long else reason)
        turns += [Message("user", shown), Message("assistant", answer)]
    return turns


def _reasons(case: Sequence[Episode]) -> int:
    return sum(len(episode.feedback.rationale) for episode in case)


def _answer(task: Task, label: str, reason: str) -> str:
    if not task.explain:
        return label
    verdict = task.scale.value_of(label) if task.scale.kind in ("score", "open") else label
    return _ENCODER.encode({"rationale": reason or "The expert gave no reason.", "verdict": verdict})
