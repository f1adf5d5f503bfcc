"""Taking over what was learned elsewhere: records and guidelines enter memory in one revision, and no chat model is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memalign.alignment.report import AlignReport
from memalign.memory import Memory, episodic, revisions, semantic, vectors
from memalign.memory.log import log_calls
from memalign.records import Feedback, GuidelineState
from memalign.rendering import search_text
from memalign.session import Meter, Session

if TYPE_CHECKING:
    from memalign.embedders import Vectors


@dataclass(frozen=True, slots=True)
class Learned:
    """A guideline with the ids of the records that it rests on."""

    text: str
    scope: str = ""
    evidence: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    state: GuidelineState = "active"
    pinned: bool = False


async def adopt(
    session: Session, feedback: Sequence[Feedback], guidelines: Sequence[Learned], *, unlearned: frozenset[str] = frozenset(), actor: str = ""
) -> AlignReport:
    """Let records and guidelines into memory as they are; ``unlearned`` are ids of records that are still to be distilled.

    Which records stood in the prompts that made the guidelines is not known, so all of them count as tainted by all. Raises what the embedder
    raises, before anything is stored.
    """
    meter = Meter()
    texts = {episodic.text_hash(record.item): search_text(record.item) for record in feedback}
    embedded = await session.vectors(meter, texts)
    return await asyncio.to_thread(_store, session.memory, list(feedback), list(guidelines), embedded, unlearned, meter, actor)


def _store(
    memory: Memory,
    feedback: list[Feedback],
    guidelines: list[Learned],
    embedded: Mapping[str, Vectors],
    unlearned: frozenset[str],
    meter: Meter,
    actor: str,
) -> AlignReport:
    judge_id = memory.judge_id
    with memory.store.writing() as connection:
        revision = revisions.current(connection, judge_id) + 1
        vectors.store(connection, memory.embedder, embedded)
        fresh = [record for record in feedback if episodic.record(connection, judge_id, record) != "unchanged"]
        replaced = episodic.live_rows(connection, judge_id, [record.id for record in fresh])
        episodic.retract(connection, list(replaced.values()), revision)
        entering = {stored.feedback.id: stored.row for stored in episodic.waiting(connection, judge_id) if stored.since is None}
        entering = {record.id: entering[record.id] for record in fresh}
        episodic.admit(connection, list(entering.values()), revision)
        episodic.mark_distilled(connection, [row for key, row in entering.items() if key not in unlearned], revision)
        rows = episodic.live_rows(connection, judge_id, [record.id for record in feedback])
        known = {semantic.normalised(g.text): g.id for g in semantic.at(connection, judge_id, revision) if g.state == "active"}
        added = []
        for guideline in guidelines:
            signs = {rows[key]: 1 for key in guideline.evidence if key in rows} | {rows[key]: -1 for key in guideline.against if key in rows}
            same = known.get(semantic.normalised(guideline.text))
            if same is not None:
                semantic.change(connection, judge_id, revision, same, signs=signs, taint=rows.values())
                continue
            own: dict[str, Any] = {"text": guideline.text, "scope": guideline.scope, "state": guideline.state, "pinned": guideline.pinned}
            added.append(semantic.add(connection, judge_id, revision, **own, signs=signs, taint=rows.values()))
        counts = {"admitted": len(fresh), "added": len(added)}
        revisions.commit(connection, judge_id, revision, verb="import", actor=actor, counts=counts)
        log_calls(connection, judge_id, meter.calls)
        held = {guideline.id: guideline for guideline in semantic.at(connection, judge_id, revision)}
        unconsumed = len(episodic.waiting(connection, judge_id))
    return AlignReport(
        revision=revision,
        new=len(fresh),
        unchanged=len(feedback) - len(fresh),
        added=tuple(held[key] for key in added),
        unconsumed=unconsumed,
        usage=meter.usage,
        cost_usd=meter.cost_usd,
        seconds=meter.seconds,
    )
