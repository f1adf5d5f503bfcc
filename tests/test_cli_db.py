"""``memalign db``, and a memory on a server wherever ``--db`` is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select, text
from typer.testing import CliRunner, Result

from conftest import MakeJudge, record
from memalign import Failure, Item
from memalign.cli import app
from memalign.errors import StoreError
from memalign.stores import open_store, schema
from memalign.stores.migrations import HEAD

pytestmark = pytest.mark.both_stores

Run = Callable[..., Result]


@pytest.fixture
def run(db: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MEMALIGN_DB", db)

    def invoke(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def taught(make_judge: MakeJudge, db: str) -> str:
    make_judge(memory=db).align([record(number, f"reason {number}", inputs="x" * 2000 + str(number)) for number in range(12)])
    return db


def change(db: str, *statements: str) -> None:
    with closing(open_store(db)) as store, store.writing() as connection:
        for statement in statements:
            connection.execute(text(statement))


def test_an_upgrade_says_what_was_done(run: Run, taught: str) -> None:
    assert f"schema {HEAD}, as it was" in run("db", "upgrade").output
    told = json.loads(run("db", "upgrade", "--json").output)
    assert (told["before"], told["after"]) == (HEAD, HEAD)


def test_a_sound_memory_is_found_sound(run: Run, taught: str) -> None:
    assert "sound, " in run("db", "check").output
    told = json.loads(run("db", "check", "--json").output)
    assert told["ok"] is True
    assert told["faults"] == []
    assert told["size_bytes"] > 12 * 2000


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE feedback SET until = 0, since = 1 WHERE version = 1", "judge 'polite': 12 feedback version(s) end before they begin"),
        ("UPDATE guideline SET since = 7", "guideline version(s) belong to a revision that is not in the log"),
        ("UPDATE feedback SET distilled = 2", "judge 'polite': 12 feedback version(s) belong to a revision that is not in the log"),
        ("UPDATE revision SET number = 3", "judge 'polite': 2 revision(s) missing in the log"),
        ("UPDATE judge SET settings = '{'", "judge 'polite': its settings cannot be read"),
        ("UPDATE feedback SET inputs = '{nonsense' WHERE version = 1", "judge 'polite': 12 text(s) in feedback.inputs are no JSON"),
        ("UPDATE feedback SET judged = 'no' WHERE row = 1", "judge 'polite': 1 text(s) in feedback.judged are no JSON"),
        ("UPDATE revision SET counts = '' WHERE number = 1", "judge 'polite': 1 text(s) in revision.counts are no JSON"),
        ("UPDATE embedding SET dimension = 7", "24 vector(s) are not what their dimension says, or not finite"),
        (
            "INSERT INTO feedback SELECT 1000 + row, judge_id, id, 2, item_id, inputs, outputs, expectations, value, rationale, annotator, source,"
            " created_at, stored_at, judged, content_hash, since, until, distilled FROM feedback WHERE row <= 2",
            "judge 'polite': 2 feedback record(s) hold in two versions at once",
        ),
        (
            "INSERT INTO judge (id, name, settings, secret, created_at) VALUES (9, 'kind', '{\"scale\": 1}', 's', ''); "
            "UPDATE guideline SET judge_id = 9 WHERE row = 1",
            "judge 'kind': 1 row(s) of evidence refer to another judge's records",
        ),
    ],
)
def test_what_must_not_be_is_named(run: Run, taught: str, statement: str, fault: str) -> None:
    change(taught, *statement.split("; "))
    output = run("db", "check", code=1).output
    assert fault in output
    assert "restore it from a copy" in output
    assert json.loads(run("db", "check", "--json", code=1).output)["ok"] is False


def test_references_that_lead_nowhere_are_found(run: Run, taught: str, backend: str) -> None:
    unchecked = {"sqlite": "PRAGMA foreign_keys = OFF", "postgres": "SET session_replication_role = replica"}[backend]
    checked = {"sqlite": "PRAGMA foreign_keys = ON", "postgres": "SET session_replication_role = DEFAULT"}[backend]
    with closing(open_store(taught)) as store:
        with store.reading() as connection:
            driver = connection.connection.dbapi_connection
        driver.execute(unchecked)
        driver.execute(f"DELETE FROM {'memalign.' if backend == 'postgres' else ''}feedback WHERE row = 1")
        driver.execute(checked)
    output = run("db", "check", code=1).output
    assert "1 row(s) of evidence refer to a row of feedback that is not there" in output


VERBS = (["memory", "list"], ["judge", "--outputs", "a reply"], ["align"])


@pytest.mark.parametrize("settings", ["{nonsense", "[]", "{}"])
def test_damaged_settings_are_told_with_what_to_do(run: Run, taught: str, settings: str) -> None:
    change(taught, f"UPDATE judge SET settings = '{settings}'")
    for output in (*(run(*verb, code=2).output for verb in VERBS), run("doctor", "--no-models", "--db", taught, code=1).output):
        assert "damaged" in output
        assert "memalign db check, and restore the memory from a copy or an export" in output


def test_a_damaged_record_is_told_by_whatever_reads_it(make_judge: MakeJudge, taught: str) -> None:
    change(taught, "UPDATE feedback SET expectations = '{nonsense'")
    judge, given = make_judge(memory=taught), {"inputs": "x" * 2000 + "1", "outputs": "reply 1"}
    for verb in (lambda: judge.align([record(1, "another reason", **given)]), judge.memory.episodes, lambda: judge(**given)):
        with pytest.raises(StoreError, match=r"damaged .*memalign db check, and restore the memory"):
            verb()
    failed = judge.batch([Item(**given)])[0]
    assert isinstance(failed, Failure)
    assert "damaged" in failed.error


@pytest.mark.parametrize(("change", "reason"), [({"future": 1}, "unexpected keyword argument 'future'"), ({"model": None}, "'model'")])
def test_settings_that_this_release_cannot_use_are_told(run: Run, taught: str, change: dict[str, object], reason: str) -> None:
    with closing(open_store(taught)) as store, store.writing() as connection:
        settings = json.loads(connection.execute(select(schema.judge.c.settings)).scalar_one()) | change
        kept = {name: value for name, value in settings.items() if name != "model" or value is not None}
        connection.execute(schema.judge.update().values(settings=json.dumps(kept)))
    for output in (*(run(*verb, code=2).output for verb in VERBS), run("doctor", "--no-models", "--db", taught, code=1).output):
        assert reason in output
        assert "upgrade memalign" in output


def test_a_vacuum_gives_back_what_was_deleted(run: Run, taught: str) -> None:
    change(taught, "DELETE FROM feedback WHERE row > 4")
    told = json.loads(run("db", "vacuum", "--json").output)["size_bytes"]
    assert told["after"] < told["before"]
    assert "given back" in run("db", "vacuum").output
    assert "sound" in run("db", "check").output


@pytest.mark.parametrize("command", ["upgrade", "check", "vacuum"])
def test_a_memory_that_is_not_there_is_not_made(run: Run, command: str, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.db"
    assert "there is no memory" in run("db", command, "--db", str(missing), code=2).output
    assert not missing.exists()


def test_a_judge_is_registered_and_changed_wherever_its_memory_lies(run: Run, db: str) -> None:
    given = ["--judge", "polite", "--instructions", "Polite?", "--scale", "boolean", "--model", "openai/m", "--embedder", "openai/e"]
    assert "registered judge 'polite'" in run("init", *given).output
    assert "nothing changed" in run("init", *given).output
    assert "changed from" in run("init", "--judge", "polite", "--instructions", "Kind?").output
    assert json.loads(run("memory", "list", "--json").output)["judge"] == "polite"
    doctor = run("doctor", "--no-models", "--db", db).output
    assert f"schema {HEAD}" in doctor
    assert "intact" in doctor
    with closing(open_store(db)) as store, store.reading() as connection:
        assert len(connection.execute(schema.judge.select()).all()) == 1


def test_no_command_shows_a_password(make_db: Callable[[], str]) -> None:
    secret = make_db().replace("postgres@", "postgres:h1dden@")  # the server trusts this user whatever the password
    given = ["--instructions", "Polite?", "--scale", "boolean", "--model", "openai/m", "--embedder", "openai/e"]
    for arguments in (
        ["init", "--judge", "polite", *given],
        ["db", "check"],
        ["db", "vacuum"],
        ["memory", "list"],
        ["memory", "list", "--judge", "nobody"],
        ["init", "--judge", "x"],
        ["doctor", "--no-models"],
    ):
        result = CliRunner().invoke(app, [*arguments, "--db", secret])
        assert result.exit_code == (2 if "nobody" in arguments or "x" in arguments else 0), result.output
        assert "h1dden" not in result.output
        assert ":***@" in result.output or arguments == ["memory", "list"]
