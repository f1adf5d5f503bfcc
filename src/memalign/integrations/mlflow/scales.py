"""From the type of an MLflow judge's feedback to a scale."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from memalign.errors import ConfigurationError
from memalign.open_scale import OpenScale
from memalign.scale import Scale

_WORDS = {True: ("yes", "true", "pass"), False: ("no", "false", "fail")}


def scale_of(value_type: Any) -> Scale:
    """The scale of a ``feedback_value_type``: bool, text labels and runs of whole numbers have scales of their own, all else is open."""
    schema = TypeAdapter(value_type).json_schema()
    if schema.get("type") == "boolean":
        return Scale.boolean()
    known = schema.get("enum", [])
    if len(known) > 1 and all(type(value) is int for value in known) and sorted(known) == list(range(min(known), max(known) + 1)):
        try:
            return Scale.score(min(known), max(known))
        except ConfigurationError:
            return OpenScale.of(schema)
    if len(known) > 1 and all(isinstance(value, str) for value in known):
        try:
            return Scale.categories(*known)
        except ConfigurationError:
            return OpenScale.of(schema)
    return OpenScale.of(schema)


def expert_value(scale: Scale, value: Any) -> Any:
    """A human assessment's value on the scale; a boolean counts as yes or no where these, or words like them, are the labels.

    Where true and false are the verdicts, null beside them or not, words for them count, and so do 1 and 0, which MLflow takes.
    Raises BadRecord naming what is accepted.
    """
    if isinstance(value, bool) and scale.kind == "categories":
        labels = {label.casefold() for label in scale.labels}
        return scale.check(next((word for word in _WORDS[value] if word in labels), value))
    if scale.kind == "boolean" or _is_boolean_or_null(scale):
        return Scale.boolean().check(bool(value) if isinstance(value, int | float) and value in (0, 1) else value)
    return scale.check(value)


def _is_boolean_or_null(scale: Scale) -> bool:
    kinds = scale.value_schema.get("anyOf", []) if isinstance(scale, OpenScale) else []
    return {part.get("type") for part in kinds} == {"boolean", "null"}
