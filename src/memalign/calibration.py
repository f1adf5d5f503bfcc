"""Fitting the judge's threshold on the experts' own labels, each record's own case hidden."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from memalign.engines import in_flight
from memalign.judging import Recall, attempt, decide
from memalign.memory.episodic import Stored
from memalign.records import Usage, Verdict
from memalign.session import Session
from memalign.verdicts import fitted_threshold
from memalign.working import Task

_FEWEST = 8
"""Labels from which a threshold is fitted; fewer would fit noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a calibration found."""

    judged: int
    threshold: float | None
    """The least probability of yes that is read as yes; None when nothing was fitted."""
    agreement_before: float | None
    """Balanced accuracy on the judged records at the threshold in force before."""
    agreement_after: float | None
    """The same at the fitted threshold; fitted on these very records, so it flatters."""
    revision: int
    note: str
    usage: Usage = Usage()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


async def calibrate(
    session: Session, task: Task, recall: Recall, *, sample: int, actor: str, progress: Callable[[str, int, int], None]
) -> Calibration:
    """Judge records that are no exemplars with their own case hidden, and fit the threshold for yes on their labels."""
    view = await asyncio.to_thread(session.memory.view)
    nothing = Calibration(judged=0, threshold=None, agreement_before=None, agreement_after=None, revision=view.revision, note="")
    if task.scale.kind != "boolean":
        return replace(nothing, note=f"a threshold is fitted on the boolean scale only, not on {task.scale.spec}")
    shown = {episode.feedback.item.id for episode in view.exemplars}
    held = await asyncio.to_thread(session.memory.stored)
    chosen = balanced_sample([stored for stored in held if stored.item_id not in shown], sample)
    if len(chosen) < _FEWEST:
        return replace(nothing, note=f"{len(chosen)} labelled records can be judged without their own case; {_FEWEST} are needed")
    results: dict[int, Verdict] = {}
    done = 0
    async for place, result in in_flight(chosen, lambda stored: attempt(session, task, stored.feedback.item, recall, temperature=0.0)):
        done += 1
        progress("calibrate", done, len(chosen))
        if isinstance(result, Verdict):
            results[place] = result
    usage = sum((verdict.usage for verdict in results.values()), Usage())
    told = {place: verdict for place, verdict in results.items() if verdict.probabilities is not None}
    if len(told) < _FEWEST:
        return replace(nothing, judged=len(results), usage=usage, note=f"{session.model.name} does not tell token probabilities")
    labels = [bool(chosen[place].feedback.value) for place in told]
    yes = [verdict.probabilities["yes"] for verdict in told.values() if verdict.probabilities is not None]
    threshold = fitted_threshold(yes, labels)
    if threshold is None:
        return replace(nothing, judged=len(results), usage=usage, note="all labels are equal: nothing to fit")
    revision = await asyncio.to_thread(decide, session.memory, replace(view.decision, threshold=threshold), actor=actor, judged=len(told))
    return Calibration(
        judged=len(told),
        threshold=threshold,
        agreement_before=_balanced(labels, [bool(verdict.value) for verdict in told.values()]),
        agreement_after=_balanced(labels, [probability >= threshold for probability in yes]),
        revision=revision,
        note="",
        usage=usage,
    )


def balanced_sample(records: Sequence[Stored], size: int) -> list[Stored]:
    """At most ``size`` records, the labels in turn, the newest first within a label; each item once. Deterministic."""
    newest = {stored.item_id: stored for stored in records}.values()
    by_label: dict[str, list[Stored]] = {}
    for stored in reversed(list(newest)):
        by_label.setdefault(str(stored.feedback.value), []).append(stored)
    queues = [by_label[label] for label in sorted(by_label)]
    turns = [queue[place] for place in range(max(map(len, queues), default=0)) for queue in queues if place < len(queue)]
    return turns[:size]


def _balanced(labels: Sequence[bool], verdicts: Sequence[bool]) -> float:
    recalls = [sum(v == label for label, v in zip(labels, verdicts, strict=True) if label is kind) / labels.count(kind) for kind in (True, False)]
    return sum(recalls) / 2
