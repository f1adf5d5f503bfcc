"""Finding the cases that resemble an item: what is searched, and in which order the decisions are taken. One decision a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memalign.errors import EmbeddingError
from memalign.memory.retrieval.candidates import Candidate
from memalign.memory.retrieval.collapse import collapsed
from memalign.memory.retrieval.diversity import errors_first, every_verdict
from memalign.memory.retrieval.exact import Exact, ranked
from memalign.memory.retrieval.facts import Fact, Facts
from memalign.memory.retrieval.filters import admitted
from memalign.memory.retrieval.fusion import fused
from memalign.memory.retrieval.ids import Ids, packed
from memalign.memory.retrieval.lexical import Lexical
from memalign.memory.retrieval.products import along
from memalign.memory.retrieval.served import Ask, Served
from memalign.retrieval import Retrieval

if TYPE_CHECKING:
    from memalign.embedders import Vectors
    from memalign.memory.retrieval.exact import Slots
    from memalign.memory.retrieval.graph import Graph

__all__ = ["Fact", "ItemIndex"]

POOL = 32
"""Candidates of each ranking; or four times as many as are wanted."""


class ItemIndex:
    """What memory holds, ready to be searched: each item once, however many experts spoke of it. Not safe for concurrent use."""

    def __init__(self, *, words: bool = False) -> None:
        """``words``: search by words as well."""
        self.ids = Ids()
        self.facts = Facts()
        self.exact: Exact | None = None
        self.graph: Graph | None = None
        self.served: Served | None = None
        self.lexical = Lexical() if words else None
        self._dead = 0
        self._admitted: tuple[Retrieval, npt.NDArray[np.bool_]] | None = None

    def __len__(self) -> int:
        return len(self.ids) - self._dead

    def __contains__(self, item_id: object) -> bool:
        return isinstance(item_id, str) and self.ids.slot(item_id) is not None

    @property
    def dead(self) -> int:
        """Slots whose item was removed."""
        return self._dead

    def newest(self, count: int, retrieval: Retrieval | None = None) -> list[str]:
        """The items that entered last, oldest first, of those that pass the filters."""
        usable = self._usable(retrieval or Retrieval(), None)
        return [self.ids.id(slot) for slot in np.flatnonzero(usable)[-count:].tolist()] if count > 0 else []

    def vector(self, item_id: str) -> Vectors:
        """The vector of an item that the index holds; shape (dimension,)."""
        slot = self.ids.slot(item_id)
        assert slot is not None
        found: Vectors = self.vectors(np.array([slot]))[0]
        return found

    # Growing and shrinking

    def enter(self, item_ids: Sequence[str], facts: Sequence[Fact]) -> tuple[Slots, npt.NDArray[np.int64]]:
        """Take in records on items, one fact a record: gives the slots that are new, and the place of each one's first record.

        A new slot is not found before its vector is put.
        """
        ids = packed(item_ids)
        slots = self.ids.slots(ids)
        unknown = np.flatnonzero(slots < 0)
        _, first = np.unique(ids[unknown].view(np.uint64).reshape(-1, 2)[:, 0], return_index=True)
        places = unknown[np.sort(first)]
        fresh = self.ids.add(ids[places])
        slots[unknown] = self.ids.slots(ids[unknown])
        self.facts.add(facts, slots)
        if self.exact is not None:
            self.exact.grow(len(fresh))
        self._admitted = None
        return fresh, places

    def put(self, slots: Slots, rows: Vectors) -> None:
        """The vectors of new slots, shape (n, dimension). Raises EmbeddingError."""
        if self.exact is None:
            self.exact = Exact(rows.shape[1])
            self.exact.grow(len(self.ids))
        self.exact.put(slots, rows)

    def remove_records(self, rows: Sequence[int]) -> None:
        """Forget records by their rows in the database, and items that no record holds any more."""
        self.remove(self.facts.remove(rows))

    def remove(self, slots: Slots) -> None:
        """Forget the items of slots: ids and vectors in RAM are overwritten."""
        self._admitted = None
        self.ids.remove(slots)
        self._dead += len(slots)
        if self.exact is not None:
            self.exact.clear(slots[slots >= self.exact.first])
        if self.lexical is not None:
            self.lexical.remove(slots)

    def adopt(self, graph: Graph) -> None:
        """Let a graph serve the slots that it holds; what lies in RAM beyond them goes on."""
        assert self.exact is not None
        self.exact, self.graph = self.exact.rest(graph.size), graph

    def serve(self, ask: Ask) -> None:
        """Let the database's own index propose; it follows all changes."""
        assert self.exact is not None
        assert self.graph is None
        self.served = Served(self.ids, self.exact, ask)

    # Searching

    def vectors(self, slots: Slots) -> Vectors:
        """The vectors of slots, shape (len(slots), dimension)."""
        assert self.exact is not None
        if self.graph is None:
            return self.exact.vectors(slots)
        found = np.empty((len(slots), self.exact.dimension), dtype=np.float32)
        old = slots < self.graph.size
        found[old], found[~old] = self.graph.vectors(slots[old]), self.exact.vectors(slots[~old])
        return found

    def nearest(
        self, query: Vectors, k: int, *, floor: float = -1.0, exclude: str | None = None, retrieval: Retrieval | None = None, text: str = ""
    ) -> list[tuple[str, float]]:
        """The items to show for a query, best first, with their cosine similarity: at most k, none below the floor nor the one excluded.

        ``text``: what is searched by its words, if the settings say so. Raises EmbeddingError for a query of another dimension, or one with NaN.
        """
        settings = retrieval or Retrieval()
        if k <= 0 or self.exact is None or not len(self):
            return []
        if query.shape != (self.exact.dimension,):
            raise EmbeddingError(f"memory holds vectors of {self.exact.dimension} dimensions, the query has {query.shape[-1]}")
        if not bool(np.isfinite(query).all()):
            raise EmbeddingError("the embedder gave a vector with NaN or infinity for the item that is judged")
        usable, pool = self._usable(settings, exclude), max(POOL, 4 * k)
        found = self._candidates(query, pool, usable, text if settings.words else "")
        if settings.verdict_margin > 0 and len(found) >= pool:
            found += self._absent(query, found, usable, settings.verdict_margin)
        close = [candidate for candidate in found if candidate.similarity >= floor]
        if settings.alike <= 1 and len(close) > 1:
            close = collapsed(close, self.vectors(np.array([candidate.slot for candidate in close])), settings.alike)
        ranking = errors_first(close, settings.error_margin)
        chosen = every_verdict(ranking, k, settings.verdict_margin) if settings.verdict_margin > 0 else ranking[:k]
        return [(self.ids.id(candidate.slot), candidate.similarity) for candidate in chosen]

    def _candidates(self, query: Vectors, wanted: int, usable: npt.NDArray[np.bool_], text: str) -> list[Candidate]:
        slots, scores = self._dense(query, wanted, usable)
        similarity = dict(zip(slots.tolist(), scores.tolist(), strict=True))
        order = slots.tolist()
        if text and self.lexical is not None:
            by_words = self.lexical.nearest(text, wanted, usable)[0]
            more = np.array([slot for slot in by_words.tolist() if slot not in similarity], dtype=np.int64)
            similarity.update(zip(more.tolist(), np.clip(along(self.vectors(more), query), -1, 1).tolist(), strict=True))
            order = fused([order, by_words.tolist()])
        told = self.facts.told(np.array(order, dtype=np.int64))
        return [Candidate(slot, similarity[slot], *about) for slot, about in zip(order, told, strict=True)]

    def _absent(self, query: Vectors, found: list[Candidate], usable: npt.NDArray[np.bool_], margin: float) -> list[Candidate]:
        """Candidates of verdicts that more similar cases crowd out of the pool, if they are close enough to be shown."""
        similarity = [candidate.similarity for candidate in found]
        absent = self.facts.verdicts.difference(*(candidate.labels for candidate in found))
        if not absent or min(similarity) < max(similarity) - margin:
            return []
        more = self._candidates(query, POOL, usable & self.facts.holding(absent, len(self.ids)), "")
        return [candidate for candidate in more if candidate.similarity >= max(similarity) - margin]

    def _dense(self, query: Vectors, wanted: int, usable: npt.NDArray[np.bool_]) -> tuple[Slots, Vectors]:
        assert self.exact is not None
        if self.served is not None:
            return self.served.nearest(query, wanted, usable)
        newer = self.exact.nearest(query, wanted, usable)
        if self.graph is None:
            return newer
        older = self.graph.nearest(query, wanted, usable)
        return ranked(np.concatenate([older[0], newer[0]]), np.concatenate([older[1], newer[1]]), wanted)

    def _usable(self, settings: Retrieval, exclude: str | None) -> npt.NDArray[np.bool_]:
        usable = self.ids.live
        if settings.filters:
            if self._admitted is None or self._admitted[0] != settings:
                self._admitted = (settings, admitted(self.facts, settings, len(self.ids)) & usable)
            usable = self._admitted[1]
        slot = None if exclude is None else self.ids.slot(exclude)
        if slot is not None:
            usable = usable.copy()
            usable[slot] = False
        return usable

    # Storing

    def arrays(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """All of it but the graph, as it can be stored: arrays, and what JSON holds."""
        assert self.exact is not None
        parts = {"ids": self.ids.held, "live": self.ids.live}
        parts |= {f"facts.{name}": column for name, column in self.facts.arrays().items()}
        parts |= {f"exact.{name}": plane for name, plane in self.exact.planes().items()}
        parts |= {} if self.lexical is None else {f"lexical.{name}": part for name, part in self.lexical.arrays().items()}
        return parts, {"texts": self.facts.texts, "first": self.exact.first}

    @classmethod
    def of_arrays(cls, parts: dict[str, npt.NDArray[Any]], rest: dict[str, Any], graph: Graph | None, *, words: bool) -> ItemIndex:
        """What ``arrays`` gave, with the graph that held its earlier slots. Raises KeyError when a part is missing, e.g. the words."""
        made = cls()
        made.ids = Ids(parts["ids"], parts["live"])
        made.facts = Facts(_group(parts, "facts"), rest["texts"])
        made.exact = Exact.of_planes(parts["exact.coarse"], parts["exact.fine"], parts["exact.scale"])
        made.exact.first = rest["first"]
        made.graph = graph
        made._dead = len(made.ids) - int(np.count_nonzero(made.ids.live))
        if words:
            made.lexical = Lexical.of_arrays(_group(parts, "lexical"))
        return made


def _group(parts: dict[str, npt.NDArray[Any]], name: str) -> dict[str, npt.NDArray[Any]]:
    return {key.removeprefix(f"{name}."): part for key, part in parts.items() if key.startswith(f"{name}.")}
