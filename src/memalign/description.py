"""What a judge is: plain data that opens its clients and its database where it is used."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from inspect import signature
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from memalign import edge
from memalign.errors import ConfigurationError, StoreError
from memalign.retrieval import Retrieval
from memalign.scale import Scale

if TYPE_CHECKING:
    from memalign.embedders import Embedder
    from memalign.memory import Memory
    from memalign.memory.retention import Retention
    from memalign.models import ChatModel
    from memalign.session import Session
    from memalign.working import Task

_opening = threading.Lock()


class Description:
    """Name, instructions, scale, models and memory of a judge. It pickles; what it opened stays behind."""

    def __init__(
        self,
        name: str,
        instructions: str,
        scale: Scale,
        model: str | ChatModel,
        *,
        memory: str | Path | None = None,
        reflection_model: str | ChatModel | None = None,
        embedder: str | Embedder = "local/minilm",
        k: int | None = None,
        exemplars: int = 0,
        explain: bool | None = None,
        temperature: float = 0.0,
        floor: float = 0.3,
        abstain_below: float | None = None,
        votes: int | None = None,
        both_orders: bool | None = None,
        expected_score: bool = False,
        retention: Retention | None = None,
        retrieval: Retrieval | Mapping[str, Any] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Describe a judge; nothing is opened yet.

        ``model``: ``provider/model`` (``openai/...``, ``local/...``) or an object with the ChatModel protocol; ``reflection_model`` distils and is
        the same by default. ``embedder``: ``local/minilm``, ``openai/...`` or an object with the Embedder protocol. ``memory``: a file,
        postgresql://user@host/database, or None for RAM. ``k``: how many similar items' cases a judgement is shown (5; in process 0); ``exemplars``:
        how many cases stand before every judgement, where a prefix cache serves them (0); ``explain``: whether the judge gives a rationale before its
        verdict (yes; in process no, since it writes some ten tokens a second); ``temperature`` of its replies; ``floor``: the least cosine similarity
        of a case that is shown; ``retrieval``: how these are chosen (``Retrieval``). ``abstain_below``: the confidence below which it leaves an item
        to the experts (never); ``votes``: how many replies are counted (one, unless calibration counted more or a confidence is needed and comes from
        nothing else); ``both_orders``: pairwise, whether each pair is judged in both orders, at twice the calls (yes; in process no);
        ``expected_score``: whether a score is the one nearest to the mean under its probabilities, not the likeliest (no); ``retention``: limits
        beyond which records are purged; ``weights``: how much an annotator counts in votes of the cases and in majorities (1 each; 0 is not heard
        there and contests nothing). Raises ConfigurationError.
        """
        _check_asked(name, instructions, scale, temperature)
        check_shown(0 if k is None else k, floor, exemplars)
        self.name, self.instructions = name, instructions.strip()
        self.scale = scale
        self.model = model
        self.reflection_model = model if reflection_model is None else reflection_model
        self.embedder = embedder
        self.location = None if memory is None else fspath(memory)
        self.temperature, self.floor = temperature, floor
        self.retention = retention
        self.weights = _checked(weights or {})
        self.retrieval = retrieval if isinstance(retrieval, Retrieval) else Retrieval.from_dict(retrieval or {})
        in_process = model_name(model).startswith("local/")
        self.k = (0 if in_process else 5) if k is None else k
        self.exemplars = exemplars
        self.explain = not in_process if explain is None else explain
        self.both_orders = (scale.kind == "pairwise" and not in_process) if both_orders is None else both_orders
        self.abstain_below, self.votes, self.expected_score = abstain_below, votes, expected_score
        self._session: Session | None = None
        self.revision: int | None = None
        """The revision it is pinned to by ``at``; None follows memory."""
        if (abstain_below is not None and not 0 <= abstain_below <= 1) or (votes is not None and votes < 1):
            raise ConfigurationError("abstain_below is a confidence from 0 to 1, and votes are 1 or more")

    @classmethod
    def load(cls, memory: str | Path, name: str, **changes: Any) -> Self:
        """The judge of a name in a memory; ``changes`` override stored settings. Raises NotFound."""
        from memalign.memory import judge_settings
        from memalign.memory.retention import Retention
        from memalign.stores import open_store

        store = open_store(fspath(memory))
        try:
            settings = judge_settings(store, name)
        finally:
            store.close()
        scale = Scale.from_dict(settings.pop("scale"))
        try:
            if settings.get("retention") is not None:
                settings["retention"] = Retention(**settings["retention"])
            signature(cls).bind(name=name, scale=scale, **settings)
        except TypeError as error:
            raise StoreError(f"the settings of judge {name!r} in {store.location} are not of this release ({error}); upgrade memalign") from None
        return cls(name=name, scale=scale, memory=memory, **(settings | changes))

    @property
    def memory(self) -> Memory:
        """The dual memory: guidelines, episodes, history."""
        return self.session.memory

    def close(self) -> None:
        """Give back connections and weights; the judge may be used again, but a memory in RAM is lost."""
        if self._session is not None:
            edge.run(self._session.aclose())
            self._session = None

    @property
    def settings(self) -> dict[str, Any]:
        """What memory keeps of the judge: enough to load it."""
        return {
            "instructions": self.instructions,
            "scale": self.scale.to_dict(),
            "weights": self.weights,
            "model": model_name(self.model),
            "reflection_model": None if self.reflection_model == self.model else model_name(self.reflection_model),
            "embedder": self.embedder if isinstance(self.embedder, str) else self.embedder.id,
            "k": self.k,
            "exemplars": self.exemplars,
            "explain": self.explain,
            "temperature": self.temperature,
            "floor": self.floor,
            "abstain_below": self.abstain_below,
            "votes": self.votes,
            "both_orders": self.both_orders,
            "expected_score": self.expected_score,
            "retrieval": self.retrieval.to_dict(),
        } | ({} if self.retention is None else {"retention": self.retention.to_dict()})

    @property
    def task(self) -> Task:
        """What the judge is asked to do, whatever the item."""
        from memalign.working import Task

        return Task(instructions=self.instructions, scale=self.scale, explain=self.explain, secret=self.memory.secret)

    @property
    def session(self) -> Session:
        """The opened parts, the same for all threads."""
        with _opening:
            if self._session is None:
                self._session = self._opened()
            return self._session

    def _opened(self) -> Session:
        from memalign.embedders import open_embedder
        from memalign.memory import Memory
        from memalign.models import open_chat_model
        from memalign.session import Session
        from memalign.stores import open_store

        model = open_chat_model(self.model) if isinstance(self.model, str) else self.model
        other = open_chat_model(self.reflection_model) if isinstance(self.reflection_model, str) else self.reflection_model
        embedder = open_embedder(self.embedder) if isinstance(self.embedder, str) else self.embedder
        memory = Memory(open_store(self.location), self.name, self.settings, embedder.id, exemplars=self.exemplars)
        if self.revision is not None:
            memory = memory.at(self.revision)
        return Session(memory, model, model if self.reflection_model == self.model else other, embedder)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_session": None}

    def __repr__(self) -> str:
        from memalign.stores import shown

        return f"Judge({self.name!r}, {self.scale.spec}, {model_name(self.model)}, memory={shown(self.location)!r})"


def check_shown(k: int, floor: float, exemplars: int = 0) -> None:
    """Raises ConfigurationError for a number of cases or a floor that cannot be."""
    for name, count in (("k", k), ("exemplars", exemplars)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ConfigurationError(f"{name} must be 0 or more, a whole number, not {count!r}")
    if not isinstance(floor, int | float) or not -1 <= floor <= 1:
        raise ConfigurationError(f"floor is a cosine similarity from -1 to 1, not {floor!r}")


def _check_asked(name: str, instructions: str, scale: Scale, temperature: float) -> None:
    if not all(isinstance(text, str) and text.strip() for text in (name, instructions)):
        raise ConfigurationError("a judge needs a name and instructions, both of them text")
    if not isinstance(scale, Scale):
        raise ConfigurationError(f"scale must be a Scale, e.g. Scale.boolean(), not {scale!r:.80}")
    if not isinstance(temperature, int | float) or not temperature >= 0:
        raise ConfigurationError(f"temperature must be a number from 0, not {temperature!r:.80}")


def model_name(part: str | ChatModel) -> str:
    """The ``provider/model`` of a model, opened or not. Raises ConfigurationError for what is none."""
    name = part if isinstance(part, str) else getattr(part, "name", None)
    if not isinstance(name, str):
        raise ConfigurationError(f"a model is named provider/model, or is an object with the ChatModel protocol, not {part!r:.80}")
    return name


def _checked(weights: Mapping[str, float]) -> dict[str, float]:
    if not all(isinstance(weight, int | float) and 0 <= weight < float("inf") for weight in weights.values()):
        raise ConfigurationError(f"annotators' weights must be numbers from 0, not {dict(weights)}")
    return dict(weights)
