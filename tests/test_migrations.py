"""Databases of earlier releases, with what they hold, come up to the newest schema on both stores."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, create_engine, select, text

from conftest import MakeJudge, record
from memalign.embedders.scripted import HashEmbedder
from memalign.memory import integrity
from memalign.memory.episodic import text_hash
from memalign.records import canonical
from memalign.stores import open_store, schema
from memalign.stores.migrations import HEAD, migrate
from pgserving import Server

pytestmark = pytest.mark.both_stores

Released = Callable[[str, bool], str]


@pytest.fixture
def released(backend: str, db: str, request: pytest.FixtureRequest) -> Iterator[Released]:
    """Makes a database with the schema of a release and something in it; tells where it is."""
    if backend == "sqlite":
        yield lambda version, _extension: _filled(db, version, lambda: sqlite3.connect(db), "sqlite://")
        return
    server: Server = request.getfixturevalue("postgres")

    def make(version: str, extension: bool) -> str:
        url = server.make("released", template="template1")
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("CREATE SCHEMA memalign")
            if extension:
                admin.execute("CREATE EXTENSION vector")
        return _filled(url, version, lambda: psycopg.connect(url, options="-c search_path=memalign,public"), "postgresql+psycopg://")

    yield make
    server.drop("released")


def _filled(location: str, version: str, connect: Callable[[], Any], dialect: str) -> str:
    engine = create_engine(dialect, creator=connect)
    with engine.begin() as connection:
        migrate(connection, "0001")
        _fill(connection)
        migrate(connection, version)
    engine.dispose()
    return location


def _fill(connection: Connection) -> None:
    """A judge with two records, one of them replaced, and a guideline."""
    settings = {"instructions": "Is the reply polite?", "scale": {"kind": "boolean"}, "model": "scripted/scripted", "k": 5}
    put(connection, "judge", id=1, name="polite", settings=json.dumps(settings), secret="s3cret", created_at="2026-01-01T00:00:00+00:00")
    for number in (1, 2):
        put(connection, "revision", judge_id=1, number=number, at="2026-01-02T00:00:00+00:00", actor="mia", verb="align", counts="{}", decision=None)
    feedback_row(connection, 1, number=1, version=1, reason="old", since=1, until=2, distilled=1)
    feedback_row(connection, 2, number=1, version=2, reason="apologise", since=2, until=None, distilled=2)
    feedback_row(connection, 3, number=2, version=1, reason="greet", since=1, until=None, distilled=1)
    for row in (1, 2):
        ends = 2 if row == 1 else None
        values = {"text": "Apologise.", "scope": "", "state": "active", "pinned": False, "since": row, "until": ends}
        put(connection, "guideline", row=row, judge_id=1, id="g1", version=row, **values)
        put(connection, "evidence", guideline_row=row, feedback_row=row, sign=1)
        put(connection, "taint", guideline_row=row, feedback_row=row)
    counts = {"calls": 1, "prompt_tokens": 10, "cached_tokens": 0, "completion_tokens": 2, "embedded_texts": 0}
    put(connection, "ledger", row=1, judge_id=1, at="2026", purpose="distil", model="m", cost_usd=0.5, seconds=1.5, error=None, **counts)
    said = {"value": "false", "rationale": "Cold.", "confidence": 0.75, "revision": 2, "guideline_ids": '["g1"]', "episode_ids": "[]"}
    put(connection, "verdict", row=1, judge_id=1, at="2026", item_id=record(1).item.id, **said)
    if connection.dialect.name == "postgresql":  # rows were written with their numbers: the next ones come after them
        for table, column in (("judge", "id"), ("feedback", "row"), ("guideline", "row"), ("ledger", "row"), ("verdict", "row")):
            connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'), (SELECT max(\"{column}\") FROM {table}))"))


def feedback_row(connection: Connection, row: int, *, number: int, version: int, reason: str, **revisions: int | None) -> None:
    said = record(number, reason)
    vector = asyncio.run(HashEmbedder().embed([f"{said.inputs}\n{said.outputs}"]))[0].astype("<f4").tobytes()
    held = {"embedder": "scripted/hash-64", "content_hash": text_hash(said.item)}
    if version == 1:
        put(connection, "vector", **held, dimension=64, data=vector)
    content = {name: canonical(getattr(said, name)) for name in ("inputs", "outputs", "expectations", "value")}
    when = {"created_at": said.created_at.isoformat(), "stored_at": said.created_at.isoformat(), "content_hash": held["content_hash"]}
    who = {"annotator": "ann", "source": "", "rationale": reason, "judged": "true", "item_id": said.item.id, "version": version, "id": said.id}
    put(connection, "feedback", row=row, judge_id=1, **content, **when, **who, **revisions)


def put(connection: Connection, table: str, **values: Any) -> None:
    names = ", ".join(f'"{name}"' for name in values)
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{name}' for name in values)})"), values)


@contextmanager
def opened(location: str) -> Iterator[Any]:
    with closing(open_store(location)) as store:
        yield store


@pytest.mark.parametrize(("version", "extension"), [("0001", False), ("0001", True), ("0002", True)])
def test_an_earlier_schema_comes_up_with_all_it_holds(released: Released, make_judge: MakeJudge, version: str, extension: bool) -> None:
    location = released(version, extension)
    with opened(location) as store:
        assert store.upgrade() == (version, HEAD)
        with store.reading() as connection:
            vectors = connection.execute(select(schema.vector).order_by(schema.vector.c.content_hash)).all()
            assert integrity.faults(connection) == []
        assert store.faults() == []
    assert len(vectors) == 2
    assert all(len(row.data) == 4 * row.dimension == 256 and any(row.data) for row in vectors)
    embedder = HashEmbedder()
    judge = make_judge(memory=location, embedder=embedder)
    assert [(episode.feedback.rationale, episode.judged) for episode in judge.memory.episodes()] == [("apologise", True), ("greet", True)]
    assert [episode.feedback.rationale for episode in judge.memory.at(1).episodes()] == ["old", "greet"]
    (guideline,) = judge.memory.guidelines()
    assert (guideline.id, guideline.version, guideline.evidence_for) == ("g1", 2, (record(1).id,))
    assert judge.memory.spent()[1] == 0.5
    assert judge.memory.view().items == 2
    assert embedder.texts == [], "the vectors came along"
    report = judge.align([record(3, "be brief")])
    assert (report.revision, [new.id for new in report.added]) == (3, ["g2"])


def test_vectors_keep_every_bit(released: Released) -> None:
    location = released("0001", True)
    with opened(location) as store, store.reading() as connection:
        found: Mapping[str, bytes] = {row.content_hash: row.data for row in connection.execute(select(schema.vector))}
    for number in (1, 2):
        said = record(number)
        expected = asyncio.run(HashEmbedder().embed([f"{said.inputs}\n{said.outputs}"]))[0].astype("<f4").tobytes()
        assert found[text_hash(said.item)] == expected


def test_an_upgrade_that_fails_leaves_the_old_schema(released: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    location = released("0001", True)

    def broken(connection: Connection, **given: Any) -> None:
        migrate(connection, **given)
        raise ZeroDivisionError

    with monkeypatch.context() as patch, opened(location) as store:
        patch.setattr("memalign.stores.database.migrate", broken)
        with pytest.raises(ZeroDivisionError):
            store.upgrade()
    with opened(location) as store:
        assert store.upgrade() == ("0001", HEAD)
    with opened(location) as store:
        assert store.upgrade() == (HEAD, HEAD)
