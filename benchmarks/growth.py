"""How memory grows with feedback, beside MLflow's MemAlign: ``python -m benchmarks.growth --peer-python PATH [--local]``.

Both learn the stream of ``benchmarks.stream`` step by step, up to 25, 50, 100, 200 and 400 records, from the same scripted model with the same
embeddings. After each step: the guidelines that every judgement reads, how many of them say something different, themes on which they contradict
each other, questions put to the experts, prompt tokens a judgement (a token is four characters), and the share of right verdicts on unseen items.
The model judges by a stated rule, so agreement tells what memory brings into the prompt, nothing about the quality of a real model's verdicts.

``--local``: the real 1.5B model on both sides; MLflow asks it through ``benchmarks.local_endpoint``. Takes hours; ``--resume`` learns the steps
that were measured once more, without judging after them, and goes on from there.
Writes ``benchmarks/results/growth.json`` or ``growth-local.json`` after each step, and ``docs/growth.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import endpoint, stream
from benchmarks.measuring import ROOT, beside_mlflow, facts, told
from benchmarks.workload import INSTRUCTIONS
from memalign import Feedback

SIDES = ("memalign", "memalign, verified", "MLflow")
ANSWERS = ("attentive", "wordy")
STEPS, UNSEEN = (25, 50, 100, 200, 400), 92
LOCAL_UNSEEN = 24
MODEL, EMBEDDING = "gpt-4.1-mini", "text-embedding-3-small"
LOCAL = "qwen2.5-coder-1.5b"
RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = ("records", "guidelines", "distinct", "contradicting", "questions", "tokens", "agreement", "unjudged", "seconds")


def ours(side: str, address: str, folder: Path, *, local: bool, after: int) -> Iterator[dict[str, Any]]:
    """One side's figures after each step beyond ``after`` records, with our judge."""
    from memalign import Judge, Scale, Verdict

    model, embedder = (f"local/{LOCAL}", "local/minilm") if local else (f"openai/{MODEL}", f"openai/{EMBEDDING}")
    judge = Judge("growth", INSTRUCTIONS, Scale.boolean(), model, embedder=embedder, memory=str(folder / "memory.db"))
    size = LOCAL_UNSEEN if local else UNSEEN
    for before, step in pairwise((0, *STEPS)):
        started = time.perf_counter()
        report = judge.align(stream.stream(step)[before:], verify="fast" if side.endswith("verified") else "off")
        if local:
            judge.calibrate(sample=16)
        seconds = time.perf_counter() - started
        assert not report.failed_batches, report.failed_batches
        if step <= after:
            continue
        exam = stream.unseen(step, size)
        verdicts = [verdict for verdict in judge.batch(exam, own=False) if isinstance(verdict, Verdict)]
        right = sum(verdict.value == record.value for verdict, record in zip(verdicts, exam, strict=True))
        read = [verdict.usage.prompt_tokens for verdict in verdicts if verdict.usage.calls]  # the others' prompts had been answered before
        texts = [guideline.text for guideline in judge.memory.guidelines()]
        yield _figures(step, texts, len(judge.memory.questions()), sum(read) / len(read), right / size, seconds, local=local)
    judge.close()


def mlflow(address: str, folder: Path, *, local: bool, after: int) -> Iterator[dict[str, Any]]:
    """The figures after each step beyond ``after`` records, with MLflow's defaults."""
    os.chdir(folder)
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.genai.judges import make_judge
    from mlflow.genai.judges.optimizers import MemAlignOptimizer

    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.set_experiment("growth")
    text = f"{INSTRUCTIONS}\nThe customer's message: {{{{ inputs }}}}\nThe reply: {{{{ outputs }}}}"
    judge: Any = make_judge(name="growth", instructions=text, model=f"openai:/{MODEL}", feedback_value_type=bool)
    optimizer = MemAlignOptimizer(reflection_lm=f"openai:/{MODEL}", embedding_model=f"openai:/{EMBEDDING}")
    size = LOCAL_UNSEEN if local else UNSEEN
    for before, step in pairwise((0, *STEPS)):
        traces = [_trace(record) for record in stream.stream(step)[before:]]
        started = time.perf_counter()
        judge = judge.align(traces, optimizer)
        seconds = time.perf_counter() - started
        if step <= after:
            continue
        exam, right, unjudged = stream.unseen(step, size), 0, 0
        endpoint.reset(address)
        for record in exam:
            try:
                right += judge(inputs=record.inputs, outputs=record.outputs).value is record.value
            except MlflowException:  # no verdict in the reply: small models repeat themselves until it is cut
                if not local:
                    raise
                unjudged += 1
        judged = endpoint.stats(address)["kinds"]["judge"]
        texts = [guideline.guideline_text for guideline in judge._semantic_memory]
        yield _figures(step, texts, 0, judged["prompt_tokens"] / judged["calls"], right / size, seconds, unjudged, local=local)


def _trace(record: Feedback) -> Any:
    import mlflow
    from mlflow.entities import AssessmentSource, AssessmentSourceType

    with mlflow.start_span("reply") as span:
        span.set_inputs(record.inputs)
        span.set_outputs(record.outputs)
    source = AssessmentSource(source_type=AssessmentSourceType.HUMAN, source_id=record.annotator)
    mlflow.log_feedback(trace_id=span.trace_id, name="growth", value=record.value, rationale=record.rationale or None, source=source)
    return mlflow.get_trace(span.trace_id)


def _figures(
    step: int, texts: list[str], questions: int, tokens: float, agreement: float, seconds: float, unjudged: int = 0, *, local: bool
) -> dict[str, Any]:
    """``local``: whether to keep what the guidelines say, which there is for people to sort."""
    held = (len(texts), stream.distinct(texts), stream.contradicting(texts))
    figures = (step, *held, questions, round(tokens), agreement, unjudged, round(seconds, 1))
    return dict(zip(COLUMNS, figures, strict=True)) | ({"texts": texts} if local else {})


def measured(answers: str, side: str, peer_python: str, steps: list[dict[str, Any]], *, local: bool) -> Iterator[dict[str, Any]]:
    """What is found of one side after each step beyond those that are known; it runs in a fresh process, with an endpoint of its own."""
    module, options = ("benchmarks.local_endpoint", ()) if local else ("benchmarks.endpoint", ("--answers", answers, "--swift"))
    with tempfile.TemporaryDirectory() as folder, endpoint.serving(*options, module=module) as address:
        environment = beside_mlflow(address, Path(folder)) | {"PYTHONHASHSEED": "0"}
        after = str(steps[-1]["records"] if steps else 0)
        arguments = ["-m", "benchmarks.growth", "--side", side, "--address", address, "--folder", folder, "--after", after]
        arguments += ["--local"] if local else []
        for line in told(arguments, python=peer_python if side == "MLflow" else sys.executable, **environment):
            steps = [*steps, line["step"]]
            yield {"answers": answers, "side": side, "steps": steps, "version": line["version"]}


def chart(found: list[dict[str, Any]]) -> Any:
    """Four panels for each model: what grows, what contradicts, and what it is worth."""
    import altair

    shown = {
        "guidelines": "active guidelines",
        "tokens": "tokens a judgement",
        "contradicting": "themes contradicted",
        "agreement": "agreement, unseen",
    }
    rows = [
        {"records": step["records"], "value": step[name], "panel": title, "who": run["side"], "model": f"{run['answers']} model"}
        for run in found
        for step in run["steps"]
        for name, title in shown.items()
    ]
    colours = altair.Scale(domain=list(SIDES), range=["#1a7f4b", "#2b6cb0", "#c0392b"])
    panel = (
        altair.Chart()
        .mark_line(point=altair.OverlayMarkDef(size=40))
        .encode(
            x=altair.X("records:Q", title="records", scale=altair.Scale(type="log", base=2), axis=altair.Axis(values=list(STEPS))),
            y=altair.Y("value:Q", title=None, scale=altair.Scale(zero=True)),
            color=altair.Color("who:N", scale=colours, title=None, legend=altair.Legend(orient="bottom")),
        )
        .properties(width=190, height=150)
    )
    column = altair.Column("panel:N", sort=list(shown.values()), title=None)
    faceted = panel.facet(row=altair.Row("model:N", title=None), column=column, data=altair.Data(values=rows)).resolve_scale(y="independent")
    return faceted.properties(
        title=altair.Title("What memory becomes as feedback accumulates", subtitle="A scripted model that judges by a stated rule")
    )


def markdown(found: list[dict[str, Any]]) -> str:
    """The table of the documentation."""
    lines = [
        "| model | side | records | guidelines | different | contradicted | questions | tokens | agreement |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in found:
        for step in run["steps"]:
            cells = [step[name] for name in ("records", "guidelines", "distinct", "contradicting", "questions", "tokens")]
            lines.append(f"| {run['answers']} | {run['side']} | {' | '.join(map(str, cells))} | {step['agreement']:.2f} |")
    return "\n".join(lines)


def _in_order(runs: Mapping[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    return [runs[key] for key in sorted(runs, key=lambda key: (key[0], SIDES.index(key[1])))]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter with mlflow, dspy and what memalign needs")
    parser.add_argument("--local", action="store_true", help="the real 1.5B model, fewer unseen items; takes hours")
    parser.add_argument("--only", choices=SIDES, action="append", help="measure these sides anew, and keep what was found of the others")
    parser.add_argument("--answers", choices=ANSWERS, action="append", help="this scripted model only, and keep what was found of the other")
    parser.add_argument("--resume", action="store_true", help="keep the steps that were measured; their records are learned again, then it goes on")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--address", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--after", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        peer = options.side == "MLflow"
        work = mlflow if peer else partial(ours, options.side)
        for step in work(options.address, options.folder, local=options.local, after=options.after):
            print(json.dumps({"step": step, "version": sys.modules["mlflow"].__version__ if peer else ""}), flush=True)
        return
    answers = (LOCAL,) if options.local else options.answers or ANSWERS
    sides = options.only or [side for side in SIDES if not (options.local and side.endswith("verified"))]
    path = RESULTS / ("growth-local.json" if options.local else "growth.json")
    runs = {(run["answers"], run["side"]): run for run in (json.loads(path.read_text())["runs"] if path.exists() else [])}
    for each in answers:
        for side in sides:
            known = runs[each, side]["steps"] if options.resume and (each, side) in runs else []
            if known and known[-1]["records"] == STEPS[-1]:
                continue
            for run in measured(each, side, options.peer_python, known, local=options.local):
                print(f"{each}, {side}: {run['steps'][-1]}", file=sys.stderr, flush=True)
                runs[each, side] = run
                path.write_text(json.dumps({"machine": facts(), "runs": _in_order(runs)}, indent=1) + "\n")
    found = _in_order(runs)
    print(markdown(found))
    if not options.local:
        from memalign.plots import save_png

        save_png(chart(found), ROOT / "docs" / "growth.png")


if __name__ == "__main__":
    main()
