"""From traces with human assessments to feedback: every annotator's verdict, the newest of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from mlflow.entities.assessment_source import AssessmentSourceType
from mlflow.entities.trace import Trace
from mlflow.genai.judges import Judge

from memalign.errors import BadRecord
from memalign.integrations.mlflow.faults import refused
from memalign.integrations.mlflow.items import case_of, plain, sessions, variables
from memalign.integrations.mlflow.scales import expert_value
from memalign.records import Feedback, Item
from memalign.scale import Scale

_ANONYMOUS = ("", "default")
"""Source ids that name nobody: their assessments may be of several people, so none replaces another."""
_PREFIX = "mlflow:"
_SHOWN = 5


@dataclass(slots=True)
class Labelled:
    """What traces say."""

    feedback: list[Feedback] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Trace id -> why nothing was learned from it."""
    traces: dict[str, Trace] = field(default_factory=dict)
    """Trace id -> trace, each once: the last one given."""


def read(judge: Judge, scale: Scale, traces: Sequence[Trace]) -> Labelled:
    """All human assessments of a judge. Raises MlflowException, before anything is used, when a value is not on the judge's scale."""
    found = Labelled(traces={trace.info.trace_id: trace for trace in traces})
    faults: list[str] = []
    for trace, item in _items(judge, found):
        human = _human(judge, trace)
        for assessment in human:
            try:
                found.feedback.append(_feedback(scale, trace, item, assessment))
            except BadRecord as error:
                if error.field != "value":
                    found.skipped[trace.info.trace_id] = str(error)
                    break
                faults.append(
                    f"trace {trace.info.trace_id}, assessment {assessment.assessment_id} by {assessment.source.source_id!r}: {error.reason}"
                )
        if not human:
            found.skipped[trace.info.trace_id] = _why_none(judge, trace)
    if faults:
        more = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
        raise refused(
            f"{len(faults)} human assessment(s) of judge {judge.name!r} cannot be verdicts of this judge, so nothing was learned: "
            f"{'; '.join(faults[:_SHOWN])}{more}. Correct them with mlflow.update_assessment or mlflow.delete_assessment, or leave these traces out."
        )
    return found


def trace_id_of(feedback: Feedback) -> str:
    """The trace that a record came from; empty for one that came from elsewhere."""
    return feedback.source.removeprefix(_PREFIX).partition("/")[2] if feedback.source.startswith(_PREFIX) else ""


def trace_ids(record_ids: Iterable[str]) -> list[str]:
    """The traces of records by their ids, in their order, each once; records that came from elsewhere have none."""
    return list(dict.fromkeys(trace for trace, separator, _ in (key.rpartition("/") for key in record_ids) if separator))


def experiment_of(feedback: Feedback) -> str:
    """The experiment of the trace that a record came from, where it is known."""
    return feedback.source.removeprefix(_PREFIX).partition("/")[0] if feedback.source.startswith(_PREFIX) else ""


def _items(judge: Judge, found: Labelled) -> Iterator[tuple[Trace, Item]]:
    """Traces with the item that their assessments judge. Of a session, those that nobody assessed are no fault, if another one was."""
    if "conversation" not in variables(judge):
        for trace_id, trace in found.traces.items():
            try:
                yield trace, _with_content(case_of(judge, trace=trace).item, trace)
            except Exception as error:
                found.skipped[trace_id] = str(error)
        return
    for session in sessions(list(found.traces.values())):
        assessed = [trace for trace in session if _human(judge, trace)]
        try:
            item = case_of(judge, session=session).item
        except Exception as error:
            found.skipped |= {trace.info.trace_id: str(error) for trace in session}
            continue
        for trace in assessed or session:
            yield trace, item


def _with_content(item: Item, trace: Trace) -> Item:
    """An item that can be found again: where the root span says nothing, the trace's previews stand in."""
    if item.inputs is not None or item.outputs is not None:
        return item
    return Item(inputs=trace.info.request_preview, outputs=trace.info.response_preview, expectations=item.expectations)


def _human(judge: Judge, trace: Trace) -> list[Any]:
    """The assessments that count, oldest first: by people, of this judge, not overridden, the newest of each annotator."""
    named = [
        assessment
        for assessment in trace.info.assessments or []
        if _same_name(assessment.name, judge.name)
        and assessment.source.source_type == AssessmentSourceType.HUMAN
        and assessment.feedback is not None
        and assessment.feedback.value is not None
        and assessment.valid is not False
    ]
    newest: dict[str, Any] = {}
    for place, assessment in enumerate(sorted(named, key=_time)):
        newest[_annotator(assessment) or f"assessment {assessment.assessment_id or place}"] = assessment
    return sorted(newest.values(), key=_time)


def _feedback(scale: Scale, trace: Trace, item: Item, assessment: Any) -> Feedback:
    annotator, trace_id = _annotator(assessment), trace.info.trace_id
    stamp = _time(assessment)
    return Feedback(
        inputs=item.inputs,
        outputs=item.outputs,
        expectations=item.expectations,
        value=expert_value(scale, plain(assessment.feedback.value)),
        rationale=assessment.rationale or "",
        annotator=annotator,
        id=f"{trace_id}/{quote(annotator or assessment.assessment_id or '', safe='@')}",
        created_at=datetime.fromtimestamp(stamp / 1000, UTC) if stamp else datetime.now(UTC),
        source=f"{_PREFIX}{trace.info.experiment_id or ''}/{trace_id}",
    )


def _time(assessment: Any) -> int:
    return int(assessment.last_update_time_ms or assessment.create_time_ms or 0)


def _annotator(assessment: Any) -> str:
    name = assessment.source.source_id or ""
    return "" if name in _ANONYMOUS else str(name)


def _same_name(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()


def _why_none(judge: Judge, trace: Trace) -> str:
    people = sorted({a.name for a in trace.info.assessments or [] if a.source.source_type == AssessmentSourceType.HUMAN and a.feedback is not None})
    others = f"; people assessed {', '.join(map(repr, people))}" if people else ""
    return f"no human assessment named {judge.name!r}{others}"
