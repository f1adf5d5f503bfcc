"""The graph of a large memory on a PostgreSQL server: it finds what comparing everything finds, follows all changes, and goes before a purge ends."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import psycopg
import pytest

from memalign import Judge, Retrieval, Scale
from memalign.memory import search
from memalign.models.scripted import ScriptedChatModel
from memalign.stores import neighbours, open_store
from pgserving import Server
from test_search_file import DIMENSION, Spread, feedback, judges, same, shown

__all__ = ["judges"]

FEW = range(2000, 2010)
"""Fewer searches than make an index."""


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of a test."""
    monkeypatch.setattr(search, "LINKED_FROM", 150)


@pytest.fixture(scope="module")
def aligned(postgres: Server) -> Iterator[str]:
    """The name of a database with a memory, to be copied."""
    judge = Judge("near", "Is it good?", Scale.boolean(), ScriptedChatModel([]), memory=postgres.make("aligned"), embedder=Spread())
    judge.align(feedback(0, 250))
    judge.close()
    yield "aligned"
    postgres.drop("aligned")


_numbers = itertools.count(1)


@pytest.fixture
def db(postgres: Server, aligned: str) -> str:
    return postgres.make(f"near_{next(_numbers)}", template=aligned)


def graphs(url: str) -> list[tuple[str, bool]]:
    with psycopg.connect(url) as connection:
        listed = "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE starts_with(c.relname, 'near_')"
        return connection.execute(listed).fetchall()


def search_plan(url: str) -> str:
    """How the server would search."""
    *settings, check, statement = neighbours._SEARCH.split(";")
    index = f"memalign.{neighbours.name_of(Spread.id)}"
    given = {"effort": 100, "index": f"'{index}'", "judge": 1, "embedder": f"'{Spread.id}'", "dimension": DIMENSION, "count": 40}
    given["query"] = f"'{[1.0] * DIMENSION}'"
    with psycopg.connect(url, options="-c search_path=memalign,public") as connection:
        connection.execute(";".join(settings).format(**given))
        assert connection.execute(check.format(**given)).fetchone() == (True,)
        return "\n".join(row[0] for row in connection.execute("EXPLAIN " + statement.format(**given)))


def exactly(make: Any, url: str, numbers: Any = FEW, **more: Any) -> list[tuple[str, ...]]:
    """What a judge finds that compares everything."""
    judge = make(url, **more)
    judge.memory.view()
    judge.memory._search._index.served = None
    return shown(judge, numbers)


def served(judge: Judge) -> bool:
    return judge.memory._search._index.served.answers


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many items each question to the server brought."""
    brought: list[int] = []
    near = neighbours.near

    def noted(*given: Any) -> Any:
        found = near(*given)
        brought.append(-1 if found is None else len(found))
        return found

    monkeypatch.setattr(neighbours, "near", noted)
    return brought


def test_it_finds_what_comparing_everything_finds(judges: Any, db: str, scanned: list[int]) -> None:
    expected = exactly(judges, db)
    judge = judges(db)
    assert same(shown(judge, FEW), expected)
    assert scanned == [-1], "there is none yet, which is asked once"
    assert judge.memory.keep_index() is True
    assert [valid for _, valid in graphs(db)] == [True]
    scanned.clear()
    plan = search_plan(db)
    assert "Index Scan using near_" in plan
    assert "Sort" not in plan
    assert same(shown(judge, FEW), expected)
    assert len(scanned) == len(FEW)
    assert min(scanned) >= 32
    other = judges(db)
    scanned.clear()
    assert same(shown(other, FEW), expected)
    assert len(scanned) == len(FEW), "another process finds it there"
    with closing(open_store(db)) as store:
        assert store.faults() == []


def test_it_follows_all_changes(judges: Any, db: str) -> None:
    judge = judges(db)
    judge.memory.keep_index()
    gone = shown(judge, [2000])[0]
    judge.unalign(gone)
    judge.align(feedback(2000, 2100))
    numbers = range(2000, 2040)
    assert same(shown(judge, numbers), exactly(judges, db, numbers))
    assert served(judge)
    assert not set(gone) & set(sum(shown(judge, numbers), ()))


def test_a_judge_with_few_of_the_vectors_finds_its_own(judges: Any, db: str, scanned: list[int]) -> None:
    """The scan goes on behind the vectors of other judges."""
    small = judges(db, name="small")
    small.align(feedback(5000, 5160))
    judges(db).align(feedback(3000, 3400))
    assert small.memory.keep_index() is True
    scanned.clear()
    assert same(shown(small, FEW), exactly(judges, db, name="small"))
    assert min(scanned) >= 32


def test_a_narrow_filter_compares_exactly(judges: Any, db: str, scanned: list[int]) -> None:
    judge = judges(db, retrieval=Retrieval(annotators=("ann1",)))
    judge.memory.keep_index()
    scanned.clear()
    assert all(int(key[1:]) % 3 == 1 for found in shown(judge, FEW) for key in found)
    assert scanned == []


def test_a_pinned_judge_compares_exactly(judges: Any, db: str, scanned: list[int]) -> None:
    judge = judges(db)
    judge.memory.keep_index()
    scanned.clear()
    shown(judge.at(1), FEW)
    assert scanned == []


def test_it_is_made_in_the_background_while_judging_goes_on(judges: Any, db: str) -> None:
    judge = judges(db)
    for number in range(2000, 2016):
        shown(judge, [number])
    worker = judge.memory._search._worker
    if worker is not None:
        worker.join(60)
    assert [valid for _, valid in graphs(db)] == [True]
    assert served(judge)


def test_a_purge_drops_it_and_the_next_searches_make_it_anew(judges: Any, db: str) -> None:
    judge, other = judges(db), judges(db)
    judge.memory.keep_index()
    shown(other, [2000])
    assert served(other)
    report = judge.purge("f7")
    assert report.erased
    assert graphs(db) == []
    assert "f7" not in sum(shown(other, range(2000, 2016)), ())
    worker = other.memory._search._worker
    if worker is not None:
        worker.join(60)
    assert [valid for _, valid in graphs(db)] == [True]


def test_a_vacuum_by_someone_else_is_noticed(judges: Any, db: str) -> None:
    judge = judges(db)
    judge.memory.keep_index()
    with closing(open_store(db)) as store:
        store.vacuum()
    assert same(shown(judge, [2000]), exactly(judges, db, [2000]))
    assert not served(judge)


def test_a_build_that_is_stopped_is_not_used_and_the_next_one_starts_afresh(judges: Any, db: str) -> None:
    with closing(open_store(db)) as store, psycopg.connect(db) as reader:
        reader.execute("LOCK memalign.embedding IN ROW EXCLUSIVE MODE")  # a writer, for whom a build waits
        until = time.monotonic() + 0.5
        assert store.link(Spread.id, DIMENSION, lambda: time.monotonic() > until) is False
        assert [valid for _, valid in graphs(db)] == [False]
        assert store.nearest(1, Spread.id, np.zeros(DIMENSION, "<f4").tobytes(), 5) is None
        assert store.faults() == []
        reader.rollback()
        assert store.link(Spread.id, DIMENSION, lambda: False) is True
        assert store.link(Spread.id, DIMENSION, lambda: False) is True, "it is there already"
        assert [valid for _, valid in graphs(db)] == [True]
        assert store.unlink() == 1


def test_who_comes_second_leaves_the_work_to_the_first(db: str) -> None:
    from memalign.stores.postgres import _LOCKS

    with closing(open_store(db)) as store, psycopg.connect(db, autocommit=True) as first:
        first.execute(f"SELECT pg_advisory_lock({_LOCKS + 1}, hashtext('{neighbours.name_of(Spread.id)}'))")
        assert store.link(Spread.id, DIMENSION, lambda: False) is False


def test_where_the_server_cannot_link_everything_is_compared(judges: Any, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(open_store(db)) as store:
        assert store.link("wide", 5000, lambda: False) is False
        monkeypatch.setattr(neighbours, "_OLDEST", (99, 0))
        assert store.link(Spread.id, DIMENSION, lambda: False) is False
    judge = judges(db)
    assert judge.memory.keep_index() is False
    assert same(shown(judge, FEW), exactly(judges, db))


def test_only_a_server_has_one(judges: Any) -> None:
    with closing(open_store(None)) as store:
        assert store.link("any", 3, lambda: False) is False
        assert store.nearest(1, "any", np.zeros(3, "<f4").tobytes(), 5) is None
        assert store.unlink() == 0
