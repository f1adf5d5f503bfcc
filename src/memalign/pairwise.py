"""Comparing two outputs: the other order of an item, and what the order did to the verdicts. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from memalign.records import Episode, Feedback, Item

_OTHER = {"a": "b", "b": "a"}


def swapped(value: Any) -> Any:
    """The verdict after a swap of a and b; a tie stays one."""
    return _OTHER.get(value, value) if isinstance(value, str) else value


def mirrored(item: Item) -> Item | None:
    """The item with outputs a and b swapped; None when its outputs are not an object of exactly these two, so that no order can be told."""
    outputs = item.outputs
    if not isinstance(outputs, Mapping) or set(outputs) != {"a", "b"}:
        return None
    return replace(item, outputs={"a": outputs["b"], "b": outputs["a"]})


def mirrored_case(case: Episode) -> Episode:
    """An expert's verdict on the same pair in the other order, without the reason, which may name A or B. Unchanged when no order can be told."""
    other = mirrored(case.feedback.item)
    if other is None:
        return case
    feedback: Feedback = replace(case.feedback, outputs=other.outputs, value=swapped(case.feedback.value), rationale="")
    return replace(case, feedback=feedback, item_id=other.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionBias:
    """What the order of two outputs does to a judge that was shown both orders."""

    pairs: int
    consistent: int
    """Pairs with the same verdict in both orders."""
    first: int
    """Verdicts, of two a pair, in favour of the output that was shown first."""
    second: int

    @property
    def consistency(self) -> float:
        """Share of pairs with the same verdict in both orders."""
        return self.consistent / self.pairs

    @property
    def bias(self) -> float:
        """From -1, always the output shown second, to 1, always the first; 0 without a leaning."""
        return (self.first - self.second) / (2 * self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self) | {"consistency": self.consistency, "bias": self.bias}

    def line(self) -> str:
        """For a reader."""
        return (
            f"both orders agree on {self.consistent} of {self.pairs} pairs; the output shown first won {self.first} times, "
            f"the second {self.second} (position bias {self.bias:+.2f})"
        )


def position_bias(orders: Iterable[tuple[Any, Any] | None]) -> PositionBias | None:
    """From the verdicts in the order given and in the other one, both of the item as given; None when no pair was shown both ways."""
    both = [pair for pair in orders if pair is not None]
    if not both:
        return None
    first = sum((given == "a") + (other == "b") for given, other in both)
    second = sum((given == "b") + (other == "a") for given, other in both)
    return PositionBias(pairs=len(both), consistent=sum(given == other for given, other in both), first=first, second=second)
