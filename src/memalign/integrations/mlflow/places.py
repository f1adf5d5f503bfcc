"""Where an aligned judge's memory lies, and the memalign judge that reads and writes it."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from mlflow.genai.judges import Judge as BaseJudge

import memalign
from memalign import edge
from memalign.alignment import Mode
from memalign.errors import ConfigurationError, NotFound
from memalign.integrations.mlflow.assessments import trace_ids
from memalign.integrations.mlflow.embedding import embedder_of
from memalign.integrations.mlflow.faults import as_mlflow, gone
from memalign.integrations.mlflow.model import distilling_model, judging_model
from memalign.integrations.mlflow.scales import scale_of

_logger = logging.getLogger(__name__)

ACTOR = "mlflow"
"""Who changes memory through judges of MLflow; whatever others changed, experts did by the judge's name."""

DEFAULT_MEMORY = "memalign.db"
"""In the working directory, beside what MLflow itself keeps there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """With what a judge learns and recalls; MLflow's names of models."""

    reflection_lm: str
    retrieval_k: int | None = None
    embedding_model: str | None = None
    embedding_dim: int | None = None
    verify: Mode = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One revision of one judge's memory."""

    memory: str
    """A file, as an absolute path, or the address of a database."""
    name: str
    """The judge's name in it."""
    revision: int
    mark: str | None = None
    """By which that revision is known again; None in judges that were registered without."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


class Reader:
    """The memalign judge of a place, opened at first use. Copies share it; a pickle opens its own."""

    def __init__(self, base: BaseJudge, place: Place, means: Means, writer: memalign.Judge | None = None) -> None:
        self.base = base
        self.place = place
        self.means = means
        self._writer = writer
        self._opened = None if writer is None else writer.at(place.revision)
        self._lock = threading.Lock()

    @property
    def judge(self) -> memalign.Judge:
        """Read-only, pinned to the place's revision. Raises MlflowException when the memory is gone, or has no such judge or revision."""
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    @cached_property
    def trace_ids(self) -> list[str]:
        """The traces that memory learned from, at this revision; MLflow asks for them with every row that it evaluates."""
        return trace_ids(episode.feedback.id for episode in self.judge.memory.episodes())

    @cached_property
    def guidelines(self) -> list[tuple[str, list[str]]]:
        """Text and traces of each guideline at this revision."""
        return [(guideline.text, trace_ids(guideline.evidence_for)) for guideline in self.judge.memory.guidelines()]

    def writer(self, means: Means) -> memalign.Judge:
        """The memalign judge that goes on learning in the same memory; what is open already is used again."""
        if self._writer is None or means != self.means:
            return writer(self.base, self.place.memory, self.place.name, means)
        return self._writer

    def at(self, revision: int) -> Reader:
        """The same judge at another revision; itself at its own. What is open already is used again."""
        if revision == self.place.revision:
            return self
        return Reader(self.base, replace(self.place, revision=revision, mark=self.judge.memory.mark(revision)), self.means, self._writer)

    @property
    def newest(self) -> int:
        """The newest revision of its memory."""
        return self.judge.memory.history()[-1].number

    def followed(self) -> int:
        """The revision to go on from: its own, or the last of those that experts made right after it; a warning names what experts did later.

        What another judge of MLflow learned is not followed, as two may go on from one.
        """
        since = [made for made in self.judge.memory.history() if made.number > self.place.revision]
        by_experts = list(takewhile(lambda made: made.actor != ACTOR, since))
        left_out = [made for made in since[len(by_experts) :] if made.actor != ACTOR]
        revision = by_experts[-1].number if by_experts else self.place.revision
        if left_out:
            _logger.warning(
                "judge %r goes on from revision %d of %r in %s without what experts changed by hand since another judge learned there (%s; newest "
                "revision %d): to go on from all of it, align judge.latest()",
                *(self.base.name, revision, self.place.name, self.place.memory),
                ", ".join(f"{made.verb} in revision {made.number}" for made in left_out),
                since[-1].number,
            )
        return revision

    def close(self) -> None:
        """Give back what was opened; it is opened again when it is needed."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = self._writer = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Reader:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"base": self.base, "place": self.place, "means": self.means}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _open(self) -> memalign.Judge:
        place = self.place
        try:
            with as_mlflow(f"cannot open the memory of judge {self.base.name!r}"):
                return _the_same(memalign.Judge.load(place.memory, place.name, **_settings(self.base, self.means)).at(place.revision), place)
        except Exception as error:
            if not isinstance(error.__cause__, NotFound):
                raise
            raise gone(
                f"the memory of judge {self.base.name!r} is gone: {error.__cause__}. Bring it back, or say where it lies now: "
                f"memalign.integrations.mlflow.load_judge({self.base.name!r}, memory=...). A memory that several machines use belongs into a "
                "database or on a shared disk; to start afresh, align the judge again."
            ) from error


def whereabouts(memory: str | Path | None) -> str:
    """The memory that is meant: an absolute path, so that a registered judge finds it from any directory."""
    chosen = str(memory or DEFAULT_MEMORY)
    return chosen if "://" in chosen else str(Path(chosen).expanduser().resolve())


def own_name(name: str) -> str:
    """A name that no judge has yet, for a memory of its own."""
    return f"{name}-{secrets.token_hex(4)}"


def writer(base: BaseJudge, memory: str, name: str, means: Means) -> memalign.Judge:
    """The memalign judge that learns; it is made in memory if it is new there. Raises ConfigurationError."""
    if str(getattr(base, "_model_api_mode", "")) == "decisions":
        raise ConfigurationError(
            f"judge {base.name!r} uses the Decision API, which answers one question about one text: no turns for cases, no reasons, no JSON. "
            "Make the judge with model_api='chat_completions' and a chat model; then it can be aligned"
        )
    return memalign.Judge(name=name, memory=memory, **_settings(base, means), scale=scale_of(base.feedback_value_type))


def branched(source: memalign.Judge, base: BaseJudge, place: Place, means: Means) -> memalign.Judge:
    """A new judge in the same memory that holds what ``source`` holds in its revision: memory went on from there without it."""
    from memalign.alignment import Learned, adopt

    made = writer(base, place.memory, own_name(base.name), means)
    stored = source.memory.stored()
    guidelines = [
        Learned(text=g.text, scope=g.scope, evidence=g.evidence_for, against=g.evidence_against, state=g.state, pinned=g.pinned)
        for g in source.memory.guidelines(all_states=True)
        if g.state not in ("retired", "superseded")
    ]
    unlearned = frozenset(record.feedback.id for record in stored if record.distilled is None)
    edge.run(adopt(made.session, [record.feedback for record in stored], guidelines, unlearned=unlearned, actor=ACTOR))
    return made


def at_newest(base: BaseJudge, judge: memalign.Judge, memory: str, means: Means, revision: int) -> Reader:
    """The reader of what ``judge`` just learned; it shares what the judge has opened."""
    return Reader(base, Place(memory=memory, name=judge.name, revision=revision, mark=judge.memory.mark(revision)), means, judge)


def moved(reader: Reader, memory: str) -> Reader:
    """The same judge in a memory that lies elsewhere now."""
    return Reader(reader.base, replace(reader.place, memory=memory), reader.means)


_learning: defaultdict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)


def learning(memory: str, name: str) -> threading.Lock:
    """Held while a judge's memory is changed, so that two threads of this process branch instead of mixing."""
    return _learning[memory, name]


def _the_same(judge: memalign.Judge, place: Place) -> memalign.Judge:
    """The judge, if it is the one that is meant and no other of its name. Raises NotFound."""
    if place.mark in (None, judge.memory.mark(place.revision)):
        return judge
    judge.close()
    raise NotFound(f"{place.memory} holds another judge {place.name!r}, which learned something else")


def _settings(base: BaseJudge, means: Means) -> dict[str, Any]:
    return {
        "instructions": base.instructions,
        "model": judging_model(base),
        "reflection_model": distilling_model(means.reflection_lm),
        "embedder": embedder_of(means.embedding_model, means.embedding_dim),
        "k": means.retrieval_k,
    }
