"""What a distillation may do to semantic memory: typed operations, checked before anything is stored. Pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from memalign.errors import UnreadableReply
from memalign.rendering import guideline_text

MOST_OPERATIONS = 12
"""In one reply; what a model proposes beyond is refused."""

_LONGEST_COPY = 8
"""Words in a row that a guideline may share with a case."""

_VERDICT_ORDER = re.compile(
    r"\b(always|never)\s+(answer|say|reply with|decide|return|choose)\s+[\"']?"
    r"((yes|no|true|false|tie|[0-9]+)\b|[ab](?=[\"']?\s*([.,;!]|because\b|$)))",  # "choose a polite tone" is no order
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Add:
    """A new guideline."""

    text: str
    scope: str
    cases: tuple[int, ...]
    """Places of its evidence in the batch, from 0."""


@dataclass(frozen=True, slots=True)
class Support:
    """More evidence for an existing guideline."""

    guideline_id: str
    cases: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A proposal that was not carried out."""

    text: str
    reason: str


Operation = Add | Support


def schema(known_ids: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of a distillation's reply; SUPPORT is offered only when there is something to support."""
    cases = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
    part = {"type": "string", "minLength": 3, "maxLength": 200}
    parts: dict[str, Any] = {"op": {"type": "string", "enum": ["add"]}, "when": part, "decide": part, "because": part, "cases": cases}
    variants = [_object(parts)]
    if known_ids:
        guideline = {"type": "string", "enum": list(known_ids)}
        variants.append(_object({"op": {"type": "string", "enum": ["support"]}, "guideline": guideline, "cases": cases}))
    operations = {"type": "array", "maxItems": MOST_OPERATIONS, "items": {"anyOf": variants} if len(variants) > 1 else variants[0]}
    return _object({"operations": operations})


def parse(text: str) -> list[dict[str, Any]]:
    """The proposals of a reply, unchecked. Raises UnreadableReply."""
    body = re.sub(r"\A\s*```(?:json)?|```\s*\Z", "", text)
    try:
        found = json.loads(json.dumps(json.loads(body), ensure_ascii=False).encode("utf-8", "replace"))  # no half surrogate pairs
        operations = found["operations"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnreadableReply(f"the distillation is not the JSON that was asked for ({type(error).__name__})") from error
    if not isinstance(operations, list) or not all(isinstance(operation, dict) for operation in operations):
        raise UnreadableReply("the distillation's operations are not a list of objects")
    return operations


def check(proposals: Sequence[dict[str, Any]], *, texts: Sequence[str], known_ids: Collection[str]) -> tuple[list[Operation], list[Rejected]]:
    """Sort proposals into operations to carry out and rejections with their reasons.

    ``texts`` are the batch's cases in order. An operation must cite a case that exists, a SUPPORT a guideline that exists; a new guideline must
    be a principle, not a copy of a case and not an order to give one verdict always.
    """
    accepted: list[Operation] = []
    rejected: list[Rejected] = []
    for place, proposal in enumerate(proposals):
        outcome = (
            Rejected(_text(proposal), f"more than {MOST_OPERATIONS} proposals in one reply")
            if place >= MOST_OPERATIONS
            else _checked(proposal, texts, known_ids)
        )
        if isinstance(outcome, Rejected):
            rejected.append(outcome)
        else:
            accepted.append(outcome)
    return accepted, rejected


def _checked(proposal: dict[str, Any], texts: Sequence[str], known_ids: Collection[str]) -> Operation | Rejected:
    cited = proposal.get("cases")
    numbers = [number for number in cited if type(number) is int] if isinstance(cited, list) else []
    cases = tuple(dict.fromkeys(number - 1 for number in numbers if 1 <= number <= len(texts)))
    if not cases:
        return Rejected(_text(proposal), f"cites no case that exists (cited {cited!r:.60})")
    if proposal.get("op") == "support":
        guideline_id = proposal.get("guideline")
        if guideline_id not in known_ids:
            return Rejected(_text(proposal), f"supports a guideline that does not exist ({guideline_id!r:.40})")
        return Support(str(guideline_id), cases)
    if proposal.get("op") == "rule":
        return _new(str(proposal.get("rule", "")).strip(), "", cases, texts)
    parts = [proposal.get(name) for name in ("when", "decide", "because")]
    if proposal.get("op") != "add" or not all(isinstance(part, str) for part in parts):
        return Rejected(_text(proposal), "is not an operation that is known")
    when, decide, because = (str(part) for part in parts)
    if not when.strip() or len(decide.split()) < 2:
        return Rejected(_text(proposal), "says nothing to decide by")
    return _new(guideline_text(when, decide, because), when.strip(), cases, texts)


def _new(text: str, scope: str, cases: tuple[int, ...], texts: Sequence[str]) -> Add | Rejected:
    if len(text.split()) < 3:
        return Rejected(text, "says nothing to decide by")
    if _VERDICT_ORDER.search(text):
        return Rejected(text, "orders one verdict instead of saying what decides it")
    if copied := _copied(text, texts):
        return Rejected(text, f"copies a case: {copied!r}")
    return Add(text, scope, cases)


def _copied(text: str, texts: Sequence[str]) -> str | None:
    words = re.findall(r"\w+", text.casefold())
    sources = [" ".join(re.findall(r"\w+", source.casefold())) for source in texts]
    for start in range(len(words) - _LONGEST_COPY):
        run = " ".join(words[start : start + _LONGEST_COPY + 1])
        if any(f" {run} " in f" {source} " for source in sources):
            return run
    return None


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _text(proposal: dict[str, Any]) -> str:
    return json.dumps(proposal, ensure_ascii=False)[:300]
