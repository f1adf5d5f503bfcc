"""The verbs that take back: retract, purge, and what each would touch."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from memalign.alignment.withdrawal import Verb, Withdrawal
from memalign.errors import MemalignError, NotFound
from memalign.memory import Memory, episodic, purging, revisions, semantic
from memalign.memory.retention import Retention, expired
from memalign.memory.scrubbing import scrub
from memalign.memory.selection import Selection, select_records
from memalign.records import Guideline, content_hash
from memalign.session import Meter, Session


async def find(session: Session, selection: Selection) -> Selection:
    """A selection whose ``like`` is looked up: the items nearest to it in meaning. Raises what the embedder raises."""
    if selection.like is None:
        return selection
    key = content_hash(selection.like)
    space = await session.reader(Meter())
    view = await asyncio.to_thread(space.memory.view)
    query = (await space.vectors(Meter(), {key: selection.like}))[key]
    cases = await asyncio.to_thread(space.memory.cases, view, "", query, k=selection.nearest, floor=-1.0, own=False)
    return replace(selection, item_ids=frozenset(episode.item_id for episode in cases.episodes))


def preview(memory: Memory, selection: Selection, verb: Verb, *, instructions: str) -> Withdrawal:
    """What a verb would touch; nothing is changed. Raises NotFound."""
    judge_id = memory.judge_id
    with memory.store.reading() as connection:
        records = select_records(connection, judge_id, selection, versions="every" if verb == "purge" else "held")
        found = purging.closure(connection, judge_id, records, instructions=instructions, everything=selection.everything)
        revision = revisions.current(connection, judge_id)
    gone = set(found.ids)
    retired = [g for g in found.by_evidence if not g.pinned and g.evidence_for and gone.issuperset(g.evidence_for)] if verb == "unalign" else []
    return Withdrawal(
        verb=verb,
        done=False,
        revision=revision,
        withdrawn=len(found.ids),
        versions=len(records),
        records=tuple(found.ids),
        by_evidence=found.by_evidence,
        by_taint=found.by_taint,
        retired=tuple(retired),
        verdicts=len(found.verdict_rows),
    )


def unalign(memory: Memory, selection: Selection, *, actor: str) -> Withdrawal:
    """Retract records: out of retrieval and evidence; guidelines left without evidence retire. Raises NotFound before any change."""
    meter, judge_id = Meter(), memory.judge_id
    with memory.store.writing(judge_id) as connection:
        records = select_records(connection, judge_id, selection, versions="held")
        ids = list(dict.fromkeys(stored.feedback.id for stored in records))
        revision, retired, resting = revisions.current(connection, judge_id), list[str](), list[Guideline]()
        held = [stored for stored in records if stored.since is not None]
        episodic.drop_waiting(connection, judge_id, records)
        if held:
            resting = semantic.resting_on(connection, judge_id, revision, [stored.row for stored in held])
            revision += 1
            retired = purging.retract(connection, judge_id, revision, held, verb="unalign", actor=actor)
        guidelines = {guideline.id: guideline for guideline in semantic.at(connection, judge_id, revision)}
        unconsumed = len(episodic.waiting(connection, judge_id))
    return Withdrawal(
        verb="unalign",
        done=True,
        revision=revision,
        withdrawn=len(ids),
        versions=len(records),
        records=tuple(ids),
        by_evidence=tuple(resting),
        retired=tuple(guidelines[key] for key in retired),
        unconsumed=unconsumed,
        seconds=meter.seconds,
    )


def purge(memory: Memory, selection: Selection, *, actor: str, instructions: str) -> Withdrawal:
    """Delete records with all that came from them, at once for every reader, then from the disk; what remains waits to be distilled again.

    Raises NotFound before any change; a disk that cannot be cleared yet stands in the report.
    """
    meter, judge_id = Meter(), memory.judge_id
    with memory.store.writing(judge_id) as connection:
        records = select_records(connection, judge_id, selection, versions="every")
        found = purging.closure(connection, judge_id, records, instructions=instructions, everything=selection.everything)
        revision, retired = revisions.current(connection, judge_id), list[str]()
        if records or found.guideline_rows:
            revision += 1
            retired = purging.purge(connection, judge_id, revision, found, actor=actor)
        guidelines = {guideline.id: guideline for guideline in semantic.at(connection, judge_id, revision)}
        unconsumed = len(episodic.waiting(connection, judge_id))
    memory.view()  # lets go of what this process holds in RAM
    erased, residue, note = _erased(memory, found)
    return Withdrawal(
        verb="purge",
        done=True,
        revision=revision,
        withdrawn=len(found.ids),
        versions=len(records),
        by_evidence=tuple(map(_nameless, found.by_evidence)),
        by_taint=tuple(map(_nameless, found.by_taint)),
        retired=tuple(_nameless(guidelines[key]) for key in retired),
        verdicts=len(found.verdict_rows),
        unconsumed=unconsumed,
        erased=erased,
        residue=residue,
        note=note,
        seconds=meter.seconds,
    )


def overwritable(memory: Memory, ids: list[str]) -> None:
    """Check that all records can be overwritten, whether they were learned or still wait. Raises NotFound naming those that cannot."""
    with memory.store.reading() as connection:
        known = episodic.known_ids(connection, memory.judge_id, ids)
    unknown = [each for each in ids if each not in known]
    if unknown:
        named = ", ".join(map(repr, unknown[:5])) + (" ..." if len(unknown) > 5 else "")
        raise NotFound(
            f"no feedback {named} to overwrite in judge {memory.name!r} ({len(unknown)} of {len(ids)} unknown); "
            "nothing was changed; use align for a new record"
        )


def beyond(memory: Memory, rule: Retention) -> Selection:
    """The records beyond a rule's limits; selects nothing when there are none."""
    with memory.store.reading() as connection:
        return Selection.of(expired(connection, memory.judge_id, rule))


def _erased(memory: Memory, found: purging.Closure) -> tuple[bool, dict[str, int], str]:
    """Clear the disk and search it; whether it is cleared, what was found, and what went wrong."""
    try:
        scrub(memory.store)
        return True, dict(memory.store.find(found.passages)), ""
    except MemalignError as error:
        return False, {}, f"purged, and no judgement sees it, but its bytes could not be cleared from the disk yet: {error}"


def _nameless(guideline: Guideline) -> Guideline:
    return replace(guideline, text="", scope="", evidence_for=(), evidence_against=())
