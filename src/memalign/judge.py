"""The judge: the one object users hold."""

from __future__ import annotations

import copy
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

from memalign import edge
from memalign.errors import BadRecord, ConfigurationError, NotFound
from memalign.records import Failure, Feedback, Item, Verdict
from memalign.scale import Scale

if TYPE_CHECKING:
    from memalign.agreement import Agreement
    from memalign.alignment import AlignReport
    from memalign.calibration import Calibration
    from memalign.embedders import Embedder
    from memalign.judging import Part, Recall
    from memalign.memory import Memory
    from memalign.models import ChatModel
    from memalign.session import Session
    from memalign.working import Task

Progress = Callable[[str, int, int], None]
"""Called with the stage, how many are done, and of how many."""


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass


_opening = threading.Lock()


class Judge:
    """An LLM judge with a memory of what experts said.

    A judge is plain data: it pickles, and opens its clients and its database where it is used. Judge verbs are safe to call from threads and
    from inside a running event loop; ``a...`` twins are for async code.
    """

    def __init__(
        self,
        name: str,
        instructions: str,
        scale: Scale,
        model: str | ChatModel,
        *,
        memory: str | None = None,
        reflection_model: str | ChatModel | None = None,
        embedder: str | Embedder = "local/minilm",
        k: int | None = None,
        exemplars: int = 0,
        explain: bool | None = None,
        temperature: float = 0.0,
        floor: float = 0.3,
    ) -> None:
        """Describe a judge; nothing is opened yet.

        ``model``: ``provider/model`` (``openai/...``, ``local/...``) or an object with the ChatModel protocol; ``reflection_model`` distils and
        is the same by default. ``memory``: a file, or None for RAM. ``k``: how many similar items' cases a judgement is shown (5; in process
        0); ``exemplars``: how many cases stand before every judgement, where a prefix cache serves them (0); ``explain``: whether
        the judge gives a rationale before its verdict (yes; in process no, since it writes some ten tokens a second); ``floor``: the least cosine
        similarity of a case that is shown. Raises ConfigurationError.
        """
        if not name.strip() or not instructions.strip():
            raise ConfigurationError("a judge needs a name and instructions")
        self.name = name
        self.instructions = instructions.strip()
        self.scale = scale
        self.model = model
        self.reflection_model = model if reflection_model is None else reflection_model
        self.embedder = embedder
        self.location = memory
        self.temperature = temperature
        self.floor = floor
        in_process = _name(model).startswith("local/")
        self.k = (0 if in_process else 5) if k is None else k
        self.exemplars = exemplars
        self.explain = not in_process if explain is None else explain
        self._session: Session | None = None
        self.revision: int | None = None
        """The revision it is pinned to by ``at``; None follows memory."""
        if self.k < 0 or self.exemplars < 0:
            raise ConfigurationError("k and exemplars must be 0 or more")

    @classmethod
    def load(cls, memory: str, name: str, **changes: Any) -> Self:
        """The judge of a name in a memory; ``changes`` override stored settings. Raises NotFound."""
        from memalign.memory import judge_settings
        from memalign.stores import open_store

        store = open_store(memory)
        try:
            settings = judge_settings(store, name)
        finally:
            store.close()
        scale = Scale.from_dict(settings.pop("scale"))
        return cls(name=name, scale=scale, memory=memory, **(settings | changes))

    # Judging

    def __call__(self, *, inputs: Any = None, outputs: Any = None, expectations: Any = None) -> Verdict:
        """Judge one item. Raises RetryableError or PermanentError."""
        return edge.run(self.acall(inputs=inputs, outputs=outputs, expectations=expectations))

    async def acall(self, *, inputs: Any = None, outputs: Any = None, expectations: Any = None) -> Verdict:
        """Judge one item. Raises RetryableError or PermanentError."""
        from memalign.judging import judge

        item = Item(inputs=inputs, outputs=outputs, expectations=expectations)
        return await judge(self.session, self.task, item, self._recall(), temperature=self.temperature)

    def batch(
        self, items: Iterable[Item | Feedback], *, memory: Part = "both", own: bool = True, progress: Progress = _silent
    ) -> list[Verdict | Failure]:
        """One Verdict or Failure an item, in input order, whatever fails.

        ``memory``: which part of it takes part ("both", "guidelines", "cases", "none": the unaligned judge). ``own``: whether an item's own
        episode may be seen: as in service, or hidden as in evaluation. Verdicts are logged only as in service.
        """
        return edge.run(self.abatch(items, memory=memory, own=own, progress=progress))

    async def abatch(
        self, items: Iterable[Item | Feedback], *, memory: Part = "both", own: bool = True, progress: Progress = _silent
    ) -> list[Verdict | Failure]:
        """One Verdict or Failure an item, in input order, whatever fails; see ``batch``."""
        waiting = list(items)
        results: dict[int, Verdict | Failure] = {}
        async for place, result in self._stream(waiting, self._recall(own=own, part=memory)):
            results[place] = result
            progress("judge", len(results), len(waiting))
        return [results[place] for place in range(len(waiting))]

    def astream(self, items: Iterable[Item | Feedback]) -> AsyncIterator[tuple[int, Verdict | Failure]]:
        """Pairs of (place in the input, Verdict or Failure) as they come."""
        return self._stream(items, self._recall())

    # Learning

    def align(
        self, feedback: Iterable[Feedback] = (), *, verify: Literal["off"] = "off", actor: str = "", progress: Progress = _silent
    ) -> AlignReport:
        """Learn from feedback, and from what an earlier align could not finish.

        Records are stored before any model is asked, so no error loses one. Unchanged records cost nothing, changed ones replace their earlier
        version in both memories. Raises BadRecord for a value off the scale, before anything is stored, and what the embedder raises.
        """
        return edge.run(self.aalign(feedback, verify=verify, actor=actor, progress=progress))

    async def aalign(
        self, feedback: Iterable[Feedback] = (), *, verify: Literal["off"] = "off", actor: str = "", progress: Progress = _silent
    ) -> AlignReport:
        """Learn from feedback; see ``align``."""
        from memalign.alignment import HOSTED, IN_PROCESS, align

        if verify != "off":
            raise ConfigurationError(f"verify={verify!r} is not known; this release knows verify='off'")
        self._writable()
        pace = IN_PROCESS if _name(self.reflection_model).startswith("local/") else HOSTED
        checked = self._checked(feedback)
        return await align(self.session, self.task, checked, actor=actor, pace=pace, progress=progress)

    def overwrite(self, feedback: Feedback, *, actor: str = "", progress: Progress = _silent) -> AlignReport:
        """Replace an expert's earlier record of the same id; guidelines that rested on it are distilled again without it. Raises NotFound."""
        if all(episode.feedback.id != feedback.id for episode in self.memory.episodes()):
            raise NotFound(f"no feedback {feedback.id!r} to overwrite in judge {self.name!r}; use align for a new record")
        return self.align([feedback], actor=actor, progress=progress)

    def unalign(self, ids: Iterable[str], *, actor: str = "") -> AlignReport:
        """Retract records by id: out of retrieval and evidence; guidelines left without evidence retire. Raises NotFound."""
        from memalign.alignment import unalign

        self._writable()
        return edge.run(unalign(self.session, [ids] if isinstance(ids, str) else list(ids), actor=actor))

    def calibrate(self, *, sample: int = 40, actor: str = "", progress: Progress = _silent) -> Calibration:
        """Fit, on the experts' own labels, how the model's probability and the vote of similar cases decide; own cases are hidden meanwhile.

        Judges at most ``sample`` records. For the boolean scale and models that give token probabilities; else a note says why nothing was fitted.
        """
        from memalign.calibration import calibrate

        self._writable()
        return edge.run(calibrate(self.session, self.task, self._recall(own=False), sample=sample, actor=actor, progress=progress))

    # Measuring

    def evaluate(self, feedback: Iterable[Feedback], *, memory: Part = "both", own: bool = False, progress: Progress = _silent) -> Agreement:
        """How far the judge agrees with experts; an item's own episode is hidden from it, unless ``own``; ``memory`` as in ``batch``.

        Failures are counted apart, never as a verdict.
        """
        records = self._checked(feedback)
        return self.agreement(records, self.batch(records, memory=memory, own=own, progress=progress))

    def agreement(self, feedback: Sequence[Feedback], verdicts: Sequence[Verdict | Failure]) -> Agreement:
        """Agreement of verdicts with experts' feedback on the same items, in the same order."""
        from memalign.agreement import measure

        pairs = [(f.value, v.value) for f, v in zip(feedback, verdicts, strict=True) if isinstance(v, Verdict)]
        return measure(self.scale, pairs, failures=len(feedback) - len(pairs))

    # Parts

    @property
    def memory(self) -> Memory:
        """The dual memory: guidelines, episodes, history."""
        return self.session.memory

    def at(self, revision: int) -> Judge:
        """A read-only judge with the memory of a revision. Raises NotFound."""
        from memalign.session import Session

        mine = self.session
        pinned = copy.copy(self)
        pinned.revision = revision
        pinned._session = Session(mine.memory.at(revision), mine.model, mine.reflection_model, mine.embedder)
        return pinned

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
            "model": _name(self.model),
            "reflection_model": None if self.reflection_model == self.model else _name(self.reflection_model),
            "embedder": self.embedder if isinstance(self.embedder, str) else self.embedder.id,
            "k": self.k,
            "exemplars": self.exemplars,
            "explain": self.explain,
            "temperature": self.temperature,
            "floor": self.floor,
        }

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
        return f"Judge({self.name!r}, {self.scale.spec}, {_name(self.model)}, memory={self.location!r})"

    def _recall(self, *, own: bool = True, part: Part = "both") -> Recall:
        from memalign.judging import Recall

        return Recall(k=self.k, floor=self.floor, own=own, part=part)

    def _stream(self, items: Iterable[Item | Feedback], recall: Recall) -> AsyncIterator[tuple[int, Verdict | Failure]]:
        from memalign.engines import in_flight
        from memalign.judging import attempt

        task = self.task
        return in_flight(_items(items), lambda item: attempt(self.session, task, item, recall, temperature=self.temperature))

    def _checked(self, feedback: Iterable[Feedback]) -> list[Feedback]:
        """Feedback that can be stored, with its values in the scale's own form. Raises BadRecord, naming the record's place."""
        checked = []
        for place, record in enumerate(feedback, start=1):
            try:
                checked.append(replace(record.check_storable(), value=self.scale.check(record.value)))
            except BadRecord as error:
                raise BadRecord(error.reason, field=error.field, row=place) from error
        return checked

    def _writable(self) -> None:
        if self.revision is not None:
            raise ConfigurationError(f"this judge is pinned to revision {self.revision} and read-only; use the judge it was made from")


def _items(items: Iterable[Item | Feedback]) -> Iterable[Item]:
    return (item.item if isinstance(item, Feedback) else item for item in items)


def _name(part: str | ChatModel) -> str:
    return part if isinstance(part, str) else part.name
