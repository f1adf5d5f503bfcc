"""What verification costs and what it is worth, in a simulated world: ``python -m benchmarks.verification [--repeats N]``.

Items belong to one of 12 themes; half of them have a fault. The judge says yes to everything until it reads the guideline of a theme; then it
finds that theme's faults. One in four guidelines that the distilling model proposes is far too broad instead: the judge then says no to
everything of its theme and of the next one. Verdicts flip by themselves. The model has a hosted one's delays in the timed run, the first of each
row (450 ms, 80 tokens a second; a token is four characters), and the price of gpt-4.1-mini. All else is the product: distillation,
verification, memory, retrieval. Agreement is measured on 72 unseen items, without flips.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from memalign import Feedback, Judge, Scale
from memalign.embedders.scripted import HashEmbedder
from memalign.models import ChatReply, ChatRequest
from memalign.records import Usage

THEMES, UNSEEN = 12, 72
MODES = ("off", "fast", "full")
_WORDS = (
    "the parcel was sent to your address on Monday and our team will write to you again as soon as there is any news about it".split()  # noqa: SIM905
)


class World:
    """A judging and distilling model; ``flips``: how often a verdict is the wrong way round."""

    name = "openai/gpt-4.1-mini"

    def __init__(self, seed: int, flips: float, *, slow: bool) -> None:
        self.luck = random.Random(seed)
        self.harmful = {theme for theme in range(THEMES) if self.luck.random() < 0.25}
        self.flips = flips
        self.slow = slow

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Judge or distil, after a hosted model's delay."""
        prompt = "\n".join(message.content for message in request.messages)
        text = json.dumps(self._distilled(prompt) if request.purpose == "distil" else self._said(request))
        tokens = len(text) // 4
        seconds = 0.45 + tokens / 80
        await asyncio.sleep(seconds if self.slow else 0)
        return ChatReply(text=text, usage=Usage(calls=1, prompt_tokens=len(prompt) // 4, completion_tokens=tokens), seconds=seconds)

    async def aclose(self) -> None:
        """Nothing to give back."""

    def _said(self, request: ChatRequest) -> dict[str, Any]:
        if request.purpose not in ("judge", "verify", "screen"):
            return {"groups": [], "relations": [], "relation": "unrelated"}
        kind, theme = re.findall(r"(fine|fault)(\d+)x", request.messages[-1].content)[-1]
        system = request.messages[0].content
        before = (int(theme) - 1) % THEMES
        no = f"harm{theme}x" in system or f"harm{before}x" in system or (kind == "fault" and f"rule{theme}x" in system)
        no ^= self.luck.random() < self.flips
        return {"rationale": "The reply answers the question and keeps the tone that the shop asks for.", "verdict": "no" if no else "yes"}

    def _distilled(self, prompt: str) -> dict[str, Any]:
        known = {int(theme): key for key, theme in re.findall(r"^((?:g|new)\d+): .*?(?:rule|harm)(\d+)x", prompt, re.MULTILINE)}
        cases: dict[int, list[int]] = {}
        for number, theme in re.findall(r"^Case (\d+)$.*?^Expert: [^.\n]+\.[ ]?reason (\d+)x", prompt, re.MULTILINE | re.DOTALL):
            cases.setdefault(int(theme), []).append(int(number))
        operations: list[dict[str, Any]] = []
        for theme, numbers in cases.items():
            if theme in known:
                operations.append({"op": "support", "guideline": known[theme], "cases": numbers})
            else:
                word = f"harm{theme}x" if theme in self.harmful else f"rule{theme}x"
                operations.append(
                    {
                        "op": "add",
                        "when": f"a reply is of kind {theme}",
                        "decide": f"heed {word} at once",
                        "because": f"reason {theme}x says so",
                        "cases": numbers,
                    }
                )
        return {"operations": operations}


def records(first: int, count: int, seed: int) -> list[Feedback]:
    """Items with the expert's verdict; faults come with a reason."""
    found = []
    for number in range(first, first + count):
        luck = random.Random(f"{seed} {number}")
        theme, fine = luck.randrange(THEMES), luck.random() < 0.5
        words = " ".join(luck.sample(_WORDS, 15))
        reply = f"{words} {'fine' if fine else 'fault'}{theme}x {number}"
        found.append(
            Feedback(
                inputs={"question": f"Question {number}?"}, outputs=reply, value=fine, rationale="" if fine else f"reason {theme}x", id=f"r{number}"
            )
        )
    return found


def run(mode: Any, size: int, seed: int, flips: float, *, slow: bool) -> dict[str, float]:
    """One alignment of ``size`` records and one of 10 more, and how good the judge is then."""
    world = World(seed, flips, slow=slow)
    judge = Judge("bench", "Is the reply fine?", Scale.boolean(), world, embedder=HashEmbedder(), floor=0.0)
    first = judge.align(records(0, size, seed), verify=mode)
    more = judge.align(records(size, 10, seed), verify=mode)
    held = {guideline.id: guideline for guideline in judge.memory.guidelines(all_states=True)}
    harmful = [guideline for guideline in held.values() if "harm" in guideline.text]
    useful = [guideline for guideline in held.values() if "rule" in guideline.text]
    world.flips, world.slow = 0.0, False
    agreement = judge.evaluate(records(10_000, UNSEEN, seed))
    judge.close()
    return {
        "calls": first.usage.calls,
        "tokens": first.usage.prompt_tokens + first.usage.completion_tokens,
        "usd": first.cost_usd or 0.0,
        "seconds": first.seconds,
        "more calls": more.usage.calls,
        "more seconds": more.seconds,
        "harmful": len(harmful),
        "harmful active": sum(guideline.state == "active" for guideline in harmful),
        "useful": len(useful),
        "useful refused": sum(guideline.state != "active" for guideline in useful),
        "agreement": agreement.balanced_accuracy.value if agreement.balanced_accuracy else float("nan"),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10, help="worlds, of which the first is timed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 200])
    options = parser.parse_args()
    made = Table(
        "records",
        "flips",
        "verify",
        "calls",
        "tokens",
        "US$",
        "s",
        "+10: calls",
        "+10: s",
        "too broad and stand",
        "useful and refused",
        "agreement on unseen",
    )
    for size in options.sizes:
        for flips in (0.0, 0.05, 0.13):
            for mode in MODES:
                found = [run(mode, size, seed, flips, slow=seed == 0) for seed in range(options.repeats)]
                total = {name: sum(one[name] for one in found) for name in found[0]}
                scores = [one["agreement"] for one in found]
                error = statistics.stdev(scores) / len(scores) ** 0.5
                made.add_row(
                    str(size),
                    f"{flips:.0%}",
                    mode,
                    f"{total['calls'] / len(found):.0f}",
                    f"{total['tokens'] / len(found):,.0f}",
                    f"{total['usd'] / len(found):.4f}",
                    f"{found[0]['seconds']:.1f}",
                    f"{total['more calls'] / len(found):.0f}",
                    f"{found[0]['more seconds']:.1f}",
                    f"{total['harmful active']:.0f} of {total['harmful']:.0f}",
                    f"{total['useful refused']:.0f} of {total['useful']:.0f}",
                    f"{statistics.mean(scores):.3f} +- {error:.3f}",
                )
                Console(width=170).print(f"{size} {flips:.0%} {mode}", total, style="dim")
    Console(width=170).print(made)


if __name__ == "__main__":
    main()
