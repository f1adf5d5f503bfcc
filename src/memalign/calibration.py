"""Fitting, on the experts' own labels, how the model's probability and the vote of the cases decide; each record's own case is hidden."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from memalign.engines import in_flight
from memalign.errors import ModelUnavailable
from memalign.judging import Recall, attempt, decide
from memalign.memory.episodic import Stored
from memalign.memory.revisions import Decision
from memalign.memory.vote import pairs
from memalign.records import Failure, Usage, Verdict
from memalign.session import Session
from memalign.verdicts import fitted, stacked
from memalign.working import Task

_FEWEST = 8
"""Labels from which a threshold is fitted; fewer would fit noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a calibration found."""

    judged: int
    decision: Decision | None
    """How model and vote are weighed from now on; None when nothing was fitted."""
    model_alone: float | None
    """Balanced accuracy of the model's own verdicts on the judged records."""
    left_out: float | None
    """Balanced accuracy on them when each is decided by weights fitted without it."""
    revision: int
    note: str
    usage: Usage = Usage()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


async def calibrate(
    session: Session, task: Task, recall: Recall, *, sample: int, actor: str, progress: Callable[[str, int, int], None]
) -> Calibration:
    """Judge records that are no exemplars with their own case hidden, and fit the weights of model and vote on their labels.

    Raises ModelUnavailable when no record could be judged.
    """
    view = await asyncio.to_thread(session.memory.view)
    nothing = Calibration(judged=0, decision=None, model_alone=None, left_out=None, revision=view.revision, note="")
    if task.scale.kind != "boolean":
        return replace(nothing, note=f"weights are fitted on the boolean scale only, not on {task.scale.spec}")
    shown = {episode.feedback.item.id for episode in view.exemplars}
    held = await asyncio.to_thread(session.memory.stored)
    chosen = balanced_sample([stored for stored in held if stored.item_id not in shown], sample)
    if len(chosen) < _FEWEST:
        return replace(nothing, note=f"{len(chosen)} labelled records can be judged without their own case; {_FEWEST} are needed")
    results: dict[int, Verdict] = {}
    failures: list[Failure] = []
    done = 0
    async for place, result in in_flight(chosen, lambda stored: attempt(session, task, stored.feedback.item, recall, temperature=0.0)):
        done += 1
        progress("calibrate", done, len(chosen))
        if isinstance(result, Verdict):
            results[place] = result
        else:
            failures.append(result)
    if not results and failures:
        raise ModelUnavailable(f"none of {len(failures)} records could be judged; the first: {failures[0].error}", attempts=len(failures))
    usage = sum((verdict.usage for verdict in results.values()), Usage())
    told = {place: verdict for place, verdict in results.items() if verdict.probabilities is not None}
    if len(told) < _FEWEST:
        return replace(nothing, judged=len(results), usage=usage, note=f"{session.model.name} does not tell token probabilities")
    yes = {chosen[place].item_id: verdict.probabilities["yes"] for place, verdict in told.items() if verdict.probabilities is not None}
    votes = await asyncio.to_thread(session.memory.left_out_votes, view)
    everyone = {stored.item_id: bool(stored.feedback.value) for stored in held if stored.item_id in votes}
    cases = [_Case(label, votes[item_id], yes.get(item_id)) for item_id, label in everyone.items()]
    decision = _fitted(cases)
    if decision is None:
        return replace(nothing, judged=len(results), usage=usage, note="all labels are equal: nothing to fit")
    decision = replace(decision, cases=view.decision.cases)
    revision = await asyncio.to_thread(decide, session.memory, decision, actor=actor, judged=len(told))
    judged = [place for place, case in enumerate(cases) if case.yes is not None]
    labels = [cases[place].label for place in judged]
    left_out = _left_out(cases)
    return Calibration(
        judged=len(told),
        decision=decision,
        model_alone=_balanced(labels, [(cases[place].yes or 0.0) >= 0.5 for place in judged]),
        left_out=_balanced(labels, [left_out[place] for place in judged]),
        revision=revision,
        note="",
        usage=usage,
    )


@dataclass(frozen=True, slots=True)
class _Case:
    label: bool
    vote: float
    yes: float | None
    """The model's probability, if it judged the case."""


def _fitted(cases: Sequence[_Case]) -> Decision | None:
    return fitted([case.yes for case in cases], [case.vote for case in cases], [case.label for case in cases])


def _left_out(cases: Sequence[_Case]) -> list[bool]:
    """The verdict on each case by weights fitted without it; an opposite case is left out with it."""
    verdicts = [False] * len(cases)
    for fold in pairs([case.label for case in cases]):
        decision = _fitted([case for place, case in enumerate(cases) if place not in fold]) or Decision()
        for place in fold:
            yes = cases[place].yes
            verdicts[place] = stacked(0.5 if yes is None else yes, cases[place].vote, decision) >= 0.5
    return verdicts


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
