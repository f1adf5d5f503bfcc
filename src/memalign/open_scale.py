"""The open scale: any value of a JSON schema, for judges whose makers fix the type of a verdict but not the list of verdicts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from memalign.errors import BadRecord, ConfigurationError, UnreadableReply
from memalign.records import canonical, storable
from memalign.scale import Scale, json_object

_TYPES: dict[str, Any] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}
_WORDS = {
    "string": "a short text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


@dataclass(frozen=True)
class OpenScale(Scale):
    """Any JSON value of one JSON schema: types, ``anyOf``, ``enum``, ``const``, lists and objects of these.

    It has no list of labels, so nothing that counts labels works on it: no calibration, and agreement only as far as labels occur.
    """

    form: str = ""
    """The schema, as one text."""

    @classmethod
    def of(cls, schema: Mapping[str, Any]) -> Self:
        """The scale of a schema. Raises ConfigurationError for one that cannot be checked."""
        found = {name: part for name, part in schema.items() if name not in ("title", "description")}
        _describe(found)
        return cls("open", (), (), form=canonical(found))

    @property
    def value_schema(self) -> dict[str, Any]:
        """The schema of a verdict."""
        found: dict[str, Any] = json.loads(self.form)
        return found

    @property
    def spec(self) -> str:
        """``open:`` and the schema."""
        return f"open:{self.form}"

    @property
    def accepted(self) -> str:
        """Which values ``check`` accepts, in words."""
        return _describe(self.value_schema)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary that ``Scale.from_dict`` reads."""
        return {"kind": "open", "schema": self.value_schema}

    def prompt(self) -> str:
        """Which answers exist, in one sentence for the model."""
        return f"Answer with {self.accepted}."

    def schema(self, rationale: bool) -> dict[str, Any]:
        """Give the strict JSON schema of a reply, the rationale first."""
        properties: dict[str, Any] = {"rationale": {"type": "string"}} if rationale else {}
        properties["verdict"] = self.value_schema
        return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}

    def parse(self, text: str, *, rationale: bool) -> tuple[Any, str]:
        """Value and rationale of a JSON reply. Raises UnreadableReply for anything else."""
        reply = json_object(text)
        if "verdict" not in reply:
            raise UnreadableReply(f"the reply must have the key 'verdict', not {sorted(reply)!r:.120}")
        try:
            return self.check(storable(reply["verdict"])), str(reply.get("rationale") or "").strip()
        except BadRecord as error:
            raise UnreadableReply(f"the verdict {error.reason}") from error

    def parse_label(self, text: str) -> Any:
        """Value of a reply that is nothing but the value: text as it is where text is allowed, else JSON. Raises UnreadableReply."""
        try:
            return self.value_of(storable(text).strip())
        except BadRecord as error:
            raise UnreadableReply(f"the reply {error.reason}") from error

    def check(self, value: Any) -> Any:
        """Turn an expert's or a model's verdict into a value of the scale. Raises BadRecord naming what is accepted.

        A number is a number, never text; where only text is allowed, a boolean or a number is written out.
        """
        if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a numpy scalar
            value = value.item()
        for candidate in _readings(value, self.value_schema):
            if _fits(candidate, self.value_schema):
                return candidate
        raise BadRecord(f"{value!r:.60} is not on the scale; accepted: {self.accepted}", field="value")

    def label_of(self, value: Any) -> str:
        """Text as it is, all else as JSON. Raises BadRecord when it is not on the scale."""
        checked = self.check(value)
        return checked if isinstance(checked, str) else canonical(checked)

    def value_of(self, label: str) -> Any:
        """The value that a label stands for. Raises BadRecord when there is none."""
        try:
            return self.check(label)
        except BadRecord:
            try:
                return self.check(json.loads(label))
            except ValueError:
                raise BadRecord(f"{label!r:.60} is not on the scale; accepted: {self.accepted}", field="value") from None


def _readings(value: Any, schema: Mapping[str, Any]) -> list[Any]:
    """The value, and what it may stand for: 4.0 for the whole number 4, 4 for the number 4.0, "4" for a number, "true" for True in words."""
    types = {str(part.get("type")) for part in schema.get("anyOf", [schema])}
    number: float | None = None
    if isinstance(value, str) and types & {"integer", "number"} and "string" not in types:
        try:
            number = int(value) if value.strip().lstrip("+-").isdecimal() else float(value)
        except ValueError:
            return [value]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = value
    if "number" in types and number is not None:
        try:
            return [float(number)]
        except OverflowError:  # a whole number that no float holds
            return []
    if number is not None and (isinstance(number, int) or math.isfinite(number)):
        return [value, *([int(number)] if number == int(number) else []), *([canonical(value)] if "string" in types else [])]
    return [value, canonical(value)] if isinstance(value, bool) and "string" in types else [value]


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    if "anyOf" in schema:
        return any(_fits(value, part) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return any(type(value) is type(known) and value == known for known in schema.get("enum", [schema.get("const")]))
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if kind == "array":
        return all(_fits(part, schema["items"]) for part in value)
    if kind == "object":
        return all(isinstance(name, str) and _fits(part, schema["additionalProperties"]) for name, part in value.items())
    return True


def _describe(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_describe(part) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(canonical(known) for known in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind in _WORDS:
        return _WORDS[kind]
    if kind == "array" and isinstance(schema.get("items"), Mapping):
        return f"a JSON list, each part {_describe(schema['items'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"a JSON object, each value {_describe(schema['additionalProperties'])}"
    raise ConfigurationError(f"a scale cannot be made of the JSON schema {schema!r:.120}")
