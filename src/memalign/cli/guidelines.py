"""``memalign memory pin``, ``unpin``, ``edit``, ``add`` and ``retire``: guidelines in the experts' hands."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from memalign.cli.options import Actor, AsJson, Database, JudgeName

if TYPE_CHECKING:
    from memalign.records import Guideline

Id = Annotated[str, typer.Argument(metavar="ID", help="Of the guideline, e.g. g3.")]
Text = Annotated[str, typer.Argument(metavar="TEXT", help="The guideline in your own words.")]


def pin(key: Id, db: Database, judge: JudgeName = "", actor: Actor = "", json: AsJson = False) -> None:
    """Keep a guideline whatever alignment finds; one that is not active becomes active."""
    from memalign.cli.opening import opened

    with opened(db, judge) as found:
        changed = found.memory.pin(key, actor=actor)
    _tell(changed, json=json)


def unpin(key: Id, db: Database, judge: JudgeName = "", actor: Actor = "", json: AsJson = False) -> None:
    """Let alignment change a guideline again."""
    from memalign.cli.opening import opened

    with opened(db, judge) as found:
        changed = found.memory.unpin(key, actor=actor)
    _tell(changed, json=json)


def edit(key: Id, text: Text, db: Database, judge: JudgeName = "", actor: Actor = "", json: AsJson = False) -> None:
    """Replace a guideline's text; it is in force at once, and pinned."""
    from memalign.cli.opening import opened

    with opened(db, judge) as found:
        changed = found.memory.edit(key, text, actor=actor)
    _tell(changed, json=json)


def add(
    text: Text,
    db: Database,
    scope: Annotated[str, typer.Option("--scope", help='When it applies: the guideline then reads "When <scope>, <text>."')] = "",
    judge: JudgeName = "",
    actor: Actor = "",
    json: AsJson = False,
) -> None:
    """Add a guideline in your own words; it is in force at once, and pinned."""
    from memalign.cli.opening import opened

    with opened(db, judge) as found:
        changed = found.memory.add(text, scope, actor=actor)
    _tell(changed, json=json)


def retire(key: Id, db: Database, judge: JudgeName = "", actor: Actor = "", json: AsJson = False) -> None:
    """Take a guideline out of judging; nothing is deleted, and pin brings it back."""
    from memalign.cli.opening import opened

    with opened(db, judge) as found:
        changed = found.memory.retire(key, actor=actor)
    _tell(changed, json=json)


def _tell(guideline: Guideline, *, json: bool) -> None:
    from memalign.cli.printing import emit, say

    if json:
        emit(asdict(guideline))
        return
    pinned = ", pinned" if guideline.pinned else ""
    say(f"{guideline.id} (version {guideline.version}, {guideline.state}{pinned}): {guideline.text}")
