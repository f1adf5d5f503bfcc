"""What each part of memory is worth to the local 1.5B model: ``python -m benchmarks.ablation [--seconds 280]``, again until nothing is left to do.

Sets of ``../shared/data`` (or ``MEMALIGN_SHARED_DATA``): the shortest rows of each label, since the model reads some 30 tokens a second on two
cores. One judge a set learns from the training rows with ``verify="full"``; what verification refused is kept as candidates, so unverified guidelines
are these and the active ones together. Every verdict is kept in ``--folder`` as it comes, no prompt is read twice, and no row of a set is written
anywhere but there. Prints the tables, writes ``benchmarks/results/ablation.json``: figures, no texts.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import ROOT, facts
from memalign import Failure, Feedback, Judge, Scale, Verdict, edge
from memalign.agreement import paired
from memalign.judging import Caution
from memalign.recalling import Recall
from memalign.replaying import Replayer
from memalign.session import Meter

SHARED = Path(os.environ.get("MEMALIGN_SHARED_DATA", ROOT.parent / "shared" / "data"))
RESULTS = ROOT / "benchmarks" / "results" / "ablation.json"
MODEL = "local/qwen2.5-coder-1.5b"
TRAIN, TEST = 16, 24
SHOWN = 2
"""Similar cases in a prompt where cases are shown."""
RESAMPLES = 2000
_YES_NO, _SCORE = Scale.boolean(), Scale.score(1, 5)
SETS: dict[str, tuple[Scale, str]] = {
    "financebench": (_YES_NO, "Decide whether the output answers the question correctly, as the expected answer does."),
    "shepherd": (_SCORE, "Score how well the output meets the criterion. The expectations are an answer known to be good."),
    "defacto": (_YES_NO, "Decide whether the output is a faithful summary: everything it says is supported by the document."),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """Which parts of memory take part in a judgement."""

    name: str
    guidelines: str = ""
    """"" none, "all" that were distilled, "verified" those that passed."""
    cases: int = 0
    calibrated: bool = False
    """Model and the vote of all cases weighed on the training labels; calibrated under the verified guidelines."""


CONDITIONS = (
    Condition("unaligned"),
    Condition("guidelines", "all"),
    Condition("guidelines, verified", "verified"),
    Condition("guidelines, verified, calibrated", "verified", calibrated=True),
    Condition("episodes", cases=SHOWN),
    Condition("both", "all", cases=SHOWN),
    Condition("both, verified", "verified", cases=SHOWN),
)
_SHORT = 4
"""Conditions with short prompts: done for all sets before the others."""


class TimeUp(Exception):
    """The seconds of this run are over."""


def rows(name: str, half: str, size: int) -> list[dict[str, Any]]:
    """The shortest rows of a half, as many of each label, ties by id."""
    path = SHARED / f"{name}.{half}.jsonl"
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]  # texts may hold other line breaks
    by_label: dict[Any, list[dict[str, Any]]] = {}
    for row in sorted(found, key=lambda row: (_characters(row), row["id"])):
        by_label.setdefault(row["label"], []).append(row)
    return [row for label in sorted(by_label) for row in by_label[label][: size // len(by_label)]]


def feedback(row: dict[str, Any]) -> Feedback:
    """A row as an expert's feedback; nothing of it but inputs, outputs and reference is ever judged."""
    value, reason = row["label"], row["rationale"] or ""
    return Feedback(inputs=row["inputs"], outputs=row["outputs"], expectations=row["reference"], value=value, rationale=reason, id=row["id"])


class Run:
    """The work on one set, taken up where an earlier run stopped."""

    def __init__(self, name: str, folder: Path, ends: float, model: Any = MODEL) -> None:
        """``ends``: when to stop, by the monotonic clock. Opens nothing."""
        self.name, self.ends = name, ends
        self.journal = folder / f"{name}.jsonl"
        scale, instructions = SETS[name]
        self.judge = Judge(name, instructions, scale, model, memory=str(folder / f"{name}.db"))

    def on_time(self, _stage: str = "", _done: int = 0, _total: int = 0) -> None:
        """Stop when the time is up; what models said is kept."""
        if time.monotonic() > self.ends:
            raise TimeUp

    def told(self) -> list[dict[str, Any]]:
        """What the journal holds."""
        return [json.loads(line) for line in self.journal.read_text().splitlines()] if self.journal.exists() else []

    def tell(self, **found: Any) -> None:
        """Keep a finding."""
        with self.journal.open("a") as file:
            file.write(json.dumps(found) + "\n")

    def work(self, conditions: Sequence[Condition]) -> None:
        """All of these conditions that is not in the journal yet. Raises TimeUp."""
        steps = {line["step"] for line in self.told() if "step" in line}
        for step, do in (("align", self._align), ("calibrate", self._calibrate)):
            if step not in steps:
                self.on_time()
                started = time.monotonic()
                self.tell(step=step, **do(), seconds=time.monotonic() - started)
        done = {(line["condition"], line["id"]) for line in self.told() if "condition" in line}
        for condition in conditions:
            replay = self._replayer(condition)
            for row in rows(self.name, "test", TEST):
                if (condition.name, row["id"]) not in done:
                    self.on_time()
                    self._judge(condition, row, replay)

    def _align(self) -> dict[str, Any]:
        records = [feedback(row) for row in rows(self.name, "train", TRAIN)]
        report = self.judge.align(records, verify="full", progress=self.on_time)
        assert not report.failed_batches, report.failed_batches
        proof = report.verification
        figures = {name: len(getattr(proof, name)) for name in ("fixed", "broken", "refused")}
        return {"outcome": proof.outcome, **figures, "errors": proof.errors, "replays": proof.replays, "rejected": len(report.rejected)}

    def _calibrate(self) -> dict[str, Any]:
        found = self.judge.calibrate(sample=TRAIN)
        return {"note": found.note, "before": found.model_alone, "left_out": found.left_out}

    def _replayer(self, condition: Condition) -> Replayer:
        judge = self.judge
        recall = Recall(k=condition.cases, floor=judge.floor, own=False)
        return Replayer(judge.session, judge.task, recall, temperature=0.0, caution=Caution(fitted=condition.calibrated))

    def guidelines(self, which: str) -> list[Any]:
        """Those that a condition reads."""
        states = {"": (), "verified": ("active",), "all": ("active", "candidate")}[which]
        return [guideline for guideline in self.judge.memory.guidelines(all_states=True) if guideline.state in states]

    def _judge(self, condition: Condition, row: dict[str, Any], replay: Replayer) -> None:
        meter = Meter()
        item, guidelines = feedback(row).item, self.guidelines(condition.guidelines)

        async def once() -> Verdict | Failure:
            return await replay(meter, item, guidelines)

        verdict = edge.run(once())
        found: dict[str, Any] = {"condition": condition.name, "id": row["id"], "label": row["label"], "length": len(row["outputs"])}
        if isinstance(verdict, Failure):
            found |= {"error": verdict.error}
        else:
            read = sum(call.usage.prompt_tokens for call in meter.calls if call.purpose == "verify")
            shares = _shares(self.judge, verdict, condition)
            found |= {"value": verdict.value, "shares": shares, "tokens": read, "seconds": meter.seconds}
        self.tell(**found)


def _shares(judge: Judge, verdict: Verdict, condition: Condition) -> list[float] | None:
    """Probabilities of the labels; of a calibrated verdict only its own is told, which tells all of a boolean one."""
    if not condition.calibrated:
        return None if verdict.probabilities is None else [verdict.probabilities[label] for label in judge.scale.labels]
    if judge.scale.kind != "boolean" or verdict.confidence is None:
        return None
    chosen = judge.scale.values.index(verdict.value)
    return [verdict.confidence if place == chosen else 1.0 - verdict.confidence for place in range(2)]


# From verdicts to figures: pure functions


def ranked(worth: Any, labels: Any) -> float:
    """The share of pairs of different labels that are in the right order, ties half: the area under the ROC curve and its extension to scores."""
    more = labels[:, None] > labels
    right = (worth[:, None] > worth) + 0.5 * (worth[:, None] == worth)
    return float(right[more].mean()) if more.any() else float("nan")


def balanced_accuracy(values: Any, labels: Any) -> float:
    """Mean recall over the labels that occur."""
    return float(np.mean([(values[labels == label] == label).mean() for label in np.unique(labels)]))


def mean_error(values: Any, labels: Any) -> float:
    """Mean absolute error in points."""
    return float(np.abs(values - labels).mean())


def interval(measure: Callable[..., float], *columns: Any) -> list[float]:
    """A figure with its 95 % percentile bootstrap interval over items."""
    rng = np.random.default_rng(0)
    draws = [measure(*(column[places] for column in columns)) for places in rng.integers(len(columns[0]), size=(RESAMPLES, len(columns[0])))]
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return [measure(*columns), float(low), float(high)]


def figures(name: str, told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All that is reported of a set."""
    scale = SETS[name][0]
    judged = {condition.name: [line for line in told if line.get("condition") == condition.name] for condition in CONDITIONS}
    found: dict[str, Any] = {"steps": [line for line in told if "step" in line], "conditions": {}}
    plain = {line["id"]: line for line in judged["unaligned"] if "value" in line}
    if plain:
        labels = np.array([float(line["label"]) for line in plain.values()])
        lengths = np.array([float(line["length"]) for line in plain.values()])
        found["length alone"] = interval(ranked, lengths, labels)
    for condition, lines in judged.items():
        good = [line for line in lines if "value" in line]
        if len(good) < 8:
            continue
        labels, values = (np.array([float(line[key]) for line in good]) for key in ("label", "value"))
        kept: dict[str, Any] = {"n": len(good), "failures": len(lines) - len(good), "yes": float(values.mean())}
        kept["balanced accuracy"] = interval(balanced_accuracy, values, labels)
        if scale.kind == "score":
            kept["mean error"] = interval(mean_error, values, labels)
        if all(line["shares"] for line in good):
            worth = np.array([line["shares"] for line in good]) @ np.array(scale.values, dtype=float)
            kept["ranking"] = interval(ranked, worth, labels)
        kept["tokens"] = float(np.mean([line["tokens"] for line in good if line["tokens"]] or [0.0]))
        both = [line for line in good if line["id"] in plain]
        old, new = [plain[line["id"]]["value"] for line in both], [line["value"] for line in both]
        kept["against unaligned"] = paired(scale, [line["label"] for line in both], old, new).to_dict()
        found["conditions"][condition] = kept
    return found


def table(name: str, found: dict[str, Any]) -> Iterator[str]:
    """The lines of a set in Markdown."""
    score = SETS[name][0].kind == "score"
    yield f"| {name} | n | ranking | {'mean error | ' if score else ''}balanced accuracy | mended, broken (p) | mean verdict |"
    yield "|---|---|---|---|---|---|" + ("---|" if score else "")
    for condition, kept in found["conditions"].items():
        test = kept["against unaligned"]
        against = "" if condition == "unaligned" else f"{test['fixed']}, {test['broken']} ({test['p_value']:.2f})"
        error = f"{_told(kept['mean error'])} | " if score else ""
        ranking = _told(kept["ranking"]) if "ranking" in kept else ""
        yield f"| {condition} | {kept['n']} | {ranking} | {error}{_told(kept['balanced accuracy'])} | {against} | {kept['yes']:.2f} |"
    if "length alone" in found:
        yield f"| length alone | | {_told(found['length alone'])} |{' |' if score else ''} | | |"


def _told(found: Sequence[float]) -> str:
    value, low, high = (f"{number:.2f}" for number in found)
    return f"{value} ({low}-{high})"


def _characters(row: dict[str, Any]) -> int:
    return len(json.dumps(row["inputs"])) + len(row["outputs"]) + len(row["reference"] or "")


def report(folder: Path, names: Iterable[str] = SETS) -> dict[str, Any]:
    """Print the tables of all sets that have some; gives the figures."""
    found: dict[str, Any] = {}
    for name in names:
        told = Run(name, folder, 0.0).told()
        if told:
            sizes = {half: round(float(np.mean([_characters(row) for row in rows(name, half, size)]))) for half, size in _HALVES}
            found[name] = {"characters": sizes, **figures(name, told)}
            print("\n".join(table(name, found[name])), end="\n\n", flush=True)
    return {"machine": facts(), "model": MODEL, "train": TRAIN, "test": TEST, "shown": SHOWN, "sets": found}


_HALVES = (("train", TRAIN), ("test", TEST))


def main() -> int:
    """Work until the time is up; 3: there is more to do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many; run it again to go on")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "memalign-ablation", help="verdicts and memories of this work")
    parser.add_argument("--set", choices=SETS, action="append", help="these sets only")
    parser.add_argument("--report", action="store_true", help="only tell what was found so far")
    options = parser.parse_args()
    if not any(SHARED.glob("*.jsonl")):
        print(f"the labelled sets are not there ({SHARED}); MEMALIGN_SHARED_DATA names their folder")
        return 1
    options.folder.mkdir(parents=True, exist_ok=True)
    ends, more = time.monotonic() + options.seconds, False
    runs = [] if options.report else [Run(name, options.folder, ends) for name in options.set or SETS]
    try:
        for conditions in (CONDITIONS[:_SHORT], CONDITIONS[_SHORT:]):
            for run in runs:
                run.work(conditions)
    except TimeUp:
        more = True
    finally:
        for run in runs:
            run.judge.close()
    found = report(options.folder)
    if found["sets"]:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    return 3 if more else 0


if __name__ == "__main__":
    raise SystemExit(main())
