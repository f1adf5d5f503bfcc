"""``memalign suggest``: what to label next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from memalign.cli.options import AsJson, Database, JudgeName
from memalign.errors import ConfigurationError

if TYPE_CHECKING:
    from memalign.files import ItemRow
    from memalign.suggesting import Suggestion

_SHORT = 200


def suggest(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Unlabelled items as JSONL, CSV or Parquet; - is JSONL on standard input.")],
    db: Database,
    judge: JudgeName = "",
    n: Annotated[int, typer.Option("-n", "--number", help="How many items to suggest.", min=1)] = 20,
    calls: Annotated[int, typer.Option(help="Ask for at most so many replies; 0 uses only what is known.", min=0)] = 0,
    json: AsJson = False,
) -> None:
    """Rank unlabelled items by what an expert's verdict on them would teach.

    What counts: how unsure the judge is (by its logged confidence, by fresh verdicts with --calls, else by the vote of similar cases), whether
    experts differ on similar cases, how far an item is from all that memory holds, and how many others it stands for. Where the model tells no
    token probabilities, a fresh verdict takes five replies.

    Exit code 1: bad rows were skipped.
    """
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, progress
    from memalign.cli.weights import watched

    rows, problems = _read(file)
    if not rows:
        raise ConfigurationError(f"there are no items in {file}")
    with opened(db, judge) as found, progress() as tell, watched(found, tell):
        suggestions = found.suggest([row.item for row in rows], n, calls=calls, progress=tell)
    if json:
        emit({"suggestions": [_document(rows, suggestion) for suggestion in suggestions], "items": len(rows), "problems": problems})
    else:
        _show(rows, suggestions)
    raise typer.Exit(1 if any(not problem["warning"] for problem in problems) else 0)


def _read(file: str) -> tuple[list[ItemRow], list[dict[str, Any]]]:
    from memalign.cli.printing import problem_dict, report_problem
    from memalign.files import iter_items
    from memalign.rows import RowProblem

    rows, problems = [], []
    for entry in iter_items(file):
        if isinstance(entry, RowProblem):
            report_problem(file, entry)
            problems.append(problem_dict(file, entry))
        else:
            rows.append(entry)
    return rows, problems


def _document(rows: list[ItemRow], suggestion: Suggestion) -> dict[str, Any]:
    row = rows[suggestion.place]
    return {"row": row.row, "id": row.id, **suggestion.to_dict()}


def _show(rows: list[ItemRow], suggestions: list[Suggestion]) -> None:
    from memalign.agreement import short
    from memalign.cli.printing import one_line, say
    from memalign.rendering import item_text

    if not suggestions:
        say("nothing to suggest: memory holds a verdict on each of these items")
    for rank, suggestion in enumerate(suggestions, start=1):
        row = rows[suggestion.place]
        name = f"row {row.row}" + (f", {row.id}" if row.id != suggestion.item.id else "")
        say(f"{rank}. {name}: {one_line(item_text(suggestion.item), _SHORT)}")
        parts = ", ".join(f"{part.replace('_', ' ')} {short(value)}" for part, value in suggestion.parts.items())
        say(f"   {'; '.join(suggestion.reasons)} [{parts}; score {short(suggestion.score, digits=3)}]")
