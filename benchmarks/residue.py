"""What is left of purged records, in a memory and its exports, and how long taking back takes.

Run: python -m benchmarks.residue [--records 10000] [--postgres]; it writes benchmarks/results/residue.json.

A scripted model copies planted phrases from what it is shown into guidelines and rationales; nothing here says anything of a model's quality. Of a
server's files its log of changes is left out, which docs/postgresql.md speaks of.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.crashes import Base, File, Served, own_server
from benchmarks.measuring import ROOT, facts
from memalign import Feedback, Judge, Scale
from memalign.embedders.scripted import HashEmbedder
from memalign.memory.archive import zstd
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


def found(*data: bytes) -> dict[str, int]:
    """How many phrases of each kind stand in some bytes."""
    return {kind: sum(any(f"zq{kind}{number}x".encode() in part for part in data) for number in range(10)) for kind in KINDS}


def exported(judge: Judge, folder: str) -> tuple[Path, bytes]:
    """An export, and all that it says."""
    path = Path(folder) / "residue.export"
    judge.memory.export(path, log=True, overwrite=True)
    return path, zstd.decompress(path.read_bytes())


def opened(location: str) -> Judge:
    return Judge("residue", "Is it good?", Scale.boolean(), ScriptedChatModel(copying), memory=location, embedder=HashEmbedder(384), floor=0.0)


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


def measured(records: int, base: Base) -> dict[str, Any]:
    """Plant, learn, judge, export; purge; look everywhere, also after the old export was brought in again."""
    with tempfile.TemporaryDirectory() as folder:
        judge = opened(base.location)
        judge.align([planted(number) for number in range(10)])
        judge.align([plain(number) for number in range(records)])
        judge.batch([planted(number) for number in range(10)])
        before = found(*base.files().values())
        old, told = exported(judge, folder)
        old = old.rename(f"{folder}/old.export")
        rest = [plain(number) for number in range(0, records, max(1, records // 50))]
        agreed = agreement(judge, rest)
        preview_seconds, _ = timed(lambda: judge.preview("purge", source="zqsource1x"))
        purge_seconds, report = timed(lambda: judge.purge([planted(number).id for number in range(10)]))
        left, agreed_after = found(*base.files().values()), agreement(judge, rest)
        new, told_after = exported(judge, folder)
        brought = judge.memory.import_(old)
        judge.align()
        result = {
            "records": records,
            "planted": before,
            "left": left,
            "in_the_export_before": found(told),
            "in_the_export_after": found(told_after, new.read_bytes()),
            "after_the_old_export_was_imported": found(*base.files().values()),
            "kept_out_of_that_import": brought.buried,
            "residue": dict(report.residue),
            "erased": report.erased,
            "preview_seconds": preview_seconds,
            "purge_10_seconds": purge_seconds,
            "nearest_cases_agreement": [agreed, agreed_after],
            "nearest_cases_n": len(rest),
        }
        judge.close()
        return result


def takes(base: Base) -> dict[str, Any]:
    """Seconds of unalign of 10 of 1,000 (median of 5), with those of the processor, and of one overwrite (one distillation round)."""
    judge = opened(base.location)
    judge.align([plain(number) for number in range(990)])
    judge.align([planted(number) for number in range(10)])
    judge.memory.view()
    unaligned, processor = [], []
    for part in range(5):
        started = time.process_time()
        unaligned.append(timed(lambda part=part: judge.unalign([f"plain-{part * 10 + n}" for n in range(10)]))[0])
        processor.append(time.process_time() - started)
    calls = len(judge.session.reflection_model.requests)
    overwritten, _ = timed(lambda: judge.overwrite(Feedback(id="zqid1x", inputs="x", outputs="y", value=True, rationale="heed zqreason99x")))
    rounds = len(judge.session.reflection_model.requests) - calls
    judge.close()
    return {
        "unalign_10_of_1000_seconds": sorted(unaligned)[2],
        "unalign_10_of_1000_processor_seconds": sorted(processor)[2],
        "overwrite_1_seconds": overwritten,
        "overwrite_model_calls": rounds,
    }


PLACES = {
    "before": "planted",
    "after": "left",
    "export before": "in_the_export_before",
    "export after": "in_the_export_after",
    "old export imported": "after_the_old_export_was_imported",
}


def main() -> None:
    """Measure, print the table, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--postgres", action="store_true", help="on a PostgreSQL server instead of files")
    parser.add_argument("--json", action="store_true", help="only print the result; nothing is written")
    options = parser.parse_args()
    machine = facts()
    with tempfile.TemporaryDirectory() as folder, own_server() if options.postgres else nullcontext() as server:
        bases: list[Base] = [File(Path(folder) / name) if server is None else Served(server, name) for name in ("residue", "takes")]
        result = measured(options.records, bases[0]) | takes(bases[1])
    if options.json:
        print(json.dumps(result))
        return
    print("planted in  " + "".join(f"{place:>21}" for place in PLACES))
    for kind in KINDS:
        print(f"{kind:<12}" + "".join(f"{result[name][kind]:>21}" for name in PLACES.values()))
    for name, value in result.items():
        if name not in PLACES.values():
            print(f"{name}: {value}")
    results = ROOT / "benchmarks" / "results" / "residue.json"
    known = json.loads(results.read_text()) if results.exists() else {}
    known["PostgreSQL" if options.postgres else "SQLite"] = {"machine": machine, **result}
    results.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
