"""The verbs that change memory: record, distil, commit; and retract."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from memalign.alignment.distil import Distillation, Pace, distil
from memalign.alignment.report import AlignReport
from memalign.errors import MemalignError, NotFound
from memalign.memory import Memory, episodic, revisions, semantic, vectors
from memalign.memory.episodic import Stored
from memalign.memory.log import last_verdict, log_calls
from memalign.records import Feedback, Guideline
from memalign.rendering import search_text
from memalign.session import Meter, Session
from memalign.working import Task

if TYPE_CHECKING:
    from memalign.embedders import Vectors

Progress = Callable[[str, int, int], None]
"""Called with the stage ("distil", "judge" ...), how many are done, and of how many."""

_RECORDS_AT_ONCE = 500


@dataclass(slots=True)
class _Plan:
    """What an alignment found in memory before it asked anything."""

    waiting: list[Stored]
    again: list[Stored]
    """Evidence of guidelines that rest on a version about to be replaced: it is distilled again, without the old text."""
    guidelines: list[Guideline]
    """The active ones that will stay."""
    embedded: dict[str, Vectors] = field(default_factory=dict)


async def align(session: Session, task: Task, feedback: Iterable[Feedback], *, actor: str, pace: Pace, progress: Progress) -> AlignReport:
    """Learn from feedback, and from what an earlier alignment could not finish.

    Feedback is stored before anything is asked of a model, so no error loses it. Raises what the embedder raises; failures of distillation
    stand in the report.
    """
    meter = Meter()
    seen = await asyncio.to_thread(_record, session.memory, list(feedback))
    plan = await asyncio.to_thread(_plan, session.memory)
    learnable = [stored for stored in [*plan.waiting, *plan.again] if stored.feedback.rationale.strip() and _to_distil(stored, plan)]
    done = 0

    def count(records: int) -> None:
        nonlocal done
        done += records
        progress("distil", done, len(learnable))

    texts = {stored.content_hash: search_text(stored.feedback.item) for stored in plan.waiting if stored.since is None}
    embedding = asyncio.create_task(session.vectors(meter, texts))
    try:
        distilled = await distil(session, meter, task, learnable, plan.guidelines, pace=pace, progress=count)
        plan.embedded = await embedding
    except MemalignError:
        session.memory.log(meter.calls)  # what was paid for stands in the ledger, whatever came of it
        raise
    finally:
        embedding.cancel()
    return await asyncio.to_thread(_commit, session.memory, plan, distilled, seen, meter, actor)


async def unalign(session: Session, ids: Sequence[str], *, actor: str) -> AlignReport:
    """Retract records by id: out of retrieval and evidence; guidelines left without evidence retire. Raises NotFound before any change."""
    return await asyncio.to_thread(_retract, session.memory, list(dict.fromkeys(ids)), actor)


def _record(memory: Memory, feedback: list[Feedback]) -> Counter[str]:
    seen: Counter[str] = Counter()
    judge_id = memory.judge_id
    for start in range(0, len(feedback), _RECORDS_AT_ONCE):
        with memory.store.writing() as connection:
            for record in feedback[start : start + _RECORDS_AT_ONCE]:
                judged = last_verdict(connection, judge_id, record.item.id)
                seen[episodic.record(connection, judge_id, record, judged=judged)] += 1
    return seen


def _plan(memory: Memory) -> _Plan:
    judge_id = memory.judge_id
    with memory.store.reading() as connection:
        waiting = episodic.waiting(connection, judge_id)
        replaced = episodic.live_rows(connection, judge_id, [stored.feedback.id for stored in waiting if stored.since is None])
        old = list(replaced.values())
        again = episodic.by_rows(connection, sorted(semantic.remaining_evidence(connection, judge_id, old)))
        current = semantic.at(connection, judge_id, revisions.current(connection, judge_id))
    live = {stored.feedback.id for stored in waiting}
    return _Plan(
        waiting=waiting,
        again=[stored for stored in again if stored.feedback.id not in live],
        guidelines=[g for g in current if g.state == "active" and (g.pinned or not set(g.evidence_for) & set(replaced))],
    )


def _to_distil(stored: Stored, plan: _Plan) -> bool:
    return stored.distilled is None or stored in plan.again


def _commit(memory: Memory, plan: _Plan, distilled: Distillation, seen: Counter[str], meter: Meter, actor: str) -> AlignReport:
    """Put everything into memory at once. What another process consumed or retracted meanwhile is left out."""
    judge_id = memory.judge_id
    with memory.store.writing() as connection:
        before = revisions.current(connection, judge_id)
        still = episodic.undistilled(connection, [stored.row for stored in plan.waiting])
        silent = {stored.row for stored in [*plan.waiting, *plan.again] if not stored.feedback.rationale.strip()}
        admitted = [stored for stored in plan.waiting if stored.since is None and stored.row in still]
        revision, retired = before, list[str]()
        changed, joined = list[str](), list[str]()
        if admitted or still & (distilled.consumed | silent):
            revision = before + 1
            vectors.store(connection, memory.embedder, plan.embedded)
            replaced = list(episodic.live_rows(connection, judge_id, [stored.feedback.id for stored in admitted]).values())
            retired, again = semantic.without(connection, judge_id, revision, replaced, renew=True)
            episodic.mark_distilled(connection, sorted(again), None)
            episodic.retract(connection, replaced, revision)
            episodic.admit(connection, [stored.row for stored in admitted], revision)
            usable = {stored.row for stored in plan.waiting if stored.row in still} | again
            changed, joined, stranded = _apply(connection, judge_id, revision, distilled, usable)
            episodic.mark_distilled(connection, sorted((distilled.consumed | silent) & usable - stranded), revision)
            counts = {
                "admitted": len(admitted),
                "replaced": len(replaced),
                "added": len(changed),
                "joined": len(joined),
                "retired": len(retired),
            }
            revisions.commit(connection, judge_id, revision, verb="align", actor=actor, counts=counts)
        log_calls(connection, judge_id, meter.calls)
        guidelines = {guideline.id: guideline for guideline in semantic.at(connection, judge_id, revision)}
        contested = episodic.contested(connection, judge_id, revision)
        unconsumed = len(episodic.waiting(connection, judge_id))
    return AlignReport(
        revision=revision,
        new=seen["new"],
        changed=seen["changed"],
        unchanged=seen["unchanged"],
        added=tuple(guidelines[key] for key in changed),
        joined=tuple(guidelines[key] for key in joined),
        retired=tuple(guidelines[key] for key in retired),
        rejected=tuple(distilled.rejected),
        contested=tuple(contested),
        failed_batches=tuple(batch for batch, _ in distilled.failed),
        unconsumed=unconsumed,
        usage=meter.usage,
        cost_usd=meter.cost_usd,
        seconds=meter.seconds,
    )


def _apply(connection: Connection, judge_id: int, revision: int, distilled: Distillation, usable: set[int]) -> tuple[list[str], list[str], set[int]]:
    """Carry out the proposals whose evidence still holds; gives the ids of new guidelines and of those that gained evidence.

    Also the evidence of proposals for guidelines that another process retired meanwhile: it has to be distilled again.
    """
    current = {g.id: g for g in semantic.at(connection, judge_id, revision) if g.state == "active"}
    same = {semantic.normalised(guideline.text): guideline.id for guideline in current.values()}
    added, joined, stranded = list[str](), list[str](), set[int]()
    present = episodic.existing(connection, sorted(set[int]().union(*(proposal.taint for proposal in distilled.proposals))))
    for proposal in distilled.proposals:
        evidence, taint = proposal.evidence & usable, proposal.taint & present
        known = proposal.guideline_id or same.get(semantic.normalised(proposal.text))
        if not evidence:
            continue
        if known is not None and known not in current:
            stranded |= evidence
            continue
        if known is None:
            added.append(semantic.add(connection, judge_id, revision, text=proposal.text, scope=proposal.scope, evidence=evidence, taint=taint))
        else:
            semantic.support(connection, judge_id, revision, known, evidence=evidence, taint=taint)
            joined.append(known)
    return added, list(dict.fromkeys(joined)), stranded


def _retract(memory: Memory, ids: list[str], actor: str) -> AlignReport:
    meter, judge_id = Meter(), memory.judge_id
    with memory.store.writing() as connection:
        before = revisions.current(connection, judge_id)
        rows = episodic.live_rows(connection, judge_id, ids)
        never_committed = episodic.drop_waiting(connection, judge_id, ids)
        unknown = [key for key in ids if key not in rows and key not in never_committed]
        if unknown:
            raise NotFound(f"no feedback {', '.join(map(repr, unknown[:5]))} in judge {memory.name!r}; nothing was changed")
        revision, retired = before, list[str]()
        if rows:
            revision = before + 1
            retired, _ = semantic.without(connection, judge_id, revision, list(rows.values()), renew=False)
            episodic.retract(connection, list(rows.values()), revision)
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
