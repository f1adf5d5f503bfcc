"""The judge: the one object users hold."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from memalign import edge
from memalign.description import check_shown, model_name
from memalign.errors import BadRecord, ConfigurationError
from memalign.owning import Owned, Progress, silent
from memalign.records import Failure, Feedback, Item, Verdict, each_feedback

if TYPE_CHECKING:
    from memalign.agreement import Agreement
    from memalign.alignment import Advice, AlignReport, Limits, Mode, Trying
    from memalign.calibration import Calibration
    from memalign.judging import Caution
    from memalign.panel import Panel
    from memalign.recalling import Part, Recall
    from memalign.retrieval import Retrieval
    from memalign.suggesting import Suggestion


class Judge(Owned):
    """An LLM judge with a memory of what experts said.

    A judge is plain data: it pickles, and opens its clients and its database where it is used. Judge verbs are safe to call from threads and
    from inside a running event loop; ``a...`` twins are for async code.
    """

    # Judging

    def __call__(
        self, *, inputs: Any = None, outputs: Any = None, expectations: Any = None, abstain_below: float | None = None, votes: int | None = None
    ) -> Verdict:
        """Judge one item; ``abstain_below`` and ``votes`` in place of the judge's own settings. Raises RetryableError or PermanentError."""
        return edge.run(self.acall(inputs=inputs, outputs=outputs, expectations=expectations, abstain_below=abstain_below, votes=votes))

    async def acall(
        self, *, inputs: Any = None, outputs: Any = None, expectations: Any = None, abstain_below: float | None = None, votes: int | None = None
    ) -> Verdict:
        """Judge one item; see ``__call__``."""
        from memalign.judging import judge

        item = Item(inputs=inputs, outputs=outputs, expectations=expectations).check_given()
        return await judge(self.session, self.task, item, self._recall(), temperature=self.temperature, caution=self._caution(abstain_below, votes))

    def batch(
        self,
        items: Iterable[Item | Feedback],
        *,
        memory: Part = "both",
        own: bool = True,
        abstain_below: float | None = None,
        votes: int | None = None,
        progress: Progress = silent,
    ) -> list[Verdict | Failure]:
        """One Verdict or Failure an item, in input order, whatever fails.

        ``memory``: which part of it takes part ("both", "guidelines", "cases", "none": the unaligned judge). ``own``: whether an item's own
        episode may be seen: as in service, or hidden as in evaluation. Verdicts are logged only as in service.
        """
        return edge.run(self.abatch(items, memory=memory, own=own, abstain_below=abstain_below, votes=votes, progress=progress))

    async def abatch(
        self,
        items: Iterable[Item | Feedback],
        *,
        memory: Part = "both",
        own: bool = True,
        abstain_below: float | None = None,
        votes: int | None = None,
        progress: Progress = silent,
    ) -> list[Verdict | Failure]:
        """One Verdict or Failure an item, in input order, whatever fails; see ``batch``."""
        waiting = list(items)
        results: dict[int, Verdict | Failure] = {}
        async for place, result in self._stream(waiting, self._recall(own=own, part=memory), self._caution(abstain_below, votes)):
            results[place] = result
            progress("judge", len(results), len(waiting))
        return [results[place] for place in range(len(waiting))]

    def astream(
        self, items: Iterable[Item | Feedback], *, abstain_below: float | None = None, votes: int | None = None
    ) -> AsyncIterator[tuple[int, Verdict | Failure]]:
        """Pairs of (place in the input, Verdict or Failure) as they come."""
        return self._stream(items, self._recall(), self._caution(abstain_below, votes))

    # Learning

    def align(
        self,
        feedback: Iterable[Feedback] = (),
        *,
        verify: Mode | None = None,
        override: bool = False,
        screen: bool | None = None,
        actor: str = "",
        progress: Progress = silent,
    ) -> AlignReport:
        """Learn from feedback, and from what an earlier align could not finish.

        Records are stored before any model is asked, so no error loses one. Unchanged records cost nothing, changed ones replace their earlier
        version in both memories. ``verify``: whether the guidelines must prove themselves on records that are judged again: "off", "fast"
        (24 of them) or "full" (all); by default fast for models of an endpoint and off for others. What breaks right verdicts, or fixes no
        wrong one, is kept as a candidate that the judge does not read; with ``override`` it stands, and the report says what it does.
        ``screen``: whether the judge is asked about each new item first, one call an item, so that its errors lead distillation; by default
        with ``verify="full"``, which judges them all anyway. Verdicts it gave in service are known without a call.
        Raises BadRecord for a value off the scale, before anything is stored, and what the embedder raises, unless it refuses single texts.
        """
        return edge.run(self.aalign(feedback, verify=verify, override=override, screen=screen, actor=actor, progress=progress))

    async def aalign(
        self,
        feedback: Iterable[Feedback] = (),
        *,
        verify: Mode | None = None,
        override: bool = False,
        screen: bool | None = None,
        actor: str = "",
        progress: Progress = silent,
    ) -> AlignReport:
        """Learn from feedback; see ``align``."""
        from memalign.alignment import HOSTED, IN_PROCESS, align

        trying = self._trying(verify, override=override)
        self._writable()
        pace = IN_PROCESS if model_name(self.reflection_model).startswith("local/") else HOSTED
        checked = self._checked(feedback)
        report = await align(
            self.session,
            self.task,
            checked,
            trying=trying,
            screening=trying.mode == "full" if screen is None else screen,
            actor=actor,
            pace=pace,
            limits=_limits(),
            progress=progress,
        )
        return report if self.retention is None else await self._expire(report, actor=actor, progress=progress)

    def utility(self, *, full: bool = False, progress: Progress = silent) -> dict[str, float]:
        """Guideline id -> net verdicts that are right with all active guidelines and wrong without this one; below 0 it does harm.

        Each is measured on at most 12 records (``full``: all) with their own cases hidden, and kept with the guideline: when there are more than
        the budget holds, the least useful stand by. On ordinal scales a verdict counts by its distance from the expert's, from 0 to 1.
        """
        return edge.run(self.autility(full=full, progress=progress))

    async def autility(self, *, full: bool = False, progress: Progress = silent) -> dict[str, float]:
        """What each guideline is worth; see ``utility``."""
        from memalign.alignment import RECORDS, measure

        self._writable()
        replay = self._trying("full", override=False).replay
        return await measure(self.session, self.task, replay, size=None if full else RECORDS, progress=progress)

    def calibrate(
        self, *, sample: int = 40, votes: int | None = None, ablate: bool | None = None, actor: str = "", progress: Progress = silent
    ) -> Calibration:
        """Fit, on the experts' own labels, how the model's probability and the vote of similar cases decide; own cases are hidden meanwhile.

        Judges at most ``sample`` records. ``votes``: for a model that does not tell token probabilities, how many replies are counted, here and in
        the judgements that follow. ``ablate``: judge them without guidelines too, and let the model read guidelines only if that helps; by default
        for models in process, since small ones hardly follow them. What does not do better on left-out records takes no part, and a note says
        what was found.
        """
        return edge.run(self.acalibrate(sample=sample, votes=votes, ablate=ablate, actor=actor, progress=progress))

    async def acalibrate(
        self, *, sample: int = 40, votes: int | None = None, ablate: bool | None = None, actor: str = "", progress: Progress = silent
    ) -> Calibration:
        """Fit how the model's probability and the cases' vote decide; see ``calibrate``."""
        from memalign.calibration import calibrate

        self._writable()
        self._counted()
        without = model_name(self.model).startswith("local/") if ablate is None else ablate
        ask = partial(calibrate, self.session, self.task, self._recall(own=False), temperature=self.temperature, caution=self._caution(None, votes))
        return await ask(sample=sample, ablate=without, actor=actor, progress=progress, service=self.votes)

    def suggest(self, items: Iterable[Item | Feedback], n: int = 20, *, calls: int = 0, progress: Progress = silent) -> list[Suggestion]:
        """The ``n`` unlabelled items whose verdict by an expert would teach most, the best first, with the reasons and the parts of their score.

        Items that memory holds are left out, equal ones are one. ``calls``: how many replies may be asked for, on the least known items; five an
        item where the model tells no token probabilities. With 0 only logged verdicts, cases and vectors are used.
        """
        return edge.run(self.asuggest(items, n, calls=calls, progress=progress))

    async def asuggest(self, items: Iterable[Item | Feedback], n: int = 20, *, calls: int = 0, progress: Progress = silent) -> list[Suggestion]:
        """The items to label next; see ``suggest``."""
        from memalign.suggesting import suggest

        self._counted()
        ask = partial(suggest, both_orders=self.both_orders, judged=partial(self.abatch, progress=progress), progress=progress)
        return await ask(self.session, self.scale, list(_items(items)), n, calls=calls)

    def coach(self, feedback: Feedback) -> Advice:
        """Ask, before a correction is stored, whether its reason is usable: too vague, a repetition of the verdict, or against a guideline or case.

        At most one call of the reflection model. Raises BadRecord, and what the model raises.
        """
        return edge.run(self.acoach(feedback))

    async def acoach(self, feedback: Feedback) -> Advice:
        """Ask whether a correction's reason is usable; see ``coach``."""
        from memalign.alignment import coach

        return await coach(self.session, self.task, self._checked([feedback])[0])

    # Measuring

    def panel(self, feedback: Iterable[Feedback] = ()) -> Panel:
        """How far the experts agree among themselves, on what memory holds and on feedback that is not stored yet."""
        from memalign.panel import panel

        self._counted()
        new = self._checked(feedback)
        return panel(self.scale, [*self.memory.shared([record.item.id for record in new]), *new])

    def evaluate(
        self,
        feedback: Iterable[Feedback],
        *,
        memory: Part = "both",
        own: bool = False,
        abstain_below: float | None = None,
        votes: int | None = None,
        progress: Progress = silent,
    ) -> Agreement:
        """How far the judge agrees with experts; an item's own episode is hidden from it, unless ``own``; ``memory`` as in ``batch``.

        Failures and abstentions are counted apart, never as a verdict: agreement is that on the items that the judge does decide.
        """
        return edge.run(self.aevaluate(feedback, memory=memory, own=own, abstain_below=abstain_below, votes=votes, progress=progress))

    async def aevaluate(
        self,
        feedback: Iterable[Feedback],
        *,
        memory: Part = "both",
        own: bool = False,
        abstain_below: float | None = None,
        votes: int | None = None,
        progress: Progress = silent,
    ) -> Agreement:
        """How far the judge agrees with experts; see ``evaluate``."""
        records = self._checked(feedback)
        verdicts = await self.abatch(records, memory=memory, own=own, abstain_below=abstain_below, votes=votes, progress=progress)
        return await asyncio.to_thread(self.agreement, records, verdicts)

    def agreement(self, feedback: Sequence[Feedback], verdicts: Sequence[Verdict | Failure]) -> Agreement:
        """Agreement of verdicts with experts' feedback on the same items, in the same order."""
        from memalign.agreement import measure
        from memalign.pairwise import position_bias

        given = [(f.value, v) for f, v in zip(feedback, verdicts, strict=True) if isinstance(v, Verdict)]
        pairs = [(value, verdict.value) for value, verdict in given if not verdict.abstained]
        found = measure(self.scale, pairs, failures=len(feedback) - len(given), abstained=len(given) - len(pairs))
        return replace(found, position_bias=position_bias(verdict.orders for _, verdict in given))

    def embed(self, *, progress: Progress = silent) -> int:
        """Embed now what a new embedder has not seen, instead of behind judging; gives how many texts that were. Raises what the embedder raises."""
        return edge.run(self.aembed(progress=progress))

    async def aembed(self, *, progress: Progress = silent) -> int:
        """Embed now; see ``embed``."""
        return await self.session.embed_all(progress)

    def at(self, revision: int) -> Judge:
        """A read-only judge with the memory of a revision. Raises NotFound."""
        pinned = copy.copy(self)
        pinned.revision = revision
        pinned._session = self.session.under(memory=self.memory.at(revision))
        return pinned

    def retrieving(self, *, k: int | None = None, floor: float | None = None, retrieval: Retrieval | None = None) -> Judge:
        """The same judge that chooses cases otherwise, to compare settings on one's own labels; what memory keeps of it stays."""
        other = copy.copy(self)
        other.k, other.floor, other.retrieval = self.k if k is None else k, self.floor if floor is None else floor, retrieval or self.retrieval
        check_shown(other.k, other.floor)
        other._session = self.session.under(memory=self.memory.choosing(other.retrieval))
        return other

    def _recall(self, *, own: bool = True, part: Part = "both") -> Recall:
        from memalign.recalling import Recall

        return Recall(k=self.k, floor=self.floor, own=own, part=part)

    def _trying(self, verify: Mode | None, *, override: bool) -> Trying:
        """How alignment tries changes. A model in process is slow, and at temperature 0 always answers the same; see docs/verification.md."""
        from memalign.alignment import DRAWS, Trying
        from memalign.replaying import Replayer

        in_process = model_name(self.model).startswith("local/")
        mode = verify or ("fast" if model_name(self.model).startswith("openai/") else "off")
        if mode not in ("off", "fast", "full"):
            raise ConfigurationError(f"verify={verify!r} is not known; known: 'off', 'fast', 'full'")
        caution = replace(self._caution(None, None), abstain_below=None)  # whether it would abstain is no matter here, and may cost calls
        replayer = Replayer(self.session, self.task, self._recall(), temperature=self.temperature, caution=caution)
        return Trying(replay=replayer, mode=mode, draws=1 if in_process and self.temperature == 0 else DRAWS, override=override)

    def _caution(self, abstain_below: float | None, votes: int | None) -> Caution:
        from memalign.judging import Caution

        return Caution(
            votes=self.votes if votes is None else votes,
            abstain_below=self.abstain_below if abstain_below is None else abstain_below,
            both_orders=self.both_orders,
            expected_score=self.expected_score,
        )

    def _stream(self, items: Iterable[Item | Feedback], recall: Recall, caution: Caution) -> AsyncIterator[tuple[int, Verdict | Failure]]:
        from memalign.engines import in_flight
        from memalign.judging import attempt

        task = self.task
        return in_flight(_items(items), lambda item: attempt(self.session, task, item, recall, temperature=self.temperature, caution=caution))

    def _checked(self, feedback: Iterable[Feedback]) -> list[Feedback]:
        """Feedback that can be stored, with its values in the scale's own form. Raises BadRecord, naming the record's place."""
        checked = []
        for place, record in enumerate(each_feedback(feedback), start=1):
            try:
                checked.append(replace(record, value=self.scale.check(record.value)).check_storable())
            except BadRecord as error:
                raise BadRecord(error.reason, field=error.field, row=place) from error
        return checked

    def _counted(self) -> None:
        if self.scale.kind == "open":
            raise ConfigurationError(f"judge {self.name!r} has an open scale; what counts labels needs a scale that lists them")


def _limits() -> Limits:
    from memalign.alignment import Limits
    from memalign.settings import read_settings

    found = read_settings()
    return Limits(guidelines=found.guidelines, tokens=found.guideline_tokens, personal_data=found.personal_data)


def _items(items: Iterable[Item | Feedback]) -> Iterable[Item]:
    return (item.item if isinstance(item, Feedback) else item for item in items)
