"""Prompt tokens of a judgement, the share that a provider's prefix cache serves, and what 1,000 judgements cost: ours, and MLflow's MemAlign.

Both sides learn the same records from one scripted endpoint, which keeps every prompt of a judgement as it was sent: MLflow's is its own rendering.
A prefix cache as providers define it serves the longest beginning that an earlier request had, from 1,024 tokens on, in steps of 128. Nothing is
evicted here, so shares are upper bounds for both sides. The schema of the reply counts as the beginning of the prompt, as it does at OpenAI.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from benchmarks import endpoint
from benchmarks.measuring import ROOT, Row, beside_mlflow, facts, fresh, median
from benchmarks.workload import INSTRUCTIONS, item, records, wordings

SIDES = ("ours", "mlflow")
SIZES = (50, 200, 1000)
HELD = 50
"""Records in memory where the number of guidelines is given."""
GIVEN = ((0, 0), (20, 0), (50, 0), (0, 16), (20, 16))
"""Guidelines and exemplars."""
JUDGED = 30
LEAST, STEP = 1024, 128
MODEL, EMBEDDING = "gpt-4.1-mini", "text-embedding-3-small"


@dataclass(frozen=True, slots=True)
class Case:
    """What a judgement is asked with."""

    records: int
    given: int | None
    """Guidelines that were put there; None: those that were learned."""
    exemplars: int
    guidelines: int


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


def ours(folder: Path, size: int) -> Iterator[tuple[Case, Any]]:
    """Judges to ask: as they learned, then with given guidelines, then with exemplars too."""
    from memalign import Judge, Scale

    def opened(exemplars: int) -> Judge:
        model, embedder = f"openai/{MODEL}", f"openai/{EMBEDDING}"
        return Judge("bench", INSTRUCTIONS, Scale.boolean(), model, embedder=embedder, memory=str(folder / "memory.db"), exemplars=exemplars)

    judge = opened(0)
    judge.align(records(size), verify="off")
    yield Case(size, None, 0, len(judge.memory.guidelines())), judge
    for guidelines, exemplars in GIVEN if size == HELD else ():
        for guideline in judge.memory.guidelines():
            judge.memory.retire(guideline.id)
        for text in wordings(guidelines):
            judge.memory.add(text) if text not in (known := _known(judge)) else judge.memory.pin(known[text])
        yield Case(size, guidelines, exemplars, guidelines), opened(exemplars) if exemplars else judge


def _known(judge: Any) -> dict[str, str]:
    return {guideline.text: guideline.id for guideline in judge.memory.guidelines(all_states=True)}


def mlflow(folder: Path, size: int) -> Iterator[tuple[Case, Any]]:
    """The same of MLflow's, with its defaults; it has no exemplars."""
    import mlflow
    from mlflow.genai.judges.optimizers import MemAlignOptimizer
    from mlflow.genai.judges.optimizers.memalign.utils import Guideline

    from benchmarks.inside_mlflow import _judge, prepare

    prepare(folder, size)
    traces = [mlflow.get_trace(key) for key in json.loads((folder / "ids.json").read_text())[:size]]
    optimizer = MemAlignOptimizer(reflection_lm=f"openai:/{MODEL}", embedding_model=f"openai:/{EMBEDDING}")
    judge = _judge("bench").align(traces, optimizer)
    yield Case(size, None, 0, len(judge._semantic_memory)), judge
    for guidelines, exemplars in GIVEN if size == HELD else ():
        if not exemplars:
            judge._semantic_memory = [Guideline(guideline_text=text, source_trace_ids=None) for text in wordings(guidelines)]
            yield Case(size, guidelines, 0, guidelines), judge


def work(side: str, address: str, size: int) -> list[dict[str, Any]]:
    """One side, in this process: tokens a judgement, those served, dollars a thousand judgements."""
    encoding = _encoding()
    made = []
    with tempfile.TemporaryDirectory() as folder:
        for case, judge in {"ours": ours, "mlflow": mlflow}[side](Path(folder), size):
            endpoint.reset(address)
            for number in range(JUDGED):
                judge(**item(number))
            with urllib.request.urlopen(f"{address}/prompts", timeout=30) as response:
                asked = json.load(response)
            made.append(asdict(case) | _account(encoding, asked))
            print(f"{side} {made[-1]}", file=sys.stderr, flush=True)
        os.chdir(ROOT)
    return made


def _encoding() -> Any:
    """``cl100k_base``, from the copy that LiteLLM brings: the encoding of gpt-4.1 is in no package, and nothing is fetched."""
    spec = importlib.util.find_spec("litellm")
    assert spec is not None
    assert spec.origin is not None, "litellm is installed beside mlflow and dspy"
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(spec.origin).parent / "litellm_core_utils" / "tokenizers")
    import tiktoken

    return tiktoken.get_encoding("cl100k_base")


def _account(encoding: Any, asked: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from memalign.prices import cost_usd
    from memalign.records import Usage

    prompts = [encoding.encode(rendered(one["request"]), disallowed_special=()) for one in asked]
    written = sum(len(encoding.encode(one["reply"])) for one in asked)
    cached, tokens = served(prompts), list(map(len, prompts))
    usage = Usage(calls=len(prompts), prompt_tokens=sum(tokens), cached_tokens=sum(cached), completion_tokens=written)
    costs = {name: cost_usd(f"openai/{MODEL}", each) for name, each in (("usd", usage), ("usd_uncached", replace(usage, cached_tokens=0)))}
    return {name: (cost or 0.0) * 1000 / len(prompts) for name, cost in costs.items()} | {
        "calls": len(prompts),
        "tokens": sum(tokens) / len(tokens),
        "written": written / len(prompts),
        "share": sum(cached[1:]) / sum(tokens[1:]),  # in steady state: the first request fills the cache
    }


def measure(*, peer_python: str = sys.executable, sizes: Sequence[int] = SIZES) -> list[Row]:
    """``peer_python``: an interpreter with mlflow, dspy, litellm and tiktoken. The sides take turns."""
    found: dict[Any, dict[str, dict[str, Any]]] = {}
    for size in sizes:
        for side in SIDES:
            with endpoint.serving("--swift") as address:
                for one in _fresh(peer_python, address, side, size)["made"]:
                    found.setdefault((one["records"], one["given"], one["exemplars"]), {})[side] = one
    return [_row(sides) for sides in found.values()]


def _row(found: dict[str, dict[str, Any]]) -> Row:
    mine = found["ours"]
    told = "; ".join(
        f"{side} {one['tokens']:,.0f} tokens, {one['share']:.0%} served, ${one['usd']:.3f} (${one['usd_uncached']:.3f} without cache)"
        + (f", {one['guidelines']} guidelines" if mine["given"] is None else "")
        for side, one in found.items()
    )
    if len(found) > 1:
        told += f"; cost ratio {mine['usd'] / found['mlflow']['usd']:.2f}"
    which = "guidelines as learned" if mine["given"] is None else f"{mine['given']} guidelines"
    what = f"1,000 judgements, {mine['records']:,} records, {which}" + (f", {mine['exemplars']} exemplars" if mine["exemplars"] else "")
    aimed = mine["given"] != 0 or mine["exemplars"] > 0
    return Row(what, told, ">= 60 % served" if aimed else "", mine["share"] >= 0.6 if aimed else None, found)


def _fresh(python: str, address: str, side: str, size: int) -> dict[str, Any]:
    options = ["-m", "benchmarks.prompts", "--side", side, "--address", address, "--sizes", str(size)]
    with tempfile.TemporaryDirectory() as folder:
        environment = beside_mlflow(address, Path(folder)) | {
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
            "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",  # else the last of many traces are not there yet when they are asked for
        }
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
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="records in memory")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter with mlflow, dspy, litellm and tiktoken")
    parser.add_argument("--in-process", action="store_true", help="the local model's seconds instead")
    options = parser.parse_args()
    if options.side:
        print(json.dumps({"made": work(options.side, options.address, options.sizes[0])}))
        return
    results = ROOT / "benchmarks" / "results" / "prompts.json"
    stored = json.loads(results.read_text()) if results.exists() else {}
    if options.in_process:
        stored["in process"] = in_process()
    else:
        rows = measure(peer_python=options.peer_python, sizes=options.sizes)
        again = {row.what for row in rows}
        stored["rows"] = [row for row in stored.get("rows", []) if row["what"] not in again] + [row.to_dict() for row in rows]
        stored["machine"] = facts()
    results.write_text(json.dumps(stored, indent=1) + "\n")
    print(json.dumps(stored, indent=1))


if __name__ == "__main__":
    main()
