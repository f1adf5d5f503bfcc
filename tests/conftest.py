"""What all tests share: no way out of this machine, no settings from outside, and judges that answer from a script."""

from __future__ import annotations

import itertools
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from memalign import Feedback, Judge, Scale
from memalign.embedders.scripted import HashEmbedder
from memalign.models import ChatRequest
from memalign.models.scripted import ScriptedChatModel
from pgserving import Server, served

_CASE = re.compile(r"^Case (\d+)$.*?^Expert: ([^.\n]+)\.[ ]?([^\n]*)$", re.MULTILINE | re.DOTALL)
_KNOWN = re.compile(r"^((?:g|new)\d+): (.+)$", re.MULTILINE)


@pytest.fixture(scope="session", autouse=True)
def _no_way_out() -> Iterator[None]:
    """Fail at once where a test would reach another machine, let alone a paid model."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
        yield


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("OPENAI_", "MEMALIGN_"))]:
        monkeypatch.delenv(name)


def _guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to connect to {address!r}; only this machine is allowed")
        return connect(self, address)

    return guarded


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked both_stores that use a database run on SQLite and on PostgreSQL."""
    if "backend" in metafunc.fixturenames and metafunc.definition.get_closest_marker("both_stores"):
        metafunc.parametrize("backend", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """The kind of database of a test: SQLite, unless it is marked both_stores."""
    return getattr(request, "param", "sqlite")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server with pgvector, for all tests."""
    with served() as server:
        yield server


_numbers = itertools.count(1)


@pytest.fixture
def make_db(postgres: Server) -> Iterator[Callable[[], str]]:
    """Makes empty PostgreSQL databases; gives their URLs."""
    made: list[str] = []

    def make() -> str:
        made.append(f"judge_{next(_numbers)}")
        return postgres.make(made[-1])

    yield make
    for name in made:
        postgres.drop(name)


class MakeJudge(Protocol):
    """Makes judges that are closed when the test ends."""

    def __call__(self, model: Any = ..., **settings: Any) -> Judge: ...


@pytest.fixture
def make_judge(backend: str, request: pytest.FixtureRequest) -> Iterator[MakeJudge]:
    """A judge of the boolean scale in RAM, or in a PostgreSQL database of its own, with words as vectors; any setting can be given."""
    made: list[Judge] = []
    make_db = None if backend == "sqlite" else request.getfixturevalue("make_db")

    def make(model: Any = None, **settings: Any) -> Judge:
        chosen: dict[str, Any] = {
            "name": "polite",
            "instructions": "Is the reply polite?",
            "scale": Scale.boolean(),
            "embedder": HashEmbedder(),
            "floor": 0.0,
        }
        if make_db is not None and "memory" not in settings:
            chosen["memory"] = make_db()
        made.append(Judge(model=ScriptedChatModel(expert) if model is None else model, **(chosen | settings)))
        return made[-1]

    yield make
    for judge in made:
        judge.close()


@pytest.fixture
def db(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a memory can be made."""
    return str(tmp_path / "judge.db") if backend == "sqlite" else request.getfixturevalue("make_db")()


def expert(request: ChatRequest) -> Mapping[str, Any]:
    """Answers every purpose: yes; one guideline for each different reason; nothing is a duplicate."""
    answers = {"judge": lambda: says("yes"), "verify": lambda: says("yes"), "distil": lambda: distilled(request), "relate": related}
    return answers[request.purpose]()


def related(*, duplicates: Any = (), narrower: Any = (), conflicts: Any = ()) -> dict[str, Any]:
    """A reply to the question how guidelines relate; a conflict is a pair, or a pair with the two situations."""
    parts = ("first_when", "second_when")
    whole = [{"pair": list(found[:2])} | dict.fromkeys(parts, "") | dict(zip(parts, found[2:], strict=False)) for found in conflicts]
    return {"duplicates": [list(group) for group in duplicates], "narrower": [list(pair) for pair in narrower], "conflicts": whole}


def says(verdict: Any, rationale: str = "Because.") -> dict[str, Any]:
    """A judge's reply."""
    return {"rationale": rationale, "verdict": verdict}


def add(*cases: int, when: str = "a reply is judged", decide: str, because: str = "") -> dict[str, Any]:
    """The proposal of a new guideline."""
    return {"op": "add", "when": when, "decide": decide, "because": because, "cases": list(cases)}


def support(guideline: str, *cases: int) -> dict[str, Any]:
    """The proposal of more evidence."""
    return {"op": "support", "guideline": guideline, "cases": list(cases)}


def shown_cases(request: ChatRequest) -> list[tuple[int, str, str]]:
    """Number, label and reason of each case in a distilling prompt."""
    return [(int(number), label, reason) for number, label, reason in _CASE.findall(request.messages[-1].content)]


def shown_guidelines(request: ChatRequest) -> dict[str, str]:
    """The guidelines in a distilling prompt."""
    return dict(_KNOWN.findall(request.messages[-1].content))


def distilled(request: ChatRequest) -> dict[str, Any]:
    """A distillation that adds "When a reply is judged, heed <reason>." or supports the guideline that says so already."""
    known = shown_guidelines(request)
    by_reason: dict[str, list[int]] = {}
    for number, _, reason in shown_cases(request):
        by_reason.setdefault(reason, []).append(number)
    operations = []
    for reason, cases in by_reason.items():
        holder = next((key for key, text in known.items() if f"heed {reason}".casefold() in text.casefold()), None)
        operations.append(support(holder, *cases) if holder else add(*cases, decide=f"heed {reason}"))
    return {"operations": operations}


def record(number: int, reason: str = "", value: Any = False, annotator: str = "ann", **more: Any) -> Feedback:
    """Feedback on item ``number``."""
    fields: dict[str, Any] = {"inputs": f"question {number}", "outputs": f"reply {number}", "value": value, "rationale": reason}
    return Feedback(annotator=annotator, **(fields | more))
