"""The judge that alignment gives: an MLflow judge whose memory is memalign's."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlflow.entities.assessment import Feedback
from mlflow.entities.assessment_source import AssessmentSource, AssessmentSourceType
from mlflow.entities.trace import Trace
from mlflow.genai.judges import Judge
from mlflow.genai.judges.base import AlignmentOptimizer, JudgeField
from mlflow.genai.scorers.base import ScorerKind
from pydantic import PrivateAttr

import memalign
from memalign import AlignReport
from memalign.alignment import Withdrawal
from memalign.integrations.mlflow.assessments import read, trace_id_of, trace_ids
from memalign.integrations.mlflow.faults import as_mlflow, refused
from memalign.integrations.mlflow.items import Case, case_of, sessions, variables
from memalign.integrations.mlflow.model import Asked, asking
from memalign.integrations.mlflow.places import Place, Reader, moved, whereabouts
from memalign.memory import Memory
from memalign.recalling import Part
from memalign.records import Failure, Verdict

_logger = logging.getLogger(__name__)
_AT_ONCE = 10
_HEADING = "Guidelines of the experts, which decide:"


class AlignedJudge(Judge):  # type: ignore[misc]
    """An MLflow judge that recalls what experts said, at one revision of its memory.

    It is a value: aligning and unaligning give new judges and leave it as it is. It may be called from many threads, copied, pickled, registered.
    """

    _reader: Reader = PrivateAttr()
    _report: AlignReport | Withdrawal | None = PrivateAttr(default=None)
    _skipped: Mapping[str, str] = PrivateAttr(default_factory=dict)

    def __init__(
        self, reader: Reader, *, name: str | None = None, report: AlignReport | Withdrawal | None = None, skipped: Mapping[str, str] | None = None
    ) -> None:
        base = reader.base
        super().__init__(name=name or base.name, description=base.description, aggregations=base.aggregations)
        self._reader = reader
        self._report = report
        self._skipped = dict(skipped or {})

    # What it is

    @property
    def base(self) -> Judge:
        """The judge without memory, untouched."""
        return self._reader.base

    @property
    def place(self) -> Place:
        """Where its memory lies."""
        return self._reader.place

    @property
    def memory(self) -> Memory:
        """Guidelines, episodes and history, read-only. Raises MlflowException when it is gone."""
        return self._reader.judge.memory

    @property
    def report(self) -> AlignReport | Withdrawal | None:
        """What the alignment or withdrawal did that gave this judge; None for one that was loaded."""
        return self._report

    @property
    def skipped(self) -> Mapping[str, str]:
        """Trace id -> why that alignment learned nothing from it."""
        return self._skipped

    @property
    def instructions(self) -> str:
        """The base judge's instructions, and the guidelines."""
        guidelines = [f"- {guideline.text}" for guideline in self.memory.guidelines()]
        return "\n".join([self.base.instructions, *(["", _HEADING, *guidelines] if guidelines else [])])

    @property
    def model(self) -> str:
        """The base judge's model."""
        return str(self.base.model)

    @property
    def feedback_value_type(self) -> Any:
        """The base judge's."""
        return self.base.feedback_value_type

    @property
    def is_session_level_scorer(self) -> bool:
        """Whether it judges conversations."""
        return bool(self.base.is_session_level_scorer)

    @property
    def kind(self) -> ScorerKind:
        """A judge with memory, which MLflow registers."""
        return ScorerKind.MEMORY_AUGMENTED

    def get_input_fields(self) -> list[JudgeField]:
        """The base judge's."""
        return list(self.base.get_input_fields())

    # What it does

    def __call__(
        self,
        *,
        inputs: Any = None,
        outputs: Any = None,
        expectations: dict[str, Any] | None = None,
        trace: Trace | None = None,
        session: list[Trace] | None = None,
    ) -> Feedback:
        """Judge one row, trace or conversation. Raises MlflowException."""
        case = case_of(self.base, inputs=inputs, outputs=outputs, expectations=expectations, trace=trace, session=session)
        with as_mlflow(f"judge {self.name!r} gave no verdict"), asking(case.trace) as asked:
            verdict = self._reader.judge(inputs=case.item.inputs, outputs=case.item.outputs, expectations=case.item.expectations)
        return self._feedback(verdict, asked, trace)

    def align(self, traces: list[Trace], optimizer: AlignmentOptimizer | None = None) -> Judge:
        """Learn from more traces, as it learned so far unless another optimizer is given. Gives a new judge, or this one if nothing changed."""
        from memalign.integrations.mlflow.optimizer import MemAlignOptimizer

        return (optimizer or MemAlignOptimizer.of(self._reader.means)).align(self, traces)

    def unalign(self, traces: Sequence[Trace]) -> AlignedJudge:
        """Withdraw what was learned from traces. Gives a new judge, or this one, with a warning, if nothing was."""
        from memalign.integrations.mlflow.optimizer import withdrawn

        return withdrawn(self, {trace.info.trace_id for trace in traces})

    def latest(self) -> AlignedJudge:
        """The judge at the newest revision of its memory, with all that experts and other judges have changed there since; this one if none did."""
        revision = self._reader.newest
        return self if revision == self.place.revision else AlignedJudge(self._reader.at(revision), name=self.name)

    def followed(self) -> AlignedJudge:
        """The judge with what experts changed by hand in its memory since; ``align`` and ``unalign`` go on from it."""
        revision = self._reader.followed()
        return self if revision == self.place.revision else AlignedJudge(self._reader.at(revision), name=self.name)

    def agreement(self, traces: Sequence[Trace], *, memory: Part = "both") -> memalign.Agreement:
        """How far it agrees with the human assessments of traces; what it learned from a trace is hidden while it judges that trace.

        ``memory``: which part of it takes part ("both", "guidelines", "cases", "none": the unaligned judge).
        Measure on traces it was not aligned with: guidelines that rest on a trace are not hidden.
        """
        judge = self._reader.judge
        with as_mlflow(f"cannot measure judge {self.name!r}"):
            labelled = read(self.base, judge.scale, traces)
            if not labelled.feedback:
                raise refused(f"none of the {len(labelled.traces)} traces has a human assessment of judge {self.name!r}: {labelled.skipped}")
            cases = self._cases(list(labelled.traces.values()), {trace_id_of(record) for record in labelled.feedback})
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                judged = dict(zip(cases, threads.map(lambda case: self._hidden(case, memory), cases.values()), strict=True))
            return judge.agreement(labelled.feedback, [judged[trace_id_of(record)] for record in labelled.feedback])

    # Keeping

    def model_dump(self, **kwargs: Any) -> dict[str, Any]:
        """The form in which MLflow registers it: MLflow's own of a judge with memory, and beside it where our memory lies."""
        from memalign.integrations.mlflow.registry import serialised

        return serialised(self)

    def kept_in(self, memory: str | Path) -> AlignedJudge:
        """The same judge, whose memory lies elsewhere now."""
        return AlignedJudge(moved(self._reader, whereabouts(memory)), name=self.name)

    def close(self) -> None:
        """Give back connections; the judge may be used again."""
        self._reader.close()

    def __repr__(self) -> str:
        place = self.place
        return f"AlignedJudge({self.name!r}, {self.model}, memory={place.memory!r}, {place.name!r} at revision {place.revision})"

    __str__ = __repr__

    def _cases(self, traces: list[Trace], wanted: set[str]) -> dict[str, Case]:
        if "conversation" not in variables(self.base):
            return {trace.info.trace_id: case_of(self.base, trace=trace) for trace in traces if trace.info.trace_id in wanted}
        whole = [turns for turns in sessions(traces) if wanted & {trace.info.trace_id for trace in turns}]
        return {trace.info.trace_id: case_of(self.base, session=turns) for turns in whole for trace in turns if trace.info.trace_id in wanted}

    def _hidden(self, case: Case, memory: Part) -> Verdict | Failure:
        with asking(case.trace):
            return self._reader.judge.batch([case.item], memory=memory, own=False)[0]

    def _feedback(self, verdict: Verdict, asked: Asked, trace: Trace | None) -> Feedback:
        shown = trace_ids(reversed(verdict.episode_ids))  # the most similar first
        metadata = asked.metadata | {"guideline": self.base.instructions, "memalign.revision": str(verdict.revision)}
        if shown:
            metadata["retrieved_example_trace_ids"] = shown
        if verdict.guideline_ids:
            metadata["memalign.guidelines"] = json.dumps(verdict.guideline_ids)
        return Feedback(
            name=self.name,
            value=verdict.value,
            rationale=verdict.rationale,
            source=AssessmentSource(source_type=AssessmentSourceType.LLM_JUDGE, source_id=self.model),
            trace_id=trace.info.trace_id if trace is not None else None,
            metadata=metadata,
        )
