"""How similar cases are chosen for a judgement: plain settings of a judge."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Self

from memalign.errors import ConfigurationError
from memalign.records import Feedback


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """Which of the similar cases a judgement is shown; how many and from which similarity on say the judge's ``k`` and ``floor``."""

    words: bool = False
    """Find cases by their words too (BM25 over inputs and outputs), not by vectors alone; both rankings are fused."""
    verdict_margin: float = 0.1
    """A verdict that would be absent gets its best case, if that is at most so much less similar than the most similar one; 0: never."""
    error_margin: float = 0.05
    """A case that the judge got wrong comes before others that are at most so much more similar; 0: only before its equals."""
    alike: float = 0.98
    """Of cases with the same verdict that are so similar to each other, only the best is shown; above 1: all."""
    annotators: tuple[str, ...] = ()
    """Only records of these experts; none given: of all."""
    sources: tuple[str, ...] = ()
    """Only records from these sources, e.g. files or tickets; none given: from all."""
    since: datetime | None = None
    """Only verdicts that experts gave at this time or later."""
    until: datetime | None = None
    """Only verdicts that experts gave before this time."""

    def __post_init__(self) -> None:
        for name in ("annotators", "sources"):
            given = getattr(self, name)
            wanted = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (None,)
            if not all(isinstance(one, str) for one in wanted):
                raise ConfigurationError(f"retrieval: {name} is a list of texts, not {given!r}")
            object.__setattr__(self, name, wanted)
        for name in ("since", "until"):
            time = getattr(self, name)
            if time is not None and not isinstance(time, datetime):
                raise ConfigurationError(f"retrieval: {name} is a datetime, not {time!r}")
            if time is not None and time.tzinfo is None:
                object.__setattr__(self, name, time.replace(tzinfo=UTC))
        for name in ("verdict_margin", "error_margin"):
            if not _within(getattr(self, name), 0, 2):
                raise ConfigurationError(f"retrieval: {name} is a difference of cosine similarity, from 0 to 2, not {getattr(self, name)!r}")
        if not _within(self.alike, -1, sys.float_info.max):
            raise ConfigurationError(f"retrieval: alike is a cosine similarity, or above 1, not {self.alike!r}")
        if not isinstance(self.words, bool):
            raise ConfigurationError(f"retrieval: words is True or False, not {self.words!r}")

    @property
    def filters(self) -> bool:
        """Whether some records are left out by annotator, source or time."""
        return bool(self.annotators or self.sources or self.since or self.until)

    def admits(self, feedback: Feedback) -> bool:
        """Whether a record passes the filters."""
        return (
            (not self.annotators or feedback.annotator in self.annotators)
            and (not self.sources or feedback.source in self.sources)
            and (self.since is None or feedback.created_at >= self.since)
            and (self.until is None or feedback.created_at < self.until)
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary of what differs from the defaults."""
        return {name: _plain(value) for name, value in asdict(self).items() if value != getattr(_DEFAULT, name)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_dict`` gave. Raises ConfigurationError for what is no setting."""
        try:
            times = {name: datetime.fromisoformat(values[name]) for name in ("since", "until") if values.get(name)}
            return cls(**(dict(values) | times))
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigurationError(f"retrieval: {error}") from error


def _within(value: Any, least: float, most: float) -> bool:
    """Whether a value is a number in a range; NaN is in none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value


_DEFAULT = Retrieval()
