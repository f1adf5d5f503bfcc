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
    """Make the file beside the database that opens a large memory in an instant, or a server's graph; a judge that goes on judging makes it too."""
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, say

    with opened(db, judge) as found:
        dropped = found.memory.drop_index() if drop else 0
        made = not drop and found.memory.keep_index()
        items = 0 if drop else found.memory.view().items
    if json:
        emit({"made": made, "dropped": dropped, "items": items})
    elif drop:
        say(f"{dropped} index(es) deleted")
    elif made:
        say(f"index of {items} items made")
    else:
        say("no index made: memory is empty, too small to need one on a server, still to be embedded, or another process is making it")
