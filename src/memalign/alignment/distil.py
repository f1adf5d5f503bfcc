"""Distillation: from experts' reasons to proposed changes of semantic memory, in batches that fail one by one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from memalign.alignment.operations import Add, Operation, Rejected, check, parse, schema
from memalign.alignment.plan import NEW, Proposal
from memalign.alignment.relate import duplicates
from memalign.alignment.report import FailedBatch
from memalign.errors import MemalignError, UnreadableReply
from memalign.memory import semantic
from memalign.memory.episodic import Stored
from memalign.models import ChatRequest, Message
from memalign.prompts import render
from memalign.records import Guideline, content_hash
from memalign.rendering import item_text, trimmed
from memalign.session import Meter, Session
from memalign.working import Task, fenced

_ATTEMPTS = 3
_ALIKE = 0.75
"""Cosine similarity from which two rules count as one."""
_FORBIDS = re.compile(r"\b(never|not|no|don't|avoid|without)\b", re.IGNORECASE)
_SHOTS = (
    ("Verdict: no. Reason: Mocks the author. We respect them, whoever is right.", "Never mock an author."),
    ("Verdict: yes. Reason: Good, the source stands right beside the claim.", "Name the source beside each claim."),
    ("Verdict: no. Reason: Makes him look it up himself. That is our work.", "Look things up ourselves, never leave it to the reader."),
)
"""From a field far away, so that none of it is right by chance."""
_LONGEST_CASE = 2000
"""Characters of a case, and of a reason, that the distilling model reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How much a distilling model is asked at once."""

    batch_size: int = 8
    """Records in one call."""
    width: int = 16
    """Calls at once; each later round sees what the earlier ones proposed."""
    max_tokens: int = 1200
    gist: bool = False
    """Ask for nothing but the rule behind each single reason; rules that are alike become one. On the boolean scale only reasons for a no are asked
    about: they name a fault, where a small model makes platitudes of praise."""


HOSTED = Pace()
IN_PROCESS = Pace(batch_size=1, width=1, max_tokens=40, gist=True)
"""A small model on a processor writes some ten tokens a second, and loses the thread among several cases, but puts one reason into a rule well."""


@dataclass(slots=True)
class Distillation:
    """What came out of all batches."""

    proposals: list[Proposal] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    failed: list[tuple[FailedBatch, list[int]]] = field(default_factory=list)
    """Failed batches with the rows of their records."""
    consumed: set[int] = field(default_factory=set)
    """Rows of the records whose batch succeeded."""


async def distil(
    session: Session,
    meter: Meter,
    task: Task,
    records: Sequence[Stored],
    guidelines: Sequence[Guideline],
    *,
    pace: Pace,
    progress: Callable[[int], None],
) -> Distillation:
    """Distil records that have reasons; ``progress`` hears how many are done. Errors of a batch are kept in the result, not raised."""
    result = Distillation()
    if pace.gist and task.scale.kind == "boolean":
        praise = [stored for stored in records if stored.feedback.value]
        result.consumed |= {stored.row for stored in praise}
        records = [stored for stored in records if not stored.feedback.value]
        progress(len(praise))
    batches = [records[start : start + pace.batch_size] for start in range(0, len(records), pace.batch_size)]
    for first in range(0, len(batches), pace.width):
        seen = _listed(guidelines, result.proposals)
        wave = list(enumerate(batches[first : first + pace.width], start=first))
        await asyncio.gather(*(_batch(session, meter, task, pace, number, batch, seen, result, progress) for number, batch in wave))
        if len(wave) > 1:
            await _merge(session, meter, result)
    if pace.gist:
        await _join_alike(session, meter, result, guidelines)
    return result


async def _batch(
    session: Session,
    meter: Meter,
    task: Task,
    pace: Pace,
    number: int,
    batch: Sequence[Stored],
    seen: Sequence[Guideline],
    result: Distillation,
    progress: Callable[[int], None],
) -> None:
    rows = [stored.row for stored in batch]
    texts = [f"{item_text(stored.feedback.item)}\n{stored.feedback.rationale}" for stored in batch]
    known = [guideline.id for guideline in seen]
    try:
        proposals = await _gist(session, meter, task, batch[0]) if pace.gist else await _ask(session, meter, _request(task, pace, batch, seen))
    except Exception as error:  # also of a model that breaks its contract: it must not take the other batches with it
        failed = FailedBatch(
            feedback_ids=tuple(stored.feedback.id for stored in batch),
            error=str(error) if isinstance(error, MemalignError) else f"{type(error).__name__}: {error}",
            retryable=isinstance(error, MemalignError) and error.retryable,
        )
        result.failed.append((failed, rows))
        return
    finally:
        progress(len(batch))
    accepted, rejected = check(proposals, texts=texts, known_ids=known)
    result.rejected += rejected
    result.consumed |= set(rows)
    for operation in accepted:
        evidence = {rows[case] for case in operation.cases}
        _propose(result.proposals, operation, evidence, set(rows), number)


def _propose(proposals: list[Proposal], operation: Operation, evidence: set[int], taint: set[int], batch: int) -> None:
    """Add a proposal, or let it join one that says the same or that it supports."""
    if isinstance(operation, Add):
        same = next((p for p in proposals if semantic.normalised(p.text) == semantic.normalised(operation.text)), None)
        found = same or Proposal(text=operation.text, scope=operation.scope, batch=batch)
    elif operation.guideline_id.startswith(NEW):
        found = proposals[int(operation.guideline_id.removeprefix(NEW)) - 1]
    else:
        known = next((p for p in proposals if p.guideline_id == operation.guideline_id), None)
        found = known or Proposal(text="", scope="", batch=batch, guideline_id=operation.guideline_id)
    found.evidence |= evidence
    found.taint |= taint | evidence
    if found not in proposals:
        proposals.append(found)


async def _ask(session: Session, meter: Meter, request: ChatRequest) -> list[dict[str, object]]:
    for attempt in range(1, _ATTEMPTS + 1):
        reply = await session.ask(meter, session.reflection_model, request)
        try:
            return parse(reply.text)
        except UnreadableReply:
            if attempt == _ATTEMPTS:
                raise
            request = ChatRequest(
                messages=request.messages,
                schema=request.schema,
                max_tokens=request.max_tokens * 2,
                temperature=0.3 * attempt,
                purpose="distil",
            )
    raise AssertionError


async def _gist(session: Session, meter: Meter, task: Task, stored: Stored) -> list[dict[str, object]]:
    """One reason as a rule. The case itself is left out: a small model would copy it."""
    given = f"Verdict: {task.scale.label_of(stored.feedback.value)}. Reason: {trimmed(stored.feedback.rationale, _LONGEST_CASE)}"
    shots = [message for reason, rule in _SHOTS for message in (Message("user", reason), Message("assistant", rule))]
    messages = (Message("system", render("gist")), *shots, Message("user", given))
    reply = await session.ask(meter, session.reflection_model, ChatRequest(messages=messages, max_tokens=IN_PROCESS.max_tokens, purpose="distil"))
    return [{"op": "rule", "rule": reply.text.strip().partition("\n")[0], "cases": [1]}]


def _request(task: Task, pace: Pace, batch: Sequence[Stored], seen: Sequence[Guideline]) -> ChatRequest:
    cases = [
        {
            "item": fenced(task.secret, trimmed(item_text(stored.feedback.item), _LONGEST_CASE)),
            "label": task.scale.label_of(stored.feedback.value),
            "rationale": trimmed(stored.feedback.rationale, _LONGEST_CASE),
        }
        for stored in batch
    ]
    return ChatRequest(
        messages=(
            Message("system", render("distil_system", instructions=task.instructions, scale=task.scale.prompt())),
            Message("user", render("distil_user", guidelines=seen, cases=cases)),
        ),
        schema=schema([guideline.id for guideline in seen]),
        max_tokens=pace.max_tokens,
        purpose="distil",
    )


def _listed(guidelines: Sequence[Guideline], proposals: Sequence[Proposal]) -> list[Guideline]:
    """What exists for the next round: guidelines, and proposals as new1, new2 ... by their place."""
    new = [(place, proposal) for place, proposal in enumerate(proposals, start=1) if proposal.guideline_id is None]
    return [*guidelines, *(Guideline(id=f"{NEW}{place}", version=0, text=proposal.text) for place, proposal in new)]


async def _merge(session: Session, meter: Meter, result: Distillation) -> None:
    """Batches that ran side by side could not see each other: let proposals that say the same become one."""
    new = [proposal for proposal in result.proposals if proposal.guideline_id is None]
    if len({proposal.batch for proposal in new}) < 2:
        return
    gone: list[Proposal] = []
    for kept, others in await duplicates(session, meter, [proposal.text for proposal in new]):
        for other in others:
            new[kept].evidence |= new[other].evidence
            new[kept].taint |= new[other].taint
            gone.append(new[other])
    result.proposals = [proposal for proposal in result.proposals if not any(proposal is merged for merged in gone)]


async def _join_alike(session: Session, meter: Meter, result: Distillation, guidelines: Sequence[Guideline]) -> None:
    """Let a new rule that is alike an older one become evidence for it; a rule that forbids is never alike one that demands."""
    new = [proposal for proposal in result.proposals if proposal.guideline_id is None]
    texts = [*(guideline.text for guideline in guidelines), *(proposal.text for proposal in new)]
    vectors = await session.vectors(meter, {content_hash(text): text for text in texts})
    older: list[Proposal] = [Proposal(text=guideline.text, scope="", batch=-1, guideline_id=guideline.id) for guideline in guidelines]
    for proposal in new:
        vector = vectors[content_hash(proposal.text)]
        alike = [
            (float(vectors[content_hash(other.text)] @ vector), place)
            for place, other in enumerate(older)
            if bool(_FORBIDS.search(other.text)) is bool(_FORBIDS.search(proposal.text))
        ]
        likeness, place = max(alike, default=(0.0, -1))
        if likeness < _ALIKE:
            older.append(proposal)
        else:
            older[place].evidence |= proposal.evidence
            older[place].taint |= proposal.taint
    result.proposals = [proposal for proposal in older if proposal.evidence]
