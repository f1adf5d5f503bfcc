"""The journal: what judgements leave behind, written a moment later, so that no verdict waits for the disk."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Table, insert

from memalign.errors import MemalignError
from memalign.memory.log import outlasting
from memalign.stores import Store

_PAUSE_SECONDS = 0.02
"""From the first row to the write: rows that come meanwhile share a transaction, and its wait for the disk."""

Entry = tuple[Table, Mapping[str, Any]]
"""A table and a row for it; all rows of a table have the same columns, and all rows belong to one judge."""


class Journal:
    """Rows on their way into a store. Safe for threads; a forked process starts with none, its parent writes what waits.

    One worker thread writes them; a process that ends normally waits for it, one that is killed loses what came in the last moment.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[Entry] = []
        self._failures = 0
        self._told = False
        self._at_work = False
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memalign-journal")
        self._pid = os.getpid()

    def append(self, entries: Iterable[Entry]) -> None:
        """Take rows, to be written soon; never raises. A warning tells, once, when they cannot be; those that the store was too busy for are kept."""
        self._after_a_fork()
        with self._lock:
            self._waiting += entries
            idle = bool(self._waiting) and not self._at_work
            self._at_work = self._at_work or idle
        if idle:
            self._start()

    def flush(self) -> None:
        """Write what waits, now. Raises what the store raises."""
        self._after_a_fork()
        with self._turn:
            self._write()

    def close(self) -> None:
        """Write what waits, in one try, or wait for the one under way; what it leaves is given up, with a warning."""
        self._after_a_fork()
        before = self._failures
        with self._turn:
            if self._failures == before:
                self._attempt()
            with self._lock:
                self._waiting.clear()

    def _write(self) -> None:
        with self._lock:
            entries, self._waiting = self._waiting, []
        by_table: dict[Table, list[Mapping[str, Any]]] = {}
        for table, row in entries:
            by_table.setdefault(table, []).append(row)
        if not entries:
            return
        try:
            with self._store.writing(entries[0][1]["judge_id"]) as connection:
                for table, rows in by_table.items():
                    if lasting := outlasting(connection, table, rows):
                        connection.execute(insert(table), lasting)
        except MemalignError as error:
            self._failures += 1
            if error.retryable:
                with self._lock:
                    self._waiting[:0] = entries
            raise
        self._told = False

    def _after_a_fork(self) -> None:
        if self._pid != os.getpid():
            self.__init__(self._store)  # type: ignore[misc]

    def _start(self) -> None:
        try:
            self._worker.submit(self._work)
        except RuntimeError:  # the interpreter is ending and takes no more work
            self._at_work = False
            with self._turn:
                self._attempt()

    def _work(self) -> None:
        time.sleep(_PAUSE_SECONDS)
        with self._lock:
            self._at_work = False  # what comes from here on is work of its own
        with self._turn:
            self._attempt()

    def _attempt(self) -> None:
        try:
            self._write()
        except MemalignError as error:
            if not self._told:
                warnings.warn(
                    f"verdicts are given, but cannot be logged: {error}; what is not written when the judge is closed will be missing from the log",
                    stacklevel=2,
                )
                self._told = True
