"""Scales: the verdicts a judge may give. One object writes the prompt text and the JSON schema, and reads the reply strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from memalign.errors import BadRecord, ConfigurationError, UnreadableReply

Value = bool | int | str
"""A verdict: bool on a boolean scale, int on a score scale, text on the others."""

SPECS = "boolean, score:1-5, categories:good,fair,poor, ordered:poor,fair,good, pairwise, pairwise:no-tie"
"""The specs that ``Scale.parse_spec`` reads, as examples."""

_FENCE = re.compile(r"```(?:json)?[ \t]*\r?\n(.*)```", re.DOTALL)
_WHOLE_NUMBER = re.compile(r"\+?([0-9]{1,9})(?:\.0*)?")
_QUOTES = "\"'`"
_YES_WORDS = ("true", "yes", "y", "pass")
_NO_WORDS = ("false", "no", "n", "fail")
_LEAST_STEP = 0.1
"""Of an ordinal scale's length: smaller moves are no change."""


@dataclass(frozen=True)
class Scale:
    """The verdicts a judge may give: plain data, made by ``boolean``, ``categories``, ``score`` or ``pairwise``.

    A *value* is what records hold (``True``, ``4``, ``"good"``, ``"a"``); a *label* is what the model writes ("yes", "4", "good", "A").
    """

    kind: Literal["boolean", "categories", "score", "pairwise", "open"]
    labels: tuple[str, ...]
    """What the model may write; case does not matter when it is read."""
    values: tuple[Value, ...]
    """The values, in the order of ``labels``."""
    ordinal: bool = False
    """Whether the labels run from one end to the other, so that a near miss is better than a far one."""

    @classmethod
    def boolean(cls) -> Scale:
        """Yes or no; the values are True and False."""
        return cls("boolean", ("yes", "no"), (True, False))

    @classmethod
    def categories(cls, *labels: str, ordered: bool = False) -> Scale:
        """One of two or more labels; ``ordered`` when they run from one end to the other. Raises ConfigurationError."""
        if not all(isinstance(label, str) and label.strip() and label.isprintable() for label in labels):
            raise ConfigurationError(f"categories must be non-empty text on one line, not {labels!r:.120}")
        names = tuple(label.strip() for label in labels)
        if len({name.casefold() for name in names}) != len(names) or len(names) < 2:
            raise ConfigurationError(f"a scale needs two or more different categories, not {labels!r:.120}")
        return cls("categories", names, names, ordered)

    @classmethod
    def score(cls, low: int, high: int) -> Scale:
        """Whole numbers from ``low`` to ``high``, both included and within 0 to 100; more is better. Raises ConfigurationError."""
        if type(low) is not int or type(high) is not int or not 0 <= low < high <= 100:
            raise ConfigurationError(f"a score runs between two whole numbers within 0 to 100, not from {low!r} to {high!r}")
        numbers = range(low, high + 1)
        return cls("score", tuple(map(str, numbers)), tuple(numbers), ordinal=True)

    @classmethod
    def pairwise(cls, tie: bool = True) -> Scale:
        """Which of two outputs is better: the values are "a", "b" and, unless excluded, "tie".

        An item's ``outputs`` are an object of the two, ``{"a": ..., "b": ...}``; of any other form they are never shown in both orders.
        """
        return cls("pairwise", ("A", "B", "tie"), ("a", "b", "tie")) if tie else cls("pairwise", ("A", "B"), ("a", "b"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scale:
        """Make the scale that ``to_dict`` described. Raises ConfigurationError."""
        match data:
            case {"kind": "boolean"}:
                return cls.boolean()
            case {"kind": "categories", "labels": [*labels]}:
                return cls.categories(*labels, ordered=bool(data.get("ordered", False)))
            case {"kind": "score", "low": low, "high": high}:
                return cls.score(low, high)
            case {"kind": "pairwise"}:
                return cls.pairwise(tie=bool(data.get("tie", True)))
            case {"kind": "open", "schema": dict(form)}:
                from memalign.open_scale import OpenScale

                return OpenScale.of(form)
        raise ConfigurationError(f"not a scale: {data!r:.120}")

    @classmethod
    def parse_spec(cls, spec: str) -> Scale:
        """Make the scale of a one-line spec (see ``SPECS``); labels with commas come as a JSON list. Raises ConfigurationError."""
        kind, _, rest = spec.strip().partition(":")
        match kind.strip().casefold(), rest.strip():
            case "boolean", "":
                return cls.boolean()
            case "pairwise", "" | "no-tie" as rest:
                return cls.pairwise(tie=not rest)
            case "score", bounds if found := re.fullmatch(r"([0-9]{1,3})\s*-\s*([0-9]{1,3})", bounds):
                return cls.score(int(found[1]), int(found[2]))
            case ("categories" | "ordered") as name, labels if labels:
                return cls.categories(*_split_labels(labels), ordered=name == "ordered")
        raise ConfigurationError(f"unknown scale {spec!r}; known: {SPECS}")

    @property
    def spec(self) -> str:
        """The one-line form that ``parse_spec`` reads."""
        if self.kind == "score":
            return f"score:{self.labels[0]}-{self.labels[-1]}"
        if self.kind == "categories":
            plain = not any("," in label for label in self.labels) and not self.labels[0].startswith("[")
            labels = ",".join(self.labels) if plain else json.dumps(self.labels, ensure_ascii=False)
            return f"{'ordered' if self.ordinal else 'categories'}:{labels}"
        return "pairwise:no-tie" if self.kind == "pairwise" and "tie" not in self.values else self.kind

    @property
    def accepted(self) -> str:
        """Which values ``check`` accepts, in words."""
        if self.kind == "score":
            return f"whole numbers from {self.labels[0]} to {self.labels[-1]}"
        return ", ".join(_YES_WORDS + _NO_WORDS if self.kind == "boolean" else map(str, self.values))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary that ``from_dict`` reads."""
        match self.kind:
            case "categories":
                return {"kind": self.kind, "labels": list(self.labels), "ordered": self.ordinal}
            case "score":
                return {"kind": self.kind, "low": self.values[0], "high": self.values[-1]}
            case "pairwise":
                return {"kind": self.kind, "tie": "tie" in self.values}
        return {"kind": self.kind}

    def prompt(self) -> str:
        """Which answers exist and what they mean, in one or two sentences for the model."""
        first, last = self.labels[0], self.labels[-1]
        match self.kind:
            case "categories":
                order = " The labels are listed in order, from one end of the scale to the other." if self.ordinal else ""
                return f"Answer with exactly one of these labels: {', '.join(self.labels)}.{order}"
            case "score":
                return f"Answer with one whole number from {first} to {last}. {first} is the worst and {last} is the best."
            case "pairwise":
                tie = ", tie if neither is better." if "tie" in self.values else ". Choose one of them even if they are close."
                return f"Compare output A with output B. Answer A if output A is better, B if output B is better{tie}"
        return "Answer yes if the criterion is met, no if it is not."

    def schema(self, rationale: bool) -> dict[str, Any]:
        """Give the strict JSON schema of a reply; the rationale, when asked for, comes first so that the verdict follows from it."""
        properties: dict[str, Any] = {"rationale": {"type": "string"}} if rationale else {}
        number = self.kind == "score"
        properties["verdict"] = {"type": "integer" if number else "string", "enum": list(self.values if number else self.labels)}
        return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}

    def parse(self, text: str, *, rationale: bool) -> tuple[Value, str]:
        """Value and rationale of a JSON reply, bare or in one code fence. Raises UnreadableReply for anything else."""
        reply = json_object(text)
        expected = {"rationale", "verdict"} if rationale else {"verdict"}
        if reply.keys() != expected:
            raise UnreadableReply(f"the reply must have the keys {sorted(expected)}, not {sorted(reply)!r:.120}")
        reason, verdict = reply.get("rationale", ""), reply["verdict"]
        if not isinstance(reason, str):
            raise UnreadableReply(f"the rationale must be text, not {type(reason).__name__}")
        value = self._labelled(verdict) if isinstance(verdict, str) else self._same(verdict)
        if value is None:
            raise UnreadableReply(f"the verdict {json.dumps(verdict):.60} is not one of: {', '.join(self.labels)}")
        return value, reason.strip()

    def parse_label(self, text: str) -> Value:
        """Value of a reply that is one label; white space, one pair of quotes and one period around it do not matter.

        Raises UnreadableReply.
        """
        for candidate in _unwrapped(text):
            if (value := self._labelled(candidate)) is not None:
                return value
        raise UnreadableReply(f"the reply {text!r:.60} is not one of: {', '.join(self.labels)}")

    def check(self, value: Any) -> Value:
        """Turn an expert's verdict, from code or a file, into a value of the scale. Raises BadRecord naming what is accepted.

        Text is read in any case: true, yes, y, pass and false, no, n, fail on a boolean scale, decimal text on a score scale ("4", "4.0"),
        else the labels. Numbers are refused on a boolean scale, as 1 may be a score; so are booleans and fractions on a score scale.
        """
        if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a numpy scalar
            value = value.item()
        read: Any = value
        if self.kind == "score":
            if isinstance(value, str) and (found := _WHOLE_NUMBER.fullmatch(value.strip())):
                read = int(found[1])
            elif isinstance(value, float) and value.is_integer():
                read = int(value)
        elif isinstance(value, str):
            word = value.strip().casefold()
            read = word in _YES_WORDS if self.kind == "boolean" and word in _YES_WORDS + _NO_WORDS else self._labelled(word)
        if (known := self._same(read)) is None:
            raise BadRecord(f"{value!r:.60} is not on the scale; accepted: {self.accepted}", field="value")
        return known

    def label_of(self, value: Any) -> str:
        """Give the label that stands for a value. Raises BadRecord when it is not on the scale."""
        return self.labels[self.values.index(self.check(value))]

    @property
    def step(self) -> float:
        """The least difference that counts, of the scale's length: another label, or on an ordinal scale one label but at least a tenth of it."""
        return max(1.0 / (len(self.values) - 1), _LEAST_STEP) if self.ordinal else 1.0

    def distance(self, expert: Any, verdict: Any) -> float:
        """How far a verdict is from the expert's: 0.0 the same, 1.0 the farthest; in between on ordinal scales only.

        Raises BadRecord when one is not on the scale.
        """
        if not self.ordinal:
            return float(self.label_of(expert) != self.label_of(verdict))
        places = [self.values.index(self.check(value)) for value in (expert, verdict)]
        return abs(places[0] - places[1]) / (len(self.values) - 1)

    def wrong(self, expert: Any, verdict: Any) -> bool:
        """Whether a verdict is an error: it differs from the expert's by what counts, ``step``. Raises BadRecord when one is not on the scale."""
        return self.distance(expert, verdict) >= self.step - 1e-9

    def near(self, values: Iterable[Any]) -> bool:
        """Whether verdicts are as good as one: equal, or on an ordinal scale no more than a step apart, but never its two ends.

        Raises BadRecord when one is not on the scale.
        """
        if not self.ordinal:
            return len({self.label_of(value) for value in values}) < 2
        places = [self.values.index(self.check(value)) for value in values]
        apart = max(places, default=0) - min(places, default=0)
        return apart < len(self.values) - 1 and apart <= self.step * (len(self.values) - 1) + 1e-9

    def value_of(self, label: str) -> Value:
        """Give the value that a label stands for. Raises BadRecord when there is no such label."""
        if (value := self._labelled(label)) is None:
            raise BadRecord(f"{label!r:.60} is not a label; known: {', '.join(self.labels)}", field="value")
        return value

    def _labelled(self, label: str) -> Value | None:
        sought = label.strip().casefold()
        return next((value for name, value in zip(self.labels, self.values, strict=True) if name.casefold() == sought), None)

    def _same(self, value: Any) -> Value | None:
        return next((known for known in self.values if type(known) is type(value) and known == value), None)


def _split_labels(text: str) -> tuple[str, ...]:
    if not text.startswith("["):
        return tuple(text.split(","))
    try:
        return tuple(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"the labels {text!r:.120} are not a JSON list ({error!s:.80})") from error


def _unwrapped(text: str) -> Iterator[str]:
    """Yield the text with at most one period and one pair of quotes taken off, the least changed first."""
    text = text.strip()
    yield text
    for bare in (text, text.removesuffix(".").rstrip()):
        quoted = len(bare) > 1 and bare[0] == bare[-1] and bare[0] in _QUOTES
        yield bare[1:-1] if quoted else bare
        if quoted and bare == text:
            yield bare[1:-1].strip().removesuffix(".")


def json_object(text: str) -> dict[str, Any]:
    """The one JSON object of a reply, bare or in one code fence. Raises UnreadableReply."""
    text = text.strip()
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1]
    try:
        reply = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise UnreadableReply(f"the reply is not one JSON object ({error!s:.120})") from error
    if not isinstance(reply, dict):
        raise UnreadableReply(f"the reply is not a JSON object but {type(reply).__name__}")
    return cast(dict[str, Any], reply)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(unique := dict(pairs)) != len(pairs):
        raise ValueError("a key is repeated")
    return unique
