"""Aligning 50 records, then 10 more, then judging: ours and MLflow's MemAlign, on one endpoint, in turn.

Each repetition of each side is a fresh process with empty caches, warmed up by a call of both models before the clock starts; MLflow's traces
are logged and read back before it starts, too. MLflow runs with its defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import endpoint
from benchmarks.measuring import Row, beside_mlflow, fresh, median
from benchmarks.workload import INSTRUCTIONS, item, later_records, records

FIRST, MORE = 50, 10
MODEL, EMBEDDING = "gpt-4.1-mini", "text-embedding-3-small"
SIDES = ("ours", "mlflow")
_JUDGED = 6
"""Judgements one after the other, in each of the two steps that judge."""
_WARM = {"inputs": {"question": "Are you open today?"}, "outputs": "Yes, until six."}


class Clock:
    """Wall seconds of a step, beside what the endpoint counted meanwhile."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.steps: dict[str, dict[str, float]] = {}

    def time(self, name: str, work: Any) -> Any:
        """Run one step; nothing else may use the endpoint meanwhile."""
        endpoint.reset(self.address)
        started, busy = time.perf_counter(), time.process_time()
        result = work()
        seconds, processor_seconds = time.perf_counter() - started, time.process_time() - busy
        kinds = endpoint.stats(self.address)["kinds"]
        chat = [kinds[kind] for kind in ("distil", "relate", "judge") if kind in kinds]
        self.steps[name] = {
            "seconds": seconds,
            "processor_seconds": processor_seconds,
            "chat_calls": sum(kind["calls"] for kind in chat),
            "completion_tokens": sum(kind["completion_tokens"] for kind in chat),
            "prompt_tokens": sum(kind["prompt_tokens"] for kind in chat),
            "chat_seconds": sum(kind["seconds"] for kind in chat),
            "embedding_calls": kinds.get("embed", {}).get("calls", 0),
            "texts_embedded": kinds.get("embed", {}).get("texts", 0),
        }
        return result


def ours(address: str, folder: Path) -> dict[str, Any]:
    """One repetition of ours."""
    from memalign import Judge, Scale

    def made(name: str) -> Judge:
        model, embedder = f"openai/{MODEL}", f"openai/{EMBEDDING}"
        return Judge(name=name, instructions=INSTRUCTIONS, scale=Scale.boolean(), model=model, embedder=embedder, memory=str(folder / "memory.db"))

    warm = made("warm")
    warm.align(records(2, start=900_000), verify="off")
    warm(**_WARM)
    clock, judge = Clock(address), made("bench")
    clock.time("first", lambda: judge.align(records(FIRST), verify="off"))
    clock.time("more", lambda: judge.align(later_records(MORE, start=FIRST), verify="off"))
    clock.time("judgement", lambda: [judge(**item(number)) for number in range(_JUDGED)])
    clock.time("judgement again", lambda: [judge(**item(number)) for number in range(_JUDGED)])
    guidelines = len(judge.memory.guidelines())
    judge.close()
    warm.close()
    return {"steps": clock.steps, "guidelines": guidelines}


def mlflow(address: str, folder: Path) -> dict[str, Any]:
    """One repetition of MLflow's, with its defaults."""
    os.chdir(folder)
    import mlflow
    from mlflow.entities import AssessmentSource, AssessmentSourceType
    from mlflow.genai.judges import make_judge
    from mlflow.genai.judges.optimizers import MemAlignOptimizer

    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.set_experiment("bench")
    optimizer = MemAlignOptimizer(reflection_lm=f"openai:/{MODEL}", embedding_model=f"openai:/{EMBEDDING}")
    form = f"{INSTRUCTIONS}\nThe customer's message: {{{{ inputs }}}}\nThe reply: {{{{ outputs }}}}"

    def made(name: str) -> Any:
        return make_judge(name=name, instructions=form, model=f"openai:/{MODEL}", feedback_value_type=bool)

    def traces(name: str, found: list[Any]) -> list[Any]:
        ids = []
        for record in found:
            with mlflow.start_span("reply") as span:
                span.set_inputs(record.inputs)
                span.set_outputs(record.outputs)
            ids.append(span.trace_id)
        mlflow.flush_trace_async_logging()
        source = AssessmentSource(source_type=AssessmentSourceType.HUMAN, source_id="ann")
        for trace_id, record in zip(ids, found, strict=True):
            mlflow.log_feedback(trace_id=trace_id, name=name, value=record.value, rationale=record.rationale, source=source)
        return [mlflow.get_trace(trace_id) for trace_id in ids]

    made("warm").align(traces("warm", records(2, start=900_000)), optimizer)(**_WARM)
    first, more = traces("bench", records(FIRST)), traces("bench", later_records(MORE, start=FIRST))
    clock, base = Clock(address), made("bench")
    once = clock.time("first", lambda: base.align(first, optimizer))
    twice = clock.time("more", lambda: once.align(more, optimizer))
    clock.time("judgement", lambda: [twice(**item(number)) for number in range(_JUDGED)])
    clock.time("judgement again", lambda: [twice(**item(number)) for number in range(_JUDGED)])
    return {"steps": clock.steps, "guidelines": len(twice._semantic_memory), "version": mlflow.__version__}


def run_side(side: str, address: str) -> dict[str, Any]:
    """One repetition of one side, in this process; nothing leaves this machine."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= beside_mlflow(address, Path(folder))
        return {"ours": ours, "mlflow": mlflow}[side](address, Path(folder))


def measure(*, quick: bool = False, peer_python: str = sys.executable) -> list[Row]:
    """``peer_python``: an interpreter with mlflow, dspy and memalign. Without MLflow, ours alone is measured."""
    import subprocess

    script = "import importlib.util as u, sys; sys.exit(not (u.find_spec('mlflow') and u.find_spec('dspy') and u.find_spec('memalign')))"
    has_peer = subprocess.run([peer_python, "-c", script], check=False).returncode == 0
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with endpoint.serving() as address:
        for repetition in range(2 if quick else 3):
            for side in SIDES if repetition % 2 == 0 else reversed(SIDES):
                if side == "ours" or has_peer:
                    python = sys.executable if side == "ours" else peer_python
                    runs[side].append(fresh(["-m", "benchmarks.align", "--side", side, "--address", address], python=python))
    return [_row(runs, name, what, limit) for name, what, limit in _STEPS] + [_texts(runs)]


_STEPS = (
    ("first", f"align {FIRST} records", 0.6),
    ("more", f"align {MORE} more", None),
    ("judgement", "one judgement, hosted embedder, beyond the model call", None),
    ("judgement again", "the same item again, beyond the model call", None),
)


def _seconds(run: dict[str, Any], name: str) -> float:
    step = run["steps"][name]
    return (step["seconds"] - step["chat_seconds"]) / _JUDGED if name.startswith("judgement") else float(step["seconds"])


def _row(runs: dict[str, list[dict[str, Any]]], name: str, what: str, limit: float | None) -> Row:
    mine = [_seconds(run, name) for run in runs["ours"]]
    values: dict[str, Any] = {side: [run["steps"][name] for run in found] for side, found in runs.items()}
    target = "" if limit is None else f"<= {limit} of MLflow"
    shown = _side("ours", mine, runs["ours"][-1], name)
    if not runs["mlflow"]:
        return Row(what, f"{shown}; MLflow is not installed", target, None, values)
    peer = [_seconds(run, name) for run in runs["mlflow"]]
    ratio = median(mine) / median(peer)
    shown += f"; {_side('MLflow', peer, runs['mlflow'][-1], name)}; ratio {ratio:.2f}"
    return Row(what, shown, target, None if limit is None else ratio <= limit, values | {"ratio": ratio})


def _side(who: str, seconds: list[float], run: dict[str, Any], name: str) -> str:
    step = run["steps"][name]
    if name.startswith("judgement"):
        return f"{who} {median(seconds) * 1000:.0f} ms"
    calls = f"{step['chat_calls']:.0f} + {step['embedding_calls']:.0f} calls, {step['completion_tokens']:.0f} tokens out"
    return f"{who} {median(seconds):.2f} s ({calls}, {step['texts_embedded']:.0f} texts)"


def _texts(runs: dict[str, list[dict[str, Any]]]) -> Row:
    texts = {side: found[-1]["steps"]["more"]["texts_embedded"] for side, found in runs.items() if found}
    guidelines = {side: found[-1]["guidelines"] for side, found in runs.items() if found}
    shown = ", ".join(f"{side} {count:.0f}" for side, count in texts.items())
    shown += "; guidelines held: " + ", ".join(f"{side} {count}" for side, count in guidelines.items())
    values = {"texts": texts, "guidelines": guidelines, "mlflow_version": next((run["version"] for run in runs["mlflow"]), None)}
    target = f"{MORE} and the new guidelines, no old text"
    return Row(f"texts embedded to align {MORE} more", shown, target, texts["ours"] <= MORE + guidelines["ours"] and texts["ours"] < FIRST, values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--address", default="")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter with mlflow, dspy and memalign")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options.side, options.address)))
        sys.exit()
    for row in measure(quick=options.quick, peer_python=options.peer_python):
        print(json.dumps(row.to_dict()))
