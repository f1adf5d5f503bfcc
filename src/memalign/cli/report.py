"""How an alignment's report looks on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memalign.cli.printing import say, table
from memalign.stores import shown

if TYPE_CHECKING:
    from memalign.alignment import AlignReport

_MOST_CASES = 12
"""Records judged again that are listed; the others are counted."""


def show(report: AlignReport, db: str) -> None:
    """Print all of a report: records, guidelines, what verification found, what is left to do, and what it cost."""
    say(report.summary)
    _guidelines(report)
    _proof(report)
    if report.rejected:
        table(["proposal that did not pass", "why"], [[one.text, one.reason] for one in report.rejected], wide=["proposal that did not pass", "why"])
    for line in report.remarks():
        say(line)
    say(report.account)
    if report.unconsumed:
        say(f"{report.unconsumed} record(s) still wait to be distilled; to go on, run: memalign align --db {shown(db)}")


def _guidelines(report: AlignReport) -> None:
    rows = [
        [word, guideline.id, guideline.text, len(guideline.evidence_for), len(guideline.evidence_against)]
        for _, word, guidelines in report.marked()
        for guideline in guidelines
    ]
    if rows:
        table(["", "id", "guideline", "for", "against"], rows, wide=["guideline"])


def _proof(report: AlignReport) -> None:
    from memalign.alignment.proof import chance

    proof = report.verification
    for line in proof.lines()[:1]:
        say(line)
    moved = [("fixed", proof.fixed), ("BROKEN", proof.broken), ("unsteady", proof.unsteady)]
    rows = [[what, one.expert, f"{one.before} > {one.after}", one.item] for what, replayed in moved for one in replayed]
    if rows:
        table(["judged again", "expert", "judge", "item"], rows[:_MOST_CASES], wide=["item"])
        if len(rows) > _MOST_CASES:
            say(f"... and {len(rows) - _MOST_CASES} more (--json or --html has them all)")
    if proof.refused:
        cells = [
            [one.guideline_id or "", one.text, one.reason, f"{len(one.fixed)} fixed, {len(one.broken)} broken, {chance(one.p_value)}"]
            for one in proof.refused
        ]
        table(["refused", "guideline", "why", "when tried"], cells, wide=["guideline", "why", "when tried"])
        say("refused guidelines are kept as candidates that the judge does not read; to let one stand, run: memalign memory accept ID")


def write_page(report: AlignReport, path: str) -> None:
    """Write the report as a web page. Raises ConfigurationError when that cannot be done; what was learned is stored nevertheless."""
    from pathlib import Path

    from memalign.cli.printing import note
    from memalign.errors import ConfigurationError

    try:
        Path(path).write_text(report.to_html(), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"the records are learned, but the report cannot be written to {path}: {error.strerror or error}") from error
    note(f"report: {path}")
