"""From --db and --judge to an open judge."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from memalign.errors import ConfigurationError, MemalignError, NotFound

if TYPE_CHECKING:
    from memalign.judge import Judge


@contextmanager
def opened(db: str, name: str) -> Iterator[Judge]:
    """The judge of a name, or the only one that the memory holds; closed at the end. Raises ConfigurationError, NotFound, StoreError."""
    from memalign.judge import Judge

    judge, interrupted = Judge.load(db, chosen(db, name)), False
    try:
        yield judge
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        if interrupted:  # the process is about to end: a model in process would first finish what it is reading
            with suppress(MemalignError):
                judge.memory.store.close()
        else:
            judge.close()


def chosen(db: str, name: str) -> str:
    """The name of a judge that the memory holds; with an empty ``name``, of its only one."""
    known = names_in(db)
    if name in known:
        return name
    listed = ", ".join(map(repr, known))
    if not known:
        raise NotFound(f"{db} holds no judge yet; register one with: memalign init --db {db}")
    if name:
        close = difflib.get_close_matches(name, known, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise NotFound(f"no judge {name!r} in {db}; it holds: {listed}{meant}")
    if len(known) > 1:
        raise ConfigurationError(f"{db} holds several judges; choose one with --judge or MEMALIGN_JUDGE: {listed}")
    return known[0]


def names_in(db: str) -> list[str]:
    """The judges of a memory that exists; unlike opening it, this never makes a new file."""
    from memalign.memory import judge_names
    from memalign.stores import open_store

    if "://" not in db and not Path(db).exists():
        raise ConfigurationError(f"there is no memory {db!r}; check the path, or make one with: memalign init --db {db}")
    store = open_store(db)
    try:
        return judge_names(store)
    finally:
        store.close()
