"""Which cases are retrieved: do experts judge them as they judge the item? On the labelled sets beside the repository, read in place.

``python -m benchmarks.retrieval [--vectors FOLDER] [--sets NAME ...]`` writes ``benchmarks/results/retrieval.json`` and ``.png``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.measuring import ROOT, facts
from memalign.embedders.minilm import MiniLM
from memalign.memory.retrieval import Fact, ItemIndex
from memalign.memory.retrieval.filters import admitted
from memalign.memory.retrieval.fusion import fused
from memalign.records import Item, content_hash
from memalign.rendering import item_text, search_text, value_text
from memalign.retrieval import Retrieval

DATA = ROOT.parent / "shared" / "data"
K = 5
RESAMPLES = 1000
_PLAIN = Retrieval(verdict_margin=0, error_margin=0, alike=2)
_WORDS = Retrieval(words=True, verdict_margin=0, error_margin=0, alike=2)
_LABELS = Retrieval(error_margin=0)
_BOTH = Retrieval(words=True, error_margin=0)

WAYS: Mapping[str, tuple[str, Retrieval]] = {
    "input (the reference's way)": ("input", _PLAIN),
    "input + output": ("both", _PLAIN),
    "output": ("output", _PLAIN),
    "input and output, two vectors": ("input output", _PLAIN),
    "words alone": ("words", _WORDS),
    "hybrid: output, words": ("output", _WORDS),
    "output, label-aware": ("output", _LABELS),
    "hybrid, label-aware": ("output", _BOTH),
}
MEASURES = ("same verdict", "both verdicts", "vote agrees")


@dataclass(frozen=True, slots=True)
class Row:
    """A labelled item."""

    item: Item
    label: str
    group: str
    training: bool


def rows_of(name: str) -> list[Row]:
    """A set, both of its splits."""
    found = []
    for split in ("train", "test"):
        path = DATA / f"{name}.{split}.jsonl"
        for line in path.read_text(encoding="utf-8").strip().split("\n") if path.exists() else ():
            row = json.loads(line)
            found.append(Row(Item(inputs=row["inputs"], outputs=row["outputs"]), json.dumps(row["label"]), str(row["group"]), split == "train"))
    return found


def texts_of(item: Item) -> dict[str, str]:
    """The texts that could be embedded."""
    output = value_text(item.outputs)
    return {"input": value_text(item.inputs), "output": search_text(item), "both": f"{value_text(item.inputs)}\n{output}"}


def embedded(name: str, texts: Sequence[str], folder: Path | None) -> dict[str, npt.NDArray[np.float32]]:
    """Text -> vector; kept in a folder, if one is given, since this takes minutes."""
    path = None if folder is None else folder / f"{name}.npz"
    known: dict[str, Any] = {}
    if path is not None and path.exists():
        stored = np.load(path)
        known = dict(zip(stored["keys"].tolist(), stored["v"], strict=True))
    missing = sorted({text for text in texts if content_hash(text) not in known})
    if missing:
        print(f"{name}: {len(missing)} texts are embedded", flush=True)
        known |= dict(zip(map(content_hash, missing), asyncio.run(MiniLM().embed(missing)), strict=True))
        if path is not None:
            np.savez(path, keys=np.array(list(known)), v=np.stack(list(known.values())))
    return {text: known[content_hash(text)] for text in texts}


def index_of(rows: Sequence[Row], text: str, vectors: Mapping[str, Any], *, words: bool) -> ItemIndex:
    """What memory would search, with one of the texts embedded."""
    index = ItemIndex(words=words)
    given = [Fact(row=place, value=row.label, annotator="", source=row.group, missed=False, time=0.0) for place, row in enumerate(rows)]
    fresh, places = index.enter([row.item.id for row in rows], given)
    first = [rows[place].item for place in places.tolist()]
    index.put(fresh, np.stack([vectors[texts_of(item)[text]] for item in first]))
    if index.lexical is not None:
        index.lexical.add(0, [item_text(item) for item in first])
    return index


def found(way: str, item: Item, indices: Mapping[str, ItemIndex], vectors: Mapping[str, Any], groups: tuple[str, ...]) -> list[str]:
    """The ids of the items of some groups that one way retrieves, best first."""
    text, settings = WAYS[way]
    settings, plain = replace(settings, sources=groups), replace(_PLAIN, sources=groups)
    texts = texts_of(item)
    if text == "words":
        index = indices["output"]
        assert index.lexical is not None
        slots, _ = index.lexical.nearest(item_text(item), K, admitted(index.facts, plain, len(index.ids)))
        return [index.ids.id(slot) for slot in slots.tolist()]
    if " " in text:
        names = text.split()
        rankings = [[key for key, _ in indices[name].nearest(vectors[texts[name]], 64, retrieval=plain)] for name in names]
        ids = sorted(set().union(*rankings))
        return [ids[place] for place in fused([[ids.index(key) for key in ranking] for ranking in rankings])[:K]]
    return [key for key, _ in indices[text].nearest(vectors[texts[text]], K, retrieval=settings, text=item_text(item))]


def scores(query: Row, cases: Sequence[str], labels: Mapping[str, str]) -> tuple[float, float, float]:
    """Share of cases with the query's verdict; whether there are several verdicts; whether most cases (of equals, the nearest) have its verdict."""
    given = [labels[case] for case in cases]
    if not given:
        return 0.0, 0.0, 0.0
    counts = Counter(given)
    vote = max(counts, key=lambda label: (counts[label], -given.index(label)))
    return counts[query.label] / len(given), float(len(counts) > 1), float(vote == query.label)


def measured(name: str, folder: Path | None) -> dict[str, Any]:
    """Per way, the scores of each query: from the training half alone, and from all other groups."""
    rows = rows_of(name)
    vectors = embedded(name, [text for row in rows for text in texts_of(row.item).values()], folder)
    results: dict[str, Any] = {}
    training = [row for row in rows if row.training]
    if training:
        results["split"] = _asked(training, [row for row in rows if not row.training], vectors)
    results["other groups"] = _asked(rows, rows, vectors)
    return {"items": len(rows), "training": len(training), "labels": dict(Counter(row.label for row in rows)), "results": results}


def _asked(memory: Sequence[Row], queries: Sequence[Row], vectors: Mapping[str, Any]) -> dict[str, list[tuple[float, float, float]]]:
    results: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    labels = {row.item.id: row.label for row in memory}
    indices = {text: index_of(memory, text, vectors, words=text == "output") for text in ("input", "output", "both")}
    groups = dict.fromkeys(row.group for row in memory)
    for query in queries:
        others = tuple(group for group in groups if group != query.group)
        for way in WAYS:
            results[way].append(scores(query, found(way, query.item, indices, vectors, others), labels))
    return results


def interval(values: npt.NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """The mean and its 95 % bootstrap interval over queries."""
    luck = np.random.default_rng(seed)
    means = values[luck.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    return float(values.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def summary(sets: Mapping[str, Any], split: str) -> dict[str, dict[str, dict[str, tuple[float, float, float]]]]:
    """Set -> way -> measure -> mean and interval; "all sets" is the mean of the sets' means, resampled within each."""
    made: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {}
    for name, one in sets.items():
        if split in one["results"]:
            made[name] = {way: {m: interval(np.array(got)[:, at]) for at, m in enumerate(MEASURES)} for way, got in one["results"][split].items()}
    luck = np.random.default_rng(1)
    used = [sets[name]["results"][split] for name in made]
    made["all sets"] = {}
    for way in WAYS:
        arrays = [np.array(one[way]) for one in used]
        means = np.mean([values[luck.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1) for values in arrays], axis=0)
        centre = np.mean([values.mean(axis=0) for values in arrays], axis=0)
        low, high = np.quantile(means, (0.025, 0.975), axis=0)
        made["all sets"][way] = {m: (float(centre[at]), float(low[at]), float(high[at])) for at, m in enumerate(MEASURES)}
    return made


def differences(sets: Mapping[str, Any], split: str, base: str) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Way -> measure -> mean over sets of the paired difference to a base, with its interval."""
    luck = np.random.default_rng(2)
    used = [one["results"][split] for one in sets.values() if split in one["results"]]
    made = {}
    for way in WAYS:
        arrays = [np.array(one[way]) - np.array(one[base]) for one in used]
        means = np.mean([values[luck.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1) for values in arrays], axis=0)
        centre = np.mean([values.mean(axis=0) for values in arrays], axis=0)
        low, high = np.quantile(means, (0.025, 0.975), axis=0)
        made[way] = {m: (float(centre[at]), float(low[at]), float(high[at])) for at, m in enumerate(MEASURES)}
    return made


def table(made: Mapping[str, Any], measure: str) -> list[str]:
    """A Markdown table: ways down, sets across."""
    lines = ["| | " + " | ".join(made) + " |", "|---" * (len(made) + 1) + "|"]
    for way in WAYS:
        cells = [f"{one[way][measure][0]:.2f} ({one[way][measure][1]:.2f}-{one[way][measure][2]:.2f})" for one in made.values()]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return lines


def plot(made: Mapping[str, Any], path: Path) -> None:
    """Share of cases with the expert's verdict, per set and way, with intervals."""
    import altair as alt

    values = [
        {"set": name, "way": way, "measure": m, "mean": got[0], "low": got[1], "high": got[2]}
        for name, one in made.items()
        for way, by in one.items()
        for m, got in by.items()
    ]
    base = alt.Chart(alt.Data(values=values)).encode(y=alt.Y("way:N", sort=list(WAYS), title=None))
    points = base.mark_point(filled=True, size=40).encode(x=alt.X("mean:Q", title=None, scale=alt.Scale(domain=[0, 1])))
    bars = base.mark_rule().encode(x="low:Q", x2="high:Q")
    chart = (points + bars).properties(width=110, height=110).facet(row=alt.Row("measure:N", title=None), column=alt.Column("set:N", title=None))
    chart.save(str(path), ppi=110)


def written(sets: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summary of each split, and the differences to output alone; both are kept beside the plot."""
    folder = ROOT / "benchmarks" / "results"
    made = {split: summary(sets, split) for split in ("split", "other groups")}
    paired = {split: differences(sets, split, "output") for split in made}
    about = {name: {key: value for key, value in one.items() if key != "results"} for name, one in sets.items()}
    results = {"machine": facts(), "sets": about, "k": K, "measured": made, "against output": paired}
    (folder / "retrieval.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(made["other groups"], folder / "retrieval.png")
    return made, paired


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=Path, help="a folder that keeps the vectors between runs")
    parser.add_argument("--sets", nargs="*", help="these sets only")
    options = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"the labelled sets are not at {DATA}; nothing is measured")
    names = options.sets or sorted({path.name.split(".")[0] for path in DATA.glob("*.test.jsonl")})
    sets = {name: measured(name, options.vectors) for name in names}
    made, paired = written(sets)
    for split, one in made.items():
        for measure in MEASURES:
            print(f"\n{split}: {measure}\n" + "\n".join(table(one, measure)))
        for way, by in paired[split].items():
            print(way, {m: f"{got[0]:+.3f} ({got[1]:+.3f} to {got[2]:+.3f})" for m, got in by.items()})


if __name__ == "__main__":
    main()
