"""What to label next: the unlabelled items whose verdict by an expert would teach most, since experts' time is the scarce thing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from memalign.errors import ConfigurationError
from memalign.judging import VOTES
from memalign.memory import Memory, View, episodic
from memalign.records import Failure, Item, Verdict, content_hash
from memalign.rendering import search_text
from memalign.scale import Scale
from memalign.session import Meter, Session
from memalign.space import Space
from memalign.verdicts import stacked

if TYPE_CHECKING:
    from memalign.embedders import Vectors
    from memalign.labelling import Floats, Near
    from memalign.memory.vote import Ballot

_EMBEDDED_AT_ONCE = 64

Progress = Callable[[str, int, int], None]


class Judged(Protocol):
    """Judges items; one Verdict or Failure each, in their order."""

    def __call__(self, items: Sequence[Item], /, *, votes: int) -> Awaitable[list[Verdict | Failure]]:
        """``votes``: how many replies are counted for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """An item worth an expert's time, and why."""

    item: Item
    place: int
    """Where it stood among the items given, from 0."""
    score: float
    """Share of what all the items together could teach that this one adds to those before it."""
    parts: Mapping[str, float]
    """From 0 to 1 each: ``uncertainty`` of the judge (by its confidence, else by the cases' vote), ``contested``: whether experts differ on
    similar cases, ``distance`` from all that memory holds, and ``like_it``: the share of the items that resemble it."""
    reasons: tuple[str, ...]
    confidence: float | None = None
    """Of the last verdict on it, where there is one."""
    similar_ids: tuple[str, ...] = ()
    """Ids of the feedback on the nearest cases, the nearest first."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


async def suggest(
    session: Session,
    scale: Scale,
    items: Sequence[Item],
    n: int,
    *,
    calls: int,
    both_orders: bool,
    judged: Judged,
    progress: Progress,
) -> list[Suggestion]:
    """The n items to label next, the best first; at most ``calls`` replies are asked for, on the most doubtful of those without a confidence."""
    if n < 1 or calls < 0:
        raise ConfigurationError("suggest needs n >= 1 and calls >= 0")
    pool = _distinct(items)
    meter = Meter()
    space = await session.reader(meter)
    view = await asyncio.to_thread(space.memory.view)
    held = await asyncio.to_thread(_held, space.memory)
    labelled = held.keys() | await asyncio.to_thread(_waiting, space.memory)
    pool = {item_id: place for item_id, place in pool.items() if item_id not in labelled}
    if not pool:
        return []
    texts = [search_text(items[place]) for place in pool.values()]
    vectors = await _vectors(space, meter, texts, progress)
    session.memory.log(meter.calls)
    confidences = await asyncio.to_thread(session.memory.logged, list(pool))
    ranking = _Ranking(space.memory, scale, view, held, list(pool), texts, vectors)
    orders = 2 if both_orders and scale.kind == "pairwise" else 1
    if calls >= orders:
        unknown = [item_id for item_id in await asyncio.to_thread(ranking.doubtful, confidences) if item_id not in confidences][:calls]
        votes = view.decision.of(session.model.name).votes
        verdicts = await _judged(judged, [items[pool[item_id]] for item_id in unknown], calls, orders, votes if votes > 1 else VOTES)
        for item_id, verdict in zip(unknown, verdicts, strict=False):
            if isinstance(verdict, Verdict) and verdict.confidence is not None:
                confidences[item_id] = verdict.confidence
    return await asyncio.to_thread(ranking.best, items, list(pool.values()), confidences, n)


async def _judged(judged: Judged, items: Sequence[Item], calls: int, orders: int, votes: int) -> list[Verdict | Failure]:
    """Verdicts on as many of the first items as ``calls`` replies allow; where the first one tells no confidence, ``votes`` are counted on each."""
    first = await judged(items[:1], votes=1)
    if any(isinstance(verdict, Verdict) and verdict.confidence is None for verdict in first):
        votes += votes % orders
        return await judged(items[: (calls - orders) // votes], votes=votes)
    return first + await judged(items[1 : calls // orders], votes=1)


class _Ranking:
    """The pool beside memory."""

    def __init__(
        self,
        memory: Memory,
        scale: Scale,
        view: View,
        held: Mapping[str, list[tuple[str, Any]]],
        ids: list[str],
        texts: list[str],
        vectors: Vectors,
    ) -> None:
        import numpy as np

        from memalign.labelling import near

        self._scale = scale
        self._ids = ids
        self._vectors = vectors
        known = memory.item_vectors(list(held))
        self._held = [held[item_id] for item_id in known]
        cases = np.stack(list(known.values())) if known else None
        self._near: Near = near(scale, vectors, cases, [[value for _, value in given] for given in self._held])
        self._doubt = self._by_vote(memory.ballot(view), view, texts)

    def doubtful(self, confidences: Mapping[str, float]) -> list[str]:
        """All items, the most worth asking about first."""
        value = self._value(confidences)
        return [self._ids[place] for place in (-value).argsort(kind="stable")]

    def best(self, items: Sequence[Item], places: Sequence[int], confidences: Mapping[str, float], n: int) -> list[Suggestion]:
        """The n suggestions."""
        from memalign.labelling import chosen

        uncertainty = self._uncertainty(confidences)
        found = chosen(self._vectors, self._value(confidences), self._near.distance, n)
        return [
            self._suggestion(items[places[row]], row, places[row], score, float(uncertainty[row]), confidences.get(self._ids[row]))
            for row, score in found
        ]

    def _suggestion(self, item: Item, row: int, place: int, score: float, uncertainty: float, confidence: float | None) -> Suggestion:
        from memalign.labelling import ALIKE

        like_it = float((self._vectors @ self._vectors[row] >= ALIKE).sum() - 1) / max(1, len(self._ids) - 1)
        distance, contested = float(self._near.distance[row]), float(self._near.contested[row])
        cases = [self._held[case] for case in self._near.places[row]]
        reasons = []
        if confidence is not None:
            reasons.append(f"the judge's confidence is {confidence:.2f}")
        elif uncertainty > _MUCH:
            reasons.append("similar cases do not tell which way it goes")
        if contested > _MUCH:
            said = ", ".join(f"{key}: {self._scale.label_of(value)}" for given in cases[:3] for key, value in given[:1])
            reasons.append(f"experts judged similar cases differently ({said})")
        if not cases:
            reasons.append("memory is empty")
        elif distance > _MUCH:
            reasons.append(f"little in memory resembles it (similarity {1 - distance:.2f})")
        alike = round(like_it * (len(self._ids) - 1))
        if alike:
            reasons.append(f"{alike} other item{'s' if alike > 1 else ''} resemble{'' if alike > 1 else 's'} it")
        return Suggestion(
            item=item,
            place=place,
            score=score,
            parts={"uncertainty": uncertainty, "contested": contested, "distance": distance, "like_it": like_it},
            reasons=tuple(reasons) or ("it is unlike the others suggested",),
            confidence=confidence,
            similar_ids=tuple(key for given in cases for key, _ in given),
        )

    def _value(self, confidences: Mapping[str, float]) -> Floats:
        from memalign.labelling import value_of_asking

        return value_of_asking(self._uncertainty(confidences), self._near.contested, self._near.distance)

    def _uncertainty(self, confidences: Mapping[str, float]) -> Floats:
        import numpy as np

        from memalign.labelling import doubt

        known = [None if (confidence := confidences.get(item_id)) is None else doubt(self._scale, confidence) for item_id in self._ids]
        return np.array([vote if told is None else told for told, vote in zip(known, self._doubt, strict=True)])

    def _by_vote(self, ballot: Ballot | None, view: View, texts: Sequence[str]) -> list[float]:
        """How unsure the cases' vote is, if it is to count; else 0, which speaks neither for nor against an item."""
        from memalign.labelling import doubt

        if ballot is None or not view.decision.vote_weight:
            return [0.0] * len(self._ids)
        even = dict.fromkeys(self._scale.labels, 1.0 / len(self._scale.labels))
        asked = zip(self._ids, self._vectors, texts, strict=True)
        votes = [ballot.count(item_id, vector, text, own=False)[0] for item_id, vector, text in asked]
        return [doubt(self._scale, max(stacked(self._scale, even, vote, view.decision).values())) for vote in votes]


_MUCH = 0.5
"""From here on a part of the score is told as a reason."""


def _distinct(items: Sequence[Item]) -> dict[str, int]:
    """Item id -> place of its first occurrence."""
    found: dict[str, int] = {}
    for place, item in enumerate(items):
        found.setdefault(item.id, place)
    return found


def _held(memory: Memory) -> dict[str, list[tuple[str, Any]]]:
    """Item id -> ids and values of the experts' records on it."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for stored in memory.stored():
        found.setdefault(stored.item_id, []).append((stored.feedback.id, stored.feedback.value))
    return found


def _waiting(memory: Memory) -> set[str]:
    """Ids of the items whose records are stored but still wait for an alignment."""
    with memory.store.reading() as connection:
        return {stored.item_id for stored in episodic.waiting(connection, memory.judge_id)}


async def _vectors(space: Space, meter: Meter, texts: Sequence[str], progress: Progress) -> Vectors:
    import numpy as np

    keys = [content_hash(text) for text in texts]
    found: dict[str, Vectors] = {}
    for start in range(0, len(keys), _EMBEDDED_AT_ONCE):
        part = slice(start, start + _EMBEDDED_AT_ONCE)
        found |= await space.vectors(meter, dict(zip(keys[part], texts[part], strict=True)))
        progress("embed", min(start + _EMBEDDED_AT_ONCE, len(keys)), len(keys))
    return np.stack([found[key] for key in keys])
