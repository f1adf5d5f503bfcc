"""The results file of ``memalign judge``: one JSON line an item, complete at every moment."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from memalign.cli.printing import as_json
from memalign.errors import ConfigurationError

if TYPE_CHECKING:
    from memalign.files import ItemRow
    from memalign.records import Failure, Verdict

Key = tuple[Any, Any, Any]
"""Row, id and digest of the content: a row is known again only when none of them changed."""

Put = Callable[[str], None]
"""Writes one line, at once."""


def key_of(row: ItemRow) -> Key:
    """By what a row is known again."""
    return row.row, row.id, row.item.id


def line_of(row: ItemRow, result: Verdict | Failure) -> str:
    """The JSON line of a judged row."""
    from memalign.records import Verdict

    kind = "verdict" if isinstance(result, Verdict) else "failure"
    return as_json({"row": row.row, "id": row.id, "item": row.item.id, kind: result.to_dict()})


@contextmanager
def writing(out: str | None, *, items: str, resume: bool, overwrite: bool) -> Iterator[tuple[Put, set[Key]]]:
    """What takes a result's line, and the rows that have a verdict already. Raises ConfigurationError.

    A file that is overwritten keeps what it holds until the first result. ``items``: the file that is judged, which is refused.
    """
    if out is None or out == "-":
        if resume:
            raise ConfigurationError("--resume needs --out: it goes on with the results of that file")
        yield partial(_put, sys.stdout), set()
        return
    path = Path(out)
    try:
        if path.exists() and items != "-" and path.samefile(items):
            raise ConfigurationError(f"--out {out} is the file of items itself; name another file for the results")
        former = path.stat().st_size if path.exists() else 0
        if former and not resume and not overwrite:
            raise ConfigurationError(f"{out} exists: --resume goes on with it, --overwrite starts anew")
        done = _kept(path) if resume and former else set()
        stream = path.open("a", encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigurationError(f"cannot write {out}: {error.strerror or error}") from error
    with stream:
        yield partial(_put, stream) if resume or not former else _anew(stream), done


def _put(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


def _anew(stream: TextIO) -> Put:
    """Writes lines in place of what the file holds, which goes with the first of them."""
    begun = False

    def put(line: str) -> None:
        nonlocal begun
        if not begun:
            stream.truncate(0)
        begun = True
        _put(stream, line)

    return put


def _kept(path: Path) -> set[Key]:
    """Rows of an earlier run that have a verdict. Failures, and a last line that was cut, are taken out of the file: those rows come again."""
    done: set[Key] = set()
    good = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                entry = json.loads(line)
                key = entry["row"], entry["id"], entry["item"]
            except (ValueError, KeyError, TypeError) as error:
                if not line.endswith(b"\n"):
                    break
                raise ConfigurationError(f"{path}, line {number} is no result of memalign judge; name another file") from error
            if "verdict" in entry:
                done.add(key)
                good.append(line if line.endswith(b"\n") else line + b"\n")
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(b"".join(good))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return done
