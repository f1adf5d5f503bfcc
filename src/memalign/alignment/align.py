"""The verb that learns: record, screen, distil, relate, verify, commit."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from memalign.alignment.asking import Pace
from memalign.alignment.budget import Limits
from memalign.alignment.commit import commit
from memalign.alignment.distil import Distilling
from memalign.alignment.embed import Refused, embed
from memalign.alignment.plan import HELD, Plan
from memalign.alignment.proving import named, prove
from memalign.alignment.report import AlignReport, FailedBatch
from memalign.alignment.screen import screen
from memalign.alignment.verify import Trying
from memalign.errors import MemalignError, StoreBusy
from memalign.memory import Memory, episodic, revisions, semantic, tombstones
from memalign.memory.episodic import Stored
from memalign.memory.log import last_verdicts
from memalign.memory.replaced import carriers
from memalign.records import Feedback
from memalign.rendering import search_text
from memalign.session import Meter, Session
from memalign.working import Task

if TYPE_CHECKING:
    from memalign.embedders import Vectors

Progress = Callable[[str, int, int], None]
"""Called with the stage ("screen", "distil" ...), how many are done, and of how many."""

_RECORDS_AT_ONCE = 500
_ATTEMPTS = 3


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
    first; without it, only logged verdicts tell where it erred. Raises what the embedder raises, unless it refuses single texts: their records
    wait; a failure of screening or distillation stands in the way of nothing else.
    """
    meter = Meter()
    seen = await asyncio.to_thread(record, session.memory, list(feedback))
    refused = dict[str, FailedBatch]()
    learn = partial(_learn, session, task, seen, refused, meter, trying)
    for _ in range(_ATTEMPTS):
        report = await learn(screening=screening, actor=actor, pace=pace, limits=limits, progress=progress)
        if report is not None:
            return report
    raise StoreBusy("memory was purged again and again while this align was under way; its feedback is stored: run align again")


async def _learn(
    session: Session,
    task: Task,
    seen: Counter[str],
    refused: dict[str, FailedBatch],
    meter: Meter,
    trying: Trying,
    *,
    screening: bool,
    actor: str,
    pace: Pace,
    limits: Limits,
    progress: Progress,
) -> AlignReport | None:
    """Distil what waits, and commit it; None when a purge came between: what models said before it is thrown away, since it may rest on what went.

    None, too, when the embedder turned out to refuse some texts: they are put with ``refused``, whose records are left out.
    """
    plan = await asyncio.to_thread(_plan, session.memory, task.instructions, refused)
    texts = {stored.content_hash: search_text(stored.feedback.item) for stored in plan.waiting if stored.since is None}
    embedding = asyncio.create_task(embed(session, meter, texts))
    try:
        if sum(stored.since is None for stored in plan.waiting) > seen["new"] + seen["changed"]:  # what was refused before is not distilled again
            await asyncio.shield(embedding)
        if screening:
            opinion = partial(trying.replay, guidelines=None, purpose="screen")
            plan.waiting = await screen(session.memory, meter, opinion, plan.waiting, partial(progress, "screen"))
        learnable = [stored for stored in [*plan.waiting, *plan.again] if stored.feedback.rationale.strip() and _to_distil(stored, plan)]
        near = await _near(session, meter, learnable, embedding) if any(stored.missed(task.scale) for stored in learnable) else {}
        counter = _Counter(progress, len(learnable))
        distilling = Distilling(session=session, meter=meter, task=task, plan=plan, pace=pace, personal=limits.personal_data, progress=counter.add)
        distilled = await distilling.run(learnable, near)
        distilled.failed += refused.values()
        plan.embedded = await embedding | distilled.vectors
        proof = await prove(trying, session.memory, meter, task, plan, distilled, limits, progress=progress)
    except Refused as found:
        refused |= found.batches(plan.waiting, session.embedder.id)
        return None
    except MemalignError:
        session.memory.log(meter.calls)  # what was paid for stands in the ledger, whatever came of it
        raise
    finally:
        embedding.cancel()
    report = await asyncio.to_thread(commit, session.memory, plan, distilled, seen, meter, limits, actor=actor)
    if report is None:
        return None
    unread = proof.replays > 0 and not (await asyncio.to_thread(session.memory.view)).decision.of(session.model.name).guidelines
    return named(report, proof, unread=unread)


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


def record(memory: Memory, feedback: Sequence[Feedback]) -> Counter[str]:
    """Store feedback durably, to be learned by the next ``align``; gives how much was new, changed, unchanged and purged."""
    seen: Counter[str] = Counter()
    judge_id = memory.judge_id
    for start in range(0, len(feedback), _RECORDS_AT_ONCE):
        with memory.store.writing(judge_id) as connection:
            batch = feedback[start : start + _RECORDS_AT_ONCE]
            buried = tombstones.buried(connection, judge_id, [one.id for one in batch])
            seen["purged"] += sum(one.id in buried for one in batch)
            judged = last_verdicts(connection, judge_id, [one.item.id for one in batch])
            for one in (one for one in batch if one.id not in buried):
                seen[episodic.record(connection, judge_id, one, judged=judged.get(one.item.id))] += 1
    return seen


def _plan(memory: Memory, instructions: str, refused: Collection[str]) -> Plan:
    judge_id = memory.judge_id
    with memory.store.reading() as connection:
        waiting = [one for one in episodic.waiting(connection, judge_id) if one.since is not None or one.content_hash not in refused]
        replaced = episodic.live_rows(connection, judge_id, [stored.feedback.id for stored in waiting if stored.since is None])
        old = list(replaced.values())
        again = episodic.by_rows(connection, sorted(semantic.remaining_evidence(connection, judge_id, old)))
        revision, purged = revisions.standing(connection, judge_id)
        current = semantic.at(connection, judge_id, revision)
        live = {stored.feedback.id for stored in waiting}
        again = [stored for stored in again if stored.feedback.id not in live]
        staying = [g for g in current if g.state in HELD and (g.pinned or not set(g.evidence_for) & set(replaced))]
        withheld = carriers(connection, judge_id, [*waiting, *again], staying, instructions=instructions)
        weights = episodic.weighed(connection, judge_id, memory.weights)
    return Plan(waiting=waiting, again=again, guidelines=staying, withheld=withheld, purged=purged, weights=weights)


def _to_distil(stored: Stored, plan: Plan) -> bool:
    return stored.distilled is None or stored in plan.again
