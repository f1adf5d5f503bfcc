"""What people and programs get to see: results on standard output; progress and problems on standard error."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

from memalign.rendering import one_line as one_line

if TYPE_CHECKING:
    from memalign.memory import Embedded
    from memalign.rows import RowProblem

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_UNWRAPPED = 100_000
"""Columns of a table that is not shown on a terminal: no cell is ever cut."""


def say(line: str) -> None:
    """A line of the result."""
    _write(sys.stdout, line)


def note(line: str) -> None:
    """A line about progress or problems."""
    _write(sys.stderr, line)


def emit(document: Any, *, indent: int | None = 2) -> None:
    """One JSON document on standard output, without ``indent`` on one line."""
    _write(sys.stdout, as_json(document, indent=indent), clean=False)


def as_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text that can be encoded anywhere: readable Unicode, unless it holds half of a surrogate pair or the terminal is not UTF-8.

    Control characters are written as escapes, also those that JSON would allow as they are.
    """
    text = _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False, indent=indent, default=_plain))
    utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    try:
        text.encode("utf-8" if utf8 else "ascii")
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent, default=_plain)
    return text


def visible(text: str) -> str:
    """``text`` with control characters written out: judged texts must not be able to steer a terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, wide: Sequence[str] = ()) -> None:
    """A table on standard output; on a terminal the ``wide`` columns are wrapped to fit."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    grid = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        grid.add_column(name, no_wrap=name not in wide, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(visible(str(cell))) for cell in row))
    console = Console(width=None if terminal else _UNWRAPPED, highlight=False)
    with console.capture() as captured:
        console.print(grid)
    for line in captured.get().splitlines():
        _write(sys.stdout, line.rstrip(), clean=False)


def report_problems(path: str, problems: Iterable[RowProblem]) -> None:
    """Say on standard error which rows were not read, and what was remarked about others."""
    for problem in problems:
        report_problem(path, problem)


def report_problem(path: str, problem: RowProblem) -> None:
    """Say on standard error that a row was not read, or what was remarked about it."""
    name = "standard input" if path == "-" else path
    note(f"{'remark' if problem.warning else 'skipped'}: {name}: {problem}")


def problem_dict(path: str, problem: RowProblem) -> dict[str, Any]:
    """A problem for a JSON document."""
    return {"file": path, "row": problem.row, "field": problem.field, "reason": problem.reason, "warning": problem.warning}


def still_to_embed(embedder: str, found: Embedded) -> str:
    """How far a new embedder has come."""
    meanwhile = "" if found.former is None else f"; until then judgements search by {found.former}"
    return f"{found.lacking:,} of {found.texts:,} text(s) are still to be embedded by {embedder}{meanwhile}"


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error when that is a terminal, else nothing; yields what is to be called with stage, done, total."""
    if not sys.stderr.isatty():
        yield lambda _stage, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    shown: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in shown:
                shown[stage] = bar.add_task(stage, total=total or None)
            bar.update(shown[stage], completed=done, total=total or None)

        yield tell


def _write(stream: TextIO, line: str, *, clean: bool = True) -> None:
    text = visible(line) if clean else line
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")
