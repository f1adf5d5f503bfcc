"""Distillation: from experts' reasons to proposed changes of semantic memory, in batches that fail one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memalign.alignment.asking import Pace, ask
from memalign.alignment.batches import Case, batches, cases, paired
from memalign.alignment.drafted import Drafted, carry_out, drafted, listed, read_draft, written
from memalign.alignment.joining import Joining
from memalign.alignment.operations import Rejected, check
from memalign.alignment.opposites import alone, beside, opposites
from memalign.alignment.plan import Plan, Proposal
from memalign.alignment.relate import SAME, Held, Relations, alike, calls, named, nominated, together
from memalign.alignment.report import FailedBatch
from memalign.alignment.support import unsupported
from memalign.errors import MemalignError, ModelUnavailable
from memalign.memory import Memory, drafts, episodic
from memalign.memory.episodic import Stored
from memalign.records import Guideline, content_hash
from memalign.rendering import item_text
from memalign.session import Meter, Session
from memalign.working import Task

if TYPE_CHECKING:
    from memalign.embedders import Vectors


@dataclass(slots=True)
class Distillation:
    """What came out of all batches."""

    proposals: list[Proposal] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    failed: list[FailedBatch] = field(default_factory=list)
    consumed: set[int] = field(default_factory=set)
    """Rows of the records whose batch succeeded."""
    unrelated: list[str] = field(default_factory=list)
    """Why new guidelines were not compared with those there are, for each call that failed, or had no room for all that are alike."""
    vectors: dict[str, Vectors] = field(default_factory=dict)
    """Content hash -> vector of the guidelines that were compared."""


@dataclass(slots=True, kw_only=True)
class Distilling:
    """One distillation: what it works with, and what has come out so far."""

    session: Session
    meter: Meter
    task: Task
    plan: Plan
    pace: Pace
    personal: bool
    """Whether guidelines may hold what looks like personal data."""
    progress: Callable[[int], None]
    """Hears how many records are done."""
    result: Distillation = field(default_factory=Distillation)
    opposites: Mapping[int, Stored] = field(default_factory=dict)
    """Row of an error -> a case of memory that is shown beside it."""
    resumed: bool = False
    """Whether an earlier alignment's batches were taken up: they do not wait for a comparison again."""

    async def run(self, records: Sequence[Stored], vectors: Mapping[str, Vectors]) -> Distillation:
        """Distil records that have reasons. Errors of a batch are kept in the result, those of the embedder are raised.

        Every batch that succeeds is kept in the store until it is committed, so that it is never paid for twice. ``vectors``: of the
        records' items by content hash, to pair errors with their nearest opposites; may be empty.
        """
        try:
            await self._distil(records, vectors)
        except _Uncompared as error:
            self._put_off(records, error)
        return self.result

    async def _distil(self, records: Sequence[Stored], vectors: Mapping[str, Vectors]) -> None:
        records = await asyncio.to_thread(self._drafts, self._without_praise(records))
        found = cases(records, self.task.scale, shown=self.pace.alike)
        rounds = batches(paired(found, vectors, self.task.scale), self.pace.cases_a_call(len(found)))
        if not self.pace.gist:
            await self._relate(0)
            await self._look_up(alone(rounds, self.task.scale), vectors)
        for first in range(0, len(rounds), self.pace.width):
            seen = listed(self._readable, self.result.proposals)
            before = len(self.result.proposals)
            wave = enumerate(rounds[first : first + self.pace.width], start=first)
            await asyncio.gather(*(self._batch(number, batch, seen) for number, batch in wave))
            if not self.pace.gist:
                await self._relate(before)
        if self.pace.gist:
            await self._relate(0)

    def _put_off(self, records: Sequence[Stored], error: _Uncompared) -> None:
        """Propose nothing now: what the batches gave is kept in the store, and the next alignment takes it up from there."""
        failed = FailedBatch(feedback_ids=tuple(stored.feedback.id for stored in records), error=str(error), retryable=True)
        self.result = Distillation(failed=[failed], vectors=self.result.vectors)

    async def _look_up(self, errors: Sequence[Stored], vectors: Mapping[str, Vectors]) -> None:
        if errors:
            known = {stored.feedback.id for stored in self.plan.records.values()}
            self.opposites = await asyncio.to_thread(opposites, self.session.memory, self.task.scale, errors, vectors, known)

    def _without_praise(self, records: Sequence[Stored]) -> Sequence[Stored]:
        if not self.pace.gist or self.task.scale.kind != "boolean":
            return records
        praise = [stored for stored in records if stored.feedback.value]
        self.result.consumed |= {stored.row for stored in praise}
        self.progress(len(praise))
        return [stored for stored in records if not stored.feedback.value]

    def _drafts(self, records: Sequence[Stored]) -> list[Stored]:
        """Take up what an earlier alignment paid for but did not commit; gives the records that are left."""
        memory = self.session.memory
        with memory.store.reading() as connection:
            found = drafts.waiting(connection, memory.judge_id, self._key(), {stored.row for stored in records})
        self.resumed = bool(found)
        for place, draft in enumerate(found):
            operations, rejected, shown = read_draft(draft.content)
            self._take(-2 - place, operations, rejected, set(draft.rows), shown)
            self.progress(len(draft.rows))
        return [stored for stored in records if stored.row not in self.result.consumed]

    async def _batch(self, number: int, batch: Sequence[Case], seen: Sequence[Guideline]) -> None:
        rows = set[int]().union(*(case.rows for case in batch))
        others = beside(batch, self.opposites)
        shown = {other.stored.row for other in others}
        try:
            read = [case.stored for case in batch]
            proposals = await ask(self.session, self.meter, self.task, self.pace, read, [len(case.rows) for case in batch], seen, others)
            accepted, rejected = check(
                proposals,
                texts=list(map(_read, read)),
                beside=[_read(other.stored) for other in others],
                known_ids=[guideline.id for guideline in seen],
                labels=self.task.scale.labels,
                personal=self.personal,
            )
            operations = [drafted(operation, batch, seen) for operation in accepted]
            content = written(operations, rejected, shown)
            await asyncio.shield(asyncio.to_thread(_keep, self.session.memory, self._key(), rows, content, self.plan))
        except Exception as error:  # also of a model that breaks its contract: it must not take the other batches with it
            failed = FailedBatch(
                feedback_ids=tuple(self.plan.records[row].feedback.id for row in sorted(rows)),
                error=str(error) if isinstance(error, MemalignError) else f"{type(error).__name__}: {error}",
                retryable=isinstance(error, MemalignError) and error.retryable,
            )
            self.result.failed.append(failed)
        else:
            self._take(number, operations, rejected, rows, shown)
        finally:
            self.progress(len(rows))

    def _take(self, number: int, operations: Sequence[Drafted], rejected: Sequence[Rejected], rows: set[int], shown: set[int]) -> None:
        self.result.rejected += rejected
        self.result.consumed |= rows
        for operation in operations:
            carry_out(self.result.proposals, operation, taint=rows | shown, batch=number)

    async def _relate(self, first: int) -> None:
        """Compare the proposals from one place on with what is there: reject what nothing supports, join, narrow, settle."""
        await self._check_wordings()
        fresh = [proposal for proposal in self.result.proposals[first:] if proposal.text and proposal.guideline_id is None]
        if not fresh:
            return
        unfounded = await unsupported(self.session, self.meter, fresh, self.plan.records)
        self.result.rejected += [Rejected(proposal.text, reason) for proposal, reason in unfounded]
        dropped = [proposal for proposal, _ in unfounded]
        self.result.proposals = [proposal for proposal in self.result.proposals if proposal not in dropped]
        fresh = [proposal for proposal in fresh if proposal not in dropped]
        older = [p for p in self.result.proposals if p.text and p.guideline_id is None and p.state != "superseded" and p not in fresh]
        readable = self.plan.guidelines if self.pace.gist else self._readable
        await self._compare([Held(g.text, guideline=g) for g in readable], [Held(p.text, proposal=p) for p in [*older, *fresh]])
        if len(readable) < len(self.plan.guidelines):
            await self._compare_unread([p for p in fresh if p in self.result.proposals and p.guideline_id is None and p.state is None])

    async def _check_wordings(self) -> None:
        """Leave guidelines as they are worded where nothing supports the new wording; its records count as evidence for the old one."""
        reworded = [proposal for proposal in self.result.proposals if proposal.text and proposal.guideline_id is not None]
        for proposal, reason in await unsupported(self.session, self.meter, reworded, self.plan.records):
            self.result.rejected.append(Rejected(proposal.text, reason))
            proposal.text = proposal.scope = ""

    @property
    def _readable(self) -> list[Guideline]:
        return [guideline for guideline in self.plan.guidelines if guideline.id not in self.plan.withheld]

    async def _compare(self, known: Sequence[Held], proposed: Sequence[Held]) -> None:
        """Relate proposals to guidelines and to each other, and act on it."""
        held = [*known, *proposed]
        if len({one.proposal.batch if one.proposal else None for one in held}) < 2 and not self.pace.gist:
            return  # a batch's own proposals know each other
        await self._embed(held)
        if self.pace.gist:
            await self._act(held, alike(held, self.result.vectors))
        elif pairs := nominated(held, self.result.vectors):
            await self._act(held, await self._named(held, pairs))

    async def _named(self, held: Sequence[Held], pairs: Sequence[tuple[int, int]]) -> Relations:
        """What a model says of nominated pairs; those of a call that fails stay apart, and the result tells of them."""
        asked = calls(pairs)
        if left := len(pairs) - sum(map(len, asked)):
            self.result.unrelated.append(f"{left} of {len(pairs)} pairs that are alike found no room in {len(asked)} calls")
        found = await asyncio.gather(*(named(self.session, self.meter, held, some) for some in asked), return_exceptions=True)
        for error in (one for one in found if isinstance(one, BaseException)):
            if isinstance(error, ModelUnavailable) and not self.resumed:
                raise _Uncompared(f"what was distilled could not be compared with the guidelines there are: {error}") from error
            if not isinstance(error, Exception):
                raise error
            # guidelines that stay apart say a thing twice; those joined wrongly would be lost
            self.result.unrelated.append(str(error) if isinstance(error, MemalignError) else f"{type(error).__name__}: {error}")
        return together([one for one in found if isinstance(one, Relations)])

    async def _compare_unread(self, fresh: Sequence[Proposal]) -> None:
        """Relate proposals to the guidelines that are withheld from models: without one that reads both, only what is all but the same is joined."""
        known = [Held(guideline.text, guideline=guideline) for guideline in self.plan.guidelines if guideline.id in self.plan.withheld]
        for proposal in fresh:
            held = [*known, Held(proposal.text, proposal=proposal)]
            await self._embed(held)
            await self._act(held, alike(held, self.result.vectors, least=SAME))

    async def _embed(self, held: Sequence[Held]) -> None:
        self.result.vectors |= await self.session.vectors(self.meter, {content_hash(one.text): one.text for one in held})

    async def _act(self, held: Sequence[Held], relations: Relations) -> None:
        contested = [held[place].guideline for found in relations.conflicts for place in found[:2]]
        memory, records = self.session.memory, self.plan.records
        support = await asyncio.to_thread(_records_of, memory, [guideline for guideline in contested if guideline is not None])
        involved = [*records.values(), *(stored for found in support.values() for stored in found)] if contested else []
        restated = await asyncio.to_thread(_restated, memory, involved)
        reworded = {p.guideline_id for p in self.result.proposals if p.text and p.guideline_id is not None}
        joining = Joining(
            held,
            support,
            records,
            restated=restated,
            reworded=reworded,
            weight=memory.weight,
            labels=self.task.scale.labels,
            personal=self.personal,
        )
        joining.act(relations)
        self.result.proposals = [proposal for proposal in self.result.proposals if proposal not in joining.gone]

    def _key(self) -> str:
        asked = (self.session.reflection_model.name, self.task.instructions, self.task.scale.labels, self.pace.gist, self.personal)
        return content_hash(*asked, *([sorted(self.plan.withheld)] if self.plan.withheld else []))


class _Uncompared(Exception):
    """New guidelines could not be compared with others, but perhaps can be soon: they are put off once."""


def _read(stored: Stored) -> str:
    """What a model reads of a record."""
    return f"{item_text(stored.feedback.item)}\n{stored.feedback.rationale}"


def _keep(memory: Memory, key: str, rows: set[int], content: object, plan: Plan) -> None:
    read = [stored for stored in [*plan.again, *plan.waiting] if stored.row in rows]
    with memory.store.writing() as connection:
        if episodic.existing(connection, memory.judge_id, read).keys() == rows:
            drafts.keep(connection, memory.judge_id, key, rows, content, purged=plan.purged)


def _records_of(memory: Memory, guidelines: Sequence[Guideline]) -> dict[str, list[Stored]]:
    """Guideline id -> the live records that support it."""
    if not guidelines:
        return {}
    ids = {feedback_id for guideline in guidelines for feedback_id in guideline.evidence_for}
    with memory.store.reading() as connection:
        found = episodic.by_rows(connection, list(episodic.live_rows(connection, memory.judge_id, ids).values()))
    by_id = {stored.feedback.id: stored for stored in found}
    return {guideline.id: [by_id[key] for key in guideline.evidence_for if key in by_id] for guideline in guidelines}


def _restated(memory: Memory, records: Sequence[Stored]) -> set[int]:
    if not any(stored.version > 1 for stored in records):
        return set()
    with memory.store.reading() as connection:
        return episodic.restated(connection, memory.judge_id, records)
