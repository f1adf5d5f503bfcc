"""``memalign memory audit``: who changed memory when, sealed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memalign.cli.options import AsJson, Database, JudgeName

if TYPE_CHECKING:
    from memalign.memory.audit import Entry
    from memalign.memory.revisions import Revision

_SHORT = 12
"""Characters of a digest or seal in the table."""


def audit(
    db: Database,
    judge: JudgeName = "",
    verify: Annotated[bool, typer.Option("--verify", help="Only check the chain of seals, and show the newest.")] = False,
    head: Annotated[str, typer.Option("--head", help="A seal noted earlier: the log must go on from it.")] = "",
    json: AsJson = False,
) -> None:
    """Show who changed memory when and how much, never what.

    Each line is sealed with all before it. Exit code 1: the chain does not hold.
    """
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, say, table

    with opened(db, judge) as found:
        log = found.memory.audit()
    good = log.holds(head) if head else log.intact
    if json:
        emit(log.to_dict() | ({"head_found": good} if head else {}))
        raise typer.Exit(0 if good else 1)
    if not verify and log.entries:
        rows = [[e.number, e.at[:19].replace("T", " "), e.actor, *what(e), e.ids[:_SHORT], e.hash[:_SHORT]] for e in log.entries]
        table(["revision", "time (UTC)", "who", "verb", "what", "whose (digest)", "seal"], rows, wide=["what"])
    if log.broken_at is not None:
        say(f"the chain is broken at revision {log.broken_at}: this line, or one before it, is not as it was written")
    elif not good:
        say(f"the chain holds, but the seal {head} is not in it: lines were cut off, or it is of another memory")
    else:
        say(f"the chain holds: {len(log.entries)} revision(s), newest seal {log.head or '(none)'}")
    raise typer.Exit(0 if good else 1)


def what(change: Revision | Entry) -> tuple[str, str]:
    """The verb and the counts of a change, for readers."""
    counts = dict(change.counts)
    verb = f"rollback to {counts.pop('to')}" if change.verb == "rollback" else change.verb
    return verb, ", ".join(f"{count} {name}" for name, count in counts.items() if count)
