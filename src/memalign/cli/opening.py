"""From --db and --judge to an open judge."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from memalign.errors import ConfigurationError, NotFound
from memalign.stores import open_store, shown

if TYPE_CHECKING:
    from memalign.judge import Judge
    from memalign.memory import Memory
    from memalign.stores import Store

_GRACE_SECONDS = 2.0
"""That closing a memory gets after Ctrl-C."""


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
            _close_soon(judge.memory)
        else:
            judge.close()


def _close_soon(memory: Memory) -> None:
    """Write what was logged, unless another process keeps that waiting."""
    from memalign.cli.printing import note

    ending = threading.Thread(target=memory.close, name="memalign-closing", daemon=True)
    ending.start()
    ending.join(_GRACE_SECONDS)
    if ending.is_alive():
        note("the last verdicts could not be logged: the memory did not take them in time")


def chosen(db: str, name: str) -> str:
    """The name of a judge that the memory holds; with an empty ``name``, of its only one."""
    known, where = names_in(db), shown(db)
    if name in known:
        return name
    listed = ", ".join(map(repr, known))
    if not known:
        raise NotFound(f"{where} holds no judge yet; register one with: memalign init --db {where}")
    if name:
        close = difflib.get_close_matches(name, known, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise NotFound(f"no judge {name!r} in {where}; it holds: {listed}{meant}")
    if len(known) > 1:
        raise ConfigurationError(f"{where} holds several judges; choose one with --judge or MEMALIGN_JUDGE: {listed}")
    return known[0]


def names_in(db: str) -> list[str]:
    """The judges of a memory that exists. Raises ConfigurationError when it does not."""
    from memalign.memory import judge_names

    with existing(db) as store:
        return judge_names(store)


@contextmanager
def existing(db: str) -> Iterator[Store]:
    """The store of a memory that exists; unlike opening it, this never makes one. Raises ConfigurationError when there is none."""
    with closing(open_store(db)) as store:
        if not store.exists():
            raise ConfigurationError(f"there is no memory {shown(db)!r}; check the path, or make one with: memalign init --db {shown(db)}")
        yield store
