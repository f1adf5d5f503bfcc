"""How guidelines relate: nomination by similarity, and naming by a model, on 124 labelled pairs.

The pairs of ``relations.jsonl`` were written for this: 31 each of duplicate, narrower, conflict and unrelated, in eleven fields, look-alikes and
negations included; of a narrower pair the second is the narrower one. ``--model local/qwen2.5-coder-1.5b`` measures that model's naming,
one pair a call.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

RELATIONS = ("duplicate", "narrower", "conflict", "unrelated")
_SYSTEM = (
    "Two guidelines for a judge are compared. Answer with one word. duplicate: both say the same, in other words. narrower: one is a special case "
    "of the other, or the other with an exception. conflict: one wants what the other forbids, so nobody can follow both. unrelated: they are about "
    "different things, and both can be followed."
)
_SHOTS = (
    ("Salt the water before it boils.", "Pasta water gets its salt before boiling.", "duplicate"),
    ("Salt the water before it boils.", "Never salt the water.", "conflict"),
    ("Salt the water before it boils.", "Use a large pot.", "unrelated"),
    ("Taste before serving.", "Taste soups before serving them to children.", "narrower"),
    ("Serve fish cold.", "Fish must be hot when it is served.", "conflict"),
    ("Peel the apples.", "Peel the pears.", "unrelated"),
)
"""From a field that the pairs leave out."""


def pairs() -> list[dict[str, str]]:
    """The labelled pairs: id, field, first, second, relation."""
    lines = Path(__file__).with_name("relations.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def interval(hits: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if total == 0:
        return 0.0, 1.0
    z, share = 1.96, hits / total
    middle, spread = share + z * z / (2 * total), z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (middle - spread) / (1 + z * z / total), (middle + spread) / (1 + z * z / total)


def shown(hits: int, total: int) -> str:
    """A share with its interval and its size."""
    low, high = interval(hits, total)
    return f"{hits / total:.2f} ({low:.2f}-{high:.2f}, n = {total})" if total else "- (n = 0)"


def by_relation(named: list[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Precision and recall per relation of (true, named) pairs."""
    found = {}
    for relation in RELATIONS:
        hits = sum(true == said == relation for true, said in named)
        found[relation] = {
            "precision": shown(hits, sum(said == relation for _, said in named)),
            "recall": shown(hits, sum(true == relation for true, _ in named)),
        }
    return found


async def name(model_name: str) -> dict[str, Any]:
    """What a model calls each pair."""
    from memalign.models import ChatRequest, Message, open_chat_model

    model = open_chat_model(model_name)
    shots = [m for one, two, word in _SHOTS for m in (Message("user", f"1. {one}\n2. {two}"), Message("assistant", word))]
    named, seconds = [], []
    for pair in pairs():
        messages = (Message("system", _SYSTEM), *shots, Message("user", f"1. {pair['first']}\n2. {pair['second']}"))
        started = time.perf_counter()
        reply = await model.complete(ChatRequest(messages=messages, choices=RELATIONS, max_tokens=8, purpose="relate"))
        seconds.append(time.perf_counter() - started)
        named.append((pair["relation"], reply.text.strip()))
        print(json.dumps({"id": pair["id"], "relation": pair["relation"], "named": reply.text.strip(), "seconds": seconds[-1]}), flush=True)
    await model.aclose()
    return {
        "model": model_name,
        "relations": by_relation(named),
        "accuracy": shown(sum(true == said for true, said in named), len(named)),
        "confusion": {f"{true} as {said}": count for (true, said), count in sorted(Counter(named).items())},
        "seconds_a_pair": sorted(seconds)[len(seconds) // 2],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    options = parser.parse_args()
    if options.model:
        print(json.dumps(asyncio.run(name(options.model)), indent=1))
