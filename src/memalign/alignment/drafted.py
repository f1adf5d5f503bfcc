"""Operations by what they mean outside their batch: they can be stored, read back and carried out on proposals."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from memalign.alignment.batches import Case
from memalign.alignment.operations import Add, Contradict, Operation, Refine, Rejected
from memalign.alignment.plan import NEW, Proposal
from memalign.alignment.relate import reverses
from memalign.memory.semantic import normalised
from memalign.records import Guideline


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """An operation that cites rows of feedback, and names an unstored guideline by its text."""

    op: Literal["add", "support", "refine", "contradict"]
    rows: list[int]
    text: str = ""
    scope: str = ""
    guideline: str = ""
    """The id of the guideline that it is about."""
    proposed: str = ""
    """The text of the proposal that it is about, if it is no guideline yet."""


def drafted(operation: Operation, batch: Sequence[Case], seen: Sequence[Guideline]) -> Drafted:
    """An accepted operation of a batch; ``seen``: what the model was shown.

    A new wording that reverses a guideline is a guideline of its own: how the two relate is for the comparison to find out. One of a pinned
    guideline counts as support.
    """
    rows = sorted({row for case in operation.cases for row in batch[case].rows})
    if isinstance(operation, Add):
        return Drafted(op="add", rows=rows, text=operation.text, scope=operation.scope)
    known = next(guideline for guideline in seen if guideline.id == operation.guideline_id)
    about = {"proposed": known.text} if known.id.startswith(NEW) else {"guideline": known.id}
    if isinstance(operation, Refine):
        if reverses(operation.text, known.text):
            return Drafted(op="add", rows=rows, text=operation.text, scope=operation.scope)
        if not known.pinned:
            return Drafted(op="refine", rows=rows, text=operation.text, scope=operation.scope, **about)
    return Drafted(op="contradict" if isinstance(operation, Contradict) else "support", rows=rows, **about)


def written(operations: Sequence[Drafted], rejected: Sequence[Rejected], shown: Collection[int]) -> dict[str, Any]:
    """A batch's outcome as a JSON value; ``shown``: rows of the records that stood beside it in the prompt."""
    return {"operations": [asdict(operation) for operation in operations], "rejected": [asdict(one) for one in rejected], "shown": sorted(shown)}


def read_draft(content: Any) -> tuple[list[Drafted], list[Rejected], set[int]]:
    """What ``written`` wrote."""
    operations, rejected = [Drafted(**operation) for operation in content["operations"]], [Rejected(**one) for one in content["rejected"]]
    return operations, rejected, set(content.get("shown", ()))


def listed(guidelines: Sequence[Guideline], proposals: Sequence[Proposal]) -> list[Guideline]:
    """What a model is shown: guidelines that are in force or in question, and proposals as new1, new2 ... by their place."""
    known = [guideline for guideline in guidelines if guideline.state != "candidate"]
    new = [(place, proposal) for place, proposal in enumerate(proposals, start=1) if proposal.guideline_id is None and proposal.state != "superseded"]
    return [*known, *(Guideline(id=f"{NEW}{place}", version=0, text=proposal.text) for place, proposal in new)]


def carry_out(proposals: list[Proposal], operation: Drafted, *, taint: set[int], batch: int) -> None:
    """Add a proposal, or let it join one that says the same or that is about the same guideline."""
    found = _about(proposals, operation)
    if found is None:
        if operation.op == "contradict" and not operation.guideline:
            return  # what it contradicts was never proposed in this alignment
        text = operation.text or operation.proposed
        found = Proposal(text=text, scope=operation.scope, batch=batch, guideline_id=operation.guideline or None)
        proposals.append(found)
    elif operation.op == "refine" and (not found.text or operation.proposed):
        found.text, found.scope = operation.text, operation.scope
    if operation.op == "contradict":
        found.against |= set(operation.rows)
    else:
        found.evidence |= set(operation.rows)
    found.taint |= taint | set(operation.rows)


def _about(proposals: Sequence[Proposal], operation: Drafted) -> Proposal | None:
    if operation.guideline:
        return next((p for p in proposals if p.guideline_id == operation.guideline), None)
    text = normalised(operation.proposed or operation.text)
    return next((p for p in proposals if p.guideline_id is None and normalised(p.text) == text), None)
