"""Utility: what each guideline is worth, by judging records again without it (leave one out)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from memalign.alignment.gate import Case, sample
from memalign.alignment.verify import Replay
from memalign.engines import in_flight
from memalign.memory import Memory, semantic
from memalign.records import Failure, Feedback, Guideline, Verdict
from memalign.scale import Scale
from memalign.session import Meter, Session
from memalign.working import Task

RECORDS = 12
"""Judged again without a guideline: half of them such that it rests on them."""

Progress = Callable[[str, int, int], None]


async def utilities(
    replay: Replay,
    meter: Meter,
    scale: Scale,
    guidelines: Sequence[Guideline],
    records: Sequence[Feedback],
    *,
    progress: Progress,
    size: int | None = RECORDS,
) -> dict[str, float]:
    """Guideline id -> net verdicts that are right with all of ``guidelines`` and wrong without this one; below 0 it does harm.

    On ordinal scales a verdict counts by its distance from the expert's, from 0 to 1. A record's own case is hidden; each guideline is
    measured on at most ``size`` records (None: all). One without two verdicts on any record is left out of the result.
    """
    measured = {guideline.id: sample(scale, _cases(guideline, records), size) for guideline in guidelines}
    items = {case.record.item.id: case for cases in measured.values() for case in cases}
    pairs = [(guideline, case) for guideline in guidelines for case in measured[guideline.id]]
    total, done = len(items) + len(pairs), 0

    async def far(pair: tuple[Guideline | None, Case]) -> float | None:
        """How far the verdict is from the expert's without a guideline."""
        nonlocal done
        left_out, case = pair
        verdict: Verdict | Failure = await replay(meter, case.record.item, [g for g in guidelines if left_out is None or g.id != left_out.id])
        done += 1
        progress("utility", done, total)
        return None if isinstance(verdict, Failure) else scale.distance(case.record.value, verdict.value)

    everyone: list[tuple[Guideline | None, Case]] = [(None, case) for case in items.values()]
    with_all = {everyone[place][1].record.item.id: found async for place, found in in_flight(everyone, far)}
    gains: dict[str, list[float]] = {}
    async for place, without in in_flight(pairs, far):
        guideline, case = pairs[place]
        within = with_all[case.record.item.id]
        if without is not None and within is not None:
            gains.setdefault(guideline.id, []).append(without - within)
    return {key: sum(found) for key, found in sorted(gains.items())}


async def measure(session: Session, task: Task, replay: Replay, *, size: int | None, progress: Progress) -> dict[str, float]:
    """Measure the active guidelines on what experts of any weight judged, and note what they are worth with them; see ``utilities``."""
    meter, memory = Meter(), session.memory
    guidelines, held = await asyncio.to_thread(lambda: (memory.guidelines(), memory.stored()))
    heard = [stored.feedback for stored in held if memory.weight(stored.feedback.annotator) > 0]
    try:
        found = await utilities(replay, meter, task.scale, guidelines, heard, size=size, progress=progress)
    finally:
        memory.log(meter.calls)
    await asyncio.to_thread(_note, memory, found)
    return found


def _note(memory: Memory, found: dict[str, float]) -> None:
    judge_id = memory.judge_id
    with memory.store.writing() as connection:
        semantic.measured(connection, judge_id, found)


def _cases(guideline: Guideline, records: Sequence[Feedback]) -> list[Case]:
    rests = {*guideline.evidence_for, *guideline.evidence_against}
    return [Case(record=record, changes=frozenset({0}) if record.id in rests else frozenset()) for record in records]
