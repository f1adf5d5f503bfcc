"""What an MLflow judge judges, as an item: the same for a trace that is learned from and for a row that is scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlflow.entities.trace import Trace
from mlflow.genai.judges import Judge
from mlflow.genai.utils.trace_utils import (
    resolve_conversation_from_session,
    resolve_expectations_from_session,
    resolve_expectations_from_trace,
    resolve_inputs_from_trace,
    resolve_outputs_from_trace,
    validate_session,
)

from memalign.integrations.mlflow.faults import refused
from memalign.records import Item

SESSION = "mlflow.trace.session"
"""The trace metadata that names its session."""


@dataclass(frozen=True, slots=True)
class Case:
    """An item to judge, and the trace that the model may look into with tools."""

    item: Item
    trace: Trace | None = None
    """Only where the instructions ask for the trace, or it holds what they ask for somewhere below its root."""


def variables(judge: Judge) -> frozenset[str]:
    """What the instructions refer to: inputs, outputs, expectations, conversation, trace."""
    named = getattr(judge, "template_variables", None)
    return frozenset(named) if named else frozenset(part.name for part in judge.get_input_fields())


def case_of(
    judge: Judge,
    *,
    inputs: Any = None,
    outputs: Any = None,
    expectations: Any = None,
    trace: Trace | None = None,
    session: Sequence[Trace] | None = None,
) -> Case:
    """The item of one row. What is not given is read from the trace or session. Raises MlflowException for what is missing or of a wrong type."""
    _check_types(expectations, trace, session)
    named = variables(judge)
    if "conversation" in named:
        return _conversation(judge, named, expectations, session)
    if trace is not None:
        inputs = resolve_inputs_from_trace(inputs, trace)
        outputs = resolve_outputs_from_trace(outputs, trace)
        expectations = resolve_expectations_from_trace(expectations, trace, extract_if_none="expectations" in named)
    given = {"inputs": inputs, "outputs": outputs, "expectations": expectations, "trace": trace}
    missing = [name for name in ("inputs", "outputs", "expectations", "trace") if name in named and given[name] is None]
    hidden = trace is not None and set(missing) <= {"inputs", "outputs"}
    if missing and not hidden:
        raise refused(f"Must specify {', '.join(map(repr, missing))}: the instructions of judge {judge.name!r} ask for it")
    kept = {name for name in ("inputs", "outputs", "expectations") if name in named}
    if named.isdisjoint({"inputs", "outputs"}):  # a judge of traces, or of expectations alone: what is known of the row makes it findable
        kept |= {"inputs", "outputs"}
    item = Item(**{name: plain(given[name]) for name in kept})
    return Case(item, trace if "trace" in named or missing else None)


def sessions(traces: Sequence[Trace]) -> list[list[Trace]]:
    """Traces by their session, in the order of their first trace; one without a session stands alone."""
    found: dict[str, list[Trace]] = {}
    for trace in traces:
        name = trace.info.trace_metadata.get(SESSION)
        found.setdefault(f"session {name}" if name else f"trace {trace.info.trace_id}", []).append(trace)
    return list(found.values())


def plain(value: Any) -> Any:
    """A value as JSON gives it back: what is no JSON becomes text."""
    return None if value is None else json.loads(json.dumps(value, default=str, ensure_ascii=False))


def _conversation(judge: Judge, named: frozenset[str], expectations: Any, session: Sequence[Trace] | None) -> Case:
    if not session:
        raise refused(f"Must specify 'session', the traces of one conversation: the instructions of judge {judge.name!r} ask for it")
    turns = list(session)
    if len(turns) > 1:
        validate_session(turns)
    wanted = {
        name: True
        for name, private in (("include_tool_calls", "_include_tool_calls_in_conversation"), ("include_timing", "_include_timing_in_conversation"))
        if getattr(judge, private, False)
    }
    conversation = resolve_conversation_from_session(turns, **wanted)
    if "expectations" in named:
        expectations = resolve_expectations_from_session(expectations, turns)
        if expectations is None:
            raise refused(f"Must specify 'expectations': the instructions of judge {judge.name!r} ask for them")
    return Case(Item(inputs=plain(conversation), expectations=plain(expectations) if "expectations" in named else None))


def _check_types(expectations: Any, trace: Any, session: Any) -> None:
    if expectations is not None and not isinstance(expectations, dict):
        raise refused(f"'expectations' must be a dictionary, got {type(expectations).__name__}")
    if trace is not None and not isinstance(trace, Trace):
        raise refused(f"'trace' must be a Trace object, got {type(trace).__name__}")
    if session is not None and not (isinstance(session, list | tuple) and all(isinstance(turn, Trace) for turn in session)):
        raise refused("'session' must be a list of Trace objects")
