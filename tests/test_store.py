"""The store: one file, one writer, many readers, and errors that say what to do."""

from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import func, insert, select, text
from sqlalchemy.dialects.postgresql.base import ischema_names

import memalign.stores
from memalign import Judge
from memalign.errors import ConfigurationError, MemalignError, NotFound, StoreBusy, StoreError
from memalign.stores import Store, open_store, schema
from memalign.stores.migrations import HEAD
from memalign.stores.types import PgVector

# Adds rows in many small transactions, each of which reads before it writes: a lost update would show.
WRITER = """
import sys
from sqlalchemy import func, insert, select
from memalign.stores import open_store, schema
path, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = open_store(path)
table = schema.judge
for number in range(count):
    with store.writing() as connection:
        seen = connection.execute(select(func.count()).select_from(table)).scalar()
        connection.execute(insert(table).values(name=f"{who}-{number}", settings=str(seen), secret="s", created_at="now"))
store.close()
"""


BOTH = pytest.mark.both_stores


@pytest.fixture(params=["file", "ram", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> object:
    places = {"file": lambda: str(tmp_path / "judge.db"), "ram": lambda: None, "postgres": lambda: request.getfixturevalue("make_db")()}
    opened = open_store(places[request.param]())
    yield opened
    opened.close()


def put(store: Store, name: str) -> None:
    with store.writing() as connection:
        connection.execute(insert(schema.judge).values(name=name, settings="{}", secret="s", created_at="now"))


def names(store: Store) -> list[str]:
    with store.reading() as connection:
        return list(connection.execute(select(schema.judge.c.name).order_by(schema.judge.c.name)).scalars())


def hasty(location: str, wait_seconds: float = 0.2) -> Store:
    """A store whose writers do not wait long."""
    store = open_store(location)
    store._wait_seconds = wait_seconds
    return store


def pragma(store: Store, name: str) -> object:
    with store.reading() as connection:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


# Schema


def test_the_schema_is_what_the_migrations_make(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ischema_names, "vector", PgVector)  # lets SQLAlchemy read back what it does not know
    with store.reading() as connection:
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() == HEAD
        assert compare_metadata(context, schema.metadata) == []


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(memalign.stores.__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_opening_again_migrates_nothing(db: str) -> None:
    first = open_store(db)
    put(first, "one")
    first.close()
    before = Path(db).read_bytes()
    again = open_store(db)
    assert names(again) == ["one"]
    again.close()
    assert Path(db).read_bytes() == before


def test_a_file_is_kept_in_wal_with_deleted_bytes_overwritten_and_references_checked(db: str) -> None:
    store = open_store(db)
    assert pragma(store, "journal_mode") == "wal"
    assert pragma(store, "secure_delete") == 1
    assert pragma(store, "foreign_keys") == 1
    with pytest.raises(StoreError, match="FOREIGN KEY"), store.writing() as connection:
        connection.execute(text("INSERT INTO evidence (guideline_row, feedback_row, sign) VALUES (1, 1, 1)"))
    store.close()


def test_deleting_a_judge_deletes_all_that_is_its_own(store: Store) -> None:
    put(store, "one")
    with store.writing() as connection:
        connection.execute(insert(schema.revision).values(judge_id=1, number=1, at="", actor="", verb="", counts="{}"))
        connection.execute(schema.judge.delete())
        assert connection.execute(select(func.count()).select_from(schema.revision)).scalar() == 0


# Transactions


def test_a_failed_change_leaves_nothing(store: Store) -> None:
    def fail() -> None:
        with store.writing() as connection:
            connection.execute(insert(schema.judge).values(name="half", settings="{}", secret="s", created_at="now"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(store) == []
    put(store, "whole")
    assert names(store) == ["whole"]


def test_threads_take_turns(store: Store) -> None:
    def write(who: int) -> None:
        for number in range(25):
            with store.writing() as connection:
                seen = connection.execute(select(func.count()).select_from(schema.judge)).scalar()
                connection.execute(insert(schema.judge).values(name=f"{who}-{number}", settings=str(seen), secret="s", created_at="now"))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    _all_rows_are_there(store, 50)


def test_searching_the_files_leaves_the_lock_of_a_writer(db: str) -> None:
    """Closing a file drops the locks that the process has on it, SQLite's among them."""
    store = open_store(db)
    put(store, "one")
    taking = [sys.executable, "-c", "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')", db]
    with store.writing():
        assert store.find([b"memalign-no-such-phrase"]) == {}
        while_written = subprocess.run(taking, capture_output=True, text=True, check=False)
    afterwards = subprocess.run(taking, capture_output=True, text=True, check=False)
    store.close()
    assert "database is locked" in while_written.stderr
    assert afterwards.returncode == 0


@BOTH
def test_processes_take_turns_even_at_the_first_opening(db: str) -> None:
    command = [sys.executable, "-c", WRITER, db]
    writers = [subprocess.Popen([*command, str(who), "25"]) for who in range(2)]
    assert [writer.wait(30) for writer in writers] == [0, 0]
    store = open_store(db)
    _all_rows_are_there(store, 50)
    store.close()


@BOTH
def test_many_threads_with_stores_of_their_own_open_a_new_file_at_once(db: str) -> None:
    """Each store stands for a process: its own connections, its own migration."""
    start = threading.Barrier(8)

    def open_and_write(number: int) -> None:
        mine = open_store(db)
        start.wait()
        put(mine, f"judge {number}")
        mine.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(open_and_write, range(8)))
    store = open_store(db)
    assert len(names(store)) == 8
    store.close()


def _all_rows_are_there(store: Store, count: int) -> None:
    with store.reading() as connection:
        seen = connection.execute(select(schema.judge.c.settings).order_by(schema.judge.c.id)).scalars()
        assert [int(number) for number in seen] == list(range(count))


@BOTH
def test_a_reader_beside_an_open_change_sees_what_was_before(db: str) -> None:
    store, other = open_store(db), open_store(db)
    put(store, "before")
    with store.writing() as connection:
        connection.execute(insert(schema.judge).values(name="coming", settings="{}", secret="s", created_at="now"))
        assert names(other) == ["before"]
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(names, store).result(5) == ["before"]
    assert names(other) == ["before", "coming"]
    store.close()
    other.close()


@BOTH
def test_a_reader_keeps_its_snapshot(db: str) -> None:
    store, other = open_store(db), open_store(db)
    put(store, "before")
    with other.reading() as connection:
        count = select(func.count()).select_from(schema.judge)
        assert connection.execute(count).scalar() == 1
        put(store, "after")
        assert connection.execute(count).scalar() == 1
    assert names(other) == ["after", "before"]
    store.close()
    other.close()


@BOTH
def test_a_locked_database_says_so_and_is_usable_afterwards(db: str) -> None:
    store, impatient = open_store(db), hasty(db)
    assert names(impatient) == []
    started = time.monotonic()
    with store.writing(), pytest.raises(StoreBusy, match=r"judge.* is locked .* 0\.2 s.*; try again") as caught:
        put(impatient, "never")
    assert 0.1 < time.monotonic() - started < 2
    assert caught.value.retryable
    put(impatient, "now")
    assert names(store) == ["now"]
    store.close()
    impatient.close()


@BOTH
def test_a_writer_that_dies_lets_the_next_one_in(db: str) -> None:
    script = """
import os, sys
from sqlalchemy import insert
from memalign.stores import open_store, schema
with open_store(sys.argv[1]).writing() as connection:
    connection.execute(insert(schema.judge).values(name="half", settings="{}", secret="s", created_at="now"))
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script, db], check=False, timeout=30).returncode == -9
    store = hasty(db, 2)
    put(store, "next")
    assert names(store) == ["next"]
    store.close()


@BOTH
def test_a_store_may_be_closed_and_used_again(db: str) -> None:
    store = open_store(db)
    put(store, "one")
    store.close()
    store.close()
    assert names(store) == ["one"]
    store.close()


@BOTH
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_opens_connections_of_its_own(db: str) -> None:
    store = open_store(db)
    put(store, "parent")
    queue = multiprocessing.get_context("fork").SimpleQueue()
    child = multiprocessing.get_context("fork").Process(target=_in_a_fork, args=(store, queue))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert queue.get() == (["child", "parent"], False)
    put(store, "parent again")
    assert names(store) == ["child", "parent", "parent again"]
    store.close()


def _in_a_fork(store: Store, queue: object) -> None:
    inherited = store._engine
    put(store, "child")
    queue.put((names(store), store._engine is inherited))


# Places that cannot be used


def failure(location: str) -> MemalignError:
    store = hasty(location)
    with pytest.raises(MemalignError) as caught:
        names(store)
    store.close()
    return caught.value


def test_random_bytes_are_not_a_database(tmp_path: Path) -> None:
    path = tmp_path / "noise.db"
    path.write_bytes(bytes(range(7, 250)) * 40)
    before = path.read_bytes()
    error = failure(str(path))
    assert type(error) is StoreError
    assert not error.retryable
    assert "noise.db is not a usable SQLite database" in str(error)
    assert "restore it from a copy, or name another file" in str(error)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_truncated_database_is_an_error_with_advice(db: str, kept: float) -> None:
    store = open_store(db)
    for number in range(200):
        put(store, f"judge {number} " + "x" * 100)
    with store.reading() as connection:
        connection.exec_driver_sql("PRAGMA integrity_check").scalar()
    store.close()
    path = Path(db)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    error = failure(db)
    assert type(error) is StoreError
    assert "restore it from a copy" in str(error)


def test_a_text_that_is_not_utf8_is_found_and_told_without_it(db: str) -> None:
    store = open_store(db)
    put(store, "polite")
    with store.writing() as connection:
        connection.execute(text("UPDATE judge SET name = CAST(x'7365637265FF' AS TEXT)"))
    assert store.faults() == ["1 text(s) in judge.name are not valid UTF-8"]
    with (
        pytest.raises(StoreError, match=r"judge\.db holds a damaged text; .*memalign db check") as caught,
        store.reading() as connection,
    ):
        connection.execute(select(schema.judge.c.name)).all()
    assert "secre" not in str(caught.value)
    store.close()


def test_a_foreign_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE orders (id INTEGER)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    error = failure(str(path))
    assert type(error) is StoreError
    assert "not a memory of memalign; name another one" in str(error)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["shop.db"]


@BOTH
def test_a_newer_schema_is_refused(db: str) -> None:
    store = open_store(db)
    with store.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    error = failure(db)
    assert type(error) is StoreError
    assert "newer memalign (schema 9999" in str(error)
    assert "upgrade memalign" in str(error)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    error = failure(str(tmp_path))
    assert type(error) is ConfigurationError
    assert "is a folder; give the path of a file, e.g." in str(error)


def test_a_missing_folder_is_named_and_not_made(tmp_path: Path) -> None:
    error = failure(str(tmp_path / "nowhere" / "judge.db"))
    assert type(error) is ConfigurationError
    assert f"the folder {tmp_path / 'nowhere'} does not exist; create it first" in str(error)
    assert not (tmp_path / "nowhere").exists()


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert isinstance(failure(str(tmp_path / "file" / "judge.db")), ConfigurationError)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which not even root can write")
def test_a_place_that_cannot_be_written_says_what_to_check() -> None:
    error = failure("/proc/judge.db")
    assert type(error) is StoreError
    assert "check the permissions of the file and of its folder" in str(error)


@pytest.mark.parametrize("location", ["mysql://host/db", "http://host/judge.db"])
def test_a_location_of_an_unknown_kind_is_refused(location: str) -> None:
    with pytest.raises(ConfigurationError, match="give the path of a file"):
        open_store(location)


def test_loading_from_a_mistyped_path_makes_no_file(tmp_path: Path) -> None:
    missing = tmp_path / "jugde.db"
    with pytest.raises(NotFound, match=r"jugde\.db"):
        Judge.load(str(missing), "polite")
    assert not missing.exists()


# In RAM


def test_stores_that_open_at_the_same_time_do_not_migrate_each_other() -> None:
    stores = [open_store(None) for _ in range(8)]
    start = threading.Barrier(8)

    def first_use(store: Store) -> list[str]:
        start.wait()
        put(store, "mine")
        return names(store)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(first_use, stores)) == [["mine"]] * 8
    for store in stores:
        store.close()


def test_ram_is_shared_by_threads_and_lost_when_closed() -> None:
    store = open_store(None)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: put(store, f"judge {number:02}"), range(40)))
    assert len(names(store)) == 40
    assert store.location is None
    store.close()
    assert names(store) == []
    store.close()


def test_two_stores_in_ram_are_apart() -> None:
    one, two = open_store(None), open_store(None)
    put(one, "mine")
    assert names(two) == []
    one.close()
    two.close()
