"""What the tests of the MLflow integration share: one scripted endpoint for chat and embeddings, traces without a server, and both optimizers."""

from __future__ import annotations

import base64
import copy
import hashlib
import importlib.util
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import add, support
from endpoint import ScriptedEndpoint

REFLECTION, EMBEDDING, CHAT = "openai:/reflection", "openai:/text-embedding-3-small", "openai:/judge"
_CASE = re.compile(r"^Case (\d+)$.*?^Expert: ([^.\n]+)\.[ ]?([^\n]*)$", re.MULTILINE | re.DOTALL)
_KNOWN = re.compile(r"^((?:g|new)\d+): (.+)$", re.MULTILINE)
_THEIR_CASE = re.compile(r'"id": (\d+),.*?"rationale": "([^"]*)"', re.DOTALL)
_numbers = itertools.count(1)


class Provider(ScriptedEndpoint):
    """A chat model that distils one guideline a reason, "Heed <reason>.", and judges by ``verdict``; words as vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.chat = self._chat
        self.verdict: Callable[[dict[str, Any]], Any] = lambda body: None
        """What the judge says; None: the first value of the schema."""
        self.distil: Callable[[list[tuple[int, str]]], list[tuple[str, list[int]]]] = by_reason
        """(number, reason) of each case -> (guideline, numbers of its cases)."""
        self.relate: dict[str, list[Any]] = {"duplicates": [], "narrower": [], "conflicts": []}
        """How similar guidelines relate, by their numbers."""
        self.broken = False
        """Whether distillations are answered with nonsense."""
        self.embedded: list[str] = []
        self.blind = False
        """Whether embeddings come back empty."""

    def asked(self, kind: str) -> list[dict[str, Any]]:
        """The bodies of the requests of one kind: judge, distil, relate or embed."""
        return [one.body for one in self.requests if _kind(one.path, one.body) == kind]

    def _default(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path != "embeddings":
            return super()._default(path, body)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        self.embedded += texts
        if self.blind:
            return {"object": "list", "model": body["model"], "data": []}
        rows = [words_as_vector(text, body.get("dimensions") or 512) for text in texts]
        packed = body.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": n, "embedding": base64.b64encode(r.tobytes()).decode() if packed else r.tolist()}
            for n, r in enumerate(rows)
        ]
        return {"object": "list", "model": body["model"], "data": data, "usage": {"prompt_tokens": 2, "total_tokens": 2}}

    def _chat(self, body: dict[str, Any]) -> str | dict[str, Any]:
        kind, prompt = _kind("chat/completions", body), _prompt(body)
        if kind == "judge":
            return self._judged(body)
        if self.broken:
            return "I would rather not."
        if kind == "relate":
            return json.dumps({"result": self.relate})
        if "distill a set of guidelines" in prompt:
            head, _, rest = prompt.partition("Here are the user judgement examples:")
            cases = [(int(number), reason) for number, reason in _THEIR_CASE.findall(rest)]
            found = [(text, numbers) for text, numbers in self.distil(cases) if text not in head]
            return json.dumps({"guidelines": [{"guideline_text": text, "source_trace_ids": numbers} for text, numbers in found]})
        cases = [(int(number), reason) for number, _, reason in _CASE.findall(prompt)]
        known = {text: key for key, text in _KNOWN.findall(prompt)}
        operations = []
        for text, numbers in self.distil(cases):
            holder = next((key for other, key in known.items() if text.rstrip(".").casefold() in other.casefold()), None)
            operations.append(support(holder, *numbers) if holder else add(*numbers, decide=text))
        return json.dumps({"result": {"operations": operations}})

    def _judged(self, body: dict[str, Any]) -> str | dict[str, Any]:
        said = self.verdict(body)
        if isinstance(said, dict) and "choices" in said:
            return said
        properties = body.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("properties", {})
        value = said if said is not None else first_value(properties.get("result", {}))
        if isinstance(value, bool) and properties.get("result", {}).get("type") != "boolean" and "anyOf" not in properties.get("result", {}):
            value = "yes" if value else "no"
        return json.dumps({"rationale": "Because.", "result": value})


def by_reason(cases: list[tuple[int, str]]) -> list[tuple[str, list[int]]]:
    """One guideline a reason."""
    found: dict[str, list[int]] = {}
    for number, reason in cases:
        if reason:
            found.setdefault(reason, []).append(number)
    return [(f"Heed the rule about {reason}.", numbers) for reason, numbers in found.items()]


def first_value(schema: dict[str, Any]) -> Any:
    """A value of a JSON schema."""
    if "anyOf" in schema:
        return first_value(schema["anyOf"][0])
    if "enum" in schema or "const" in schema:
        return schema.get("enum", [schema.get("const")])[0]
    return {"boolean": True, "integer": 3, "number": 0.5, "array": ["a"], "object": {"tone": 2}}.get(str(schema.get("type")), "fine")


def words_as_vector(text: str, dimension: int) -> Any:
    """Each word has a place of its own: texts are as similar as the words that they share."""
    vector = np.full(dimension, 1e-4, dtype="<f4")
    for word in re.findall(r"[a-z0-9]+", text.lower()):
        vector[int(hashlib.blake2b(word.encode(), digest_size=4).hexdigest(), 16) % dimension] += 1.0
    return vector / np.linalg.norm(vector)


def _prompt(body: dict[str, Any]) -> str:
    return "\n".join(str(message.get("content") or "") for message in body["messages"])


def _kind(path: str, body: dict[str, Any]) -> str:
    if path == "embeddings":
        return "embed"
    inner = body.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("properties", {}).get("result", {}).get("properties", {})
    if "operations" in inner or "distill a set of guidelines" in _prompt(body):
        return "distil"
    return "relate" if "duplicates" in inner else "judge"


# Traces without a server


@dataclass
class Said:
    """A human assessment."""

    value: Any
    reason: str = ""
    who: str = "ann"
    name: str = "polite"
    at: int = 1_000
    id: str = ""
    kind: str = "HUMAN"
    valid: bool = True


@dataclass
class Made:
    """Makes traces from the form of one that MLflow logged."""

    form: dict[str, Any]
    experiment: str = "1"
    made: list[Any] = field(default_factory=list)

    def __call__(self, *said: Said, inputs: Any = None, outputs: Any = "A reply.", trace_id: str = "", session: str = "", **more: Any) -> Any:
        """A trace with assessments; without ``inputs`` it has a question that no other has."""
        from mlflow.entities import Trace

        number = next(_numbers)
        form = copy.deepcopy(self.form)
        info, span = form["info"], form["data"]["spans"][0]
        info["trace_id"] = trace_id = trace_id or f"tr-{number:032x}"
        info["trace_location"]["mlflow_experiment"]["experiment_id"] = more.get("experiment", self.experiment)
        info["request_time"] = datetime.fromtimestamp(1_700_000_000 + number, UTC).isoformat().replace("+00:00", "Z")
        inputs = {"question": f"question {number} alone"} if inputs is None else inputs
        attributes = span["attributes"]
        attributes["mlflow.traceRequestId"] = json.dumps(trace_id)
        attributes["mlflow.spanInputs"], attributes["mlflow.spanOutputs"] = json.dumps(inputs), json.dumps(outputs)
        span["trace_id"] = base64.b64encode(number.to_bytes(16, "big")).decode()
        info["request_preview"], info["response_preview"] = json.dumps(inputs), json.dumps(outputs)
        if session:
            info["trace_metadata"]["mlflow.trace.session"] = session
        info["assessments"] = [_assessment(trace_id, one) for one in said]
        if expected := more.get("expected"):
            info["assessments"].append(_assessment(trace_id, Said(None, name="fact"), expectation=expected))
        return Trace.from_dict(form)

    def again(self, trace: Any, *said: Said) -> Any:
        """The same trace, fetched later, with other assessments."""
        from mlflow.entities import Trace

        form = trace.to_dict()
        form["info"]["assessments"] = [_assessment(trace.info.trace_id, one) for one in said]
        return Trace.from_dict(form)


def _assessment(trace_id: str, said: Said, *, expectation: Any = None) -> dict[str, Any]:
    stamp = datetime.fromtimestamp(said.at, UTC).isoformat().replace("+00:00", "Z")
    form = {
        "assessment_id": said.id or "a-" + hashlib.blake2b(f"{trace_id}{said.who}{said.name}{said.at}".encode(), digest_size=8).hexdigest(),
        "assessment_name": said.name,
        "trace_id": trace_id,
        "source": {"source_type": said.kind, "source_id": said.who},
        "create_time": stamp,
        "last_update_time": stamp,
        "rationale": said.reason,
        "valid": said.valid,
    }
    return form | ({"feedback": {"value": said.value}} if expectation is None else {"expectation": {"value": expectation}})


# Both optimizers


class Ours:
    """memalign's."""

    name = "ours"

    def optimizer(self, **more: Any) -> Any:
        from memalign.integrations.mlflow import MemAlignOptimizer

        return MemAlignOptimizer(**({"reflection_lm": REFLECTION, "embedding_model": EMBEDDING} | more))

    def guidelines(self, judge: Any) -> dict[str, set[str]]:
        """Text -> the traces that it rests on."""
        return {g.text: {key.rpartition("/")[0] for key in g.evidence_for} for g in judge.memory.guidelines()}

    def episodes(self, judge: Any) -> list[tuple[str, Any]]:
        """(trace id, value) of each record held."""
        return [(e.feedback.id.rpartition("/")[0], e.feedback.value) for e in judge.memory.episodes()]


class Theirs:
    """MLflow's own."""

    name = "mlflow"

    def optimizer(self, **more: Any) -> Any:
        from mlflow.genai.judges.optimizers import MemAlignOptimizer

        return MemAlignOptimizer(**({"reflection_lm": REFLECTION, "embedding_model": EMBEDDING} | more))

    def guidelines(self, judge: Any) -> dict[str, set[str]]:
        return {g.guideline_text: set(g.source_trace_ids or ()) for g in judge._semantic_memory}

    def episodes(self, judge: Any) -> list[tuple[str, Any]]:
        judge._lazy_init()
        return [(example._trace_id, example.result) for example in judge._episodic_memory]


def has_their_newest() -> bool:
    """Whether the installed MLflow has MemAlign as of 3.17, whose behaviour the tests of both sides describe."""
    from mlflow.version import VERSION

    return tuple(int(part) for part in VERSION.split(".")[:2]) >= (3, 17)


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking store on disk, made once; each test has an experiment of its own in it."""
    import mlflow

    folder = tmp_path_factory.mktemp("tracking")
    address = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(address)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where the store is first opened, it puts the artifacts of all its experiments
        mlflow.search_experiments()
    yield address
    mlflow.flush_trace_async_logging()


@pytest.fixture(scope="session")
def form(tracking: str) -> dict[str, Any]:
    """The form of a logged trace."""
    import mlflow

    mlflow.set_experiment("form")
    with mlflow.start_span("reply") as span:
        span.set_inputs({"question": "?"})
        span.set_outputs("!")
    mlflow.flush_trace_async_logging()
    found = mlflow.get_trace(span.trace_id).to_dict()
    found["info"]["trace_metadata"].pop("mlflow.trace.session", None)
    return dict(found)


@pytest.fixture(params=["mlflow", "ours"])
def side(request: pytest.FixtureRequest, provider: Provider) -> Ours | Theirs:
    """Each optimizer in turn; MLflow's as it is since 3.17."""
    if request.param == "mlflow" and not has_their_newest():
        pytest.skip("what MLflow's own MemAlign does is described as of MLflow 3.17")
    return Ours() if request.param == "ours" else Theirs()


@pytest.fixture
def trace(form: dict[str, Any]) -> Made:
    return Made(form)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Provider]:
    """The endpoint that all of a test's models and embedders reach; the working directory is empty."""
    with Provider() as served:
        monkeypatch.chdir(tmp_path)
        for name in ("OPENAI_API_BASE", "OPENAI_BASE_URL"):
            monkeypatch.setenv(name, served.url)
        monkeypatch.setenv("OPENAI_API_KEY", "dummy")
        monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        monkeypatch.setenv("MLFLOW_MODEL_CATALOG_URI", "")
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        if importlib.util.find_spec("dspy"):
            import dspy

            dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
        yield served


@pytest.fixture
def experiment(tracking: str) -> str:
    """The id of an experiment of this test alone, active."""
    import mlflow

    mlflow.set_tracking_uri(tracking)
    return str(mlflow.set_experiment(f"test {time.time_ns()} {next(_numbers)}").experiment_id)


def make(name: str = "polite", text: str = "Is {{ outputs }} a polite answer to {{ inputs }}?", value_type: Any = bool, **more: Any) -> Any:
    """A judge of MLflow's."""
    from mlflow.genai.judges import make_judge

    return make_judge(name=name, instructions=text, model=CHAT, feedback_value_type=value_type, **more)


def log(*said: Said, inputs: Any, outputs: Any = "A reply.", session: str = "") -> Any:
    """A trace with assessments, logged with the tracking store and read back."""
    import mlflow
    from mlflow.entities import AssessmentSource

    with mlflow.start_span("reply") as span:
        span.set_inputs(inputs)
        span.set_outputs(outputs)
        if session:
            mlflow.update_current_trace(metadata={"mlflow.trace.session": session})
    mlflow.flush_trace_async_logging()
    for one in said:
        source = AssessmentSource(source_type=one.kind, source_id=one.who)
        mlflow.log_feedback(trace_id=span.trace_id, name=one.name, value=one.value, rationale=one.reason or None, source=source)
    return mlflow.get_trace(span.trace_id)
