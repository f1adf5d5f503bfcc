"""What to label next, against random choice: ``python -m benchmarks.suggestion [--seeds 40]``. No model is called.

A pool is labelled six items at a time, chosen by memalign or at random; after each round the vote of the labelled cases ranks the held-out items
(area under the ROC curve). Sets: the demo's 64 cases, and those of ``../shared/data`` when it is there. Groups are never split between pool and
held-out items; both ways see the same splits. Writes ``docs/suggestions.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import ROOT
from memalign.demo import cases
from memalign.embedders import open_embedder
from memalign.labelling import chosen, near, value_of_asking
from memalign.memory.vote import cast, point
from memalign.records import Item
from memalign.rendering import search_text
from memalign.scale import Scale

SHARED = ROOT.parent / "shared" / "data"
SETS = ("nq301", "hotpotqa_gold", "defacto", "medredteam", "financebench", "shepherd")
ROUND, ROUNDS, HELD_OUT = 6, 4, 0.4
YES_NO = Scale.boolean()

_HEAD = """\
# What to label next, against random choice

Measured by `python -m benchmarks.suggestion`; no model is called. Items are labelled six at a time, chosen by `suggest` or at random, and the vote of
the labelled cases ranks held-out items (area under the ROC curve after 6, 12, 18 and 24 labels; 40 % of the groups held out). The gain is the mean
difference over the four rounds, with its 95 % interval over random splits of the same items: it says how sure the difference is for these items, not
for others. Scores of shepherd count as yes from 4 on. The judge's own confidence takes no part here.

| set | items | splits | suggested | random | gain |
|---|---|---|---|---|---|
"""

Row = tuple[Item, bool, str]
"""Item, the expert's verdict (of a score: 4 or 5), and its group."""


def rows(name: str) -> Iterator[Row]:
    if name == "demo":
        for record in [*cases("feedback"), *cases("unseen")]:
            yield record.item, record.value, json.dumps(record.inputs, sort_keys=True)
        return
    for path in sorted(SHARED.glob(f"{name}.*.jsonl")):
        for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n"):  # texts may hold other line breaks
            row = json.loads(line)
            label = row["label"] if row["label_type"] == "bool" else row["label"] >= 4
            yield Item(inputs=row["inputs"], outputs=row["outputs"], expectations=row["reference"]), label, row["group"]


def auc(scores: Any, labels: Any) -> float:
    above, below = scores[labels], scores[~labels]
    return float((above[:, None] > below).mean() + 0.5 * (above[:, None] == below).mean()) if len(above) and len(below) else float("nan")


def ballot(vectors: Any, labels: Any, known: list[int]) -> Any:
    return cast({str(place): point(YES_NO, [bool(labels[place])]) for place in known}, lambda key: vectors[int(key)])


def suggested(vectors: Any, labels: Any, known: list[int], pool: list[int]) -> list[int]:
    """As ``Judge.suggest`` chooses without calls, once calibration lets the vote count."""
    found = near(YES_NO, vectors[pool], vectors[known] if known else None, [[bool(labels[place])] for place in known])
    doubt = np.zeros(len(pool))
    if known:
        votes = vectors[pool] @ ballot(vectors, labels, known).vectors.T @ ballot(vectors, labels, known).weights[:, 0]
        doubt = 1.0 - np.minimum(1.0, 2.0 * np.abs(votes))
    return [pool[row] for row, _ in chosen(vectors[pool], value_of_asking(doubt, found.contested, found.distance), found.distance, ROUND)]


def curve(vectors: Any, labels: Any, held_out: Any, rng: np.random.Generator, *, random: bool) -> list[float]:
    pool, known, found = list(np.flatnonzero(~held_out)), [], []
    for _ in range(ROUNDS):
        picked = list(rng.choice(pool, ROUND, replace=False)) if random else suggested(vectors, labels, known, pool)
        known += [int(place) for place in picked]
        pool = [place for place in pool if place not in set(known)]
        made = ballot(vectors, labels, known)
        found.append(auc(vectors[held_out] @ made.vectors.T @ made.weights[:, 0], labels[held_out]))
    return found


def measured(name: str, seeds: int) -> dict[str, Any]:
    found = list(rows(name))
    embedder = open_embedder("local/minilm")
    vectors = asyncio.run(embedder.embed([search_text(item) for item, _, _ in found]))
    labels = np.array([label for _, label, _ in found])
    groups = np.unique([group for _, _, group in found], return_inverse=True)[1]
    ours, chance = [], []
    for seed in range(seeds):
        out = np.random.default_rng(seed).permutation(groups.max() + 1)[: int((groups.max() + 1) * HELD_OUT)]
        held_out = np.isin(groups, out)
        ours.append(curve(vectors, labels, held_out, np.random.default_rng(seed), random=False))
        chance.append(curve(vectors, labels, held_out, np.random.default_rng(seed), random=True))
    gain = (np.array(ours) - np.array(chance)).mean(axis=1)
    half = 1.96 * gain.std(ddof=1) / np.sqrt(seeds)
    return {
        "set": name,
        "n": len(found),
        "seeds": seeds,
        "suggested": np.nanmean(ours, axis=0).round(3).tolist(),
        "random": np.nanmean(chance, axis=0).round(3).tolist(),
        "gain": float(gain.mean()),
        "low": float(gain.mean() - half),
        "high": float(gain.mean() + half),
    }


def page(results: list[dict[str, Any]]) -> str:
    lines = [
        f"| {r['set']} | {r['n']} | {r['seeds']} | {' '.join(f'{v:.2f}' for v in r['suggested'])} | {' '.join(f'{v:.2f}' for v in r['random'])} "
        f"| {r['gain']:+.3f} ({r['low']:+.3f} to {r['high']:+.3f}) |"
        for r in results
    ]
    return _HEAD + "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=40)
    options = parser.parse_args()
    names = ["demo", *(name for name in SETS if any(SHARED.glob(f"{name}.*.jsonl")))]
    results = []
    for name in names:
        results.append(measured(name, options.seeds))
        print(json.dumps(results[-1]), flush=True)
    if len(names) == 1:
        print("the labelled sets are not there: the demo's cases only")
    Path(ROOT / "docs" / "suggestions.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
