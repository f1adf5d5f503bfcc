"""Search of a large memory on a PostgreSQL server: comparing everything in RAM against the server's graph.

Run: python -m benchmarks.neighbours [--vectors 60000] [--share 0.9]; it writes benchmarks/results/neighbours.json.
Vectors lie in clusters; ``--share`` of them are the judge's, the others another judge's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import psycopg

from benchmarks import synthetic
from benchmarks.crashes import own_server
from benchmarks.measuring import ROOT, facts
from memalign.memory.retrieval.exact import Exact
from memalign.memory.retrieval.ids import Ids, packed
from memalign.memory.retrieval.served import Served
from memalign.stores import Store, open_store
from memalign.stores.types import as_text

WANTED, QUERIES = 32, 60
_RECORD = (
    "row, judge_id, id, version, item_id, inputs, outputs, expectations, value, "
    "rationale, annotator, source, created_at, stored_at, content_hash, since"
)


def filled(url: str, count: int, share: float) -> tuple[Any, Any]:
    """Puts vectors into a database; gives them, and which of them are the first judge's."""
    mine, every = np.random.default_rng(0).random(count) < share, []
    with psycopg.connect(url, options="-c search_path=memalign,public", autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO judge (id, name, settings, secret, created_at) VALUES (1, 'a', '{}', 's', ''), (2, 'b', '{}', 's', '')")
        for rows in synthetic.vectors(count):
            first = sum(map(len, every))
            every.append(rows)
            with cursor.copy("COPY embedding (embedder, content_hash, dimension, data) FROM STDIN") as copy:
                for place, row in enumerate(rows, start=first):
                    copy.write_row((synthetic.EMBEDDER, f"{place:032x}", synthetic.DIMENSION, as_text(row.astype("<f4").tobytes())))
            with cursor.copy(f"COPY feedback ({_RECORD}) FROM STDIN") as copy:
                for place in range(first, first + len(rows)):
                    key = f"{place:032x}"
                    copy.write_row((place + 1, 1 if mine[place] else 2, key, 1, key, *["{}"] * 3, "true", *[""] * 5, key, 1))
        cursor.execute("ANALYZE")
    return np.concatenate(every), np.flatnonzero(mine)


def timed(search: Callable[[Any], Any], queries: Any) -> tuple[list[set[int]], dict[str, float]]:
    """What each query finds, and how long it takes."""
    found, wall, processor = [], [], []
    for query in queries:
        started, before = time.perf_counter(), time.process_time()
        found.append(set(search(query)[0].tolist()))
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - before)
    return found, {
        "median_ms": round(1000 * statistics.median(wall), 2),
        "p95_ms": round(1000 * float(np.quantile(wall, 0.95)), 2),
        "client_processor_ms": round(1000 * statistics.median(processor), 2),
    }


def measured(store: Store, vectors: Any, mine: Any) -> dict[str, Any]:
    """Both ways of searching, on the same queries."""
    exact, ids = Exact(synthetic.DIMENSION), Ids()
    exact.grow(len(mine))
    exact.put(np.arange(len(mine)), vectors[mine])
    ids.add(packed([f"{place:032x}" for place in mine.tolist()]))
    usable, queries = np.ones(len(mine), dtype=np.bool_), synthetic.queries(QUERIES, episodes=len(vectors))
    started = time.perf_counter()
    made = store.link(synthetic.EMBEDDER, synthetic.DIMENSION, lambda: False)
    build = time.perf_counter() - started
    served = Served(ids, exact, lambda query, count: store.nearest(1, synthetic.EMBEDDER, query, count))
    truth, compared = timed(lambda query: exact.nearest(query, WANTED, usable), queries)
    found, asked = timed(lambda query: served.nearest(query, WANTED, usable), queries)
    recall = sum(len(one & other) for one, other in zip(truth, found, strict=True)) / (WANTED * QUERIES)
    return {"made": made, "build_seconds": round(build, 1), "compared": compared, "asked": asked, "recall_of_32": recall, "answered": served.answers}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=60_000)
    parser.add_argument("--share", type=float, default=0.9)
    parser.add_argument("--json", action="store_true", help="only print the result; nothing is written")
    options = parser.parse_args()
    machine = facts()
    with own_server() as server:
        url = server.make("neighbours")
        vectors, mine = filled(url, options.vectors, options.share)
        with closing(open_store(url)) as store:
            result = {"vectors": options.vectors, "of_the_judge": len(mine), **measured(store, vectors, mine)}
    print(json.dumps(result))
    if not options.json:
        results = ROOT / "benchmarks" / "results" / "neighbours.json"
        results.write_text(json.dumps({"machine": machine, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
