"""``memalign db``: the database that a memory lies in: its schema, its health, its space."""

from __future__ import annotations

import typer

from memalign.cli.options import AsJson, Database

app = typer.Typer(help="Look after the database that a memory lies in.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def upgrade(db: Database, json: AsJson = False) -> None:
    """Bring the schema up to this release.

    Whatever opens an older memory does the same; here you choose the moment, and see what was done. An older release cannot open it afterwards.
    """
    from memalign.cli.opening import existing
    from memalign.cli.printing import emit, say
    from memalign.stores import shown

    with existing(db) as store:
        before, after = store.upgrade()
    if json:
        emit({"memory": shown(db), "before": before, "after": after})
    else:
        say(f"{shown(db)}: schema {after}, " + ("as it was" if before == after else f"upgraded from {before or 'nothing'}"))


@app.command()
def check(db: Database, json: AsJson = False) -> None:
    """Look for damage: pages, indexes, references, and what must hold in every memory. It reads everything.

    Exit code 1: something is wrong.
    """
    from memalign.cli.opening import existing
    from memalign.cli.printing import emit, say
    from memalign.memory import integrity
    from memalign.stores import shown

    with existing(db) as store:
        faults = store.faults()
        if not faults:  # damaged pages would be found twice
            with store.reading() as connection:
                faults = integrity.faults(connection)
        size_bytes = store.size_bytes()
    if json:
        emit({"memory": shown(db), "ok": not faults, "faults": faults, "size_bytes": size_bytes})
    else:
        for fault in faults:
            say(fault)
        say(f"{shown(db)}: {f'{len(faults)} fault(s); restore it from a copy' if faults else 'sound'}, {_megabytes(size_bytes)}")
    raise typer.Exit(1 if faults else 0)


@app.command()
def vacuum(db: Database, json: AsJson = False) -> None:
    """Rewrite the database without what was deleted: its bytes are gone, its space is given back. Nobody else can use it meanwhile."""
    from memalign.cli.opening import existing
    from memalign.cli.printing import emit, say
    from memalign.stores import shown

    with existing(db) as store:
        before = store.size_bytes()
        store.vacuum()
        after = store.size_bytes()
    if json:
        emit({"memory": shown(db), "size_bytes": {"before": before, "after": after}})
    else:
        say(f"{shown(db)}: {_megabytes(after)}, {_megabytes(before - after)} given back")


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
