"""``memalign memory accept``: let a guideline stand that verification refused."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from memalign.cli.options import Actor, AsJson, Database, JudgeName


def accept(
    key: Annotated[str, typer.Argument(metavar="ID", help="Of a guideline.")],
    db: Database,
    judge: JudgeName = "",
    actor: Actor = "",
    json: AsJson = False,
) -> None:
    """Let the judge read a guideline that stands by, whatever verification found; what it found is shown."""
    from memalign.alignment.proof import chance
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, say

    with opened(db, judge) as found:
        guideline = found.memory.accept(key, actor=actor)
        trials = found.memory.trials(key)
        revision = found.memory.view().revision
    if json:
        emit({"revision": revision, "guideline": asdict(guideline), "trials": [asdict(tried) for tried in trials]})
        return
    say(f"revision {revision}: {guideline.id} is {guideline.state}: {guideline.text}")
    for tried in trials:
        figures = f"{tried.fixed} fixed, {tried.broken} broken, {tried.unchanged} unchanged, exact McNemar {chance(tried.p_value)}"
        say(f"  verified for revision {tried.revision}: {tried.outcome}: {figures}" + (f" ({tried.reason})" if tried.reason else ""))
    if not trials:
        say("  it was never verified")
