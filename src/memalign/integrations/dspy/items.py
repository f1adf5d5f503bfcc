"""What is judged, found in DSPy's examples and predictions: the same for a metric and for feedback, so that equal items are equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import dspy
from pydantic import BaseModel

from memalign.errors import BadRecord, ConfigurationError
from memalign.records import Item, canonical

Fields: TypeAlias = str | Sequence[str] | Mapping[str, str] | Callable[[Any, Any], Any] | None
"""Where a part of the item stands: a field's name (its value), several (an object of them), an object of new names and fields' names,
or a function of example and prediction. None: the default. An empty list: nowhere."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where inputs, outputs and expectations of an item stand.

    By default inputs are an object of the example's input fields, outputs are the prediction's fields (the value alone when there is one
    field), and there are no expectations.
    """

    inputs: Fields = None
    outputs: Fields = None
    expectations: Fields = ()
    reserved: frozenset[str] = frozenset()
    """Fields of an example that are no part of the item, e.g. the expert's verdict."""

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs", "expectations"):
            place = getattr(self, name)
            if not (place is None or isinstance(place, str) or callable(place) or _are_names(place)):
                raise ConfigurationError(f"{name}={place!r:.80} is not a field's name, names, an object of names, or a function")

    def item(self, example: Any, prediction: Any = None) -> Item:
        """The item of an example and what a program made of it, or of an example that holds both. Raises BadRecord, naming the field."""
        found = example if prediction is None else prediction
        return Item(
            inputs=_part("inputs", self.inputs, example, example, prediction, lambda: self._inputs(example)),
            outputs=_part("outputs", self.outputs, found, example, prediction, lambda: self._outputs(example, prediction)),
            expectations=_part("expectations", self.expectations, example, example, prediction, lambda: None),
        )

    def _inputs(self, example: Any) -> dict[str, Any]:
        if self.reserved and not isinstance(example, dspy.Example):
            raise BadRecord(
                "a plain object does not say which of its fields are inputs; name them with inputs=, or make a dspy.Example with .with_inputs(...)",
                field="inputs",
            )
        return {name: value for name, value in _inputs(example).items() if name not in self.reserved}

    def _outputs(self, example: Any, prediction: Any) -> Any:
        if prediction is not None:
            return _alone(_object(prediction)) if _has_fields(prediction) else prediction
        elsewhere = self.reserved | _named(self.inputs) | _named(self.expectations) | (set(_inputs(example)) if self.inputs is None else set())
        return _alone({name: value for name, value in _object(example).items() if name not in elsewhere})


def _part(name: str, place: Fields, holder: Any, example: Any, prediction: Any, default: Callable[[], Any]) -> Any:
    try:
        if place is None:
            value = default()
        elif isinstance(place, str):
            value = _field(holder, place)
        elif isinstance(place, Mapping):
            value = {ours: _field(holder, theirs) for ours, theirs in place.items()}
        elif callable(place):
            value = place(example, prediction)
        else:
            value = {field: _field(holder, field) for field in place} or None
        value = plain(value)
        canonical(value)
    except BadRecord as error:
        raise BadRecord(error.reason, field=error.field or name) from error
    except RecursionError as error:
        raise BadRecord("is nested too deeply", field=name) from error
    return value


def plain(value: Any) -> Any:
    """A value as JSON: examples and Pydantic models become objects, tuples lists. What is no JSON stays, and is refused where it is stored."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if _has_fields(value):
        return {str(name): plain(inner) for name, inner in _object(value).items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _has_fields(value: Any) -> bool:
    return isinstance(value, dspy.Example | Mapping)


def _object(value: Any) -> dict[str, Any]:
    if not _has_fields(value):
        raise BadRecord(f"a {type(value).__name__} has no fields; give a dspy.Example or an object")
    return dict(value.items())


def _inputs(example: Any) -> dict[str, Any]:
    """The input fields of an example; all of a plain object."""
    if not isinstance(example, dspy.Example):
        return _object(example)
    keys = getattr(example, "_input_keys", None)  # what .inputs() refuses to work without
    if not keys:
        raise BadRecord("the example does not say which fields are inputs; call .with_inputs(...) on it, or name them with inputs=", field="inputs")
    return {name: value for name, value in _object(example).items() if name in keys}


def _field(holder: Any, name: str) -> Any:
    fields = _object(holder)
    if name not in fields:
        raise BadRecord(f"there is no field {name!r}; there are: {', '.join(map(str, fields)) or 'none'}", field=name)
    return fields[name]


def _alone(fields: dict[str, Any]) -> Any:
    return next(iter(fields.values())) if len(fields) == 1 else fields or None


def _are_names(place: Any) -> bool:
    names = place.values() if isinstance(place, Mapping) else place
    return isinstance(names, Iterable) and all(isinstance(name, str) for name in names)


def _named(place: Fields) -> set[str]:
    if isinstance(place, str):
        return {place}
    if place is None or callable(place):
        return set()
    return set(place.values() if isinstance(place, Mapping) else place)
