"""What an alignment did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from memalign.alignment.operations import Rejected
from memalign.alignment.proof import UNREAD, Verification
from memalign.records import Guideline, Usage

_NAMED = 5
"""Records of a failed batch that are named in a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedBatch:
    """Records that could not be distilled, or not be embedded; they stay unconsumed and the next ``align`` takes them up."""

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
    purged: int = 0
    """Records that were left out, because they had been purged from this memory; ``memory.lift`` lets them be learned again."""
    expired: int = 0
    """Records that were purged, being beyond the judge's retention limits."""
    note: str = ""
    """What of that purge could not be finished, and why."""
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
    """Item ids on which experts' verdicts differ; on an ordinal scale by more than a step, so that 4 and 5 do not."""
    failed_batches: tuple[FailedBatch, ...] = ()
    unrelated: tuple[str, ...] = ()
    """Why new guidelines were not all compared with those there are, for each call that failed: some may say the same, or contradict each other."""
    unconsumed: int = 0
    """Records that still wait for distillation."""
    verification: Verification = Verification()
    """What replays found; refused guidelines are kept as candidates, and stand among ``added``."""
    unread: bool = False
    """Whether they showed the judge guidelines that its model does not read in service, since calibration found that this does not help it."""
    usage: Usage = Usage()
    cost_usd: float | None = 0.0
    seconds: float = 0.0

    @property
    def summary(self) -> str:
        """The revision and its records, in a line."""
        return f"revision {self.revision}: {self.new} new, {self.changed} changed, {self.unchanged} unchanged"

    @property
    def account(self) -> str:
        """What it cost, in a line."""
        cost = "price unknown" if self.cost_usd is None else f"${self.cost_usd:.4f}"
        tokens = f"{self.usage.prompt_tokens:,} + {self.usage.completion_tokens:,} tokens"
        return f"cost: {self.usage.calls} calls, {tokens}, {cost}, {self.seconds:.1f} s"

    def marked(self) -> list[tuple[str, str, tuple[Guideline, ...]]]:
        """Changed guidelines by what happened to them, as (sign, word, guidelines); refused ones are left to ``verification``."""
        refused = {one.guideline_id for one in self.verification.refused}
        added = tuple(guideline for guideline in self.added if guideline.id not in refused)
        grown = [("+", "added", added), ("=", "more evidence", self.joined), ("~", "refined", self.refined)]
        gone = [("^", "superseded", self.superseded), ("?", "quarantined", self.quarantined)]
        return [*grown, *gone, (".", "archived", self.archived), ("-", "retired", self.retired)]

    def remarks(self) -> list[str]:
        """What experts or operators have to look after, a line each."""
        lines = [f"{self.purged} record(s) left out: they were purged from this memory before"] if self.purged else []
        lines += [f"{self.expired} record(s) purged: beyond the retention limits"] if self.expired else []
        lines += [f"  ! {self.note}"] if self.note else []
        lines += [f"experts disagree on {len(self.contested)} item(s)"] if self.contested else []
        lines += [UNREAD] if self.unread else []
        lines += [f"  ! new guidelines were not compared with the others ({why}); look for what they repeat or contradict" for why in self.unrelated]
        for batch in self.failed_batches:
            again = "run align again" if batch.retryable else "mend the cause, then run align again"
            ids = ", ".join(batch.feedback_ids[:_NAMED]) + ", ..." * (len(batch.feedback_ids) > _NAMED)
            lines.append(f"  ! {len(batch.feedback_ids)} record(s) not distilled ({ids}): {batch.error} - nothing is lost; {again}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A short account in plain text."""
        lines = [self.summary, self.account]
        for sign, _, guidelines in self.marked():
            lines += [f"  {sign} {guideline.id}  {guideline.text}" for guideline in guidelines]
        lines += [f"  ? rejected ({rejected.reason}): {rejected.text}" for rejected in self.rejected]
        return lines + self.verification.lines() + self.remarks()

    def to_html(self) -> str:
        """A page of its own: one HTML document without scripts, everything in it escaped."""
        from memalign.alignment.rendered import page

        return page(self)

    def _repr_html_(self) -> str:
        from memalign.alignment.rendered import part

        return part(self)
