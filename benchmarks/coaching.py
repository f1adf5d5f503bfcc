"""Whether the coach tells usable reasons from others: ``python -m benchmarks.coaching [--seconds 280]``, again until nothing is left to do.

The 48 reasons of ``reasons.jsonl`` were written for this, about a library's answers: 17 are usable, 11 vague, 10 repeat the verdict, 10
contradict one of five guidelines. Compared are the whole coach with the local 1.5B model, and what it says without a call (a missing reason, or
one whose words all belong to the verdict). Writes ``benchmarks/results/coaching.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import ROOT, facts
from benchmarks.relations import shown
from memalign import Feedback, Judge, MemalignError, Scale
from memalign.alignment.coach import plain_problem

PROBLEMS = ("none", "vague", "repeats", "contradicts")
RESULTS = ROOT / "benchmarks" / "results" / "coaching.json"
INSTRUCTIONS = "Decide whether the answer is one that our library would send to a reader."
GUIDELINES = (
    "Name the shelf mark of every book that is mentioned.",
    "Never tell which reader has borrowed a book.",
    "Give opening hours as times on the clock, not as parts of the day.",
    "Keep an answer below five sentences.",
    "Send readers to the desk only when a person is needed.",
)


def rows() -> list[dict[str, Any]]:
    """The labelled reasons."""
    lines = Path(__file__).with_name("reasons.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def work(journal: Path, seconds: float, model: str) -> bool:
    """Coach what the journal does not hold yet; whether all is done."""
    told = {json.loads(line)["id"] for line in journal.read_text().splitlines()} if journal.exists() else set()
    ends = time.monotonic() + seconds
    judge = Judge("library", INSTRUCTIONS, Scale.boolean(), model)
    for text in GUIDELINES:
        judge.memory.add(text)
    try:
        for row in rows():
            if row["id"] in told:
                continue
            if time.monotonic() > ends:
                return False
            record = Feedback(outputs=row["outputs"], value=row["value"], rationale=row["rationale"])
            plain, started = plain_problem(judge.scale, record), time.monotonic()
            found = {"id": row["id"], "problem": row["problem"], "with": row["with"], "plain": plain}
            try:
                advice = judge.coach(record)
                found |= {"said": advice.problem, "against": advice.contradicts, "message": advice.message, "question": advice.question}
            except MemalignError as error:
                found |= {"said": "none", "against": "", "error": str(error)}
            with journal.open("a") as file:
                file.write(json.dumps(found | {"seconds": time.monotonic() - started}, ensure_ascii=False) + "\n")
    finally:
        judge.close()
    return True


def figures(named: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Precision and recall of each problem, and of "not usable", from (true, said) pairs."""
    found = {}
    for problem in PROBLEMS:
        hits = sum(true == said == problem for true, said in named)
        found[problem] = {
            "precision": shown(hits, sum(said == problem for _, said in named)),
            "recall": shown(hits, sum(true == problem for true, _ in named)),
        }
    stopped = [(true != "none", said != "none") for true, said in named]
    hits = sum(true and said for true, said in stopped)
    found["not usable"] = {
        "precision": shown(hits, sum(said for _, said in stopped)),
        "recall": shown(hits, sum(true for true, _ in stopped)),
    }
    return found


def report(journal: Path, model: str) -> dict[str, Any]:
    """All figures of what was coached so far."""
    told = [json.loads(line) for line in journal.read_text().splitlines()]
    named = [(line["problem"], line["said"]) for line in told]
    against = [line["with"] == line["against"] for line in told if line["problem"] == line["said"] == "contradicts"]
    seconds = sorted(line["seconds"] for line in told)
    return {
        "machine": facts(),
        "model": model,
        "n": len(told),
        "coach": figures(named),
        "without a call": figures([(line["problem"], line["plain"]) for line in told]),
        "accuracy": shown(sum(true == said for true, said in named), len(named)),
        "confusion": {f"{true} as {said}": count for (true, said), count in sorted(Counter(named).items())},
        "right guideline": shown(sum(against), len(against)),
        "unreadable": sum("error" in line for line in told),
        "without a scope question": sum(not line.get("question") for line in told if line["said"] == "none"),
        "median seconds": round(seconds[len(seconds) // 2], 1),
    }


def main() -> int:
    """Coach, print, write; 3: there is more to do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="local/qwen2.5-coder-1.5b")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many; run it again to go on")
    parser.add_argument("--journal", type=Path, default=Path(tempfile.gettempdir()) / "memalign-coaching.jsonl", help="what was said so far")
    options = parser.parse_args()
    done = work(options.journal, options.seconds, options.model)
    found = report(options.journal, options.model)
    print(json.dumps(found, indent=1))
    if done:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if done else 3


if __name__ == "__main__":
    raise SystemExit(main())
