"""The gate: whether a change of memory may stand, decided from verdicts before and after it. Pure functions, no model and no store.

LLM verdicts flip by themselves, so one verdict that got worse means nothing. An effect counts when it is repeated: every one of ``DRAWS`` verdicts
under the change is worse (or better) than every one of as many verdicts without it. Repeating both sides matters: among the cases that look right
today are some that were right by luck, and the change would be blamed for their next honest verdict.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from memalign.records import Feedback
from memalign.scale import Scale

Effect = Literal["fixed", "broken", "unchanged"]
T = TypeVar("T")

DRAWS = 3
"""Verdicts on each side of which all must agree that something changed."""
LEAST_ERRORS = 5
"""Errors of which a change must fix one: that a change fixes none of fewer says next to nothing about it."""
LEAST_COMPARED = 0.75
"""Share of the cases that must have a verdict on both sides; with fewer, nothing can be said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A record that may be replayed."""

    record: Feedback
    changes: frozenset[int] = frozenset()
    """Places of the changes that rest on it."""
    missed: bool | None = None
    """Whether the judge is known to have been wrong about it."""


def effect(before: Sequence[float], after: Sequence[float], least: float) -> Effect:
    """What a change did to a case, from the distances of its verdicts without and with it: only what all of them agree on is an effect.

    ``least``: the difference that counts, ``Scale.step``.
    """
    slack = least - 1e-9
    if min(before) - max(after) >= slack:
        return "fixed"
    if min(after) - max(before) >= slack:
        return "broken"
    return "unchanged"


def enough(compared: int, of: int) -> bool:
    """Whether so many cases have a verdict on both sides that something can be said."""
    return compared >= LEAST_COMPARED * of


def refusal(*, errors: int, fixed: int, broken: int) -> str | None:
    """Why changes may not stand, or None when they may: a repeated break, or errors to fix of which they fix none.

    ``errors``: cases wrong without them; ``fixed``, ``broken``: repeated effects. With little or nothing to fix, doing no harm is enough.
    """
    if broken:
        return f"breaks {broken} record(s) that the judge gets right without it"
    if errors >= LEAST_ERRORS and not fixed:
        return f"fixes none of {errors} error(s)"
    return None


def culprits(changes: Sequence[T]) -> Generator[list[T], bool, tuple[list[T], list[T]]]:
    """Find the changes that break something, with few tests: yields a set to try, is sent whether it breaks, returns (accepted, rejected).

    The caller knows already that all of them together break. By halving, the shortest run of changes that breaks is found, its last one is
    rejected, and the search goes on with the rest on top of those before it: about log2(n) tests a culprit. A change that breaks only together
    with an earlier one is the culprit.
    """
    accepted, rejected, rest = list[T](), list[T](), list(changes)
    breaks = True
    while breaks:
        low, high = 0, len(rest)  # accepted + rest[:low] is fine, accepted + rest[:high] breaks
        while high - low > 1:
            middle = (low + high) // 2
            if (yield [*accepted, *rest[:middle]]):
                high = middle
            else:
                low = middle
        accepted += rest[:low]
        rejected.append(rest[low])
        rest = rest[high:]
        breaks = bool(rest) and (yield [*accepted, *rest])
    return accepted + rest, rejected


def sample(scale: Scale, cases: Sequence[Case], size: int | None) -> list[Case]:
    """At most ``size`` cases (None: all): half of them such that changes rest on them, each change in its turn, then the others.

    Cases that the judge is known to have missed come first among a change's own, since they are what it should fix; the others are to stay right,
    so there those come last; labels take turns, newer before older. One case an item, none that experts disagree about: where their verdicts are
    merely near, the one that most gave, of equally many the newest. Deterministic.
    """
    items: dict[str, list[Case]] = {}
    for case in cases:
        items.setdefault(case.record.item.id, []).append(case)
    agreed = [spoken for found in items.values() if (spoken := _spoken(scale, found)) is not None][::-1]
    own = sorted((case for case in agreed if case.changes), key=lambda case: case.missed is not True)
    others = sorted((case for case in agreed if not case.changes), key=lambda case: case.missed is True)
    if size is None:
        return own + others
    targets = _in_turn([[case for case in own if change in case.changes] for change in sorted(frozenset[int]().union(*(c.changes for c in own)))])
    labels = sorted({str(case.record.value) for case in others})
    rest = _in_turn([[case for case in others if str(case.record.value) == label] for label in labels])
    kept = max(size - size // 2, size - len(rest))
    return targets[:kept] + rest[: size - min(kept, len(targets))]


def _spoken(scale: Scale, found: Sequence[Case]) -> Case | None:
    """The case that stands for an item; None when experts disagree about it."""
    values = [case.record.value for case in found]
    if len(found) > 1 and not scale.near(values):
        return None
    return found[max(range(len(found)), key=lambda place: (values.count(values[place]), place))]


def _in_turn(queues: Sequence[Sequence[Case]]) -> list[Case]:
    """The first of each queue, then the second of each ...; every case once."""
    longest = max(map(len, queues), default=0)
    turns = [queue[place] for place in range(longest) for queue in queues if place < len(queue)]
    return list({id(case): case for case in turns}.values())
