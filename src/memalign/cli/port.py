"""``memalign export`` and ``memalign import``: a memory as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from memalign.cli.options import Actor, AsJson, Database, JudgeName


def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to write, e.g. support.memalign")],
    db: Database,
    judge: JudgeName = "",
    vectors: Annotated[bool, typer.Option("--vectors/--no-vectors", help="With them, nothing has to be embedded again.")] = True,
    log: Annotated[bool, typer.Option("--log", help="The log of verdicts and calls as well.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    json: AsJson = False,
) -> None:
    """Write a judge's whole memory, every version of it, to one compressed file.

    The file holds what the memory holds, the judge's secret included: keep it as safe. Its format is described in docs/format.md.
    """
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, progress, say

    with opened(db, judge) as found, progress() as tell:
        report = found.memory.export(file, vectors=vectors, log=log, overwrite=overwrite, progress=tell)
    if json:
        emit(report.to_dict())
    else:
        for line in report.lines():
            say(line)


def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `memalign export` wrote.")],
    db: Database,
    judge: Annotated[str, typer.Option("--judge", envvar="MEMALIGN_JUDGE", help="Into which judge; the file's own name if left out.")] = "",
    on_conflict: Annotated[
        Literal["newer", "ours", "theirs", "error"], typer.Option("--on-conflict", help="Whose word holds where both know a record differently.")
    ] = "newer",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    actor: Actor = "",
    json: AsJson = False,
) -> None:
    """Bring in an exported memory: as it was where there is none yet, else merged as one new revision.

    A file that is truncated, damaged, foreign or newer changes nothing. Exit code 1: some records were in conflict.
    """
    from memalign.cli.printing import emit, progress, say
    from memalign.memory.porting import bring, survey
    from memalign.stores import open_store

    with progress() as tell:
        found = survey(Path(file), tell)
        name = judge or found.header["judge"]["name"]
        store = open_store(db)
        if dry_run and not store.exists():
            store = open_store(None)  # a preview makes no memory
        try:
            report = bring(store, name, Path(file), found, on_conflict=on_conflict, actor=actor, dry_run=dry_run, progress=tell)
        finally:
            store.close()
    if json:
        emit(report.to_dict())
    else:
        for line in report.lines():
            say(line)
    raise typer.Exit(1 if report.conflicts else 0)
