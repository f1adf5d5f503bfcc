"""``memalign memory diff | rollback | explain``: what changed between two revisions, going back, and on what a verdict rests."""

from __future__ import annotations

from typing import Annotated

import typer

from memalign.cli.options import Actor, AsJson, Database, JudgeName


def diff(
    before: Annotated[int, typer.Argument(metavar="A", help="A revision; 0 is the empty memory.")],
    after: Annotated[int, typer.Argument(metavar="B", help="Another one.")],
    db: Database,
    judge: JudgeName = "",
    json: AsJson = False,
) -> None:
    """Show what distinguishes revision B from revision A: records, guidelines, and how both are weighed."""
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, say

    with opened(db, judge) as found:
        difference = found.memory.diff(before, after)
    if json:
        emit(difference.to_dict())
    else:
        for line in difference.lines(found.scale.label_of):
            say(line)


def rollback(
    revision: Annotated[int, typer.Argument(metavar="N", help="The revision to go back to; 0 is the empty memory.")],
    db: Database,
    judge: JudgeName = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    actor: Actor = "",
    json: AsJson = False,
) -> None:
    """Make memory as it was in revision N, as a new revision, so that another rollback undoes it. What was purged does not come back."""
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, say

    with opened(db, judge) as found:
        report = found.memory.rollback(revision, actor=actor, dry_run=dry_run)
    if json:
        emit(report.to_dict())
    else:
        for line in report.lines(found.scale.label_of):
            say(line)


def explain(
    verdict: Annotated[str, typer.Argument(metavar="ID", help="Of a verdict: the `id` that `memalign judge` gave.")],
    db: Database,
    judge: JudgeName = "",
    json: AsJson = False,
) -> None:
    """Show on which guidelines, cases and revision a verdict rests, with their text of then."""
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, say

    with opened(db, judge) as found:
        explanation = found.memory.explain(verdict)
    if json:
        emit(explanation.to_dict())
    else:
        for line in explanation.lines(found.scale.label_of):
            say(line)
