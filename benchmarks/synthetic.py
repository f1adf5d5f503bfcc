"""Large memories with vectors in clusters, written straight into the database: what aligning would store, in seconds instead of hours."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memalign import Judge
from memalign.records import canonical
from memalign.rendering import search_text
from memalign.stores import schema

DIMENSION = 384
EMBEDDER = "synthetic/clusters"
_CLUSTER = 50
"""Items in a cluster, on average."""
_SPREAD = 0.6
"""Of an item about the centre of its cluster, in units of the centre's own spread: its nearest neighbours have a cosine of about 0.75."""
_BATCH = 20_000

_FIRST, _SECOND = "ba ke li mo nu pa re so ti vu", "lan mer nik pol rus sta tor vel wig zam"
_WORDS = [f"{first}{second}" for first in _FIRST.split() for second in _SECOND.split()]


def vectors(count: int, *, seed: int = 0) -> Iterator[npt.NDArray[np.float32]]:
    """Unit vectors, in batches."""
    luck = np.random.default_rng(seed + 1)
    for start in range(0, count, _BATCH):
        size = min(_BATCH, count - start)
        chosen = luck.integers(0, 1 + count // _CLUSTER, size)
        rows = _centres(chosen) + np.float32(_SPREAD) * luck.standard_normal((size, DIMENSION), dtype=np.float32)
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)


def queries(count: int, *, episodes: int, seed: int = 7) -> npt.NDArray[np.float32]:
    """New unit vectors of a memory's clusters."""
    luck = np.random.default_rng(seed)
    rows = _centres(luck.integers(0, 1 + episodes // _CLUSTER, count))
    rows += np.float32(_SPREAD) * luck.standard_normal((count, DIMENSION), dtype=np.float32)
    found: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def texts(number: int) -> tuple[str, str]:
    """Question and reply of an item: some 15 and 30 words of a vocabulary of 100, and its own number."""
    luck = np.random.default_rng(number)
    chosen = luck.integers(0, len(_WORDS), 45)
    return " ".join(_WORDS[place] for place in chosen[:15]), f"reply {number:07d} " + " ".join(_WORDS[place] for place in chosen[15:])


def fill(judge: Judge, path: Path, episodes: int) -> None:
    """One revision with so many episodes of one judge, with the vectors of ``EMBEDDER``; the file is made by memalign itself."""
    judge_id = judge.memory.judge_id
    judge.close()
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA synchronous = OFF")
    database.execute("PRAGMA cache_size = -400000")
    indices = [(name, sql) for name, sql in database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'feedback'")]
    for name, _ in indices:
        database.execute(f"DROP INDEX {name}")
    stamp = datetime(2026, 1, 1, tzinfo=UTC)
    stored: list[tuple[str, bytes]] = []  # of a million 1.7 GB; without the order of their keys each would go to another page
    start = 0
    for batch in vectors(episodes):
        rows, found = _rows(judge_id, start, batch, stamp)
        database.execute("BEGIN")
        database.executemany(f"INSERT INTO feedback ({', '.join(rows[0])}) VALUES ({', '.join(':' + name for name in rows[0])})", rows)
        stored += found
        database.execute("COMMIT")
        start += len(batch)
    database.execute("BEGIN")
    _store(database, stored)
    database.execute(
        "INSERT INTO revision (judge_id, number, at, actor, verb, counts) VALUES (?, 1, ?, '', 'align', '{}')", (judge_id, stamp.isoformat())
    )
    database.execute("COMMIT")
    for _, sql in indices:
        if sql:
            database.execute(sql)
    database.execute("ANALYZE")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


def _rows(judge_id: int, start: int, batch: npt.NDArray[np.float32], stamp: datetime) -> tuple[list[dict[str, Any]], list[tuple[str, bytes]]]:
    from memalign.memory.episodic import text_hash
    from memalign.records import Item

    rows, found = [], []
    for place, vector in enumerate(batch, start=start):
        question, reply = texts(place)
        item = Item(inputs=question, outputs=reply)
        assert search_text(item) == reply
        row = {
            "judge_id": judge_id,
            "id": f"r{place}",
            "version": 1,
            "item_id": item.id,
            "inputs": canonical(question),
            "outputs": canonical(reply),
            "expectations": "null",
            "value": json.dumps(place % 3 > 0),
            "rationale": "",
            "annotator": f"ann{place % 7}",
            "source": f"file{place % 100}",
            "created_at": (stamp + timedelta(seconds=place)).isoformat(),
            "stored_at": stamp.isoformat(),
            "judged": json.dumps(place % 5 > 0),
            "content_hash": text_hash(item),
            "since": 1,
            "until": None,
            "distilled": 1,
        }
        rows.append(row)
        found.append((str(row["content_hash"]), vector.astype("<f4").tobytes()))
    return rows, found


def _store(database: sqlite3.Connection, found: list[tuple[str, bytes]]) -> None:
    rows = ((EMBEDDER, key, DIMENSION, data) for key, data in sorted(found))
    database.executemany(f"INSERT INTO {schema.vector.name} (embedder, content_hash, dimension, data) VALUES (?, ?, ?, ?)", rows)


def _centres(chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The centres of some clusters: drawn from the number of the cluster alone, so that none has to be kept."""
    different, places = np.unique(chosen, return_inverse=True)
    drawn = [np.random.Generator(np.random.PCG64(number)).standard_normal(DIMENSION, dtype=np.float32) for number in different.tolist()]
    return np.stack(drawn)[places]
