"""Fitting, on the experts' own labels, how the model's probability and the vote of the cases decide; each record's own case is hidden."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from memalign.engines import in_flight
from memalign.errors import ConfigurationError, ModelUnavailable
from memalign.judging import PLAIN, Caution, attempt, decide
from memalign.memory.episodic import Stored
from memalign.memory.revisions import Decision
from memalign.recalling import Recall
from memalign.records import Failure, Usage, Verdict
from memalign.scale import Scale
from memalign.session import Meter, Session
from memalign.verdicts import Answer, pooled
from memalign.working import Task

if TYPE_CHECKING:
    from memalign.memory.vote import Ballot
    from memalign.reliability import Covered, Reliability
    from memalign.trial import Trial

Given = Mapping[str, Mapping[Any, float]]
"""Item id -> the values that experts gave, with the weight of all who gave them; the one given last at the end."""

_FEWEST = 8
"""Labels from which weights are fitted; fewer would fit noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a calibration found, each record judged without its own case."""

    judged: int
    decision: Decision | None
    """How model and vote are weighed from now on; None when nothing was fitted."""
    revision: int
    note: str
    """Why nothing was fitted, or what is remarkable about what was."""
    before: Reliability | None = None
    """The model alone, as it says itself."""
    after: Reliability | None = None
    """What was fitted, on records that were left out when it was fitted."""
    usage: Usage = Usage()

    @property
    def model_alone(self) -> float | None:
        """Balanced accuracy of the model's own verdicts on the judged records."""
        return None if self.before is None else self.before.balanced_accuracy

    @property
    def left_out(self) -> float | None:
        """Balanced accuracy on them when each is decided by weights fitted without it."""
        return None if self.after is None else self.after.balanced_accuracy

    def coverage_at(self, agreement: float) -> Covered | None:
        """The threshold for ``abstain_below`` that reaches a wanted agreement on the verdicts that remain; None when none does.

        Raises ConfigurationError for an agreement that is no share.
        """
        return None if self.after is None else self.after.coverage_at(agreement)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self) | {"model_alone": self.model_alone, "left_out": self.left_out}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """One way of judging the sample, and what was fitted on it."""

    judged: int
    usage: Usage
    votes: int = 0
    trial: Trial | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    """Item id -> log loss on the item when it was left out."""
    note: str = ""
    """Why nothing was fitted."""


async def calibrate(
    session: Session,
    task: Task,
    recall: Recall,
    *,
    sample: int,
    ablate: bool,
    temperature: float,
    actor: str,
    progress: Callable[[str, int, int], None],
    caution: Caution = PLAIN,
    service: int | None = None,
) -> Calibration:
    """Judge records that are no exemplars with their own case hidden, and fit the weights of model and vote on their labels.

    ``ablate``: judge them without guidelines too; where reading them does not lower the log loss by more than two standard errors, the model
    reads only what experts pinned from then on. ``service``: the replies that the judge counts by its own settings, whatever is fitted. Raises
    ConfigurationError where these are others than are counted here, or the sample is too small to fit anything; ModelUnavailable when no record
    could be judged.
    """
    _check(sample, caution, service)
    space = await session.reader(Meter())
    view = await asyncio.to_thread(space.memory.view)
    nothing = Calibration(judged=0, decision=None, revision=view.revision, note="")
    if not task.scale.labels:
        return replace(nothing, note=f"the scale {task.scale.spec} has no list of labels to weigh against each other")
    shown = {episode.item_id for episode in view.exemplars}
    weight = session.memory.weight
    held = [stored for stored in await asyncio.to_thread(session.memory.stored) if weight(stored.feedback.annotator) > 0]
    given = _given(held, weight)
    chosen = balanced_sample([stored for stored in held if stored.item_id not in shown], sample)
    if len(chosen) < _FEWEST:
        return replace(nothing, note=f"{len(chosen)} labelled records can be judged without their own case; {_FEWEST} are needed")
    plain = replace(caution, fitted=False, abstain_below=None)
    recall = replace(recall, own=False)
    ballot = await asyncio.to_thread(space.memory.ballot, view)

    async def fit(how: Recall, done: int, total: int) -> _Fit:
        return await _fit(session, task, given, chosen, how, temperature, plain, ballot, lambda stage, n, _: progress(stage, done + n, total))

    pinned = tuple(guideline for guideline in view.guidelines if guideline.pinned)
    without = None
    if ablate and len(pinned) < len(view.guidelines):
        without = await fit(replace(recall, guidelines=pinned), 0, 2 * len(chosen))
    kept = await fit(recall, 0 if without is None else len(chosen), len(chosen) if without is None else 2 * len(chosen))
    usage = kept.usage if without is None else kept.usage + without.usage
    if kept.trial is None:
        return replace(nothing, judged=kept.judged, usage=usage, note=kept.note)
    reads, found = True, kept.trial.note
    if without is not None and without.trial is not None and without.votes == kept.votes:
        reads, said = _reading(kept, without)
        kept = kept if reads else without
        found = "; ".join(filter(None, (said, kept.trial.note if kept.trial is not None else "")))
    assert kept.trial is not None
    decision = replace(kept.trial.decision, votes=kept.votes, model=session.model.name, cases=view.decision.cases, guidelines=reads)
    revision = await asyncio.to_thread(decide, session.memory, decision, actor=actor, judged=kept.judged)
    before, after = kept.trial.before, kept.trial.after
    return Calibration(judged=kept.judged, decision=decision, revision=revision, note=found, before=before, after=after, usage=usage)


def _check(sample: int, caution: Caution, service: int | None) -> None:
    if sample < _FEWEST:
        raise ConfigurationError(f"a sample of {sample} is too small to fit anything: {_FEWEST} records or more are needed")
    if service is not None and caution.votes != service:
        why = f"by its settings this judge counts {service} replies a verdict, so what is fitted on {caution.votes} would never decide"
        raise ConfigurationError(f"{why}: calibrate with votes={service}, or change the judge's votes first")


def _reading(kept: _Fit, without: _Fit) -> tuple[bool, str]:
    """Whether the model should read guidelines, and what was found."""
    from memalign.trial import better

    both = [item_id for item_id in kept.losses if item_id in without.losses]
    read, unread = [kept.losses[item_id] for item_id in both], [without.losses[item_id] for item_id in both]
    figures = f"log loss {sum(read) / len(both):.2f} with them, {sum(unread) / len(both):.2f} without, on {len(both)} records"
    if better(read, unread, errors=2.0):
        return True, f"reading guidelines helps the model ({figures})"
    return False, f"reading guidelines does not help this model ({figures}): from now on it reads only those that experts pinned"


async def _fit(
    session: Session,
    task: Task,
    given: Given,
    chosen: Sequence[Stored],
    recall: Recall,
    temperature: float,
    caution: Caution,
    ballot: Ballot | None,
    progress: Callable[[str, int, int], None],
) -> _Fit:
    results = await _judged(session, task, chosen, recall, temperature, caution, progress)
    nothing = _Fit(judged=len(results), usage=sum((verdict.usage for verdict in results.values()), Usage()))
    if len(results) < _FEWEST:
        return replace(nothing, note=f"only {len(results)} records got a verdict; {_FEWEST} are needed")
    counted = {verdict.votes for verdict in results.values()}
    if len(counted) > 1:
        return replace(nothing, note=f"{session.model.name} told token probabilities for some replies only; ask again, or give votes=3 or more")
    both = all(verdict.orders is not None for verdict in results.values())
    verdicts = {chosen[place].item_id: verdict for place, verdict in results.items()}
    trial, losses = await asyncio.to_thread(_tried, task.scale, given, verdicts, ballot, mirrored=both, expected_score=caution.expected_score)
    if trial is None:
        return replace(nothing, note="all labels are equal: nothing to fit")
    return replace(nothing, votes=counted.pop(), trial=trial, losses=losses)


async def _judged(
    session: Session,
    task: Task,
    chosen: Sequence[Stored],
    recall: Recall,
    temperature: float,
    caution: Caution,
    progress: Callable[[str, int, int], None],
) -> dict[int, Verdict]:
    results: dict[int, Verdict] = {}
    failures: list[Failure] = []
    done = 0
    work = in_flight(chosen, lambda stored: attempt(session, task, stored.feedback.item, recall, temperature=temperature, caution=caution))
    async for place, result in work:
        done += 1
        progress("calibrate", done, len(chosen))
        if isinstance(result, Verdict):
            results[place] = result
        else:
            failures.append(result)
    if not results and failures:
        raise ModelUnavailable(f"none of {len(failures)} records could be judged; the first: {failures[0].error}", attempts=len(failures))
    return results


def _given(held: Sequence[Stored], weight: Callable[[str], float]) -> Given:
    found: dict[str, dict[Any, float]] = {}
    for stored in held:
        said, value = found.setdefault(stored.item_id, {}), stored.feedback.value
        said[value] = said.pop(value, 0.0) + weight(stored.feedback.annotator)
    return found


def _tried(
    scale: Scale, given: Given, verdicts: Mapping[str, Verdict], ballot: Ballot | None, *, mirrored: bool, expected_score: bool
) -> tuple[Trial | None, dict[str, float]]:
    from memalign.trial import Judged, case_of, tried

    votes = {} if ballot is None else {item_id: tuple(map(float, ballot.left_out[row])) for item_id, row in ballot.place.items()}
    items = [item_id for item_id in given if item_id in verdicts or item_id in votes]
    cases, judged = [], []
    for place, item_id in enumerate(items):
        said, verdict, shares = given[item_id], verdicts.get(item_id), None
        if verdict is not None:
            bare = verdict.probabilities is None
            shares = verdict.probabilities or pooled(scale, [Answer(verdict.value, "", None)])[0]
            truth = max(reversed(said), key=said.__getitem__)
            judged.append(Judged(place=place, truth=truth, said=verdict.value, shares=shares, bare=bare, disputed=verdict.abstained))
        cases.append(case_of(scale, said, shares, votes.get(item_id, ())))
    trial = tried(scale, cases, judged, mirrored=mirrored, expected_score=expected_score)
    return trial, {} if trial is None else {items[record.place]: loss for record, loss in zip(judged, trial.losses, strict=True)}


def balanced_sample(records: Sequence[Stored], size: int) -> list[Stored]:
    """At most ``size`` records, the labels in turn, the newest first within a label; each item once. Deterministic."""
    newest = {stored.item_id: stored for stored in records}.values()
    by_label: dict[str, list[Stored]] = {}
    for stored in reversed(list(newest)):
        by_label.setdefault(str(stored.feedback.value), []).append(stored)
    queues = [by_label[label] for label in sorted(by_label)]
    turns = [queue[place] for place in range(max(map(len, queues), default=0)) for queue in queues if place < len(queue)]
    return turns[:size]
