"""Opening a large memory in a fresh process and giving a first verdict; and what the import and the command line's help cost."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measuring import Row, fresh, median, milliseconds, wall_seconds

EPISODES = 10_000


def first_verdict(path: Path) -> dict[str, float]:
    """Seconds, in this process: importing what is needed, then the first and the second verdict with a model that answers at once."""
    started = time.perf_counter()
    import jinja2  # noqa: F401 - the imports are what is timed
    import numpy as np  # noqa: F401
    import sqlalchemy  # noqa: F401

    import memalign.judging
    import memalign.memory  # noqa: F401
    from benchmarks.judgement import judge_on
    from benchmarks.workload import item
    from memalign.embedders.scripted import HashEmbedder

    imported, processor = time.perf_counter(), time.process_time()
    judge = judge_on(path, HashEmbedder(384))
    verdict = judge(**item(1))
    first, processor = time.perf_counter(), time.process_time() - processor
    assert len(verdict.episode_ids) >= 5
    judge(**item(2))
    second = time.perf_counter()
    judge.close()
    return {"imports": imported - started, "first": first - imported, "first_processor": processor, "second": second - first}


def measure(*, quick: bool = False) -> list[Row]:
    runs = 4 if quick else 10
    return [_opening(5 if not quick else 3, EPISODES), *_starting(runs)]


def _opening(runs: int, episodes: int) -> Row:
    from benchmarks.judgement import FixedEmbedder, fill
    from memalign.embedders.scripted import HashEmbedder

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.db"
        fill(path, episodes, FixedEmbedder(HashEmbedder(384).id).id)
        found = [fresh(["-m", "benchmarks.opening", "--first", str(path)]) for _ in range(runs)]
    first, imports = median([run["first"] for run in found]), median([run["imports"] for run in found])
    best = min(run["first"] for run in found)
    processor = median([run["first_processor"] for run in found])
    shown = f"{milliseconds(first)} (best {milliseconds(best)}, processor {milliseconds(processor)}), after {milliseconds(imports)} of imports"
    return Row(f"open {episodes:,} episodes and give the first verdict", shown, "<= 300 ms", first <= 0.3, {"runs": found})


def _starting(runs: int) -> list[Row]:
    """Fresh processes, in turn with ``python -c pass``, so that all see the same noise."""
    asked = {"python": ["-c", "pass"], "import": ["-c", "import memalign"]}
    if importlib.util.find_spec("memalign.cli") is not None and importlib.util.find_spec("memalign.__main__") is not None:
        asked["help"] = ["-m", "memalign", "--help"]
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for arguments in asked.values():
        wall_seconds(arguments)  # byte code and file cache
    for _ in range(runs):
        for name, arguments in asked.items():
            seconds[name].append(wall_seconds(arguments))
    bare = seconds["python"]
    rows = []
    for name, what, limit in (("import", "import memalign", 0.15), ("help", "memalign --help", 0.35)):
        if name not in seconds:
            rows.append(Row(what, "no command line yet", f"<= {milliseconds(limit)}"))
            continue
        own = seconds[name]
        shown = f"{milliseconds(median(own))} (best {milliseconds(min(own))}); python -c pass {milliseconds(median(bare))}"
        rows.append(Row(what, shown, f"<= {milliseconds(limit)}", median(own) <= limit, {"seconds": own, "python": bare}))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=Path, help="a memory to open in this process")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.first is not None:
        print(json.dumps(first_verdict(options.first)))
        sys.exit()
    for row in measure(quick=options.quick):
        print(json.dumps(row.to_dict()))
