"""``memalign doctor``: what it says of a healthy and of a broken installation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from endpoint import ScriptedEndpoint, completion
from memalign.cli import app, checks, probes

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEMALIGN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MEMALIGN_RETRIES", "1")


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint(lambda body: "1 2 3") as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        yield running


def doctor(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def told(*arguments: str, code: int = 0) -> dict[str, dict[str, Any]]:
    document = json.loads(doctor(*arguments, "--json", code=code).stdout)
    assert document["ok"] is (code == 0)
    return {check["name"]: check for check in document["checks"]}


def test_each_line_begins_with_its_state(endpoint: ScriptedEndpoint) -> None:
    *lines, space, last = doctor("--no-models").stdout.splitlines()
    assert (space, last) == ("", "all that is needed works; what is missing is optional")
    assert all(line.split()[0] in ("ok", "missing", "failed") for line in lines)
    assert {"python", "memalign", "sqlite", "machine", "settings", "cache", "weights", "OPENAI_BASE_URL"} <= {line.split()[1] for line in lines}
    assert endpoint.requests == []


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "https://user:pass-word@models.example/v1?token=hidden")
    shown = doctor("--no-models").stdout
    assert "OPENAI_API_KEY   set" in shown
    assert "https://models.example/v1" in shown
    assert not any(secret in shown for secret in (KEY, "pass-word", "hidden"))


def test_a_model_and_an_embedder_that_answer(endpoint: ScriptedEndpoint) -> None:
    found = told("--model", "openai/m", "--embedder", "openai/e")
    assert "tokens/s out" in found["model openai/m"]["detail"]
    assert "8 dimensions" in found["embedder openai/e"]["detail"]
    assert [asked.path for asked in endpoint.requests] == ["chat/completions", "embeddings", "embeddings", "embeddings"]


def test_a_model_that_thinks_before_it_answers_has_room_for_it(endpoint: ScriptedEndpoint) -> None:
    endpoint.chat = lambda body: "1 2 3" if body["max_tokens"] > 1000 else completion(None, finish_reason="length")
    assert told("--model", "openai/m")["model openai/m"]["status"] == "ok"


def test_a_model_that_does_not_answer(endpoint: ScriptedEndpoint) -> None:
    endpoint.then(401).then(503)
    found = told("--model", "openai/m", "--embedder", "openai/e", code=1)
    assert "OPENAI_API_KEY" in found["model openai/m"]["detail"]
    assert found["embedder openai/e"]["status"] == "failed"
    assert doctor("--model", "nonsense", code=1).stdout.endswith("\nto be mended: model nonsense\n")
    assert told("--model", "nonsense", code=1)["model nonsense"]["status"] == "failed"
    assert "unknown embedder" in told("--embedder", "local/other", code=1)["embedder local/other"]["detail"]


def test_unusable_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMALIGN_CONCURRENCY", "many")
    assert "MEMALIGN_CONCURRENCY" in told("--no-models", code=1)["settings"]["detail"]
    told("--no-models", "--model", "openai/m", code=1)


def test_a_broken_key_and_a_broken_address(endpoint: ScriptedEndpoint, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    init = ["init", "--db", db, "--judge", "polite", "--instructions", "x", "--scale", "boolean", "--model", "openai/m", "--embedder", "openai/e"]
    assert CliRunner().invoke(app, init).exit_code == 0
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nand more")
    assert "OPENAI_API_KEY" in told("--no-models", code=1)["settings"]["detail"]
    assert told("--model", "openai/m", "--db", db, code=1)["model openai/m"]["status"] == "failed"
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    told("--model", "openai/m", "--db", db)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:99999/v1")
    found = told("--no-models", "--db", db, code=1)
    assert [found[name]["status"] for name in ("OPENAI_BASE_URL", "judge polite")] == ["failed"] * 2


def test_what_is_missing_and_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = metadata.version

    def version(package: str) -> str:
        if package in ("pyarrow", "xllamacpp"):
            raise metadata.PackageNotFoundError(package)
        return installed(package)

    monkeypatch.setattr(metadata, "version", version)
    found = told("--no-models")
    assert (found["extra parquet"]["status"], found["extra parquet"]["detail"]) == ("missing", "pyarrow")
    assert found["extra parquet"]["advice"] == "run: pip install 'memalign[parquet]'"
    assert "xllamacpp" in found["extra local"]["detail"]


def test_models_that_are_not_installed_are_not_tried(monkeypatch: pytest.MonkeyPatch, endpoint: ScriptedEndpoint) -> None:
    from memalign.errors import ConfigurationError

    def absent(*_: Any) -> Any:
        raise ConfigurationError("not installed")

    monkeypatch.setattr("memalign.models.weights.locate_parts", absent)
    monkeypatch.setattr(probes, "find_spec", lambda name: None)
    monkeypatch.setattr("memalign.embedders.minilm.is_installed", lambda: False)
    found = told()
    assert not any(name.startswith(("model", "embedder")) for name in found)
    assert found["weights"]["status"] == "missing"
    assert endpoint.requests == []


def test_a_healthy_memory(endpoint: ScriptedEndpoint, db: str) -> None:
    init = ["init", "--db", db, "--judge", "polite", "--instructions", "x", "--scale", "boolean", "--model", "openai/m", "--embedder", "openai/e"]
    assert CliRunner().invoke(app, init).exit_code == 0
    found = told("--no-models", "--db", db)
    assert f"{db}: intact" in found["memory"]["detail"]
    assert found["judge polite"]["detail"] == "boolean, openai/m; 0 guideline(s), 0 case(s), 0 revision(s)"
    assert found["judge polite"]["advice"] == "to ask its model: memalign doctor --model openai/m"


def test_what_a_judge_lacks_is_told_beside_it(endpoint: ScriptedEndpoint, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(**changes: str) -> dict[str, Any]:
        init = ["init", "--db", db, "--judge", "polite", "--instructions", "x", "--scale", "boolean"]
        assert CliRunner().invoke(app, [*init, *(part for key, value in changes.items() for part in (f"--{key}", value))]).exit_code == 0
        return told("--no-models", "--db", db)["judge polite"]

    monkeypatch.setattr("memalign.embedders.minilm.is_installed", lambda: False)
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    lacking = of(model="openai/m")
    assert (lacking["status"], lacking["advice"].split(",")[0]) == ("missing", "for its embedder run: pip install 'memalign[minilm]'")
    assert "memalign[local]" in of(model="local/qwen2.5-coder-1.5b")["advice"]
    assert of(model="openai/m", embedder="openai/e")["status"] == "ok"
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert of()["advice"].startswith("set OPENAI_API_KEY")
    assert doctor("--no-models", "--db", db).stdout.endswith("\nto be mended: judge polite\n")


def test_a_missing_and_a_damaged_memory(db: str) -> None:
    assert "there is no memory" in told("--no-models", "--db", db, code=1)["memory"]["detail"]
    assert not Path(db).exists()
    init = ["init", "--db", db, "--judge", "polite", "--instructions", "x", "--scale", "boolean", "--model", "openai/m", "--embedder", "openai/e"]
    assert CliRunner().invoke(app, init).exit_code == 0
    content = bytearray(Path(db).read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    Path(db).write_bytes(bytes(content))
    for companion in (f"{db}-wal", f"{db}-shm"):
        Path(companion).unlink(missing_ok=True)
    assert told("--no-models", "--db", db, code=1)["memory"]["status"] == "failed"


def test_the_weights_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "weights"
    folder.mkdir(parents=True)
    (folder / "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf").write_bytes(b"GGUF half")
    state = told("--no-models")["weights"]
    assert (state["status"], "not verified" in state["detail"]) == ("missing", True)


def test_every_extra_is_looked_at() -> None:
    assert {"local", "parquet", "plots"} <= set(checks.optional_parts())
    if checks.packages("local").status == "ok":
        assert checks.packages("local").detail == "28 package(s) installed"


@pytest.mark.model
def test_the_models_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMALIGN_CACHE_DIR")
    found = told()
    assert "writes" in found["model local/qwen2.5-coder-1.5b"]["detail"]
    assert "384 dimensions" in found["embedder local/minilm"]["detail"]
