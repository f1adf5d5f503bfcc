"""The search of one judge's memory: an index that follows the revisions, kept in a file when it is large."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import Connection, Row, select

from memalign.errors import MemalignError
from memalign.memory import vectors
from memalign.memory.retrieval import Fact, ItemIndex, cachefile
from memalign.memory.retrieval.graph import Graph, available, grown
from memalign.memory.retrieval.ids import keys, packed
from memalign.records import Item
from memalign.rendering import item_text
from memalign.retrieval import Retrieval
from memalign.scale import Scale
from memalign.stores import Store, schema
from memalign.stores.types import parsed

if TYPE_CHECKING:
    from memalign.embedders import Vectors

KEPT_FROM = 5_000
"""Slots from which the index is kept in a file: fewer are read from the database in a tenth of a second."""
LINKED_FROM = 50_000
"""Slots from which a graph is searched, where the optional part is installed or the database has its own: fewer are compared in some milliseconds."""
RENEWED_AT = 0.2
"""Share of slots beyond those in the file at which it is made anew."""
_SERVED = 16
"""Searches before a file is made: a process that asks once or twice would not gain by it."""
_MOST_DEAD = 10_000
_SWIFT = 20_000
"""Items that are compared one by one in less than two milliseconds."""


class Search:
    """Safe for threads. ``follow`` brings it to a revision; nothing is found before."""

    def __init__(self, store: Store, scale: Scale, embedder: str, retrieval: Retrieval, *, kept: bool = True) -> None:
        """``kept``: whether a large index may be kept in a file."""
        self._kept = kept
        self._store = store
        self._scale = scale
        self._embedder = embedder
        self._retrieval = retrieval
        self._lock = threading.RLock()
        self._worker: threading.Thread | None = None
        self._closed = False
        self.reset()

    def reset(self) -> None:
        """Forget all in RAM; the next ``follow`` reads it anew."""
        with self._lock:
            self._index = ItemIndex(words=self._retrieval.words)
            self._revision = self._judge_id = self._in_file = self._served = 0
            self._refused = not self._kept
            self._complete = True

    def close(self) -> None:
        """Stop what works in the background."""
        self._closed = True
        worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join()
        self._closed = False

    def __len__(self) -> int:
        return len(self._index)

    @property
    def swift(self) -> bool:
        """Whether a search takes no more than some two milliseconds, and nobody is at work on the index."""
        if self._index.exact is not None and len(self._index.exact) > _SWIFT:
            return False
        idle = self._lock.acquire(blocking=False)
        if idle:
            self._lock.release()
        return idle

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._index

    def newest(self, count: int) -> list[str]:
        """The items that entered memory last, oldest first, of those with a record that passes the filters."""
        with self._lock:
            return self._index.newest(count, self._retrieval)

    def vector(self, item_id: str) -> Vectors:
        """The vector of an item; shape (dimension,)."""
        with self._lock:
            return self._index.vector(item_id)

    def nearest(self, query: Vectors, k: int, *, floor: float, exclude: str | None, item: Item | None = None) -> list[tuple[str, float]]:
        """At most k items to show for a query, best first, with their cosine similarity. Raises EmbeddingError."""
        text = _words(item.inputs, item.outputs) if self._retrieval.words and item is not None else ""
        with self._lock:
            found = self._index.nearest(query, k, floor=floor, exclude=exclude, retrieval=self._retrieval, text=text)
            self._served += 1
            if self._served >= _SERVED and self._to_be_kept() and not self._closed and (self._worker is None or not self._worker.is_alive()):
                self._worker = threading.Thread(target=self._work, name="memalign-index")
                self._worker.start()
        return found

    def follow(self, connection: Connection, judge_id: int, revision: int, *, anew: bool = False) -> None:
        """Bring the index to a revision; ``anew``: from nothing. Raises EmbeddingError when the stored vectors cannot be compared."""
        with self._lock:
            if anew or revision < self._revision or judge_id != self._judge_id or self._index.dead > len(self._index) + _MOST_DEAD:
                self.reset()
                self._judge_id = judge_id
            if self._revision == 0:
                self._open(connection, revision)
            if self._revision:
                self._index.remove_records(vectors.left(connection, judge_id, after=self._revision, until=revision))
            self._read(connection, revision)
            self._revision = revision
            index = self._index
            if self._kept and index.served is None and len(index.ids) >= LINKED_FROM and index.exact is not None and self._path is None:
                index.serve(partial(self._store.nearest, judge_id, self._embedder))

    @property
    def complete(self) -> bool:
        """Whether all that memory holds in its revision has a vector."""
        return self._complete

    def keep(self) -> bool:
        """Make the file now, or the index of a database that has its own.

        False where there is nothing to keep, nowhere to keep it, or another process is making it. Raises OSError, StoreError.
        """
        with self._lock:
            index, revision, path = self._index, self._revision, self._path
            if index.exact is None or not self._complete:
                return False
        if path is None:
            return self._link(index)
        with cachefile.making(path) as mine:
            if not mine:
                return False
            graph = self._linked(index)
            with self._lock:
                if self._index is not index or self._closed:
                    return False
                if graph is not None:
                    index.adopt(graph)
                parts, rest = index.arrays()
                parts = {name: part.copy() for name, part in parts.items()}
                revision, words = self._revision, index.lexical is not None
                size = 0 if index.graph is None else index.graph.size
            if index.graph is not None:
                parts["graph"] = index.graph.data()
            fingerprint = self._fingerprint(revision)
            cachefile.write(path, {"revision": revision, "fingerprint": fingerprint, "size": size, "words": words, "rest": rest}, parts)
            if self._fingerprint(revision) != fingerprint:  # purged meanwhile: its file must not outlive it
                path.unlink(missing_ok=True)
                return False
        self._swap(index, size, len(parts["live"]))
        return True

    def drop(self, judge_id: int) -> int:
        """Forget all in RAM and delete the judge's index files, or the indexes of a database that has its own; gives how many there were."""
        self.reset()
        return cachefile.drop(self._store.location, judge_id) + self._store.unlink()

    @property
    def _path(self) -> Path | None:
        return cachefile.path_for(self._store.location, self._judge_id, self._embedder)

    def _link(self, index: ItemIndex) -> bool:
        """Let the database make its own index."""
        if index.served is None or index.exact is None:
            return False
        index.served.answers = self._store.link(self._embedder, index.exact.dimension, self._stopped)
        return index.served.answers

    def _to_be_kept(self) -> bool:
        total = len(self._index.ids)
        if self._index.served is not None:
            return not self._refused and not self._index.served.answers
        return (
            not self._refused
            and self._path is not None
            and total >= KEPT_FROM
            and total - self._in_file >= max(KEPT_FROM / 2, RENEWED_AT * self._in_file)
        )

    def _work(self) -> None:
        try:
            kept = self.keep()
        except (OSError, MemalignError):  # nowhere to write: what was built serves this process
            kept = False
        with self._lock:
            self._refused = not kept
            self._worker = None

    def _linked(self, index: ItemIndex) -> Graph | None:
        """A graph of all full blocks, if there are enough of them."""
        if len(index.ids) < LINKED_FROM or not available():
            return None
        with self._lock:
            assert index.exact is not None
            exact, until, before = index.exact, index.exact.whole_blocks(), index.graph
        if before is not None and until <= before.size:
            return None
        return grown(before, exact, lambda: index.ids.live, until, self._stopped)

    def _stopped(self) -> bool:
        return self._closed or not threading.main_thread().is_alive()

    def _swap(self, index: ItemIndex, size: int, slots: int) -> None:
        """Read the graph from the file from now on, where it takes no RAM of its own."""
        found = self._stored()
        with self._lock:
            if self._index is index:
                self._in_file = slots
                if found is not None and index.graph is not None and index.graph.size == size and "graph" in found[1]:
                    index.graph = Graph.stored(found[1]["graph"], size)

    def _open(self, connection: Connection, revision: int) -> None:
        """Start from the file, if there is one that fits; a file that does not is left to be replaced, or deleted when it is no file of ours."""
        found = self._stored(connection, revision)
        if found is None:
            return
        header, parts = found
        try:
            graph = Graph.stored(parts["graph"], header["size"]) if "graph" in parts else None
            index = ItemIndex.of_arrays(parts, header["rest"], graph, words=self._retrieval.words)
        except (KeyError, ValueError, ImportError):
            return
        self._index, self._revision, self._in_file = index, header["revision"], len(index.ids)

    def _stored(self, connection: Connection | None = None, revision: int | None = None) -> tuple[dict[str, Any], dict[str, Any]] | None:
        path = self._path
        header = cachefile.header(path) if path is not None and path.exists() else None
        if path is None or header is None or (revision is not None and header["revision"] > revision):
            return None
        if header["fingerprint"] != self._fingerprint(header["revision"], connection) or ("graph" in header["parts"] and not available()):
            return None
        parts = cachefile.read(path, header)
        return None if parts is None else (header, parts)

    def _fingerprint(self, revision: int, connection: Connection | None = None) -> str:
        """What a file stands for: this judge of this database, this revision of its memory as it was made, and no purge since."""
        if connection is None:
            with self._store.reading() as connection:
                return self._fingerprint(revision, connection)
        judge, made = schema.judge, schema.revision
        row = connection.execute(select(judge.c.secret, judge.c.purged).where(judge.c.id == self._judge_id)).one()
        at = connection.execute(select(made.c.at).where(made.c.judge_id == self._judge_id, made.c.number == revision)).scalar()
        text = json.dumps([self._judge_id, self._embedder, revision, at, row.purged])
        return hashlib.blake2b(text.encode(), key=row.secret.encode(), digest_size=16).hexdigest()

    def _read(self, connection: Connection, revision: int) -> None:
        """Take in what entered memory; items whose text has no vector yet stay out."""
        index, texts = self._index, self._retrieval.words
        slots, hashes = [np.empty(0, np.int64)], list[str]()
        for rows in vectors.entered(connection, self._judge_id, after=self._revision, until=revision, texts=texts):
            fresh, places = index.enter([row.item_id for row in rows], _facts(self._scale, rows))
            slots.append(fresh)
            hashes += [rows[place].content_hash for place in places.tolist()]
            if index.lexical is not None and len(fresh):
                first_ones = [rows[place] for place in places.tolist()]
                index.lexical.add(int(fresh[0]), [_words(parsed(row.inputs), parsed(row.outputs)) for row in first_ones])
        every = np.concatenate(slots)
        if not len(every):
            return
        wanted = keys(packed(hashes))
        order = np.argsort(wanted)
        wanted, every = wanted[order], every[order]
        missing = np.ones(len(every), dtype=np.bool_)
        for found, rows_of in vectors.stored(connection, self._embedder, hashes):
            first, last = (np.searchsorted(wanted, keys(packed(found)), side) for side in ("left", "right"))
            for more in range(int((last - first).max())):  # items that share a text
                has = np.flatnonzero(last - first > more)
                places = first[has] + more
                index.put(every[places], rows_of[has])
                missing[places] = False
        index.remove(every[missing])
        self._complete = self._complete and not missing.any()


def _facts(scale: Scale, rows: Sequence[Row[Any]]) -> list[Fact]:
    numbers, _, _, values, judged, annotators, sources, created, *_ = zip(*rows, strict=True)
    missed = [
        verdict is not None and verdict != value and scale.wrong(parsed(value), parsed(verdict))
        for verdict, value in zip(judged, values, strict=True)
    ]
    times = [datetime.fromisoformat(time).timestamp() for time in created]
    return [*map(Fact._make, zip(numbers, values, annotators, sources, missed, times, strict=True))]


def _words(inputs: Any, outputs: Any) -> str:
    return item_text(Item(inputs=inputs, outputs=outputs))
