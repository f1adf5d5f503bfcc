"""``memalign memory utility``: what each guideline is worth."""

from __future__ import annotations

from typing import Annotated

import typer

from memalign.cli.options import AsJson, Database, JudgeName


def utility(
    db: Database,
    judge: JudgeName = "",
    full: Annotated[bool, typer.Option("--full", help="Measure on all records, not on 12 for each guideline.")] = False,
    json: AsJson = False,
) -> None:
    """Measure what each guideline is worth, by judging records again without it.

    The figure is how many more verdicts agree with the experts with it than without it; below 0 it does harm. It decides which guidelines
    stand by when there are more than the budget holds.
    """
    from memalign.alignment.proof import UNREAD
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, progress, say, table
    from memalign.cli.weights import watched
    from memalign.description import model_name

    with opened(db, judge) as found:
        with progress() as tell, watched(found, tell):
            worth = found.utility(full=full, progress=tell)
        unread = not found.memory.view().decision.of(model_name(found.model)).guidelines
        guidelines = sorted(found.memory.guidelines(), key=lambda guideline: worth.get(guideline.id, 0.0))
    if json:
        emit({"utility": worth})
        return
    rows = [[f"{worth[guideline.id]:+.2f}" if guideline.id in worth else "unknown", guideline.id, guideline.text] for guideline in guidelines]
    if rows:
        table(["utility", "id", "guideline"], rows, wide=["guideline"])
    say(f"{len(rows)} guideline(s), the least useful first")
    if unread and any(not guideline.pinned for guideline in guidelines):
        say(UNREAD)
