"""The optimizer: human assessments on traces in, a judge with memory out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from mlflow.entities.trace import Trace
from mlflow.genai.judges import Judge
from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.genai.judges.utils import get_default_model

import memalign
from memalign import AlignReport, Feedback
from memalign.alignment import Mode
from memalign.integrations.mlflow import places
from memalign.integrations.mlflow.assessments import Labelled, experiment_of, read, trace_id_of, trace_ids
from memalign.integrations.mlflow.faults import as_mlflow, refused
from memalign.integrations.mlflow.items import variables
from memalign.integrations.mlflow.judge import AlignedJudge
from memalign.integrations.mlflow.places import ACTOR, Means
from memalign.integrations.mlflow.scales import scale_of

_logger = logging.getLogger(__name__)
_SHOWN = 5


class MemAlignOptimizer(AlignmentOptimizer):  # type: ignore[misc]
    """Aligns MLflow judges with memalign, in place of MLflow's optimizer of the same name.

    Models are named as in MLflow (``provider:/model``) and asked through MLflow; ``local:/...`` runs in this process.
    """

    def __init__(
        self,
        reflection_lm: str | None = None,
        retrieval_k: int | None = None,
        embedding_model: str | None = None,
        embedding_dim: int | None = None,
        *,
        memory: str | Path | None = None,
        verify: Mode = "off",
    ) -> None:
        """Nothing is opened yet.

        ``reflection_lm`` distils guidelines (default: MLflow's default judge model). ``retrieval_k``: how many similar items' cases a judgement
        is shown (5; with a local judge none). ``embedding_model``: ``local:/minilm`` unless another is named; ``embedding_dim`` for hosted ones
        that take it. ``memory``: a file or database that all judges of a name share; without it every judge that is aligned for the first time
        gets a memory of its own in ``memalign.db`` in the working directory. ``verify``: as in ``memalign.Judge.align``. Raises MlflowException.
        """
        if retrieval_k is not None and (type(retrieval_k) is not int or retrieval_k <= 0):
            raise refused(f"retrieval_k must be a positive integer, got {retrieval_k!r}")
        if embedding_dim is not None and (type(embedding_dim) is not int or embedding_dim <= 0):
            raise refused(f"embedding_dim must be a positive integer, got {embedding_dim!r}")
        self._means = Means(
            reflection_lm=reflection_lm or get_default_model(),
            retrieval_k=retrieval_k,
            embedding_model=embedding_model,
            embedding_dim=embedding_dim,
            verify=verify,
        )
        self._shared = None if memory is None else places.whereabouts(memory)

    @classmethod
    def of(cls, means: Means) -> Self:
        """The optimizer that goes on with what a judge learned with."""
        return cls(means.reflection_lm, means.retrieval_k, means.embedding_model, means.embedding_dim, verify=means.verify)

    def align(self, judge: Judge, traces: Sequence[Trace]) -> AlignedJudge:
        """Learn from the human assessments on traces. Gives a new judge, or ``judge`` itself when its memory knows all of them already.

        What experts changed by hand in a judge's memory since is gone on from. Traces nobody assessed are skipped and named in the new judge's
        ``skipped``. Records that an earlier align could not finish are taken up.
        Raises MlflowException: no assessment at all; assessments that were all removed (use ``unalign``); values that are no verdicts.
        """
        verify = self._means.verify
        if verify != "off" and "trace" in variables(judge):
            raise refused(f"verify={verify!r} judges records again without their traces, which judge {judge.name!r} needs; use verify='off'")
        with as_mlflow(f"cannot align judge {judge.name!r}"):
            known = self._known(judge)
            base = known.base if known is not None else judge
            labelled = read(base, scale_of(base.feedback_value_type), list(traces))
            if known is not None:
                self._in_place(known)
                with places.learning(known.place.memory, known.place.name):
                    return self._again(known.latest() if self._shares(known) else known.followed(), labelled)
            return self._first(base, labelled)

    def _known(self, judge: Judge) -> AlignedJudge | None:
        if isinstance(judge, AlignedJudge):
            return judge
        if hasattr(judge, "_semantic_memory") and hasattr(judge, "_episodic_trace_ids"):  # MLflow's own judge with memory
            from memalign.integrations.mlflow.exchange import import_judge

            return import_judge(judge, self)
        return None

    def _first(self, base: Judge, labelled: Labelled) -> AlignedJudge:
        memory = self._shared or places.whereabouts(None)
        name = base.name if self._shared else places.own_name(base.name)
        with places.learning(memory, name):
            if self._shared is None:
                _demand(base, labelled, waiting=0)
            writer = places.writer(base, memory, name, self._means)
            held = {episode.feedback.id: episode.feedback for episode in writer.memory.episodes()}
            if self._shared is not None:
                _demand(base, labelled, waiting=writer.memory.waiting())
                _same_experiments(base, held.values(), labelled, memory)
            _no_retraction(held, labelled)
            return self._learned(base, writer, memory, self._means, labelled, held)

    def _in_place(self, judge: AlignedJudge) -> None:
        """An aligned judge goes on where its memory lies; a copy elsewhere would part from it unseen."""
        if self._shared not in (None, judge.place.memory):
            raise refused(
                f"judge {judge.name!r} keeps its memory in {judge.place.memory}, not in {self._shared}: leave memory= out to go on there. If it was "
                "moved, align judge.kept_in(...); to go on with a copy, take judge.memory.export(...) and `memalign import` to where it is to lie, "
                "and align kept_in(...) of that"
            )

    def _shares(self, judge: AlignedJudge) -> bool:
        """Whether a judge keeps the memory that all judges of its name share: there what one learned holds for the others."""
        return self._shared == judge.place.memory and judge.place.name == judge.base.name

    def _again(self, judge: AlignedJudge, labelled: Labelled) -> AlignedJudge:
        base, place, memory = judge.base, judge.place, judge.memory
        held = {episode.feedback.id: episode.feedback for episode in memory.episodes()}
        _no_retraction(held, labelled)
        waiting = memory.waiting()
        _demand(base, labelled, waiting=waiting)
        unchanged = all(record.id in held and held[record.id].teaches_the_same_as(record) for record in labelled.feedback)
        if unchanged and not waiting and not _removed(held, labelled):
            _say_skipped(judge.name, labelled)
            return judge
        means = replace(self._means, embedding_model=judge._reader.means.embedding_model, embedding_dim=judge._reader.means.embedding_dim)
        writer = _tip(judge, means)
        found = self._learned(base, writer, place.memory, means, labelled, held)
        found.name = judge.name
        return found

    def _learned(self, base: Judge, writer: memalign.Judge, memory: str, means: Means, labelled: Labelled, held: dict[str, Feedback]) -> AlignedJudge:
        with _progress() as progress:
            report = writer.align(labelled.feedback, verify=means.verify, actor=ACTOR, progress=progress)
        removed = _removed(held, labelled)
        revision = writer.unalign(removed, actor=ACTOR).revision if removed else report.revision
        reader = places.at_newest(base, writer, memory, means, revision)
        _say_skipped(base.name, labelled)
        _say_failed(base.name, report)
        return AlignedJudge(reader, report=report, skipped=labelled.skipped)


def withdrawn(judge: AlignedJudge, gone: set[str]) -> AlignedJudge:
    """A judge that learned nothing from some traces; ``judge`` itself, with a warning, if it did not anyway."""
    with as_mlflow(f"cannot unalign judge {judge.name!r}"):
        place, means = judge.place, judge._reader.means
        with places.learning(place.memory, place.name):
            judge = judge.followed()
            ids = [episode.feedback.id for episode in judge.memory.episodes() if trace_id_of(episode.feedback) in gone]
            if not ids:
                _logger.warning("judge %r learned nothing from these %d traces; it is unchanged", judge.name, len(gone))
                return judge
            writer = _tip(judge, means)
            report = writer.unalign(ids, actor=ACTOR)
            reader = places.at_newest(judge.base, writer, place.memory, means, report.revision)
    return AlignedJudge(reader, name=judge.name, report=report)


def _tip(judge: AlignedJudge, means: Means) -> memalign.Judge:
    """What may go on from a judge's revision: its own memory if that is the newest, else a branch."""
    reader = judge._reader
    if reader.newest == judge.place.revision:
        return reader.writer(means)
    return places.branched(reader.judge, judge.base, judge.place, means)


def _demand(base: Judge, labelled: Labelled, *, waiting: int) -> None:
    """Nothing to learn is an error, unless an earlier align left something."""
    if labelled.feedback or waiting:
        return
    if not labelled.traces:
        raise refused("No traces provided for alignment")
    reasons = "; ".join(f"{trace_id}: {why}" for trace_id, why in list(labelled.skipped.items())[:_SHOWN])
    raise refused(
        f"None of the {len(labelled.traces)} traces holds feedback to learn from ({reasons}). Log human assessments with "
        f"mlflow.log_feedback(name={base.name!r}, source=AssessmentSource(source_type='HUMAN', ...)) and fetch the traces again."
    )


def _no_retraction(held: dict[str, Feedback], labelled: Labelled) -> None:
    """A trace that memory learned from and that has no assessment any more: saying so by ``align`` would be easy to do by mistake."""
    speaking = {trace_id_of(record) for record in labelled.feedback}
    emptied = sorted({trace_id_of(record) for record in held.values()} & set(labelled.traces) - speaking)
    if emptied:
        raise refused(
            f"{len(emptied)} trace(s) have lost all their human assessments: {emptied[:_SHOWN]}. Use unalign(traces=...) to withdraw what was "
            "learned from them; nothing was changed"
        )


def _removed(held: dict[str, Feedback], labelled: Labelled) -> list[str]:
    """Records of the given traces whose assessments are gone, while others on the same trace remain."""
    now = {record.id for record in labelled.feedback}
    return [key for key, record in held.items() if trace_id_of(record) in labelled.traces and key not in now]


def _same_experiments(base: Judge, held: Any, labelled: Labelled, memory: str) -> None:
    before = {experiment_of(record) for record in held} - {""}
    now = {experiment_of(record) for record in labelled.feedback} - {""}
    if before and now and not before & now:
        raise refused(
            f"{memory} already holds a judge {base.name!r}, learned from experiment {', '.join(sorted(before))}; these traces are of experiment "
            f"{', '.join(sorted(now))}. If it is the same judge, load the aligned one and align that; else give this one another name or memory."
        )


def _say_skipped(name: str, labelled: Labelled) -> None:
    if labelled.skipped:
        some = "; ".join(f"{trace_id}: {why}" for trace_id, why in list(labelled.skipped.items())[:_SHOWN])
        _logger.warning("judge %r learned nothing from %d of %d traces: %s", name, len(labelled.skipped), len(labelled.traces), some)


def _say_failed(name: str, report: AlignReport) -> None:
    for batch in report.failed_batches:
        traces = trace_ids(batch.feedback_ids)
        _logger.warning(
            "judge %r: the reasons on %d trace(s) could not be distilled (%s); they are kept, and the next align takes them up: %s",
            name,
            len(traces),
            batch.error,
            traces[:_SHOWN],
        )


class _progress:  # noqa: N801 - a context, used once
    """A bar, as MLflow shows it, where tqdm is installed and somebody looks."""

    def __enter__(self) -> Callable[[str, int, int], None]:
        self._bar: Any = None
        self._stage = ""
        return self._show

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _show(self, stage: str, done: int, total: int) -> None:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return
        if self._stage != stage:
            self.__exit__()
            self._bar, self._stage, self._done = tqdm(total=total, desc=stage, disable=None), stage, 0
        self._bar.update(done - self._done)
        self._done = done
