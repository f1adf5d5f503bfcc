"""A memory of 100,000 episodes as one file: time, size, and whether writing and reading it needs room that grows with it.

``python -m benchmarks.portable [--episodes 100000]`` writes ``benchmarks/results/portable.json``. Each step is a process of its own, so that its
largest resident memory is its own; a tenth of the size is done first, to compare.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

from benchmarks.measuring import ROOT, facts, fresh
from memalign import Judge, Scale
from memalign.embedders.scripted import HashEmbedder
from memalign.models.scripted import ScriptedChatModel

DIMENSION = 384


def judge_on(path: str) -> Judge:
    return Judge("portable", "Is the reply good?", Scale.boolean(), ScriptedChatModel([]), memory=path, embedder=HashEmbedder(DIMENSION))


def fill(path: str, episodes: int) -> None:
    """Episodes with a vector each, by one multi-row statement at a time: what is measured is not their alignment."""
    import numpy as np
    from sqlalchemy import insert

    from benchmarks.workload import records
    from memalign.memory import episodic, revisions
    from memalign.records import canonical
    from memalign.stores import schema

    memory, luck = judge_on(path).memory, np.random.default_rng(1)
    judge_id = memory.judge_id
    for start in range(0, episodes, 5000):
        rows, vectors = [], []
        for record in records(min(5000, episodes - start), start=start):
            key = episodic.text_hash(record.item)
            fields = {name: canonical(getattr(record, name)) for name in ("inputs", "outputs", "expectations", "value")}
            at = record.created_at.isoformat()
            rest = {name: getattr(record, name) for name in ("id", "rationale", "annotator", "source")}
            place = {"judge_id": judge_id, "version": 1, "item_id": record.item.id, "created_at": at, "stored_at": at, "content_hash": key}
            rows.append({**fields, **rest, **place, "since": 1, "distilled": 1})
            data = luck.normal(size=DIMENSION).astype("<f4")
            vector = {"embedder": memory.embedder, "content_hash": key, "dimension": DIMENSION}
            vectors.append({**vector, "data": (data / np.linalg.norm(data)).tobytes()})
        with memory.store.writing() as connection:
            connection.execute(insert(schema.feedback), rows)
            connection.execute(insert(schema.vector), list({row["content_hash"]: row for row in vectors}.values()))
            if start == 0:
                revisions.commit(connection, judge_id, 1, verb="align", actor="", counts={"admitted": episodes})
    memory.store.close()


def step(name: str, database: str, file: str, *, traced: bool) -> dict[str, Any]:
    """One step in this process: seconds, largest resident memory, and with ``traced`` (slower) the peak of what Python allocated."""
    memory = judge_on(database).memory
    memory.judge_id  # noqa: B018 - opens the database before anything is counted
    if traced:
        tracemalloc.start()
    started = time.perf_counter()
    if name == "import":
        memory.import_(file)
    else:
        memory.export(file, vectors=name == "export", overwrite=True)
    seconds = time.perf_counter() - started
    peak = tracemalloc.get_traced_memory()[1] if traced else 0
    return {
        "seconds": round(seconds, 2),
        "resident_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "python_peak_mb": round(peak / 1e6, 2) if traced else None,
        "file_mb": round(Path(file).stat().st_size / 1e6, 1),
    }


def measure(episodes: int) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (episodes // 10, episodes):
            source, file = f"{folder}/{count}.db", f"{folder}/{count}.memalign"
            fresh(["-m", "benchmarks.portable", "--fill", source, str(count)], timeout_seconds=1800)
            for name in ("export without vectors", "export", "import"):
                database = f"{folder}/{count}.copy.db" if name == "import" else source
                traced = name != "import"
                row = fresh(["-m", "benchmarks.portable", "--step", name, database, file], timeout_seconds=1800)
                if traced:
                    more = fresh(["-m", "benchmarks.portable", "--traced", "--step", name, database, file], timeout_seconds=1800)
                    row["python_peak_mb"] = more["python_peak_mb"]
                rows.append({"step": name, "episodes": count, **row})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=100_000)
    parser.add_argument("--fill", nargs=2, metavar=("DATABASE", "COUNT"), help="make a memory, in this process")
    parser.add_argument("--traced", action="store_true")
    parser.add_argument("--step", nargs=3, metavar=("NAME", "DATABASE", "FILE"), help="one step, in this process")
    options = parser.parse_args()
    if options.fill:
        fill(options.fill[0], int(options.fill[1]))
        print("{}")
        return
    if options.step:
        print(json.dumps(step(*options.step, traced=options.traced)))
        return
    machine, rows = facts(), measure(options.episodes)
    results = ROOT / "benchmarks" / "results" / "portable.json"
    results.write_text(json.dumps({"machine": machine, "dimension": DIMENSION, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
