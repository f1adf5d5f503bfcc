"""Moving between MLflow's own judges with memory and ours, without a model call for what is learned already."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.entities.trace import Trace
from mlflow.exceptions import MlflowException
from mlflow.genai.judges import Judge
from mlflow.genai.scorers.base import SerializedScorer

from memalign import edge
from memalign.integrations.mlflow import places
from memalign.integrations.mlflow.assessments import read, trace_id_of
from memalign.integrations.mlflow.faults import as_mlflow, gone, refused
from memalign.integrations.mlflow.judge import AlignedJudge
from memalign.integrations.mlflow.registry import serialised
from memalign.integrations.mlflow.scales import scale_of

if TYPE_CHECKING:
    from memalign.integrations.mlflow.optimizer import MemAlignOptimizer

_logger = logging.getLogger(__name__)
_LOST = {
    "RESOURCE_DOES_NOT_EXIST": "the trace was deleted",
    "NOT_FOUND": "the trace was deleted",
    "BAD_REQUEST": "the trace has lost its spans",
}
"""What a tracking server says of a trace that it does not hold, or not wholly."""


def import_judge(judge: Judge, optimizer: MemAlignOptimizer | None = None, *, traces: Sequence[Trace] | None = None) -> AlignedJudge:
    """Take over MLflow's own judge with memory: its guidelines as they are, and the human assessments on its traces, read whole.

    ``optimizer`` says with what the judge goes on, and where its memory is to lie; by default with the models of ``judge``, the embedding model
    too. Traces are fetched unless given. Those deleted since are named in ``skipped``, and guidelines that rested on them alone stay, without
    evidence. Raises MlflowException when no trace can be had, or the tracking server refuses.
    """
    from memalign.integrations.mlflow.optimizer import MemAlignOptimizer

    base = getattr(judge, "_base_judge", None)
    guidelines, trace_ids = getattr(judge, "_semantic_memory", None), getattr(judge, "_episodic_trace_ids", None)
    if base is None or guidelines is None or trace_ids is None:
        raise refused(f"{judge.name!r} is a {type(judge).__name__}, not a judge that MLflow's MemAlignOptimizer aligned")
    wanted = list(dict.fromkeys(trace_ids))
    chosen = optimizer or MemAlignOptimizer(judge._reflection_lm, judge._retrieval_k, judge._embedding_model, judge._embedding_dim)
    with as_mlflow(f"cannot import judge {judge.name!r}"):
        found, lost = _fetched(wanted) if traces is None else ({trace.info.trace_id: trace for trace in traces}, {})
        missing = {trace_id: lost.get(trace_id, "the trace was not given") for trace_id in wanted if trace_id not in found}
        if wanted and len(missing) == len(wanted):
            raise gone(
                f"none of the {len(wanted)} traces of judge {judge.name!r} can be found at {mlflow.get_tracking_uri()}: set the tracking URI of the "
                "server where they were logged, or give them as traces=..."
            )
        labelled = read(base, scale_of(base.feedback_value_type), [found[trace_id] for trace_id in wanted if trace_id in found])
        skipped = labelled.skipped | missing
        of_trace: dict[str, list[str]] = {}
        for record in labelled.feedback:
            of_trace.setdefault(trace_id_of(record), []).append(record.id)
        from memalign.alignment import Learned, adopt

        learned = [
            Learned(text=g.guideline_text, evidence=tuple(key for trace in g.source_trace_ids or () for key in of_trace.get(str(trace), ())))
            for g in guidelines
        ]
        memory = chosen._shared or places.whereabouts(None)
        writer = places.writer(base, memory, base.name if chosen._shared else places.own_name(base.name), chosen._means)
        report = edge.run(adopt(writer.session, labelled.feedback, learned, actor=places.ACTOR))
    if skipped:
        _logger.warning("judge %r: nothing was taken over from %d of %d traces: %s", judge.name, len(skipped), len(wanted), skipped)
    reader = places.at_newest(base, writer, memory, chosen._means, report.revision)
    return AlignedJudge(reader, name=judge.name, report=report, skipped=skipped)


def export_judge(judge: AlignedJudge) -> Any:
    """The judge as MLflow's own judge with memory: guidelines with their traces. It needs what MLflow's MemAlign needs (dspy, an embedding model).

    Human assessments stay where they are, on the traces, from which MLflow's judge reads them at first use.
    """
    from mlflow.genai.judges.optimizers.memalign.optimizer import MemoryAugmentedJudge

    form = serialised(judge)
    del form["memory_augmented_judge_data"]["memalign"]
    return MemoryAugmentedJudge._from_serialized(SerializedScorer(**form))


def _fetched(trace_ids: Sequence[str]) -> tuple[dict[str, Trace], dict[str, str]]:
    """Traces by id, and why others are lost. Raises MlflowException when the server refuses: then nobody knows which are lost."""
    client, found, lost = mlflow.MlflowClient(), dict[str, Trace](), dict[str, str]()
    for trace_id in trace_ids:
        try:
            found[trace_id] = client.get_trace(trace_id, display=False)
        except MlflowException as error:
            if error.error_code not in _LOST:
                raise refused(
                    f"trace {trace_id} could not be fetched from {mlflow.get_tracking_uri()}, so nothing was taken over: {error.message} Set the "
                    "tracking URI of the server where the traces lie and see that it answers, or give the traces as traces=..."
                ) from error
            lost[trace_id] = _LOST[error.error_code]
    return found, lost
