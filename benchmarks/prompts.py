"""Prompt tokens of a judgement, the share that a provider's prefix cache serves, and what 1,000 judgements cost: ours, and MLflow's MemAlign.

Both sides learn the same records from one scripted endpoint, which keeps every prompt of a judgement as it was sent: MLflow's is its own rendering.
A prefix cache as providers define it serves the longest beginning that an earlier request had, from 1,024 tokens on, in steps of 128. Nothing is
evicted here, so shares are upper bounds for both sides. The schema of the reply counts as the beginning of the prompt, as it does at OpenAI.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from benchmarks import endpoint
from benchmarks.measuring import ROOT, Row, fresh, median
from benchmarks.workload import INSTRUCTIONS, item, records, wordings

SIDES = ("ours", "mlflow")
SIZES = (50, 200, 1000)
GUIDELINES = (0, 20, 50)
EXEMPLARS = 16
HELD = 50
"""Records in memory where the number of guidelines is given."""
JUDGED = 40
LEAST, STEP = 1024, 128
MODEL, EMBEDDING = "gpt-4.1-mini", "text-embedding-3-small"


def served(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Of each prompt in turn, how many tokens a prefix cache serves that holds all before it."""
    found = []
    for place, prompt in enumerate(prompts):
        shared = max((_common(prompt, earlier) for earlier in prompts[:place]), default=0)
        found.append(0 if shared < LEAST else LEAST + (shared - LEAST) // STEP * STEP)
    return found


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def rendered(body: dict[str, Any]) -> str:
    """A request as one text: what shapes the reply, then the messages with the marks of their roles."""
    form = {name: body[name] for name in ("tools", "response_format") if body.get(name)}
    return (json.dumps(form) if form else "") + "".join(f"<|{message['role']}|>{message['content']}" for message in body["messages"])


def ours(address: str, folder: Path, size: int, guidelines: int | None, exemplars: int) -> dict[str, Any]:
    """The prompts of judgements on new items, after aligning; with the guidelines found, or so many given ones."""
    from memalign import Judge, Scale

    model, embedder = f"openai/{MODEL}", f"openai/{EMBEDDING}"
    judge = Judge("bench", INSTRUCTIONS, Scale.boolean(), model, embedder=embedder, memory=str(folder / "memory.db"), exemplars=exemplars)
    judge.align(records(size), verify="off")
    if guidelines is not None:
        for guideline in judge.memory.guidelines():
            judge.memory.retire(guideline.id)
        for text in wordings(guidelines):
            judge.memory.add(text)
    endpoint.reset(address)
    for number in range(JUDGED):
        judge(**item(number))
    return {"guidelines": len(judge.memory.guidelines())}


def mlflow(address: str, folder: Path, size: int, guidelines: int | None, _exemplars: int) -> dict[str, Any]:
    """The same of MLflow's, with its defaults."""
    import mlflow
    from mlflow.genai.judges.optimizers import MemAlignOptimizer
    from mlflow.genai.judges.optimizers.memalign.utils import Guideline

    from benchmarks.inside_mlflow import _judge, prepare

    prepare(folder, size)
    traces = [mlflow.get_trace(key) for key in json.loads((folder / "ids.json").read_text())[:size]]
    optimizer = MemAlignOptimizer(reflection_lm=f"openai:/{MODEL}", embedding_model=f"openai:/{EMBEDDING}")
    judge = _judge("bench").align(traces, optimizer)
    if guidelines is not None:
        judge._semantic_memory = [Guideline(guideline_text=text, source_trace_ids=None) for text in wordings(guidelines)]
    endpoint.reset(address)
    for number in range(JUDGED):
        judge(**item(number))
    return {"guidelines": len(judge._semantic_memory), "mlflow_version": mlflow.__version__}


def work(side: str, address: str, size: int, guidelines: int | None, exemplars: int) -> dict[str, Any]:
    """One side, in this process: tokens a judgement, those served, dollars a thousand judgements."""
    import tiktoken

    from memalign.prices import cost_usd
    from memalign.records import Usage

    with tempfile.TemporaryDirectory() as folder:
        found = {"ours": ours, "mlflow": mlflow}[side](address, Path(folder), size, guidelines, exemplars)
        os.chdir(ROOT)
    encoding = tiktoken.get_encoding("cl100k_base")
    with urllib.request.urlopen(f"{address}/prompts", timeout=30) as response:
        asked = json.load(response)
    prompts = [encoding.encode(rendered(one["request"]), disallowed_special=()) for one in asked]
    written = [len(encoding.encode(one["reply"])) for one in asked]
    cached, tokens = served(prompts), list(map(len, prompts))
    usage = Usage(calls=len(prompts), prompt_tokens=sum(tokens), cached_tokens=sum(cached), completion_tokens=sum(written))
    whole = Usage(calls=len(prompts), prompt_tokens=sum(tokens), completion_tokens=sum(written))
    thousand = 1000 / len(prompts)
    costs = {name: (cost_usd(f"openai/{MODEL}", each) or 0.0) * thousand for name, each in (("usd", usage), ("usd_uncached", whole))}
    steady = {"steady_share": sum(cached[1:]) / sum(tokens[1:])}
    return found | costs | steady | {"calls": len(prompts), "tokens": sum(tokens) / len(tokens), "share": sum(cached) / sum(tokens)}


def measure(*, peer_python: str = sys.executable, quick: bool = False) -> list[Row]:
    """``peer_python``: an interpreter with mlflow, dspy and tiktoken."""
    cases: list[tuple[int, int | None, int]] = [(HELD, count, 0) for count in GUIDELINES]
    cases += [(HELD, 0, EXEMPLARS), (HELD, 20, EXEMPLARS)]
    cases += [(size, None, 0) for size in SIZES[: 2 if quick else 3]]
    rows = []
    for size, guidelines, exemplars in cases:
        found: dict[str, dict[str, Any]] = {}
        for side in SIDES if not exemplars else SIDES[:1]:
            with endpoint.serving() as address:
                found[side] = _fresh(peer_python, address, side, size, guidelines, exemplars)
            print(f"{side}, {size} records, {guidelines} guidelines, {exemplars} exemplars: {found[side]}", file=sys.stderr, flush=True)
        rows.append(_row(found, size, guidelines, exemplars))
    return rows


def _row(found: dict[str, dict[str, Any]], size: int, guidelines: int | None, exemplars: int) -> Row:
    told = "; ".join(
        f"{side} {one['tokens']:,.0f} tokens, {one['steady_share']:.0%} served, ${one['usd']:.3f} (${one['usd_uncached']:.3f} without cache)"
        + (f", {one['guidelines']} guidelines" if guidelines is None else "")
        for side, one in found.items()
    )
    if len(found) > 1:
        told += f"; cost ratio {found['ours']['usd'] / found['mlflow']['usd']:.2f}"
    what = f"{size:,} records, guidelines as learned" if guidelines is None else f"{size} records, {guidelines} guidelines"
    what = f"1,000 judgements, {what}" + (f", {exemplars} exemplars" if exemplars else "")
    share = found["ours"]["steady_share"]
    return Row(what, told, ">= 60 % served" if guidelines or exemplars or guidelines is None else "", share >= 0.6 if guidelines else None, found)


def _fresh(python: str, address: str, side: str, size: int, guidelines: int | None, exemplars: int) -> dict[str, Any]:
    environment = {
        "OPENAI_BASE_URL": f"{address}/v1",
        "OPENAI_API_BASE": f"{address}/v1",
        "OPENAI_API_KEY": "dummy",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_MODEL_CATALOG_URI": "",
        "DO_NOT_TRACK": "true",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
    }
    given = [] if guidelines is None else ["--guidelines", str(guidelines)]
    options = ["-m", "benchmarks.prompts", "--side", side, "--address", address, "--size", str(size), "--exemplars", str(exemplars), *given]
    return fresh(options, python=python, timeout_seconds=1200.0, **environment)


def in_process(count: int = 4, guidelines: int = 20, cases: int = 2) -> dict[str, Any]:
    """Seconds a judgement of the local model: our order, and the same parts in MLflow's, whose guidelines stand behind the cases."""
    from memalign import Scale
    from memalign.edge import run
    from memalign.models import Message, open_chat_model
    from memalign.prompts import render
    from memalign.records import Episode, Guideline, Item
    from memalign.working import Task, assemble, request

    model = open_chat_model("local/qwen2.5-coder-1.5b")
    task = Task(instructions=INSTRUCTIONS, scale=Scale.boolean(), explain=False, secret="benchmark")
    held = [Guideline(id=f"g{place}", version=1, text=text) for place, text in enumerate(wordings(guidelines))]
    seconds: dict[str, list[float]] = {"guidelines first": [], "cases first": []}
    tokens: dict[str, list[int]] = {name: [] for name in seconds}
    for order, list_ in seconds.items():
        for number in range(count + 1):
            similar = [Episode(feedback=record) for record in records(cases, start=100 * number)]
            asked = Item(**item(number))
            context = assemble(task, asked, held if order == "guidelines first" else (), (), similar)
            chat = request(task, context, temperature=0.0)
            if order == "cases first":
                *before, last = chat.messages
                chat = type(chat)(
                    messages=(*before, Message("user", render("judge_guidelines", guidelines=held) + "\n\n" + last.content)),
                    choices=chat.choices,
                    max_tokens=chat.max_tokens,
                    temperature=0.0,
                    top_logprobs=chat.top_logprobs,
                )
            started = time.perf_counter()
            reply = run(model.complete(chat))
            if number:  # the first one loads weights and fills the cache
                list_.append(time.perf_counter() - started)
                tokens[order].append(reply.usage.prompt_tokens)
    run(model.aclose())
    return {name: {"seconds": median(values), "all": values, "tokens": median(tokens[name])} for name, values in seconds.items()}


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--address", default="")
    parser.add_argument("--size", type=int, default=HELD)
    parser.add_argument("--guidelines", type=int)
    parser.add_argument("--exemplars", type=int, default=0)
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter with mlflow, dspy and tiktoken")
    parser.add_argument("--in-process", action="store_true", help="the local model's seconds instead")
    options = parser.parse_args()
    results = ROOT / "benchmarks" / "results" / "prompts.json"
    stored = json.loads(results.read_text()) if results.exists() else {}
    if options.side:
        print(json.dumps(work(options.side, options.address, options.size, options.guidelines, options.exemplars)))
        return
    if options.in_process:
        stored["in process"] = in_process()
    else:
        stored["rows"] = [row.to_dict() for row in measure(peer_python=options.peer_python)]
    results.write_text(json.dumps(stored, indent=1) + "\n")
    print(json.dumps(stored, indent=1))


if __name__ == "__main__":
    main()
