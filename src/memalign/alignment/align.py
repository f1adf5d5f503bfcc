"""The verbs that change memory: record, screen, distil, relate, verify, commit; and retract."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from memalign.alignment.asking import Pace
from memalign.alignment.budget import Limits
from memalign.alignment.commit import commit
from memalign.alignment.distil import Distilling
from memalign.alignment.plan import HELD, Plan
from memalign.alignment.proving import named, prove
from memalign.alignment.report import AlignReport
from memalign.alignment.screen import missed, screen
from memalign.alignment.verify import Trying
from memalign.errors import MemalignError, NotFound
from memalign.memory import Memory, drafts, episodic, questions, revisions, semantic
from memalign.memory.episodic import Stored
from memalign.memory.log import last_verdict
from memalign.records import Feedback
from memalign.rendering import search_text
from memalign.session import Meter, Session
from memalign.working import Task

if TYPE_CHECKING:
    from memalign.embedders import Vectors

Progress = Callable[[str, int, int], None]
"""Called with the stage ("screen", "distil" ...), how many are done, and of how many."""

_RECORDS_AT_ONCE = 500


async def align(
    session: Session,
    task: Task,
    feedback: Iterable[Feedback],
    *,
    trying: Trying,
    screening: bool,
    actor: str,
    pace: Pace,
    limits: Limits,
    progress: Progress,
) -> AlignReport:
    """Learn from feedback, and from what an earlier alignment could not finish.

    Feedback is stored before anything is asked of a model, so no error loses it. ``screening``: the judge is asked about each new record
    first; without it, only logged verdicts tell where it erred. Raises what the embedder raises; a failure of screening or distillation stands in
    the way of nothing else.
    """
    meter = Meter()
    seen = await asyncio.to_thread(_record, session.memory, list(feedback))
    plan = await asyncio.to_thread(_plan, session.memory)
    texts = {stored.content_hash: search_text(stored.feedback.item) for stored in plan.waiting if stored.since is None}
    embedding = asyncio.create_task(session.vectors(meter, texts))
    try:
        if screening:
            opinion = partial(trying.replay, guidelines=None, purpose="screen")
            plan.waiting = await screen(session.memory, meter, opinion, plan.waiting, partial(progress, "screen"))
        learnable = [stored for stored in [*plan.waiting, *plan.again] if stored.feedback.rationale.strip() and _to_distil(stored, plan)]
        near = await _near(session, meter, learnable, embedding) if any(map(missed, learnable)) else {}
        counter = _Counter(progress, len(learnable))
        distilling = Distilling(session=session, meter=meter, task=task, plan=plan, pace=pace, personal=limits.personal_data, progress=counter.add)
        distilled = await distilling.run(learnable, near)
        plan.embedded = await embedding | distilled.vectors
        proof = await prove(trying, session.memory, meter, task, plan, distilled, limits, progress=progress)
    except MemalignError:
        session.memory.log(meter.calls)  # what was paid for stands in the ledger, whatever came of it
        raise
    finally:
        embedding.cancel()
    return named(await asyncio.to_thread(commit, session.memory, plan, distilled, seen, meter, limits, actor=actor), proof)


class _Counter:
    """Counts the records that are distilled."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, records: int) -> None:
        self._done += records
        self._progress("distil", self._done, self._total)


async def _near(session: Session, meter: Meter, records: Sequence[Stored], embedding: asyncio.Task[dict[str, Vectors]]) -> dict[str, Vectors]:
    """The vectors of records, by content hash, once the new ones are there."""
    await asyncio.shield(embedding)
    return await session.vectors(meter, {stored.content_hash: search_text(stored.feedback.item) for stored in records})


async def unalign(session: Session, ids: Sequence[str], *, actor: str) -> AlignReport:
    """Retract records by id: out of retrieval and evidence; guidelines left without evidence retire. Raises NotFound before any change."""
    return await asyncio.to_thread(_retract, session.memory, list(dict.fromkeys(ids)), actor)


def _record(memory: Memory, feedback: list[Feedback]) -> Counter[str]:
    seen: Counter[str] = Counter()
    judge_id = memory.judge_id
    for start in range(0, len(feedback), _RECORDS_AT_ONCE):
        with memory.store.writing(judge_id) as connection:
            for record in feedback[start : start + _RECORDS_AT_ONCE]:
                judged = last_verdict(connection, judge_id, record.item.id)
                seen[episodic.record(connection, judge_id, record, judged=judged)] += 1
    return seen


def _plan(memory: Memory) -> Plan:
    judge_id = memory.judge_id
    with memory.store.reading() as connection:
        waiting = episodic.waiting(connection, judge_id)
        replaced = episodic.live_rows(connection, judge_id, [stored.feedback.id for stored in waiting if stored.since is None])
        old = list(replaced.values())
        again = episodic.by_rows(connection, sorted(semantic.remaining_evidence(connection, judge_id, old)))
        current = semantic.at(connection, judge_id, revisions.current(connection, judge_id))
    live = {stored.feedback.id for stored in waiting}
    return Plan(
        waiting=waiting,
        again=[stored for stored in again if stored.feedback.id not in live],
        guidelines=[g for g in current if g.state in HELD and (g.pinned or not set(g.evidence_for) & set(replaced))],
    )


def _to_distil(stored: Stored, plan: Plan) -> bool:
    return stored.distilled is None or stored in plan.again


def _retract(memory: Memory, ids: list[str], actor: str) -> AlignReport:
    meter, judge_id = Meter(), memory.judge_id
    with memory.store.writing(judge_id) as connection:
        before = revisions.current(connection, judge_id)
        rows = episodic.live_rows(connection, judge_id, ids)
        never_committed = episodic.drop_waiting(connection, judge_id, ids)
        unknown = [key for key in ids if key not in rows and key not in never_committed]
        if unknown:
            raise NotFound(f"no feedback {', '.join(map(repr, unknown[:5]))} in judge {memory.name!r}; nothing was changed")
        revision, retired = before, list[str]()
        if rows:
            revision = before + 1
            drafts.discard(connection, judge_id, rows.values())
            retired, _ = semantic.without(connection, judge_id, revision, list(rows.values()), renew=False)
            episodic.retract(connection, list(rows.values()), revision)
            questions.settle(connection, judge_id, revision)
            counts = {"withdrawn": len(rows), "retired": len(retired)}
            revisions.commit(connection, judge_id, revision, verb="unalign", actor=actor, counts=counts)
        guidelines = {guideline.id: guideline for guideline in semantic.at(connection, judge_id, revision)}
        unconsumed = len(episodic.waiting(connection, judge_id))
    return AlignReport(
        revision=revision,
        withdrawn=len(ids),
        retired=tuple(guidelines[key] for key in retired),
        unconsumed=unconsumed,
        seconds=meter.seconds,
    )
