"""Feedback from labelled examples of DSPy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import dspy

from memalign.errors import BadRecord
from memalign.files import ReadResult
from memalign.integrations.dspy.items import Fields, Places
from memalign.records import Feedback
from memalign.rows import RowProblem
from memalign.scale import Scale


def feedback_from(
    examples: Iterable[Any],
    scale: Scale,
    *,
    inputs: Fields = None,
    outputs: Fields = None,
    expectations: Fields = (),
    value: str = "value",
    rationale: str = "rationale",
    annotator: str = "annotator",
    source: str = "dspy",
) -> ReadResult[Feedback]:
    """Read experts' feedback from examples that hold what was judged and the verdict: ``records``, and ``errors`` with place and reason.

    ``value``, ``rationale`` and ``annotator`` name the fields of the verdict (of ``scale``), its reason and who gave it; the last two may be absent
    or None. ``inputs``, ``outputs``, ``expectations``: as for ``as_metric``; by default inputs are the input fields, and outputs are all other
    fields (a single one as its bare value), both without those of the verdict; a plain object needs ``inputs``.
    A bad example becomes a RowProblem with its place, from 1, and the good ones go on; of equal items by one annotator with different verdicts,
    the later one is the problem.
    """
    places = Places(inputs, outputs, expectations, frozenset((value, rationale, annotator)))
    records: list[Feedback] = []
    problems: list[RowProblem] = []
    seen: dict[str, tuple[int, Feedback]] = {}
    for place, example in enumerate(examples, start=1):
        try:
            record = _feedback(example, scale, places, (value, rationale, annotator), source)
        except BadRecord as error:
            problems.append(RowProblem(place, error.field, error.reason))
            continue
        first, known = seen.setdefault(record.id, (place, record))
        if first == place:
            records.append(record)
        elif known.says_the_same_as(record):
            problems.append(RowProblem(place, "", f"says the same as example {first}; it is read once", warning=True))
        else:
            problems.append(RowProblem(place, value, f"the same annotator said otherwise of this item in example {first}; keep one of the two"))
    return ReadResult(tuple(records), tuple(problems))


def _feedback(example: Any, scale: Scale, places: Places, names: tuple[str, str, str], source: str) -> Feedback:
    if not isinstance(example, dspy.Example | dict):
        raise BadRecord(f"is not a dspy.Example but {type(example).__name__}")
    value, rationale, annotator = (example.get(name) for name in names)
    if value is None:
        raise BadRecord("is missing", field=names[0])
    item = places.item(example)
    try:
        verdict = scale.check(value)
        return Feedback(
            inputs=item.inputs,
            outputs=item.outputs,
            expectations=item.expectations,
            value=verdict,
            rationale="" if rationale is None else rationale,
            annotator="" if annotator is None else annotator,
            source=source,
        ).check_storable()
    except BadRecord as error:
        own = dict(zip(("value", "rationale", "annotator"), names, strict=True))
        raise BadRecord(error.reason, field=own.get(error.field, error.field)) from error
