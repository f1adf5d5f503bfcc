"""What only PostgreSQL has: a server that may be away, passwords, privileges, and writers side by side."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import Text, insert, select, text

from conftest import MakeJudge, record
from memalign import Judge, Scale
from memalign.errors import ConfigurationError, MemalignError, MissingExtra, StoreBusy, StoreError, StoreUnavailable
from memalign.memory.log import Call, log_calls
from memalign.models.scripted import ScriptedChatModel
from memalign.records import Usage
from memalign.stores import Store, open_store, schema, shown
from memalign.stores.postgres import _add_extension
from memalign.stores.types import Numbers, Words
from pgserving import GUARDED, PASSWORD, Server

MakeDb = Callable[[], str]


def failure(url: str) -> MemalignError:
    with closing(open_store(url)) as store, pytest.raises(MemalignError) as caught, store.reading():
        pass
    return caught.value


def guarded(url: str, password: str = PASSWORD) -> str:
    """The same database, for the user who needs a password."""
    return url.replace("postgres@", f"{GUARDED}:{quote(password, safe='')}@")


def put(store: Store, name: str) -> int:
    with store.writing() as connection:
        values = {"name": name, "settings": "{}", "secret": "s", "created_at": "now"}
        return connection.execute(insert(schema.judge).values(values).returning(schema.judge.c.id)).scalar_one()


def names(store: Store) -> list[str]:
    with store.reading() as connection:
        return list(connection.execute(select(schema.judge.c.name).order_by(schema.judge.c.name)).scalars())


@pytest.fixture
def bare(postgres: Server) -> Iterator[str]:
    """A database without extension and schema."""
    yield postgres.make("bare", template="template1")
    postgres.drop("bare")


# Locations


@pytest.mark.parametrize(
    ("location", "safe"),
    [
        ("postgresql://ann:pw@host/db", "postgresql://ann:***@host/db"),
        ("postgresql://ann:p@w/x?y@host/db", "postgresql://ann:***@host/db"),
        ("postgres://ann@host/db", "postgres://ann@host/db"),
        ("postgresql:///db?host=/run&password=pw&user=ann", "postgresql:///db?host=/run&password=***&user=ann"),
        ("postgresql://host:5432/db", "postgresql://host:5432/db"),
        ("my:file@home.db", "my:file@home.db"),
        (None, None),
    ],
)
def test_a_location_is_shown_without_its_password(location: str | None, safe: str | None) -> None:
    assert shown(location) == safe


def test_all_spellings_of_the_url_are_taken(make_db: MakeDb) -> None:
    url = make_db()
    for spelling in ("postgres://", "postgresql://", "postgresql+psycopg://"):
        with closing(open_store(url.replace("postgresql://", spelling))) as store:
            assert store.exists()
            assert names(store) == []


def test_a_url_that_cannot_be_read_is_not_quoted() -> None:
    error = failure("postgresql://ann:top%zzsecret@host/db")
    assert type(error) is ConfigurationError
    assert "must look like postgresql://user@host:5432/database" in str(error)
    assert "secret" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_the_extra_is_named_when_the_driver_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtra, match=r"pip install 'memalign\[postgres\]'"):
        open_store("postgresql://host/db")


# The way in


@pytest.mark.parametrize("where", ["127.0.0.1:9", "/db?host=/nowhere"])
def test_a_server_that_is_away_can_be_tried_again(where: str) -> None:
    error = failure(f"postgresql://ann:secret@{where}")
    assert type(error) is StoreUnavailable
    assert error.retryable
    assert "check that it runs, and the URL's host and port" in str(error)
    assert "secret" not in str(error)


def test_a_wrong_password_is_refused_and_never_shown(postgres: Server, make_db: MakeDb) -> None:
    url = make_db()
    given = guarded(url, f"wr@ng-{PASSWORD}")
    error = failure(given)
    assert type(error) is ConfigurationError
    assert "password authentication failed" in str(error)
    judge = Judge("polite", "Polite?", Scale.boolean(), ScriptedChatModel(), memory=given)
    for told in (str(error), repr(judge), str(judge.settings)):
        assert "ng-" not in told
        assert PASSWORD not in told
    assert "guarded:***@" in repr(judge)


def test_a_right_password_opens_and_travels_with_the_judge(postgres: Server, make_db: MakeDb) -> None:
    url = make_db()
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"GRANT USAGE ON SCHEMA memalign TO {GUARDED}; GRANT ALL ON ALL TABLES IN SCHEMA memalign TO {GUARDED}")
        admin.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA memalign TO {GUARDED}")
    judge = Judge("polite", "Polite?", Scale.boolean(), ScriptedChatModel(), memory=guarded(url))
    assert judge.memory.view().revision == 0
    assert PASSWORD not in str(judge.memory.store.location)
    assert quote(PASSWORD, safe="") not in str(judge.memory.store.location)
    again = pickle.loads(pickle.dumps(judge))
    assert again.memory.judge_id == judge.memory.judge_id
    judge.close()
    again.close()


def test_a_database_that_is_not_there_is_named(postgres: Server) -> None:
    error = failure(postgres.url("nowhere"))
    assert type(error) is ConfigurationError
    assert 'database "nowhere" does not exist' in str(error)


def test_a_user_who_may_not_read_is_told_what_to_ask_for(make_db: MakeDb) -> None:
    error = failure(guarded(make_db()))
    assert type(error) is StoreError
    assert "permission denied" in str(error)
    assert "grant" in str(error)


def test_an_extension_that_only_an_administrator_may_add_is_asked_for(bare: str) -> None:
    with psycopg.connect(bare, autocommit=True) as admin:
        admin.execute(f"GRANT CREATE ON DATABASE bare TO {GUARDED}")
    error = failure(guarded(bare))
    assert type(error) is StoreError
    assert "CREATE EXTENSION vector" in str(error)


def test_a_server_without_pgvector_says_how_to_install_it() -> None:
    answers = {"SELECT current_database()": ("judges",)}
    server = SimpleNamespace(execute=lambda query: SimpleNamespace(fetchone=lambda: answers.get(query)))
    with pytest.raises(StoreError, match=r"no pgvector; install it there .*pgvector.* hosted servers: switch on the extension 'vector'"):
        _add_extension(server)  # type: ignore[arg-type]


def test_many_processes_may_set_up_an_empty_database_at_once(bare: str) -> None:
    start = threading.Barrier(4)
    outcome: list[object] = []

    def open_and_write(number: int) -> None:
        with closing(open_store(bare)) as mine:
            start.wait()
            outcome.append(put(mine, f"judge {number}"))

    threads = [threading.Thread(target=open_and_write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with closing(open_store(bare)) as store:
        assert len(names(store)) == len(outcome) == 4


def test_asking_whether_there_is_a_memory_makes_none(bare: str) -> None:
    with closing(open_store(bare)) as store:
        assert not store.exists()
    with psycopg.connect(bare) as admin:
        assert admin.execute("SELECT to_regnamespace('memalign')").fetchone() == (None,)


def test_tables_of_others_in_the_database_are_left_alone(bare: str) -> None:
    with psycopg.connect(bare, autocommit=True) as admin:
        admin.execute("CREATE TABLE feedback (stars integer); CREATE TABLE alembic_version (version_num text)")
        admin.execute("INSERT INTO alembic_version VALUES ('9999'); INSERT INTO feedback VALUES (5)")
    with closing(open_store(bare)) as store:
        put(store, "mine")
        assert names(store) == ["mine"]
    with psycopg.connect(bare) as admin:
        assert admin.execute("SELECT stars FROM public.feedback").fetchall() == [(5,)]


def test_a_schema_of_our_name_that_is_not_ours_is_refused(bare: str) -> None:
    with psycopg.connect(bare, autocommit=True) as admin:
        admin.execute("CREATE SCHEMA memalign; CREATE TABLE memalign.orders (id integer)")
    error = failure(bare)
    assert type(error) is StoreError
    assert "not a memory of memalign" in str(error)


# Writers


def test_writers_of_different_judges_do_not_wait_for_each_other(make_db: MakeDb) -> None:
    url = make_db()
    with closing(open_store(url)) as store, closing(open_store(url)) as other:
        one, two = put(store, "one"), put(store, "two")
        other._wait_seconds = 0.2
        call = Call(purpose="judge", model="m", usage=Usage(calls=1), cost_usd=0.0, seconds=0.1)
        with store.writing(one) as mine:
            log_calls(mine, one, [call])
            with other.writing(two) as theirs:
                log_calls(theirs, two, [call])
            for judge in (one, None):
                with pytest.raises(StoreBusy, match="locked by another process"), other.writing(judge):
                    pass
        with store.writing(), pytest.raises(StoreBusy), other.writing(two):
            pass
        with store.reading() as connection:
            assert sorted(connection.execute(select(schema.ledger.c.judge_id)).scalars()) == [one, two]


def test_a_writer_that_waited_sees_what_the_one_before_it_wrote(make_db: MakeDb) -> None:
    url = make_db()
    with closing(open_store(url)) as store, closing(open_store(url)) as other:
        put(store, "first")
        seen: list[int] = []

        def wait_and_count() -> None:
            with other.writing(1) as connection:
                seen.append(len(connection.execute(select(schema.judge)).all()))

        with store.writing(1) as connection:
            waiting = threading.Thread(target=wait_and_count)
            waiting.start()
            while not connection.execute(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")).scalar():
                pass
            connection.execute(insert(schema.judge).values(name="second", settings="{}", secret="s", created_at="now"))
        waiting.join()
        assert seen == [2]


def test_two_judges_may_store_the_same_text_at_once(make_judge: MakeJudge, make_db: MakeDb) -> None:
    """Their records have the same content, so the same vectors: the second to commit takes the first one's."""
    url = make_db()
    judges = [make_judge(memory=url, name=f"judge {number}") for number in range(3)]
    for judge in judges:
        _ = judge.memory.judge_id
    threads = [threading.Thread(target=judge.align, args=([record(number) for number in range(20)],)) for judge in judges]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [judge.memory.view().items for judge in judges] == [20, 20, 20]
    with judges[0].memory.store.reading() as connection:
        assert len(connection.execute(select(schema.vector.c.content_hash)).all()) == 20


# Connections


def test_connections_that_broke_while_idle_are_replaced(postgres: Server, make_db: MakeDb) -> None:
    with closing(open_store(make_db())) as store:
        with store.reading(), store.reading(), store.reading():
            pass
        ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'memalign'"
        assert postgres.admin.execute(ended).fetchone() == (3,)
        put(store, "after")
        assert names(store) == ["after"]


def test_a_connection_that_breaks_in_the_middle_can_be_tried_again(postgres: Server, make_db: MakeDb) -> None:
    with closing(open_store(make_db())) as store:

        def cut_off() -> None:
            with store.writing() as connection:
                connection.execute(insert(schema.judge).values(name="half", settings="{}", secret="s", created_at="now"))
                postgres.admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'memalign'")
                connection.execute(select(schema.judge))

        with pytest.raises(StoreUnavailable, match="try again") as caught:
            cut_off()
        assert caught.value.retryable
        assert names(store) == []


def test_a_database_that_takes_no_writes_says_so(make_db: MakeDb) -> None:
    url = make_db()
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {url.split('/')[3].split('?')[0]} SET default_transaction_read_only = on")
    with closing(open_store(url)) as store:
        assert names(store) == []
        with pytest.raises(StoreError, match=r"read-only transaction.*name the primary server"):
            put(store, "never")


@pytest.mark.parametrize(
    ("error", "kind", "advice"),
    [
        (psycopg.errors.DiskFull("could not extend file"), StoreError, "disk or memory is full"),
        (psycopg.errors.DeadlockDetected("deadlock detected"), StoreBusy, "try again"),
        (psycopg.errors.SerializationFailure("could not serialize access"), StoreBusy, "try again"),
        (psycopg.errors.TooManyConnections("sorry, too many clients already"), StoreUnavailable, "try again"),
        (psycopg.errors.CannotConnectNow("the database system is starting up"), StoreUnavailable, "try again"),
    ],
)
def test_what_the_server_says_is_put_into_words(error: psycopg.Error, kind: type[MemalignError], advice: str) -> None:
    with closing(open_store("postgresql://host/db")) as store:
        told = store._translated(error)
    assert type(told) is kind
    assert advice in str(told)


# What it holds


@pytest.mark.parametrize("said", ["a\x00b", "\x00", "\x01", "\x010\x00\x011\x01\x01", "x" * 5000])
def test_words_that_its_text_cannot_hold_come_back_as_they_went_in(make_judge: MakeJudge, make_db: MakeDb, said: str) -> None:
    judge = make_judge(memory=make_db())
    judge.align([record(1, said, annotator=said, source=said, id=said[:500])])
    (episode,) = judge.memory.episodes()
    assert (episode.feedback.rationale, episode.feedback.annotator, episode.feedback.source, episode.feedback.id) == (said, said, said, said[:500])
    judge.unalign([said[:500]])


def test_a_vacuum_gives_space_back_and_keeps_the_rest(make_judge: MakeJudge, make_db: MakeDb) -> None:
    url = make_db()
    make_judge(memory=url).align([record(number, "x" * 3000) for number in range(200)])
    with closing(open_store(url)) as store:
        with store.writing() as connection:
            connection.execute(schema.feedback.delete().where(schema.feedback.c.row > 20))
        before = store.size_bytes()
        store.vacuum()
        assert store.size_bytes() < 0.8 * before
        with store.reading() as connection:
            assert len(connection.execute(select(schema.feedback)).all()) == 20
        assert store.faults() == []


def test_the_planner_keeps_no_samples_of_what_people_and_models_wrote(make_judge: MakeJudge, make_db: MakeDb) -> None:
    """They lie outside the tables, where no purge reaches them."""
    url = make_db()
    make_judge(memory=url).align([record(number, f"reason {number}") for number in range(20)])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ANALYZE")
        sampled = connection.execute("SELECT tablename, attname FROM pg_stats WHERE schemaname = 'memalign'").fetchall()
    content = {
        (table.name, column.name)
        for table in schema.metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, Text | Words | Numbers)
    }
    plain = {("judge", "name"), ("judge", "settings"), ("revision", "actor"), ("revision", "counts"), ("revision", "decision")}
    plain |= {("embedding", "embedder"), ("ledger", "model")}
    assert ("feedback", "content_hash") in sampled
    assert not set(sampled) & (content - plain)
