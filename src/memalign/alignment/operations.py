"""What a distillation may do to semantic memory: typed operations, checked before anything is stored. Pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from memalign.alignment.checks import addresses_the_model, copied, folded, orders_a_verdict, personal_data
from memalign.errors import UnreadableReply
from memalign.records import storable
from memalign.rendering import guideline_text

__all__ = ["Add", "Contradict", "Operation", "Refine", "Rejected", "Support", "check", "guideline_text", "parse", "schema", "unsound"]

MOST_OPERATIONS = 12
"""In one reply; what a model proposes beyond is refused."""
_LONGEST = 1000
"""Characters of a wording; the schema asks for 600, which not every endpoint heeds."""


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
class Refine:
    """A better wording of an existing guideline, with the evidence that asks for it."""

    guideline_id: str
    text: str
    scope: str
    cases: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contradict:
    """Evidence against an existing guideline."""

    guideline_id: str
    cases: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A proposal that was not carried out."""

    text: str
    reason: str


Operation = Add | Support | Refine | Contradict


def schema(known_ids: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of a distillation's reply; operations on existing guidelines are offered only when there are some."""
    cases = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
    part = {"type": "string", "minLength": 3, "maxLength": 200}
    wording: dict[str, Any] = {"when": part, "decide": part, "because": part, "cases": cases}
    variants = [_object({"op": _one_of("add")} | wording), _object({"op": _one_of("noop"), "cases": cases})]
    if known_ids:
        guideline = _one_of(*known_ids)
        variants.append(_object({"op": _one_of("support", "contradict"), "guideline": guideline, "cases": cases}))
        variants.append(_object({"op": _one_of("refine"), "guideline": guideline} | wording))
    return _object({"operations": {"type": "array", "maxItems": MOST_OPERATIONS, "items": {"anyOf": variants}}})


def parse(text: str) -> list[dict[str, Any]]:
    """The proposals of a reply, unchecked. Raises UnreadableReply."""
    body = re.sub(r"\A\s*```(?:json)?|```\s*\Z", "", text)
    try:
        operations = storable(json.loads(body))["operations"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnreadableReply(f"the distillation is not the JSON that was asked for ({type(error).__name__})") from error
    if not isinstance(operations, list) or not all(isinstance(operation, dict) for operation in operations):
        raise UnreadableReply("the distillation's operations are not a list of objects")
    return operations


def check(
    proposals: Sequence[dict[str, Any]],
    *,
    texts: Sequence[str],
    beside: Sequence[str] = (),
    known_ids: Collection[str],
    labels: Sequence[str] = (),
    personal: bool = False,
) -> tuple[list[Operation], list[Rejected]]:
    """Sort proposals into operations to carry out and rejections with their reasons.

    ``texts`` are the batch's cases in order, ``beside`` others that were shown but may not be cited. An operation must cite a case that exists, and
    a guideline that exists; a wording must be a principle: no copy of a case, no order to give one of the ``labels`` always, no word to the judge
    about its instructions, and, unless ``personal``, nothing that looks like personal data.
    """
    rules = _Rules([folded(text) for text in (*texts, *beside)], len(texts), known_ids, labels, personal)
    accepted: list[Operation] = []
    rejected: list[Rejected] = []
    for place, proposal in enumerate(proposals):
        outcome = (
            Rejected(_text(proposal), f"more than {MOST_OPERATIONS} proposals in one reply")
            if place >= MOST_OPERATIONS
            else None
            if proposal.get("op") == "noop"
            else rules.checked(proposal)
        )
        if isinstance(outcome, Rejected):
            rejected.append(outcome)
        elif outcome is not None:
            accepted.append(outcome)
    return accepted, rejected


def unsound(text: str, *, labels: Sequence[str], personal: bool, scope: str = "", decide: str = "") -> str | None:
    """Why no guideline may be worded like this, whatever its cases say, or None."""
    if len(text) > _LONGEST:
        return f"is longer than {_LONGEST:,} characters"
    if not _says_something(text, 3):
        return "says nothing to decide by"
    fault = orders_a_verdict(text, labels, scope=scope, decide=decide) or addresses_the_model(text)
    return fault or (None if personal else personal_data(text))


@dataclass(frozen=True, slots=True)
class _Rules:
    sources: Sequence[str]
    cases: int
    """How many of the sources, the first ones, may be cited."""
    known_ids: Collection[str]
    labels: Sequence[str]
    personal: bool

    def checked(self, proposal: dict[str, Any]) -> Operation | Rejected:
        op, cited, guideline_id = proposal.get("op"), proposal.get("cases"), proposal.get("guideline")
        numbers = [number for number in cited if type(number) is int] if isinstance(cited, list) else []
        cases = tuple(dict.fromkeys(number - 1 for number in numbers if 1 <= number <= self.cases))
        if not cases:
            return Rejected(_text(proposal), f"cites no case that exists (cited {cited!r:.60})")
        if op in ("support", "contradict", "refine") and (not isinstance(guideline_id, str) or guideline_id not in self.known_ids):
            return Rejected(_text(proposal), f"{op}s a guideline that does not exist ({guideline_id!r:.40})")
        if op == "support":
            return Support(str(guideline_id), cases)
        if op == "contradict":
            return Contradict(str(guideline_id), cases)
        worded = self._worded(proposal)
        if isinstance(worded, Rejected):
            return worded
        text, scope = worded
        return Refine(str(guideline_id), text, scope, cases) if op == "refine" else Add(text, scope, cases)

    def _worded(self, proposal: dict[str, Any]) -> tuple[str, str] | Rejected:
        if proposal.get("op") == "rule":
            text, scope, decide = str(proposal.get("rule", "")).strip(), "", ""
        else:
            parts = [proposal.get(name) for name in ("when", "decide", "because")]
            if proposal.get("op") not in ("add", "refine") or not all(isinstance(part, str) for part in parts):
                return Rejected(_text(proposal), "is not an operation that is known")
            when, decide, because = (" ".join(str(part).split()) for part in parts)
            if not when or not _says_something(decide, 2):
                return Rejected(_text(proposal), "says nothing to decide by")
            text, scope = guideline_text(when, decide, because), when
        fault = unsound(text, labels=self.labels, personal=self.personal, scope=scope, decide=decide) or copied(text, self.sources)
        return Rejected(text if len(text) <= _LONGEST else f"{text[:300]} ...", fault) if fault else (text, scope)


def _says_something(text: str, words: int) -> bool:
    """Whether a text has some words; in scripts without spaces, twice as many characters."""
    return len(text.split()) >= words or (not text.isascii() and len(re.findall(r"\w", text)) >= 2 * words and " " not in text.strip())


def _one_of(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _text(proposal: dict[str, Any]) -> str:
    return json.dumps(proposal, ensure_ascii=False)[:300]
