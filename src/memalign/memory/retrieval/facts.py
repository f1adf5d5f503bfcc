"""What the search knows of each record beside its vector: verdict, annotator, source, time. 36 bytes a record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from memalign.memory.retrieval.columns import Column

if TYPE_CHECKING:
    from memalign.memory.retrieval.exact import Slots

_COLUMNS = {
    "row": np.int64,
    "slot": np.int32,
    "label": np.int32,
    "annotator": np.int32,
    "source": np.int32,
    "missed": np.bool_,
    "time": np.float64,
    "earlier": np.int32,
}


class Fact(NamedTuple):
    """One record."""

    row: int
    """Its row in the database."""
    value: str
    """The expert's verdict, as canonical JSON."""
    annotator: str
    source: str
    missed: bool
    """Whether the judge's own verdict was another one."""
    time: float
    """When the expert gave it, in seconds since 1970."""


class Facts:
    """Columns of numbers, and the few different texts they stand for. The records of a slot are chained, the newest first."""

    def __init__(self, stored: dict[str, npt.NDArray[Any]] | None = None, texts: Sequence[str] = ()) -> None:
        self._columns = {name: Column(dtype) if stored is None else Column.of(stored[name]) for name, dtype in _COLUMNS.items()}
        self._newest = Column(np.int32) if stored is None else Column.of(stored["newest"])  # of each slot; -1: none
        self._texts = list(texts)
        self._codes = {text: code for code, text in enumerate(self._texts)}
        self._verdicts = set(np.unique(self["label"]).tolist())

    def __len__(self) -> int:
        return len(self._columns["row"])

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """A column, one entry a record; the slot of a removed record is -1."""
        return self._columns[name].values

    @property
    def verdicts(self) -> frozenset[int]:
        """The codes of all verdicts that were ever given."""
        return frozenset(self._verdicts)

    def holding(self, verdicts: frozenset[int], slots: int) -> npt.NDArray[np.bool_]:
        """Which slots have a record with one of some verdicts, one entry a slot."""
        found = np.zeros(slots, dtype=np.bool_)
        found[self["slot"][np.isin(self["label"], list(verdicts)) & (self["slot"] >= 0)]] = True
        return found

    @property
    def texts(self) -> list[str]:
        """Verdicts, annotators and sources, by their codes."""
        return self._texts

    def code(self, text: str) -> int:
        """The code of a text, -1 when no record has it."""
        return self._codes.get(text, -1)

    def add(self, facts: Sequence[Fact], slots: Slots) -> None:
        """Take in records on slots."""
        if not facts:
            return
        first = len(self)
        self._newest.extend(np.full(max(0, int(slots.max(initial=-1)) + 1 - len(self._newest)), -1))
        newest, earlier = self._newest.values, []
        for place, slot in enumerate(slots.tolist(), start=first):
            earlier.append(int(newest[slot]))
            newest[slot] = place
        rows, values, annotators, sources, missed, times = zip(*facts, strict=True)  # no Python call a record: a million are read at opening
        columns: dict[str, Any] = {
            "row": rows,
            "slot": slots,
            "label": self._coded(values),
            "annotator": self._coded(annotators),
            "source": self._coded(sources),
            "missed": missed,
            "time": times,
            "earlier": earlier,
        }
        self._verdicts.update(columns["label"])
        for name, values in columns.items():
            self._columns[name].extend(values)

    def remove(self, rows: Sequence[int]) -> Slots:
        """Forget records by their rows; gives the slots that no record holds any more."""
        gone = np.flatnonzero(np.isin(self["row"], np.asarray(rows, dtype=np.int64)) & (self["slot"] >= 0))
        slots = np.unique(self["slot"][gone])
        self["slot"][gone] = -1
        return np.array([slot for slot in slots.tolist() if next(self.of(slot), None) is None], dtype=np.int64)

    def of(self, slot: int) -> Iterator[int]:
        """The places of a slot's records, the newest first."""
        place = int(self._newest.values[slot]) if slot < len(self._newest) else -1
        while place >= 0:
            if self["slot"][place] == slot:
                yield place
            place = int(self["earlier"][place])

    def told(self, slots: Slots) -> list[tuple[frozenset[int], bool]]:
        """The codes of the verdicts on each slot, and whether the judge had missed one of them."""
        newest = self._newest.values[slots]
        earlier, label, missed = self["earlier"][newest].tolist(), self["label"][newest].tolist(), self["missed"][newest].tolist()
        here = (self["slot"][newest] == slots).tolist()
        found = []
        for place, slot in enumerate(slots.tolist()):
            if here[place] and earlier[place] < 0:  # one record, as most have
                found.append((frozenset((label[place],)), missed[place]))
            else:
                places = [*self.of(slot)]
                found.append((frozenset(self["label"][places].tolist()), bool(self["missed"][places].any())))
        return found

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All columns as they can be stored; the texts are stored beside them."""
        return {name: column.values for name, column in self._columns.items()} | {"newest": self._newest.values}

    def _coded(self, texts: Sequence[str]) -> list[int]:
        for text in dict.fromkeys(texts):
            if text not in self._codes:
                self._codes[text] = len(self._texts)
                self._texts.append(text)
        return [self._codes[text] for text in texts]
