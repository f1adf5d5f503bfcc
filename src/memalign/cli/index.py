"""``memalign memory index``: make the search index of a large memory now, or delete it."""

from __future__ import annotations

from typing import Annotated

import typer

from memalign.cli.options import AsJson, Database, JudgeName


def index(
    db: Database,
    judge: JudgeName = "",
    drop: Annotated[bool, typer.Option("--drop", help="Delete the index instead; it can be made again at any time.")] = False,
    json: AsJson = False,
) -> None:
    """Embed what the judge's embedder has not seen; make the file beside the database that opens a large memory in an instant, or a server's graph.

    A judge that goes on judging does both by itself, behind its judgements.
    """
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, progress, say

    with opened(db, judge) as found, progress() as tell:
        dropped = found.memory.drop_index() if drop else 0
        embedded = 0 if drop else found.embed(progress=tell)
        made = not drop and found.memory.keep_index()
        items = 0 if drop else found.memory.view().items
    if json:
        emit({"made": made, "dropped": dropped, "items": items, "embedded": embedded})
        return
    if drop:
        say(f"{dropped} index(es) deleted")
        return
    if embedded:
        say(f"{embedded} text(s) embedded")
    why = "memory is empty, too small to need one on a server, or another process is making it"
    say(f"index of {items} items made" if made else f"no index made: {why}")
