"""Relating: likeness nominates, a model call names the relations, and code acts on them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from memalign.alignment.plan import Proposal
from memalign.errors import UnreadableReply
from memalign.models import ChatRequest, Message
from memalign.prompts import render
from memalign.records import Guideline, content_hash, storable
from memalign.session import Meter, Session

if TYPE_CHECKING:
    from memalign.embedders import Vectors

NEAR = 0.4
"""Cosine similarity from which two guidelines are nominated."""
SHARED = 0.5
"""Share of the shorter one's content words from which they are nominated, whatever their similarity."""
ALIKE = 0.75
"""Cosine similarity from which two rules count as one where no model is asked."""
SAME = 0.95
"""The same where a model could tell but must not read one of them: two that stay apart say a thing twice, those joined wrongly would be lost."""
MOST_LISTED = 120
"""Guidelines in one call."""
MOST_CALLS = 8
"""In one comparison; of pairs that need more, the likest count."""
_ATTEMPTS = 3
_MAX_TOKENS = 1200
"""Of the first reply; each further one has twice the room."""
_FORBIDS = re.compile(r"\b(?:never|not|no|don't|avoid|without|reject|ignore|leave out)\b", re.IGNORECASE)
_SITUATION = re.compile(r"\b(?:when|if)\b[^,.]*,?", re.IGNORECASE)
_BEYOND = re.compile(r"[,;.]|\b(?:and|because|but|except|instead|rather|unless)\b", re.IGNORECASE)
"""Where a decision's first clause ends: reasons, exceptions and additions may forbid what it does not speak of."""
_WORD = re.compile(r"\w{3,}")
_STEM = 5
_COMMON = frozenset(
    word[:_STEM]
    for word in _WORD.findall(
        "when what which that this these those with must should always never require requires reject rejects reply replies answer answers "
        "the and are for not but was all any who how why you your our his her its can may nor yet too "
        "because before after from into than then they them their there have been being does only also such where while about each every other"
    )
)


@dataclass(slots=True)
class Relations:
    """What was found among numbered guidelines, places from 0, the older of a pair first where order does not matter."""

    duplicates: list[list[int]] = field(default_factory=list)
    narrower: list[tuple[int, int]] = field(default_factory=list)
    """Pairs (special case, general one)."""
    conflicts: list[tuple[int, int, str, str]] = field(default_factory=list)
    """Pairs with the situations in which each holds, or two empty texts."""


@dataclass(slots=True, eq=False)
class Held:
    """One guideline in the comparison: one that exists, or a proposal."""

    text: str
    guideline: Guideline | None = None
    proposal: Proposal | None = None


def content_words(text: str) -> set[str]:
    """The words that carry meaning, cut to their first letters so that forms of a word are equal; of scripts without spaces, pairs of letters."""
    words = {word[:_STEM] for word in _WORD.findall(text.casefold())} - _COMMON
    dense = re.findall(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+", text)
    return words | {run[place : place + 2] for run in dense for place in range(len(run) - 1)}


def nominated(held: Sequence[Held], vectors: Mapping[str, Vectors]) -> list[tuple[int, int]]:
    """Pairs of places, likest first, that a model should look at; two guidelines that exist, or two of one batch, are not compared."""
    words = [content_words(one.text) for one in held]
    found = []
    for later, two in enumerate(held):
        for earlier, one in enumerate(held[:later]):
            if two.proposal is None or (one.proposal is not None and one.proposal.batch == two.proposal.batch):
                continue
            likeness = float(vectors[content_hash(one.text)] @ vectors[content_hash(two.text)])
            shared = len(words[earlier] & words[later]) / max(1, min(len(words[earlier]), len(words[later])))
            if likeness >= NEAR or shared >= SHARED:
                found.append((max(likeness, shared), earlier, later))
    return [(earlier, later) for _, earlier, later in sorted(found, key=lambda pair: (-pair[0], pair[1:]))]


def calls(pairs: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Nominated pairs by the call that asks about them: each stands in the first that has room for it, or in none."""
    listed, chosen = list[set[int]](), list[list[tuple[int, int]]]()
    for pair in pairs:
        place = next((place for place, held in enumerate(listed) if len(held.union(pair)) <= MOST_LISTED), len(listed))
        if place == MOST_CALLS:
            continue
        if place == len(listed):
            listed.append(set())
            chosen.append([])
        listed[place].update(pair)
        chosen[place].append(pair)
    return chosen


def together(found: Sequence[Relations]) -> Relations:
    """What several calls found, as one."""
    return Relations(
        duplicates=_connected([(group[0], place) for one in found for group in one.duplicates for place in group[1:]]),
        narrower=[pair for one in found for pair in one.narrower],
        conflicts=[conflict for one in found for conflict in one.conflicts],
    )


def alike(held: Sequence[Held], vectors: Mapping[str, Vectors], *, least: float = ALIKE) -> Relations:
    """Relations without a model: of two rules that are very similar, one says what the other says, or forbids what it demands.

    On the labelled pairs of ``benchmarks.relations`` 11 of 12 that this calls a conflict are one, and it finds 11 of 31; a model of 1.5 billion
    parameters calls nearly every pair a conflict.
    """
    kept, groups, conflicts = list[int](), dict[int, list[int]](), list[tuple[int, int, str, str]]()
    for place, one in enumerate(held):
        mine = vectors[content_hash(one.text)]
        likeness = {other: float(vectors[content_hash(held[other].text)] @ mine) for other in kept} if one.proposal is not None else {}
        near = [other for other in sorted(likeness, key=lambda other: -likeness[other]) if likeness[other] >= least]
        same = next((other for other in near if forbids(held[other].text) == forbids(one.text)), None)
        if same is not None:
            groups.setdefault(same, [same]).append(place)
        else:
            kept.append(place)
            conflicts += [(other, place, "", "") for other in near[:1]]
    return Relations(duplicates=list(groups.values()), conflicts=conflicts)


def forbids(text: str) -> bool:
    """Whether a rule forbids; to reject what lacks something is to demand it."""
    return len(_FORBIDS.findall(text)) % 2 == 1


def reverses(text: str, other: str) -> bool:
    """Whether of two wordings of a guideline one decides to forbid and one to demand, as their first clauses have it."""
    one, two = (_BEYOND.split(_SITUATION.sub(" ", wording).strip(), maxsplit=1)[0] for wording in (text, other))
    return forbids(one) != forbids(two)


async def named(session: Session, meter: Meter, held: Sequence[Held], pairs: Collection[tuple[int, int]]) -> Relations:
    """What a model says of nominated pairs; one call, and up to two more with more room when its reply cannot be read.

    Raises what the model raises, also one that breaks its contract.
    """
    groups = _connected(pairs)
    listed = [place for group in groups for place in group]
    numbers = {place: number for number, place in enumerate(listed, start=1)}
    shown = [[(numbers[place], held[place].text) for place in group] for group in groups]
    messages = (Message("user", render("relate", groups=shown)),)
    for attempt in range(_ATTEMPTS):
        room, warmth = _MAX_TOKENS * 2**attempt, 0.3 * attempt
        request = ChatRequest(messages=messages, schema=_SCHEMA, max_tokens=room, temperature=warmth, purpose="relate")
        reply = await session.ask(meter, session.reflection_model, request)
        try:
            return read(storable(json.loads(reply.text)), listed, {frozenset(pair) for pair in pairs})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    raise UnreadableReply(f"no reply of {_ATTEMPTS} says which of {len(listed)} guidelines say the same")


def read(reply: Any, listed: Sequence[int], pairs: Collection[frozenset[int]]) -> Relations:
    """A reply's relations among nominated pairs; ``listed``: places by number. A pair that is named twice, differently, stays as it is."""

    def place(number: Any) -> int:
        return listed[number - 1] if type(number) is int and 1 <= number <= len(listed) else -1

    narrower = [(place(one), place(two)) for one, two in (pair for pair in reply["narrower"] if len(pair) == 2)]
    conflicts = list[tuple[int, int, str, str]]()
    for found in reply["conflicts"]:
        if isinstance(found, dict) and len(found.get("pair", ())) == 2:
            (one, when), (two, then) = sorted(
                (place(number), str(found.get(name, ""))) for number, name in zip(found["pair"], ("first_when", "second_when"), strict=True)
            )
            conflicts.append((one, two, when, then))
    named_twice = {frozenset(pair) for pair in narrower} & {frozenset(found[:2]) for found in conflicts}
    apart = {frozenset(pair) for pair in narrower} | {frozenset(found[:2]) for found in conflicts}
    groups = []
    for group in reply["duplicates"]:
        places = sorted({place(number) for number in group} - {-1})
        joined = [pair for pair in pairs if pair <= set(places) and pair not in apart]
        groups += _connected([(min(pair), max(pair)) for pair in joined])
    taken, disjoint = set[int](), []
    for group in groups:
        fresh = [one for one in group if one not in taken]
        taken |= set(fresh)
        if len(fresh) > 1:
            disjoint.append(fresh)
    return Relations(
        duplicates=disjoint,
        narrower=[pair for pair in narrower if frozenset(pair) in pairs and frozenset(pair) not in named_twice],
        conflicts=[found for found in conflicts if frozenset(found[:2]) in pairs and frozenset(found[:2]) not in named_twice],
    )


def _connected(pairs: Collection[tuple[int, int]]) -> list[list[int]]:
    """Places in groups that pairs connect, each group in order."""
    group: dict[int, set[int]] = {}
    for one, two in pairs:
        together = group.get(one, {one}) | group.get(two, {two})
        group |= dict.fromkeys(together, together)
    return sorted({min(found): sorted(found) for found in group.values()}.values())


_PLACES = {"type": "array", "items": {"type": "integer"}}
_CONFLICT = {"pair": _PLACES, "first_when": {"type": "string", "maxLength": 200}, "second_when": {"type": "string", "maxLength": 200}}
_SCHEMA = {
    "type": "object",
    "properties": {
        "duplicates": {"type": "array", "items": _PLACES},
        "narrower": {"type": "array", "items": _PLACES},
        "conflicts": {
            "type": "array",
            "items": {"type": "object", "properties": _CONFLICT, "required": list(_CONFLICT), "additionalProperties": False},
        },
    },
    "required": ["duplicates", "narrower", "conflicts"],
    "additionalProperties": False,
}
