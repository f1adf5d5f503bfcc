"""What is left of purged records, and how long taking back takes.

Run: python -m benchmarks.residue [--records 10000]

A scripted model copies planted phrases from what it is shown into guidelines and rationales; nothing here says anything of a model's quality.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from memalign import Feedback, Judge, Scale
from memalign.embedders.scripted import HashEmbedder
from memalign.models import ChatRequest
from memalign.models.scripted import ScriptedChatModel

KINDS = ("input", "output", "reason", "id", "source")
PLANTED = re.compile(r"zq[a-z]+\d+x")
CASE = re.compile(r"^Case (\d+)$.*?^Expert: ([^.\n]+)\.[ ]?([^\n]*)$", re.MULTILINE | re.DOTALL)


def copying(request: ChatRequest) -> Any:
    text = request.messages[-1].content
    if request.purpose == "judge":
        seen = sorted(set(PLANTED.findall("".join(message.content for message in request.messages))))
        return {"rationale": f"Because of {' '.join(seen)}.", "verdict": "yes"}
    if request.purpose != "distil":
        return {"groups": []}
    planted = [(int(number), PLANTED.findall(reason)) for number, _, reason in CASE.findall(text)]
    operations = [{"op": "add", "when": f"case {n} comes", "decide": f"heed {' '.join(w)}", "because": "", "cases": [n]} for n, w in planted if w]
    return {"operations": operations}


def planted(number: int) -> Feedback:
    plant = {kind: f"zq{kind}{number}x" for kind in KINDS}
    return Feedback(
        id=plant["id"],
        inputs=f"Where is {plant['input']}?",
        outputs=f"It is with {plant['output']}, and will be there for some more days, sorry.",
        value=False,
        rationale=f"Never tell them {plant['reason']}.",
        source=plant["source"],
    )


def plain(number: int) -> Feedback:
    words = f"Dear customer {number}, your parcel number {number * 7919 % 100003} leaves tomorrow from hall {number % 97}."
    return Feedback(inputs=f"Question {number}", outputs=words, value=bool(number % 2), id=f"plain-{number}")


def found(folder: Path) -> dict[str, int]:
    data = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return {kind: sum(f"zq{kind}{number}x".encode() in data for number in range(10)) for kind in KINDS}


def opened(path: Path) -> Judge:
    return Judge("residue", "Is it good?", Scale.boolean(), ScriptedChatModel(copying), memory=str(path), embedder=HashEmbedder(384), floor=0.0)


def agreement(judge: Judge, records: list[Feedback]) -> float:
    """Share of records whose nearest five cases, by majority, say what the expert said; their own case hidden."""
    view, right = judge.memory.view(), 0
    for record in records:
        query = asyncio.run(judge.session.embedder.embed([record.outputs]))[0]
        near = judge.memory.cases(view, record.item.id, query, k=5, floor=-1.0, own=False).episodes
        right += (sum(1 if each.feedback.value else -1 for each in near) > 0) is record.value
    return right / len(records)


def timed(call: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def measured(records: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        judge = opened(Path(folder) / "residue.db")
        judge.align([planted(number) for number in range(10)])
        judge.align([plain(number) for number in range(records)])
        judge.batch([planted(number) for number in range(10)])
        before = found(Path(folder))
        rest = [plain(number) for number in range(0, records, max(1, records // 50))]
        agreed = agreement(judge, rest)
        preview_seconds, _ = timed(lambda: judge.preview("purge", source="zqsource1x"))
        purge_seconds, report = timed(lambda: judge.purge([planted(number).id for number in range(10)]))
        result = {
            "records": records,
            "planted": before,
            "left": found(Path(folder)),
            "residue": dict(report.residue),
            "erased": report.erased,
            "preview_seconds": preview_seconds,
            "purge_10_seconds": purge_seconds,
            "nearest_cases_agreement": [agreed, agreement(judge, rest)],
            "nearest_cases_n": len(rest),
        }
        judge.close()
        return result


def takes() -> dict[str, float]:
    """Seconds of unalign of 10 of 1,000 (median of 5) and of one overwrite (one distillation round)."""
    with tempfile.TemporaryDirectory() as folder:
        judge = opened(Path(folder) / "takes.db")
        judge.align([plain(number) for number in range(990)])
        judge.align([planted(number) for number in range(10)])
        judge.memory.view()
        unaligned = [timed(lambda part=part: judge.unalign([f"plain-{part * 10 + n}" for n in range(10)]))[0] for part in range(5)]
        calls = len(judge.session.reflection_model.requests)
        overwritten, _ = timed(lambda: judge.overwrite(Feedback(id="zqid1x", inputs="x", outputs="y", value=True, rationale="heed zqreason99x")))
        rounds = len(judge.session.reflection_model.requests) - calls
        judge.close()
        return {"unalign_10_of_1000_seconds": sorted(unaligned)[2], "overwrite_1_seconds": overwritten, "overwrite_model_calls": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measured(options.records) | takes()
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{'planted in':<12}{'before':>8}{'after the purge':>18}")
    for kind in KINDS:
        print(f"{kind:<12}{result['planted'][kind]:>8}{result['left'][kind]:>18}")
    for name, value in result.items():
        if name not in ("planted", "left"):
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
