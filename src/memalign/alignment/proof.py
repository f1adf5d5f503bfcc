"""What a verification found, as plain data for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memalign.agreement import short

Outcome = Literal["off", "nothing", "accepted", "partly", "refused", "overridden", "undone"]
"""``nothing``: no change that the judge would read; ``undone``: too many replays failed, so nothing was decided."""


UNREAD = "the judge's model reads pinned guidelines only, as calibrate decided; what replays found of others holds once it decides otherwise"
"""Said beside what replays found, where it is so."""


def chance(p_value: float) -> str:
    """A p-value for readers: "p .031", "p < .001"."""
    return f"p {short(p_value, digits=3)}" if p_value >= 0.001 else "p < .001"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A record that was judged without and with the changes."""

    feedback_id: str
    item: str
    """Its beginning."""
    expert: str
    """The expert's label, as are the next two of the judge."""
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A change that did not pass, with what was found when it was tried."""

    text: str
    reason: str
    tried_with: int
    """How many other changes were tried together with it; the figures are of all of them."""
    fixed: tuple[Replayed, ...] = ()
    broken: tuple[Replayed, ...] = ()
    unchanged: int = 0
    p_value: float = 1.0
    guideline_id: str | None = None
    """Under which it is kept as a candidate, if it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What the changes that stand did to records that were judged again, and which changes do not stand."""

    mode: Literal["off", "fast", "full"] = "off"
    outcome: Outcome = "off"
    fixed: tuple[Replayed, ...] = ()
    """Every verdict with the changes was nearer to the expert's than every verdict without them."""
    broken: tuple[Replayed, ...] = ()
    """The other way round; not empty only when the caller overrode the gate."""
    unsteady: tuple[Replayed, ...] = ()
    """Moved once, but not when judged again: the judge's own noise."""
    unchanged: int = 0
    """Without the unsteady ones."""
    errors: int = 0
    """Records that the judge gets wrong without the changes."""
    protected: int = 0
    """Records that it gets right without them."""
    failures: int = 0
    """Records without a verdict on one of the sides: neither fixed nor broken."""
    p_value: float = 1.0
    """Exact McNemar test on the first verdict of each side: how likely is a split as uneven, or more, if nothing had changed."""
    refused: tuple[Refused, ...] = ()
    replays: int = 0
    """Verdicts that were needed; those known from before cost nothing."""
    note: str = ""
    """Why the outcome is what it is, where that is not plain."""

    def lines(self) -> list[str]:
        """A short account in plain text."""
        if self.outcome in ("off", "nothing"):
            return []
        if self.outcome == "undone":
            return [f"  ! verification could not be done: {self.note} - nothing is lost; run align again, or align without verification"]
        moved = f"fixed {len(self.fixed)} of {self.errors} error(s), broke {len(self.broken)} of {self.protected} right verdict(s)"
        rest = f"{self.unchanged} unchanged, {len(self.unsteady)} unsteady" + (f", {self.failures} failed" if self.failures else "")
        note = f" ({self.note})" if self.note else ""
        lines = [f"verified ({self.mode}), {self.outcome}: {moved}, {rest}, {chance(self.p_value)}{note}"]
        for one in self.refused:
            kept = f"kept as candidate {one.guideline_id}" if one.guideline_id else "not carried out"
            lines.append(f"  x {kept}: {one.reason}, {chance(one.p_value)}: {one.text}")
        return lines
