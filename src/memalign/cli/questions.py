"""``memalign memory questions`` and ``answer``: what only the experts can decide."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from memalign.cli.options import Actor, AsJson, Database, JudgeName

if TYPE_CHECKING:
    from memalign.records import Episode, Question
    from memalign.scale import Scale

_SHORT = 300
_CASES = 3
"""Of each side that are shown to readers."""


def questions(db: Database, judge: JudgeName = "", json: AsJson = False) -> None:
    """List what only the experts can decide, the cases of both sides next to each other. Exit code 1: a question is open."""
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, say

    with opened(db, judge) as found:
        asked, scale = found.memory.questions(), found.scale
    if json:
        emit([asdict(question) for question in asked])
    else:
        for question in asked:
            _show(question, scale)
        say(f"{len(asked)} open question(s)" if asked else "no question is open")
    raise typer.Exit(1 if asked else 0)


def answer(
    question: Annotated[str, typer.Argument(metavar="ID", help="Of the question.")],
    db: Database,
    judge: JudgeName = "",
    keep: Annotated[list[str] | None, typer.Option("--keep", help="A guideline that stands from now on; the others are superseded.")] = None,
    actor: Actor = "",
    json: AsJson = False,
) -> None:
    """Decide between guidelines that contradict each other."""
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, say

    with opened(db, judge) as found:
        decided = found.memory.answer(question, keep=keep or (), actor=actor)
    if json:
        emit([asdict(guideline) for guideline in decided])
    else:
        for guideline in decided:
            say(f"{guideline.id} is {guideline.state}{' and pinned' if guideline.pinned else ''}: {guideline.text}")


def _show(question: Question, scale: Scale) -> None:
    from memalign.cli.printing import one_line, say, table
    from memalign.rendering import item_text

    if question.guidelines:
        say(f"{question.id}: which of these shall stand?" if len(question.guidelines) > 1 else f"{question.id}: shall this stand?")
        heads = [f"{guideline.id}: {guideline.text}" for guideline in question.guidelines]
        heads += [] if len(heads) == len(question.sides) else ["cases against it"]
        ids = " or ".join(guideline.id for guideline in question.guidelines)
        how = f"memalign memory answer {question.id} --keep {ids}"
    else:
        say(f"{question.id}: the verdicts on one item differ: {one_line(item_text(question.sides[0][0].feedback.item), _SHORT)}")
        heads = [scale.label_of(side[0].feedback.value) for side in question.sides]
        how = "memalign memory overwrite FILE, or memalign memory unalign ID"
    columns = [[_case(episode, scale, item=bool(question.guidelines)) for episode in side[:_CASES]] for side in question.sides]
    longest = max(map(len, columns))
    table(heads, zip(*(column + [""] * (longest - len(column)) for column in columns), strict=True), wide=heads)
    say(f"to answer: {how}\n")


def _case(episode: Episode, scale: Scale, *, item: bool) -> str:
    from memalign.cli.printing import one_line
    from memalign.rendering import item_text

    record = episode.feedback
    who = f"{record.annotator or 'unnamed'}, {record.id}"
    text = f"{one_line(item_text(record.item), _SHORT)} -> " if item else ""
    return f"{text}{scale.label_of(record.value)}: {one_line(record.rationale, _SHORT) or '(no reason)'} [{who}]"
