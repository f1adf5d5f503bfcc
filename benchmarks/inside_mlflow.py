"""MLflow's MemAlign and ours inside MLflow: align, align more, unalign, judge, evaluate, load; one scripted endpoint, in turn.

Traces with human feedback are logged once a size and both sides work on copies of that store. Each side runs in a fresh process with empty caches,
warmed up by a call of both models before the clock starts. MLflow runs with its defaults; both embed through the endpoint.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import endpoint
from benchmarks.measuring import ROOT, Row, beside_mlflow, facts, fresh, median
from benchmarks.workload import INSTRUCTIONS, item, later_records, records

SIDES = ("ours", "mlflow")
SIZES = (50, 100, 200, 1000)
MORE, ROWS, EVALUATED = 10, 500, 200
RESULTS = ROOT / "benchmarks" / "results" / "inside_mlflow.json"
MODEL, EMBEDDING = "openai:/gpt-4.1-mini", "openai:/text-embedding-3-small"
_JUDGED = 6
_WARM = 2
_HOMES = {"ours": "memalign.integrations.mlflow", "mlflow": "mlflow.genai.judges.optimizers"}


def prepare(folder: Path, size: int) -> dict[str, Any]:
    """Log the traces of one size, and ten more, with an expert's feedback each."""
    import mlflow
    from mlflow.entities import AssessmentSource, AssessmentSourceType

    _connect(folder)
    source = AssessmentSource(source_type=AssessmentSourceType.HUMAN, source_id="ann")
    ids = []
    for record in [*records(size), *later_records(MORE, start=size), *records(_WARM, start=900_000)]:
        with mlflow.start_span("reply") as span:
            span.set_inputs(record.inputs)
            span.set_outputs(record.outputs)
            mlflow.log_feedback(trace_id=span.trace_id, name="bench", value=record.value, rationale=record.rationale, source=source)
        ids.append(span.trace_id)
    mlflow.flush_trace_async_logging()
    (folder / "ids.json").write_text(json.dumps(ids))
    return {"traces": len(ids)}


def work(side: str, folder: Path, address: str, evaluate: bool) -> dict[str, Any]:
    """All steps of one side, in this process; the aligned judge is registered for ``load``."""
    import mlflow

    _connect(folder)
    optimizer = importlib.import_module(_HOMES[side]).MemAlignOptimizer(reflection_lm=MODEL, embedding_model=EMBEDDING)
    traces = [mlflow.get_trace(trace_id) for trace_id in json.loads((folder / "ids.json").read_text())]
    first, more, apart = traces[: -MORE - _WARM], traces[-MORE - _WARM : -_WARM], traces[-_WARM:]
    warm = _judge("bench").align(apart, optimizer)
    warm(**item(-1))
    clock = _Clock(address)
    aligned = clock.time("align", lambda: _judge("bench").align(first, optimizer))
    longer = clock.time("more", lambda: aligned.align(more, optimizer))
    clock.time("unalign", lambda: longer.unalign(first[:MORE]))  # unaligning what came last would leave texts that caches hold
    clock.time("judge", lambda: [longer(**item(number)) for number in range(_JUDGED)])
    if evaluate:
        rows = [item(number) for number in range(100, 100 + ROWS)]
        result = clock.time("evaluate", lambda: mlflow.genai.evaluate(data=rows, scorers=[longer]))
        assert result.metrics["bench/mean"] == 1.0
    longer.register()
    return {"steps": clock.steps, "version": mlflow.__version__}


def load(side: str, folder: Path, address: str) -> dict[str, Any]:
    """The registered judge by its name, and its first verdict; imports are not counted."""
    from mlflow.genai.scorers import get_scorer

    _connect(folder)
    importlib.import_module(_HOMES[side])
    clock = _Clock(address)
    clock.time("load", lambda: get_scorer(name="bench")(**item(7)))
    return {"steps": clock.steps}


def measure(*, quick: bool = False, peer_python: str = sys.executable, sizes: Sequence[int] = SIZES) -> list[Row]:
    """``peer_python``: an interpreter with mlflow and dspy. Each side runs twice on the smallest size, once when ``quick`` and on the others.

    What a size gave is kept in ``RESULTS`` as soon as it is there; the rows tell of all that stands there.
    """
    script = "import importlib.util as u, sys; sys.exit(not (u.find_spec('mlflow') and u.find_spec('dspy')))"
    if subprocess.run([peer_python, "-c", script], check=False).returncode:
        return [Row("inside MLflow", "not measured: --peer-python has no mlflow and dspy")]
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for size in sizes:
        kept[str(size)] = {"machine": facts(), **_sized(size, 1 if quick or size != SIZES[0] else 2, peer_python)}
        RESULTS.write_text(json.dumps({key: kept[key] for key in sorted(kept, key=int)}, indent=1) + "\n")
    return told()


def told() -> list[Row]:
    """What was measured last of each size."""
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return _rows({(side, int(size)): runs[side] for size, runs in kept.items() for side in SIDES})


def _sized(size: int, repetitions: int, python: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as temporary, endpoint.serving() as address:
        store = Path(temporary) / "store"
        store.mkdir()
        _fresh(python, address, store, "--prepare", str(size))
        for repetition in range(repetitions):
            for side in SIDES if repetition % 2 == 0 else reversed(SIDES):
                folder = Path(temporary) / f"{side}{repetition}"
                shutil.copytree(store, folder)
                run = _fresh(python, address, folder, "--side", side, *(["--evaluate"] if size == EVALUATED and repetition == 0 else []))
                run["steps"] |= _fresh(python, address, folder, "--load", side)["steps"]
                found[side].append(run)
                told = {name: round(step["seconds"], 2) for name, step in run["steps"].items()}
                print(f"{side}, {size} traces: seconds {told}", file=sys.stderr, flush=True)
    return found


def _rows(found: dict[tuple[str, int], list[dict[str, Any]]]) -> list[Row]:
    sizes = sorted({size for _, size in found})
    limits = {("align", 50): 0.6, ("align", 1000): 0.4}
    names = {
        "align": "align {} traces",
        "more": f"align {MORE} more on {{}}",
        "unalign": f"unalign {MORE} of {{}}",
        "judge": "one judgement on {}, beyond the model call",
        "load": "load {} by name and judge, beyond the model call",
        "evaluate": f"mlflow.genai.evaluate of {ROWS} rows on {{}}",
    }
    rows = []
    for name, text in names.items():
        for size in sizes:
            runs = {side: [run["steps"][name] for run in found[side, size] if name in run["steps"]] for side in SIDES}
            if not all(runs.values()):
                continue
            seconds = {side: median([_seconds(name, step) for step in steps]) for side, steps in runs.items()}
            ratio, limit = seconds["ours"] / seconds["mlflow"], limits.get((name, size))
            texts = {side: steps[-1]["texts_embedded"] for side, steps in runs.items()}
            told = "; ".join(f"{side} {seconds[side]:.2f} s, {texts[side]:.0f} texts embedded" for side in SIDES)
            values = {"runs": runs, "ratio": ratio, "mlflow_version": found["mlflow", size][0]["version"]}
            target, held = ("", None) if limit is None else (f"<= {limit} of MLflow", ratio <= limit)
            told += f"; ratio {ratio:.2f} (n = {len(runs['ours'])})"
            rows.append(Row(f"inside MLflow: {text.format(f'{size:,}')}", told, target, held, values))
    return rows


def _seconds(name: str, step: dict[str, float]) -> float:
    if name == "judge":
        return (step["seconds"] - step["chat_seconds"]) / _JUDGED
    return step["seconds"] - step["chat_seconds"] if name == "load" else step["seconds"]


class _Clock:
    """Wall seconds of a step, beside what the endpoint counted meanwhile."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.steps: dict[str, dict[str, float]] = {}

    def time(self, name: str, step: Callable[[], Any]) -> Any:
        endpoint.reset(self.address)
        started, busy = time.perf_counter(), time.process_time()
        result = step()
        seconds, processor_seconds = time.perf_counter() - started, time.process_time() - busy
        kinds = endpoint.stats(self.address)["kinds"]
        chat = [kinds[kind] for kind in ("distil", "relate", "judge") if kind in kinds]
        self.steps[name] = {
            "seconds": seconds,
            "processor_seconds": processor_seconds,
            "chat_calls": sum(kind["calls"] for kind in chat),
            "chat_seconds": sum(kind["seconds"] for kind in chat),
            "prompt_tokens": sum(kind["prompt_tokens"] for kind in chat),
            "texts_embedded": kinds.get("embed", {}).get("texts", 0),
        }
        return result


def _judge(name: str) -> Any:
    from mlflow.genai.judges import make_judge

    text = f"{INSTRUCTIONS}\nThe customer's message: {{{{ inputs }}}}\nThe reply: {{{{ outputs }}}}"
    return make_judge(name=name, instructions=text, model=MODEL, feedback_value_type=bool)


def _connect(folder: Path) -> None:
    os.chdir(folder)
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.set_experiment("bench")


def _fresh(python: str, address: str, folder: Path, *arguments: str) -> dict[str, Any]:
    environment = beside_mlflow(address, folder)
    options = ["-m", "benchmarks.inside_mlflow", "--address", address, "--folder", str(folder), *arguments]
    return fresh(options, python=python, timeout_seconds=2400.0, **environment)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prepare", type=int, help="log the traces of a size")
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--load", choices=SIDES)
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--address", default="")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter with mlflow and dspy")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", type=int, choices=SIZES, action="append", help="one size only, beside what was measured before")
    options = parser.parse_args()
    if options.prepare:
        print(json.dumps(prepare(options.folder, options.prepare)))
    elif options.side:
        print(json.dumps(work(options.side, options.folder, options.address, options.evaluate)))
    elif options.load:
        print(json.dumps(load(options.load, options.folder, options.address)))
    else:
        for row in measure(quick=options.quick, peer_python=options.peer_python, sizes=options.size or SIZES):
            print(json.dumps(row.to_dict()))
