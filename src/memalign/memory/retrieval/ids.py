"""Item ids and their slots: 28 bytes an item, whatever the number."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from memalign.memory.retrieval.columns import Column

ID = np.dtype("V16")
"""An item's id is a digest of 128 bits, written as 32 hexadecimal digits."""

_FEW = 1024
"""So many new keys wait in a dictionary before they are sorted in among the others."""


def packed(item_ids: Sequence[str]) -> npt.NDArray[np.void]:
    """Item ids as 16 bytes each. Raises ValueError for what is no digest of 128 bits."""
    data = bytes.fromhex("".join(item_ids))
    if len(data) != ID.itemsize * len(item_ids):
        raise ValueError("an item id is 32 hexadecimal digits")
    return np.frombuffer(data, dtype=ID)


class Ids:
    """The n-th different id gets slot n. A slot whose id was removed is dead and never used again.

    Ids are found by their first 64 bits: digests that agree in these do not occur (1e-7 in a million), and would be refused.
    """

    def __init__(self, held: npt.NDArray[np.void] | None = None, live: npt.NDArray[np.bool_] | None = None) -> None:
        self._ids = Column(ID) if held is None else Column.of(held)
        self._live = Column(np.bool_) if live is None else Column.of(live)
        places = np.flatnonzero(self._live.values)
        known = keys(self._ids.values[places])
        order = np.argsort(known)
        self._keys, self._slots = known[order], places[order].astype(np.int32)
        self._recent: dict[int, int] = {}

    def __len__(self) -> int:
        """How many slots there are, dead ones among them."""
        return len(self._ids)

    @property
    def held(self) -> npt.NDArray[np.void]:
        """The id of each slot; zeros where it is dead."""
        return self._ids.values

    @property
    def live(self) -> npt.NDArray[np.bool_]:
        """Which slots hold an item."""
        return self._live.values

    def slot(self, item_id: str) -> int | None:
        """The slot of an item; None for one it does not hold, and for a text that is no id."""
        try:
            data = bytes.fromhex(item_id)
        except ValueError:
            return None
        if len(data) != ID.itemsize:
            return None
        key = int.from_bytes(data[:8], sys.byteorder)
        place = int(self._keys.searchsorted(np.uint64(key)))
        if place < len(self._keys) and int(self._keys[place]) == key and self._live.values[at := int(self._slots[place])]:
            return at
        return self._recent.get(key)

    def id(self, slot: int) -> str:
        """The item of a slot."""
        return bytes(self._ids.values[slot]).hex()

    def slots(self, ids: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
        """The slot of each id, -1 where there is none."""
        wanted = keys(ids)
        found = np.full(len(ids), -1, dtype=np.int64)
        if len(self._keys):
            places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
            at = self._slots[places]
            found = np.where((self._keys[places] == wanted) & self._live.values[at], at, found)
        if self._recent:
            for place in np.flatnonzero(found < 0):
                found[place] = self._recent.get(int(wanted[place]), -1)
        return found

    def add(self, ids: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
        """Give new and different ids their slots."""
        slots = np.arange(len(self), len(self) + len(ids))
        self._ids.extend(ids)
        self._live.extend(np.ones(len(ids), dtype=np.bool_))
        new = keys(ids)
        if len(ids) + len(self._recent) <= _FEW:
            self._recent.update(zip(new.tolist(), slots.tolist(), strict=True))
            return slots
        fresh = np.concatenate([np.fromiter(self._recent, np.uint64, len(self._recent)), new])
        at = np.concatenate([np.fromiter(self._recent.values(), np.int32, len(self._recent)), slots.astype(np.int32)])
        self._recent = {}
        keep = self._live.values[self._slots]  # a removed item that comes back has a new slot
        known, known_at = self._keys[keep], self._slots[keep]
        order = np.argsort(fresh)
        places = np.searchsorted(known, fresh[order])
        self._keys, self._slots = np.insert(known, places, fresh[order]), np.insert(known_at, places, at[order])
        return slots

    def remove(self, slots: npt.NDArray[np.int64]) -> None:
        """Forget the items of slots; their ids are overwritten."""
        for key in keys(self._ids.values[slots]).tolist():
            self._recent.pop(key, None)
        self._live.values[slots] = False
        self._ids.values[slots] = np.zeros(1, dtype=ID)


def keys(ids: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    """The first 64 bits of each id."""
    found: npt.NDArray[Any] = np.ascontiguousarray(ids).view(np.uint64)[::2]
    return found.copy()
