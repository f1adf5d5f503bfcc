"""What taking back touched, or would touch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from memalign.alignment.report import AlignReport
from memalign.records import Guideline, Usage

_SHOWN = 20
"""Ids of records that are listed."""

Verb = Literal["unalign", "overwrite", "purge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """What ``unalign``, ``overwrite`` or ``purge`` touched or, when it is not ``done``, would touch.

    After a purge it holds no content: guidelines without their texts, no ids of records.
    """

    verb: Verb
    done: bool
    """False for a preview: nothing was changed."""
    revision: int
    """The revision of memory after it; the same as before when nothing changed."""
    withdrawn: int = 0
    """Records."""
    versions: int = 0
    """Of those records, earlier ones included."""
    records: tuple[str, ...] = ()
    """Their ids."""
    by_evidence: tuple[Guideline, ...] = ()
    """Guidelines that cite one of the records: they lose that evidence; an overwrite distils again those that the records support."""
    by_taint: tuple[Guideline, ...] = ()
    """Guidelines whose text came from a prompt in which one of the records stood, or that carry words only the records brought: a purge deletes
    them and distils again what they rested on besides."""
    retired: tuple[Guideline, ...] = ()
    """Guidelines left without evidence."""
    verdicts: int = 0
    """Logged verdicts on the records' items, or that rested on the records; a purge deletes them."""
    aligned: AlignReport | None = None
    """What was distilled again from what remains."""
    unconsumed: int = 0
    """Records that still wait for distillation."""
    erased: bool | None = None
    """After a purge: whether the bytes are gone from the disk; if not, the next opening, align or purge goes on with it."""
    residue: Mapping[str, int] = field(default_factory=dict)
    """After a purge: file or table -> how many passages of the purged texts a search of its bytes still found."""
    note: str = ""
    """What could not be finished, and why."""
    usage: Usage = Usage()
    cost_usd: float | None = 0.0
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not self.note and self.erased is not False and not self.residue and not (self.aligned is not None and self.aligned.failed_batches)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A short account in plain text."""
        would, earlier = ("" if self.done else "would be "), self.versions - self.withdrawn
        word = {"unalign": "withdrawn", "overwrite": "overwritten", "purge": "purged"}[self.verb]
        versions = f" (and {earlier} earlier version(s))" if earlier > 0 and self.verb == "purge" else ""
        lines = [f"revision {self.revision}: {self.withdrawn} record(s) {would}{word}{versions}"]
        lines += [f"  {each}" for each in self.records[:_SHOWN]]
        lines += [f"  ... and {len(self.records) - _SHOWN} more"] if len(self.records) > _SHOWN else []
        for title, guidelines in (("resting on them", self.by_evidence), ("tainted by them", self.by_taint), ("retired", self.retired)):
            if guidelines:
                lines.append(f"{len(guidelines)} guideline(s) {title}:")
                lines += [f"  - {guideline.id}  {guideline.text}".rstrip() for guideline in guidelines]
        if self.verb == "purge" and self.verdicts:
            lines.append(f"{self.verdicts} logged verdict(s) {would}deleted")
        if self.erased is not None:
            found = ", ".join(f"{count} passage(s) in {place}" for place, count in self.residue.items())
            searched = f"a search of the bytes still finds {found}" if found else "a search of the bytes finds nothing of them"
            lines.append(searched if self.erased else "their bytes are not yet gone from the disk")
        if self.aligned is not None:
            lines += ["distilled again from what remains:", *self.aligned.lines()]
        if self.unconsumed:
            lines.append(f"{self.unconsumed} record(s) still wait to be distilled; align goes on with them")
        return [*lines, f"  ! {self.note}"] if self.note else lines


_CHANGED = ("added", "joined", "refined", "superseded", "quarantined", "archived", "retired")


def expired(report: AlignReport, gone: Withdrawal, held: Mapping[str, Guideline]) -> AlignReport:
    """An alignment's report together with the purge of what was then beyond the retention limits; ``held``: the guidelines that are there now."""
    again = gone.aligned or AlignReport(revision=gone.revision, contested=report.contested)
    changed: dict[str, Any] = {}
    for name in _CHANGED:
        ids = [guideline.id for guideline in (*getattr(report, name), *getattr(again, name), *(gone.retired if name == "retired" else ()))]
        changed[name] = tuple(held[key] for key in dict.fromkeys(ids) if key in held)
    return replace(
        report,
        **changed,
        revision=gone.revision,
        expired=gone.withdrawn,
        note=gone.note,
        rejected=report.rejected + again.rejected,
        contested=again.contested,
        failed_batches=report.failed_batches + again.failed_batches,
        unrelated=report.unrelated + again.unrelated,
        unconsumed=gone.unconsumed,
        usage=report.usage + gone.usage,
        cost_usd=None if report.cost_usd is None or gone.cost_usd is None else report.cost_usd + gone.cost_usd,
        seconds=report.seconds + gone.seconds,
    )
