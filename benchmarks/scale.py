"""Growth: what retrieval adds to a judgement, opening, bytes on disk and in RAM, from 100 to a million episodes.

``python -m benchmarks.scale [--least N] [--most N] [--folder FOLDER]`` writes each size into ``benchmarks/results/scale.json``, where the other
sizes stay as they were, and ``scale.png`` at its end. Vectors are synthetic, in clusters; files are written straight, see
``benchmarks.synthetic``. Processor time is given beside wall time, since the cores may be shared.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import ROOT, Row, facts, fresh, median, milliseconds, percentile

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
RESULTS = ROOT / "benchmarks" / "results"
_JUDGEMENTS = 200


class Drawn:
    """The embedder of the synthetic memories: a new vector of some cluster for each text, at no cost or at that of another embedder."""

    def __init__(self, episodes: int, count: int = 800) -> None:
        from benchmarks.synthetic import EMBEDDER, queries

        self.id = EMBEDDER
        self.costing: Any = None
        """An embedder that is asked too, whose vectors are left aside."""
        self.seconds: list[float] = []
        self._rows = queries(count, episodes=episodes)
        self._next = 0

    async def embed(self, texts: Sequence[str]) -> Any:
        """One unit vector a text."""
        clock = time.perf_counter()
        if self.costing is not None:
            await self.costing.embed(texts)
        start, self._next = self._next, self._next + len(texts)
        self.seconds.append(time.perf_counter() - clock)
        return self._rows[start : self._next]

    async def aclose(self) -> None:
        """Nothing to give back."""


def judge_on(path: Path, episodes: int) -> Any:
    from benchmarks.judgement import scripted
    from memalign import Judge, Scale

    return Judge("bench", "Is it good?", Scale.boolean(), scripted(), memory=str(path), embedder=Drawn(episodes), floor=-1.0)


def used(path: Path, episodes: int, *, keep: bool, read: bool) -> dict[str, Any]:
    """In this process: open, give a first verdict, then many; with ``keep``, make the index file, with ``read``, judge with an embedder."""
    import memalign.judging
    import memalign.memory.search  # noqa: F401 - the imports do not count
    from benchmarks.synthetic import texts

    before = _resident()
    judge = judge_on(path, episodes)
    judge.memory.store  # noqa: B018
    clock, cpu = time.perf_counter(), time.process_time()
    judge.memory.view()
    opened = {"open": time.perf_counter() - clock, "open_processor": time.process_time() - cpu}
    question, reply = texts(5_000_000)
    clock = time.perf_counter()
    judge(inputs=question, outputs=reply)
    opened["first"] = opened["open"] + time.perf_counter() - clock
    found = opened | {"from_file": bool(judge.memory._search._in_file), "resident_open": _resident() - before}
    judge.memory._search._refused = True  # no work in the background while times are taken
    found |= _searched(judge) | _judged(judge, 6_000_000)
    found["resident"] = _resident()
    if keep:
        clock, cpu = time.perf_counter(), time.process_time()
        found["kept"] = judge.memory.keep_index()
        found |= {"build": time.perf_counter() - clock, "build_processor": time.process_time() - cpu, "resident_after_build": _resident()}
        found |= {f"graph_{name}": value for name, value in _searched(judge).items()}
        judge.memory._search._refused = True
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found["with_embedder"] = _with_embedder(judge) if read else None
    judge.close()
    return found


def _searched(judge: Any) -> dict[str, Any]:
    """The search alone, on new queries."""
    queries = Drawn(max(100, len(judge.memory._search)))._rows[:_JUDGEMENTS]
    wall, cpu = [], []
    for query in queries:
        clock, processor = time.perf_counter(), time.thread_time()
        judge.memory._search.nearest(query, 5, floor=-1.0, exclude=None)
        wall.append(time.perf_counter() - clock)
        cpu.append(time.thread_time() - processor)
    return {"search_p50": median(wall), "search_p95": percentile(wall, 0.95), "search_best": min(wall), "search_processor": median(cpu)}


def _with_embedder(judge: Any) -> dict[str, Any] | None:
    """Whole judgements whose texts the local MiniLM reads, and what it takes of them; None where it is not installed."""
    from benchmarks.synthetic import texts
    from memalign.embedders.minilm import MiniLM
    from memalign.errors import MemalignError

    embedder = judge.embedder
    embedder.costing = MiniLM()
    try:
        judge(inputs=texts(7_000_000)[0], outputs=texts(7_000_000)[1])
    except MemalignError:
        return None
    embedder.seconds.clear()
    return _judged(judge, 8_000_000) | {"embedder_p50": median(embedder.seconds)}


def _judged(judge: Any, first: int) -> dict[str, Any]:
    """Whole judgements with a model that answers at once."""
    from benchmarks.synthetic import texts

    wall = []
    cpu = time.process_time()
    for number in range(_JUDGEMENTS):
        question, reply = texts(first + number)
        clock = time.perf_counter()
        judge(inputs=question, outputs=reply)
        wall.append(time.perf_counter() - clock)
    cpu = time.process_time() - cpu
    return {"p50": median(wall), "p95": percentile(wall, 0.95), "best": min(wall), "processor": cpu / _JUDGEMENTS}


def recalls(path: Path, episodes: int) -> dict[str, float]:
    """Recall at 5 of the stored index against float32, over 100 queries; float16 and int8 beside it."""
    import numpy as np

    from benchmarks.synthetic import EMBEDDER, queries
    from memalign.memory import vectors

    judge = judge_on(path, episodes)
    asked = queries(100, episodes=episodes, seed=11)
    with judge.memory.store.reading() as connection:
        keys, parts = [], []
        for found, rows in vectors.stored(connection, EMBEDDER, [""] * (episodes if episodes > 2000 else 2001)):
            keys += found
            parts.append(rows)
    rows = np.concatenate(parts)
    true = np.argsort(-(asked @ rows.T), axis=1)[:, :5]
    scale = np.abs(rows).max(axis=1, keepdims=True) / 127
    kinds = {"float16": rows.astype(np.float16).astype(np.float32), "int8": np.rint(rows / scale) * scale}
    made = {name: _overlap(true, np.argsort(-(asked @ kind.T), axis=1)[:, :5]) for name, kind in kinds.items()}
    judge.memory.view()
    index = judge.memory._search._index
    mine = [index._dense(query, 5, index.ids.live)[0] for query in asked]
    best = [[float(rows[place] @ query) for place in places] for query, places in zip(asked, true, strict=True)]
    close = [index.vectors(slots) @ query for query, slots in zip(asked, mine, strict=True)]
    made["graph" if index.graph is not None else "two planes"] = float(
        np.mean([np.mean(np.asarray(ours) >= min(theirs) - 2e-3) for ours, theirs in zip(close, best, strict=True)])
    )
    judge.close()
    return made


def _overlap(true: Any, found: Any) -> float:
    return sum(len(set(one) & set(other)) for one, other in zip(true.tolist(), found.tolist(), strict=True)) / true.size


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if Path("/proc/self/statm").exists() else 0


def measured(path: Path, episodes: int) -> dict[str, Any]:
    """One size: filled if need be, opened without a file, then with it."""
    row: dict[str, Any] = {"episodes": episodes, "date": facts()["date"], "load": os.getloadavg()[0]}
    if not path.exists():
        from benchmarks.synthetic import fill

        clock = time.perf_counter()
        fill(judge_on(path, episodes), path, episodes)
        row["fill"] = time.perf_counter() - clock
    for stale in path.parent.glob(f"{path.name}-index-*"):
        stale.unlink()
    row["database"] = path.stat().st_size
    row["cold"] = fresh(["-m", "benchmarks.scale", "--one", str(path), "--episodes", str(episodes), "--keep"], timeout_seconds=5400)
    row["index"] = sum(found.stat().st_size for found in path.parent.glob(f"{path.name}-index-*"))
    again = ["-m", "benchmarks.scale", "--one", str(path), "--episodes", str(episodes)]
    runs = [fresh([*again, *more], timeout_seconds=1800) for more in (["--read"], [], [])]
    row["warm"] = min(runs, key=lambda run: run["open"])
    row["warm"] |= {name: min(run[name] for run in runs) for name in ("p50", "p95", "best", "processor", "search_p50", "search_processor")}
    row["warm"]["with_embedder"] = runs[0]["with_embedder"]
    if episodes <= 100_000:
        row["recall"] = fresh(["-m", "benchmarks.scale", "--recall", str(path), "--episodes", str(episodes)], timeout_seconds=1800)
    return row


def exponent(rows: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> float | None:
    """The slope of a quantity against the number of episodes, both as logarithms, from 1,000 episodes on."""
    points = [(math.log(row["episodes"]), math.log(got)) for row in rows if row["episodes"] >= 1000 and (got := value(row))]
    if len(points) < 2:
        return None
    x, y = zip(*points, strict=True)
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in points) / sum((a - mean_x) ** 2 for a in x)


QUANTITIES: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "judgement, p50 ms": lambda row: row["warm"]["p50"] * 1e3,
    "search, processor ms": lambda row: row["warm"]["search_processor"] * 1e3,
    "judgement, processor ms": lambda row: row["warm"]["processor"] * 1e3,
    "open from database, s": lambda row: row["cold"]["open_processor"],
    "open again, s": lambda row: row["warm"]["open_processor"],
    "database, MB": lambda row: row["database"] / 1e6,
    "index file, MB": lambda row: row["index"] / 1e6 or None,
    "resident, MB": lambda row: row["warm"]["resident"] / 1e6,
}


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Each quantity against the number of episodes, both axes logarithmic."""
    import altair as alt

    values = [
        {"what": name, "episodes": row["episodes"], "value": got}
        for name, quantity in QUANTITIES.items()
        for row in rows
        if (got := quantity(row)) is not None
    ]
    axes = {"x": alt.X("episodes:Q", scale=alt.Scale(type="log")), "y": alt.Y("value:Q", scale=alt.Scale(type="log"), title=None)}
    chart = alt.Chart(alt.Data(values=values)).mark_line(point=True).encode(**axes).properties(width=200, height=140)
    chart.facet(facet=alt.Facet("what:N", title=None, sort=list(QUANTITIES)), columns=4).resolve_scale(y="independent").save(str(path), ppi=110)


def grown(sizes: Sequence[int], kept_in: Path | None = None) -> list[dict[str, Any]]:
    """Measure some sizes; gives them and all that were measured before, the smallest first, as they stand in the results now."""
    stored = RESULTS / "scale.json"
    held = {row["episodes"]: row for row in json.loads(stored.read_text())["rows"]} if stored.exists() else {}
    for episodes in sizes:
        with tempfile.TemporaryDirectory() as folder:
            held[episodes] = measured((kept_in or Path(folder)) / f"s{episodes}.db", episodes)
        rows = [held[size] for size in sorted(held)]
        fitted = {name: exponent(rows, quantity) for name, quantity in QUANTITIES.items()}
        stored.write_text(json.dumps({"machine": facts(), "rows": rows, "exponents": fitted}, indent=1) + "\n")
    plot(rows, RESULTS / "scale.png")
    return [held[size] for size in sizes]


def measure(*, quick: bool = False) -> list[Row]:
    """Up to 100,000 episodes anew (``quick``: 10,000)."""
    grown([size for size in SIZES if size <= (10_000 if quick else 100_000)])
    return told()


def told() -> list[Row]:
    """Each size as it was measured last, with its date."""
    found = json.loads((RESULTS / "scale.json").read_text())
    rows = [line for row in found["rows"] for line in _lines(row)]
    slopes = ", ".join(f"{name.rpartition(', ')[0] or name} {slope:.2f}" for name, slope in found["exponents"].items() if slope is not None)
    return [*rows, Row("growth: exponents of the number of episodes", slopes, "", None, {"exponents": found["exponents"]})]


def _lines(row: dict[str, Any]) -> list[Row]:
    """What the table says of one size."""
    what = f"{row['episodes']:,} synthetic episodes ({row['date']})"
    warm, cold = row["warm"], row["cold"]
    judged = f"p50 {milliseconds(warm['p50'])}, p95 {milliseconds(warm['p95'])}, processor {milliseconds(warm['processor'])}"
    if read := warm["with_embedder"]:
        judged += f"; with MiniLM p50 {milliseconds(read['p50'])}, p95 {milliseconds(read['p95'])}, its own {milliseconds(read['embedder_p50'])}"
    limit = {10_000: 0.003, 100_000: 0.005}.get(row["episodes"])
    target = "" if limit is None else f"embedder + {limit * 1000:.0f} ms"
    first = Row(f"judgement, {what}", judged, target, None if limit is None else warm["p50"] <= limit, row)
    room = f"database {row['database'] / 1e6:,.0f} MB, index file {row['index'] / 1e6:,.0f} MB, resident {warm['resident'] / 1e6:,.0f} MB"
    build = f"first index {cold['open_processor'] + cold['build_processor']:.1f} s of processor time ({cold['open'] + cold['build']:.1f} s)"
    shown = f"{room}; {build}; opened again in {warm['open']:.2f} s"
    if row["episodes"] != 100_000:
        return [first, Row(f"opening, {what}", shown)]
    kept = warm["resident"] <= 500e6 and cold["open_processor"] + cold["build_processor"] <= 60 and warm["open"] <= 1
    return [first, Row(f"opening, {what}", shown, "<= 500 MB resident, first index <= 60 s, again <= 1 s", kept)]


def main() -> None:
    """Measure each size; write after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--least", type=int, default=SIZES[0])
    parser.add_argument("--most", type=int, default=SIZES[-1])
    parser.add_argument("--folder", type=Path, help="where the memories are kept between runs")
    for name in ("--one", "--recall"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--episodes", type=int, help=argparse.SUPPRESS)
    for name in ("--keep", "--read"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(used(options.one, options.episodes, keep=options.keep, read=options.read)))
        return
    if options.recall:
        print(json.dumps(recalls(options.recall, options.episodes)))
        return
    for size in (size for size in SIZES if options.least <= size <= options.most):
        print(json.dumps(grown([size], options.folder)[-1]), flush=True)


if __name__ == "__main__":
    main()
