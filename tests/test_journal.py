"""The journal: rows that are written a moment later, together, and never in silence."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, event, func, insert, select

from memalign import StoreBusy, StoreError
from memalign.memory.journal import Entry, Journal
from memalign.stores import Store, open_store, schema

CALL = {
    "purpose": "judge",
    "model": "scripted/model",
    "calls": 1,
    "prompt_tokens": 1,
    "cached_tokens": 0,
    "completion_tokens": 1,
    "embedded_texts": 0,
    "cost_usd": None,
    "seconds": 0.1,
    "error": None,
}


@pytest.fixture
def store(db: str) -> Iterator[Store]:
    opened = open_store(db)
    with opened.writing() as connection:
        connection.execute(insert(schema.judge).values(id=1, name="polite", settings="{}", secret="s", created_at="now"))
    yield opened
    opened.close()


def call(number: int) -> Entry:
    return schema.ledger, {"judge_id": 1, "at": f"{number:06d}", **CALL}


def verdict(number: int) -> Entry:
    row = {"judge_id": 1, "id": f"{number:032d}", "at": "now", "item_id": "i", "value": "true", "rationale": "", "confidence": None, "revision": 0}
    return schema.verdict, row | {"guideline_ids": "[]", "episode_ids": "[]", "voter_ids": "[]"}


def written(store: Store) -> list[str]:
    with store.reading() as connection:
        return list(connection.execute(select(schema.ledger.c.at).order_by(schema.ledger.c.row)).scalars())


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Failing:
    """A store whose writers raise what is in the list, then work."""

    def __init__(self, store: Store, *errors: Exception) -> None:
        self.store, self.errors, self.writes = store, list(errors), 0

    @contextmanager
    def writing(self, *of: Any) -> Iterator[Connection]:
        self.writes += 1
        if self.errors:
            raise self.errors.pop(0)
        with self.store.writing(*of) as connection:
            yield connection


def test_rows_are_written_a_moment_later_without_anyone_waiting(store: Store) -> None:
    journal = Journal(store)
    journal.append([call(1)])
    until(lambda: written(store) == ["000001"])


def test_rows_of_one_moment_share_a_transaction_and_keep_their_order(store: Store) -> None:
    counting = Failing(store)
    journal = Journal(counting)  # type: ignore[arg-type]
    for number in range(50):
        journal.append([call(number), verdict(number)])
    journal.flush()
    until(lambda: len(written(store)) == 50)
    assert written(store) == [f"{number:06d}" for number in range(50)]
    assert counting.writes <= 5
    with store.reading() as connection:
        assert connection.execute(select(func.count()).select_from(schema.verdict)).scalar() == 50


def test_nothing_to_write_opens_no_transaction(store: Store) -> None:
    counting = Failing(store)
    journal = Journal(counting)  # type: ignore[arg-type]
    journal.append([])
    journal.flush()
    assert counting.writes == 0


def test_rows_for_which_the_store_was_too_busy_are_kept(store: Store) -> None:
    journal = Journal(Failing(store, StoreBusy("locked")))  # type: ignore[arg-type]
    journal.append([call(1)])
    with pytest.raises(StoreBusy):
        journal.flush()
    journal.append([call(2)])
    journal.flush()
    until(lambda: len(written(store)) == 2)
    assert written(store) == ["000001", "000002"]


def test_a_failure_in_the_background_is_told_once_and_costs_no_call(store: Store, recwarn: pytest.WarningsRecorder) -> None:
    failing = Failing(store, StoreError("the disk is full"), StoreError("the disk is full"))
    journal = Journal(failing)  # type: ignore[arg-type]
    for number in (1, 2):
        journal.append([call(number)])
        until(lambda number=number: failing.writes == number and not journal._at_work)  # type: ignore[misc]
    journal.append([call(3)])
    until(lambda: written(store) == ["000003"])
    journal.close()
    assert "cannot be logged: the disk is full" in str(recwarn.pop(UserWarning).message)
    assert not recwarn


def test_a_close_gives_up_after_one_try(store: Store) -> None:
    failing = Failing(store, StoreBusy("locked"))
    journal = Journal(failing)  # type: ignore[arg-type]
    journal.append([call(1)])
    with pytest.warns(UserWarning, match="cannot be logged: locked"):
        journal.close()
    journal.append([call(2)])
    journal.close()
    assert written(store) == ["000002"]


def test_a_try_under_way_is_the_one_that_a_close_waits_for(store: Store) -> None:
    begun = threading.Event()

    class Slow(Failing):
        @contextmanager
        def writing(self, *of: Any) -> Iterator[Connection]:
            begun.set()
            time.sleep(0.3)
            with super().writing(*of) as connection:
                yield connection

    slow = Slow(store, StoreBusy("locked"))
    journal = Journal(slow)  # type: ignore[arg-type]
    journal.append([call(1)])
    assert begun.wait(20)
    with pytest.warns(UserWarning, match="locked"):
        journal.close()
    assert (slow.writes, written(store)) == (1, [])


def test_many_threads_at_once_lose_nothing(store: Store) -> None:
    journal = Journal(store)
    threads = [threading.Thread(target=lambda start=start: [journal.append([call(start + n)]) for n in range(50)]) for start in range(0, 400, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.flush()
    until(lambda: len(written(store)) == 400)
    assert sorted(written(store)) == [f"{number:06d}" for number in range(400)]


def test_a_flush_waits_for_a_write_under_way(store: Store) -> None:
    """What was appended before it is in the store when it returns, even when the worker has taken the rows already."""
    journal = Journal(store)
    slow = threading.Event()

    def hold(*_: Any) -> None:
        slow.set()
        time.sleep(0.3)

    with store.reading() as connection:
        engine = connection.engine
    event.listen(engine, "commit", hold)
    try:
        journal.append([call(1)])
        assert slow.wait(20)
        journal.flush()
        assert written(store) == ["000001"]
    finally:
        event.remove(engine, "commit", hold)


CHILD = """
import os, sys
from memalign.memory.journal import Journal
from memalign.stores import open_store, schema
def call(number):
    return schema.ledger, {{"judge_id": 1, "at": f"{{number:06d}}", **{call!r}}}
journal = Journal(open_store(sys.argv[1]))
journal.append([call(1)])
{end}
"""


def left_behind(db: str, end: str) -> int:
    script = CHILD.format(call=CALL, end=end)
    return subprocess.run([sys.executable, "-c", script, db], timeout=60, check=False).returncode


def test_a_process_that_ends_normally_waits_for_its_journal(store: Store, db: str) -> None:
    assert left_behind(db, "") == 0
    assert written(store) == ["000001"]
    assert left_behind(db, "sys.exit(3)") == 3
    assert len(written(store)) == 2


def test_a_process_that_is_killed_loses_only_the_last_moment(store: Store, db: str) -> None:
    code = left_behind(db, "journal.flush(); journal.append([call(2)]); os.kill(os.getpid(), 9)")
    assert code == -9
    assert written(store)[:1] == ["000001"]
    with store.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_writes_its_own_rows_only(store: Store, db: str) -> None:
    script = CHILD.format(
        call=CALL,
        end="pid = os.fork()\njournal.append([call(2 if pid else 3)])\njournal.flush()\nos._exit(0) if not pid else os.waitpid(pid, 0)",
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script, db], timeout=60, check=True)
    assert done.returncode == 0
    assert sorted(written(store)) == ["000001", "000002", "000003"]
