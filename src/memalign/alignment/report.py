"""What an alignment did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from memalign.alignment.operations import Rejected
from memalign.alignment.proof import Verification
from memalign.records import Guideline, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedBatch:
    """Records that could not be distilled; they stay unconsumed and the next ``align`` takes them up."""

    feedback_ids: tuple[str, ...]
    error: str
    retryable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignReport:
    """What an alignment did to memory, and what it cost."""

    revision: int
    """The revision of memory after it; the same as before when nothing changed."""
    new: int = 0
    """Records that memory did not know."""
    changed: int = 0
    """Records that replaced an earlier version."""
    unchanged: int = 0
    """Records that memory knew already; they cost nothing."""
    withdrawn: int = 0
    """Records that were retracted."""
    added: tuple[Guideline, ...] = ()
    joined: tuple[Guideline, ...] = ()
    """Existing guidelines that gained evidence."""
    refined: tuple[Guideline, ...] = ()
    """Existing guidelines that were worded anew."""
    superseded: tuple[Guideline, ...] = ()
    """Those that gave way to one that contradicts them."""
    quarantined: tuple[Guideline, ...] = ()
    """Those that only the experts can decide about; see ``judge.memory.questions()``."""
    archived: tuple[Guideline, ...] = ()
    """The least useful ones beyond the budget; they stand by as candidates."""
    retired: tuple[Guideline, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    """Proposals of the model that did not pass the checks, with reasons."""
    contested: tuple[str, ...] = ()
    """Item ids on which experts' verdicts differ."""
    failed_batches: tuple[FailedBatch, ...] = ()
    unconsumed: int = 0
    """Records that still wait for distillation."""
    verification: Verification = Verification()
    """What replays found; refused guidelines are kept as candidates, and stand among ``added``."""
    usage: Usage = Usage()
    cost_usd: float | None = 0.0
    seconds: float = 0.0

    def _marked(self) -> list[tuple[str, tuple[Guideline, ...]]]:
        gone = [("^", self.superseded), ("?", self.quarantined), (".", self.archived), ("-", self.retired)]
        return [("+", self.added), ("=", self.joined), ("~", self.refined), *gone]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A short account in plain text."""
        cost = "unknown" if self.cost_usd is None else f"${self.cost_usd:.4f}"
        records = f"{self.new} new, {self.changed} changed, {self.unchanged} unchanged, {self.withdrawn} withdrawn"
        account = f"{self.usage.calls} calls, {self.usage.prompt_tokens:,} + {self.usage.completion_tokens:,} tokens"
        lines = [f"revision {self.revision}: {records}", f"cost: {account}, {cost}, {self.seconds:.1f} s"]
        for sign, guidelines in self._marked():
            lines += [f"  {sign} {guideline.id}  {guideline.text}" for guideline in guidelines]
        lines += [f"  ? rejected ({rejected.reason}): {rejected.text}" for rejected in self.rejected]
        lines += self.verification.lines()
        if self.contested:
            lines.append(f"experts disagree on {len(self.contested)} item(s)")
        for batch in self.failed_batches:
            again = "run align again" if batch.retryable else "mend the cause, then run align again"
            lines.append(f"  ! {len(batch.feedback_ids)} record(s) not distilled: {batch.error} - nothing is lost; {again}")
        return lines
