"""Verification: what a change of memory should fix, and what must stay right, is judged again without and with it before it may stand.

Each record's own case is hidden meanwhile; else every guideline would "fix" the record that it was distilled from.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Generic, Literal, Protocol, TypeVar

from memalign.agreement import mcnemar_p
from memalign.alignment.gate import DRAWS, Case, Effect, culprits, effect, enough, refusal, sample
from memalign.alignment.proof import Outcome, Refused, Replayed, Verification
from memalign.engines import in_flight
from memalign.records import Failure, Guideline, Item, Verdict
from memalign.rendering import item_text, trimmed
from memalign.scale import Scale
from memalign.session import Meter

T = TypeVar("T")
Mode = Literal["off", "fast", "full"]
Outlook = Callable[[Sequence[T]], Sequence[Guideline]]

FAST = 24
"""Cases of a fast verification: half of them such that the changes rest on them."""
_ROUNDS = 5
"""Comparisons on all cases, before what is left of a set that breaks ever new ones is refused as a whole."""
_EXCERPT = 160


class Replay(Protocol):
    """The judge, as alignment uses it to try changes."""

    async def __call__(
        self, meter: Meter, item: Item, guidelines: Sequence[Guideline] | None, *, draw: int = 0, purpose: str = "verify"
    ) -> Verdict | Failure:
        """What the judge says of an item, its own case hidden, under these guidelines or, with None, the active ones.

        Draws of different numbers are verdicts of their own; the same draw of the same prompt is paid for once. Calls go on the meter.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Trying:
    """How changes are tried."""

    replay: Replay
    mode: Mode
    draws: int = DRAWS
    """Verdicts on each side that must agree; 1 for a model that always answers the same."""
    override: bool = False
    """Whether changes stand that the gate would refuse."""


@dataclass(frozen=True, slots=True)
class Trial(Generic[T]):
    """What a verification decided: which changes may stand."""

    accepted: list[T]
    refused: list[T]
    verification: Verification


async def verify(
    trying: Trying,
    meter: Meter,
    scale: Scale,
    changes: Sequence[T],
    cases: Sequence[Case],
    *,
    outlook: Outlook[T],
    describe: Callable[[T], str],
    progress: Callable[[str, int, int], None],
) -> Trial[T]:
    """Try changes on cases, and sort them into those that may stand and those that may not; when too many replays fail, none may.

    ``outlook`` gives the guidelines that the judge would read with some of the changes, ``describe`` a change's text; ``Case.changes`` are
    places in ``changes``.
    """
    silent = [change for change in changes if _texts(outlook([change])) == _texts(outlook([]))]
    loud = [change for change in changes if not any(change is other for other in silent)]
    if trying.mode == "off" or not loud:
        return Trial(list(changes), [], Verification(mode=trying.mode, outcome="off" if trying.mode == "off" else "nothing"))

    chosen = sample(scale, cases, FAST if trying.mode == "fast" else None)
    bench: _Bench[T] = _Bench(trying, meter, scale, progress, lambda some: outlook([*silent, *some]))
    standing, refused, told = loud, list[T](), list[Refused]()
    first: _Comparison | None = None
    for last in [False] * (_ROUNDS - 1) + [True]:
        found = await bench.compare(chosen, standing, {place for place, change in enumerate(changes) if any(change is other for other in standing)})
        first, why = first or found, found.refusal()
        if why is None or trying.override or not found.enough:
            break
        bad = standing
        if found.of("broken") and len(standing) > 1 and not last:
            bad = await bench.search(standing, found)
        told += [found.refused(describe(change), why, tried_with=len(standing) - 1) for change in bad]
        refused += bad
        standing = [change for change in standing if not any(change is other for other in bad)]
        if not standing:
            found = replace(first, outcomes={place: replace(o, once="unchanged", effect="unchanged") for place, o in first.outcomes.items()})
            break
    if not found.enough and not trying.override:
        return Trial([], list(changes), found.told(trying.mode, "undone", why or "", bench.replays))
    if trying.override:
        return Trial(list(changes), [], found.told(trying.mode, "overridden" if why else "accepted", why or "", bench.replays))
    outcome: Outcome = "accepted" if not refused else "partly" if standing else "refused"
    note = "hardly anything to fix, so doing no harm was enough" if standing and not found.of("fixed") else ""
    return Trial([*silent, *standing], refused, found.told(trying.mode, outcome, note, bench.replays, told))


@dataclass(slots=True)
class _Bench(Generic[T]):
    """What the comparisons of a verification share."""

    trying: Trying
    meter: Meter
    scale: Scale
    progress: Callable[[str, int, int], None]
    outlook: Outlook[T]
    replays: int = 0
    done: int = 0
    total: int = 0

    async def compare(self, cases: Sequence[Case], changes: Sequence[T], places: Collection[int]) -> _Comparison:
        """Judge cases without and with the changes, which stand at these places of all; what seems to be an effect is repeated."""
        found = _Comparison(of_cases=len(cases), places=frozenset(places))
        async for place, outcome in self._outcomes(cases, changes):
            found.note(place, outcome)
        return found

    async def search(self, changes: Sequence[T], found: _Comparison) -> list[T]:
        """Those of the changes that break what they break together; only the broken cases are judged again."""
        broken = [outcome.case for outcome in found.of("broken")]
        search = culprits(changes)
        try:
            some = next(search)
            while True:
                some = search.send(await self._breaks(broken, some))
        except StopIteration as end:
            guilty: list[T] = end.value[1]
            return guilty

    async def _breaks(self, cases: Sequence[Case], changes: Sequence[T]) -> bool:
        """Whether any of them is broken by most of its verdicts: flips must not send the search after an innocent change."""
        outcomes = [outcome async for _, outcome in self._outcomes(cases, changes, most=True)]
        return any(isinstance(outcome, _Outcome) and outcome.effect == "broken" for outcome in outcomes)

    async def _outcomes(self, cases: Sequence[Case], changes: Sequence[T], *, most: bool = False) -> AsyncIterator[tuple[int, _Outcome | Failure]]:
        without, changed = self.outlook([]), self.outlook(changes)
        self.total += len(cases)
        async for place, outcome in in_flight(cases, lambda case: self._outcome(case, without, changed, most=most)):
            self.done += 1
            self.progress("verify", self.done, self.total)
            yield place, outcome

    async def _outcome(self, case: Case, without: Sequence[Guideline], changed: Sequence[Guideline], *, most: bool) -> _Outcome | Failure:
        """What changes do to a case, by all of its verdicts or by ``most``, of which there are more then."""
        before, after = list[Verdict](), list[Verdict]()
        once: Effect = "unchanged"
        seen: Effect = "unchanged"
        for draw in range(2 * self.trying.draws - 1 if most else self.trying.draws):
            pair = await asyncio.gather(*(self._verdict(case, guidelines, draw) for guidelines in (without, changed)))
            for verdict, side in zip(pair, (before, after), strict=True):
                if isinstance(verdict, Failure):
                    return verdict
                side.append(verdict)
            far = [[self.scale.distance(case.record.value, verdict.value) for verdict in side] for side in (before, after)]
            without_it, with_it = [[median(side)] for side in far] if most else far
            seen = effect(without_it, with_it, self.scale.step)
            once = seen if draw == 0 else once
            if seen == "unchanged" and not most:
                break
        label = self.scale.label_of
        replayed = Replayed(
            feedback_id=case.record.id,
            item=trimmed(" ".join(item_text(case.record.item).split()), _EXCERPT),
            expert=label(case.record.value),
            before=label(before[0].value),
            after=label(after[0].value),
        )
        return _Outcome(case, once, seen, self.scale.wrong(case.record.value, before[0].value), replayed)

    async def _verdict(self, case: Case, guidelines: Sequence[Guideline], draw: int) -> Verdict | Failure:
        self.replays += 1
        return await self.trying.replay(self.meter, case.record.item, guidelines, draw=draw)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What changes did to a case."""

    case: Case
    once: Effect
    """What the first verdict on each side alone would say."""
    effect: Effect
    """What all of them say."""
    error: bool
    """Whether the judge is wrong about it without the changes."""
    replayed: Replayed


@dataclass(slots=True)
class _Comparison:
    """What changes did to all cases, in the cases' order."""

    of_cases: int = 0
    places: frozenset[int] = frozenset()
    """Of the changes that were tried, among all."""
    outcomes: dict[int, _Outcome] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def note(self, place: int, outcome: _Outcome | Failure) -> None:
        """Take in a case."""
        if isinstance(outcome, Failure):
            self.failures.append(outcome)
        else:
            self.outcomes[place] = outcome

    def of(self, effect: Effect) -> list[_Outcome]:
        """The cases with a repeated effect; those that moved once are not among the unchanged."""
        return [
            outcome for _, outcome in sorted(self.outcomes.items()) if outcome.effect == effect and (effect != "unchanged" or outcome.once == effect)
        ]

    @property
    def errors(self) -> int:
        return sum(outcome.error for outcome in self.outcomes.values())

    @property
    def due(self) -> int:
        """The errors that the changes should fix: not those from which only other changes, refused by now, were learned."""
        errors = [outcome.case for outcome in self.outcomes.values() if outcome.error]
        return sum(not case.changes or bool(case.changes & self.places) for case in errors)

    @property
    def enough(self) -> bool:
        return enough(len(self.outcomes), self.of_cases)

    @property
    def p_value(self) -> float:
        """On the first verdicts: those that are repeated are chosen by them, which would bias it."""
        once = [outcome.once for outcome in self.outcomes.values()]
        return mcnemar_p(once.count("fixed"), once.count("broken"))

    def refusal(self) -> str | None:
        if not self.enough:
            return f"{len(self.failures)} of {self.of_cases} records could not be judged again; the first: {self.failures[0].error}"
        return refusal(errors=self.due, fixed=len(self.of("fixed")), broken=len(self.of("broken")))

    def refused(self, text: str, reason: str, *, tried_with: int) -> Refused:
        """A change of the set that was compared, with the set's figures."""
        return Refused(
            text=text,
            reason=reason,
            tried_with=tried_with,
            fixed=self._replayed("fixed"),
            broken=self._replayed("broken"),
            unchanged=len(self.of("unchanged")),
            p_value=self.p_value,
        )

    def told(self, mode: Mode, outcome: Outcome, note: str, replays: int, refused: Sequence[Refused] = ()) -> Verification:
        """For the report."""
        unsteady = [found.replayed for _, found in sorted(self.outcomes.items()) if found.effect != found.once]
        return Verification(
            mode=mode,
            outcome=outcome,
            fixed=self._replayed("fixed"),
            broken=self._replayed("broken"),
            unsteady=tuple(unsteady),
            unchanged=len(self.of("unchanged")),
            errors=self.errors,
            protected=len(self.outcomes) - self.errors,
            failures=len(self.failures),
            p_value=self.p_value,
            refused=tuple(refused),
            replays=replays,
            note=note,
        )

    def _replayed(self, effect: Effect) -> tuple[Replayed, ...]:
        return tuple(outcome.replayed for outcome in self.of(effect))


def _texts(guidelines: Sequence[Guideline]) -> list[str]:
    return [guideline.text for guideline in guidelines]
