"""All measurements, in one table: ``python -m benchmarks.run [--quick] [--only PART] [--peer-python PATH]``.

Writes ``benchmarks/results/latest.json`` and, from all that was measured last, ``docs/performance.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import align, inside_mlflow, judgement, opening, relations, scale, throughput
from benchmarks.measuring import ROOT, Row, facts

PARTS = ("opening", "judgement", "throughput", "scale", "align", "relations", "mlflow")
_TOLD = {"scale": scale.told, "mlflow": inside_mlflow.told}
"""Parts with results of their own, which are measured in pieces."""
_LATEST = ROOT / "benchmarks" / "results" / "latest.json"
_STATE = {True: "ok", False: "missed", None: ""}

_NOTES = """\
How it is measured: `python -m benchmarks.run`. The two sides of a comparison take turns in fresh processes with empty caches, and medians are
compared; the machine's cores are shared with other work, so ratios and the best of several runs say more than single times. The model is
scripted: 450 ms to the first token, 80 tokens a second, 250 ms an embedding call of any size; it gives both sides guidelines of the same words
for the same records, about one a theme and call. Judgements run one after the other on a memory in a file, five cases shown, with a model that
answers at once; what the embedder needs is told apart. "Beyond the model call" is wall time less the time the endpoint had the request. A batch
asks an endpoint in a process of its own, which shares the cores and tells log probabilities, and the ideal is what its delay alone allows. Synthetic
episodes have vectors in clusters ([retrieval](retrieval.md)); their numbers were measured at their date by `python -m benchmarks.scale`. Of the time
of `mlflow.genai.evaluate` all but a thirtieth is MLflow's own store of traces, in SQLite, which varies from run to run by a third. Why a target is
missed is told [here](decisions.md#speed-that-is-missed-and-why).
"""


def measured(parts: Sequence[str], *, quick: bool, peer_python: str) -> dict[str, list[Row]]:
    """The rows of the chosen parts; a part that fails is a row that says so."""
    work: dict[str, Callable[[], list[Row]]] = {
        "opening": lambda: opening.measure(quick=quick),
        "judgement": lambda: judgement.measure(quick=quick),
        "throughput": lambda: throughput.measure(quick=quick),
        "scale": lambda: scale.measure(quick=quick),
        "align": lambda: align.measure(quick=quick, peer_python=peer_python),
        "relations": relations.measure,
        "mlflow": lambda: inside_mlflow.measure(quick=quick, peer_python=peer_python),
    }
    found: dict[str, list[Row]] = {}
    for part in parts:
        started = time.perf_counter()
        try:
            found[part] = work[part]()
        except Exception as error:
            found[part] = [Row(part, f"failed: {type(error).__name__}: {str(error)[-300:]}", "", False)]
        print(f"{part}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return found


def remembered(part: str) -> list[Row]:
    """The rows of a part as it was measured last."""
    if part in _TOLD:
        return _TOLD[part]()
    kept = json.loads(_LATEST.read_text())["parts"] if _LATEST.exists() else {}
    return [Row(**row) for row in kept.get(part, [])]


def table(rows: Sequence[Row]) -> Table:
    """For a terminal."""
    made = Table("what", "measured", "target", "")
    for row in rows:
        made.add_row(row.what, row.measured, row.target, _STATE[row.ok])
    return made


def markdown(rows: Sequence[Row], machine: dict[str, Any]) -> str:
    """The page of the documentation."""
    peer = next((row.values["mlflow_version"] for row in rows if row.values.get("mlflow_version")), None)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items()) + (f"; MLflow {peer}" if peer else "")
    lines = ["# Performance", "", _NOTES, "| what | measured | target | |", "|---|---|---|---|"]
    lines += [f"| {row.what} | {row.measured} | {row.target} | {_STATE[row.ok]} |" for row in rows]
    where = f"{machine['cores']} shared cores, {machine['architecture']}, {machine['vector_instructions']}, {machine['system']}"
    lines += ["", f"{machine['date']}; {where}; Python {machine['python']}; {versions}.", ""]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter with mlflow, dspy and memalign")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part anew; the others as they were measured last")
    parser.add_argument("--page", action="store_true", help="measure nothing, and write the page of what was measured last")
    options = parser.parse_args()
    machine = facts()
    found = {} if options.page else measured(options.only or PARTS, quick=options.quick, peer_python=options.peer_python)
    every = {part: found.get(part) or remembered(part) for part in PARTS}
    Console().print(table([row for part in found or every for row in every[part]]))
    kept = {part: [row.to_dict() for row in rows] for part, rows in every.items() if part not in _TOLD}
    _LATEST.parent.mkdir(exist_ok=True)
    _LATEST.write_text(json.dumps({"machine": machine, "parts": kept}, indent=1) + "\n")
    Path(ROOT / "docs" / "performance.md").write_text(markdown([row for rows in every.values() for row in rows], machine))


if __name__ == "__main__":
    main()
