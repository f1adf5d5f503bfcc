"""The rate of ``batch`` at an endpoint that takes half a second for each call, as a share of the rate that this alone allows.

Each number in flight is measured in a fresh process; the endpoint runs in another one, but on the same cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.endpoint import serving
from benchmarks.measuring import Row, fresh, median, milliseconds

DELAY_SECONDS = 0.5
IN_FLIGHT = (1, 16, 64, 256)
EPISODES = 1_000
_ROUNDS = 4
"""Calls that follow one another at each place; the start, when nothing is prepared yet, counts."""


def rate(path: Path, address: str, flight: int) -> dict[str, float]:
    """In this process: the share of the ideal rate, and what a judgement costs this process."""
    from benchmarks.judgement import FixedEmbedder, judge_on
    from benchmarks.workload import item
    from memalign import Item, Verdict
    from memalign.models.openai import OpenAIChatModel

    model = OpenAIChatModel("scripted", base_url=f"{address}/v1", api_key="none", concurrency=flight)
    judge = judge_on(path, FixedEmbedder(), model=model)
    judge.batch([Item(**item(number)) for number in range(2)])
    items = [Item(**item(1_000 + number)) for number in range(_ROUNDS * flight)]
    clock, processor = time.perf_counter(), time.process_time()
    results = judge.batch(items)
    seconds, processor = time.perf_counter() - clock, time.process_time() - processor
    judge.close()
    assert all(isinstance(result, Verdict) and result.episode_ids for result in results)
    return {"share": _ROUNDS * DELAY_SECONDS / seconds, "processor": processor / len(items)}


def measure(*, quick: bool = False) -> list[Row]:
    """One row for each number in flight."""
    from benchmarks.judgement import fill

    with tempfile.TemporaryDirectory() as folder, serving("--delay", str(DELAY_SECONDS)) as address:
        path = Path(folder) / "memory.db"
        fill(path, EPISODES)
        return [_row(flight, [_fresh(path, address, flight) for _ in range(2 if quick else 5)]) for flight in IN_FLIGHT]


def _fresh(path: Path, address: str, flight: int) -> dict[str, Any]:
    return fresh(["-m", "benchmarks.throughput", "--one", str(path), "--address", address, "--flight", str(flight)])


def _row(flight: int, runs: list[dict[str, Any]]) -> Row:
    shares, processor = [run["share"] for run in runs], median([run["processor"] for run in runs])
    shown = f"{median(shares):.2f} of ideal (best {max(shares):.2f}), {milliseconds(processor)} of processor time a judgement"
    target = ">= 0.9 of ideal" if flight == 64 else ""
    return Row(f"batch at {flight} in flight, 500 ms endpoint", shown, target, median(shares) >= 0.9 if target else None, {"runs": runs})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--flight", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(rate(options.one, options.address, options.flight)))
        sys.exit()
    for row in measure(quick=options.quick):
        print(json.dumps(row.to_dict()))
