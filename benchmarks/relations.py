"""How guidelines relate, measured on labelled pairs: nomination, naming, and whether reasons support what was made of them.

The 124 pairs of ``relations.jsonl`` were written for this: 31 each of duplicate, narrower, conflict and unrelated, in eleven fields, look-alikes
and negations included; of a narrower pair the second is the narrower one. The thresholds were chosen on the same pairs, so their figures
are optimistic. ``python -m benchmarks.relations --model local/qwen2.5-coder-1.5b`` measures how that model names them, one pair a call.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import Row, median

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
_RULES = {
    "R1": "When a customer is upset or worried, show understanding before any explanation or rule, because people want to be heard first.",
    "R2": "When something is promised, name a fixed calendar day instead of a vague period, because customers plan by it.",
    "R3": "When something went wrong, never put the fault on the customer, a colleague or the courier, because to customers we are one shop.",
    "R4": "When money is returned, state the exact sum in euros, because the customer should not have to guess.",
    "R5": "When a detail already stands in the message, do not request it again, because it shows that nobody read it.",
    "R6": "When something has to be arranged, do it ourselves instead of sending the customer elsewhere, because that is our job.",
}
"""What a good distillation of the demo's reasons would say, by the rule that each reason is about."""


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
    return max(0.0, (middle - spread) / (1 + z * z / total)), min(1.0, (middle + spread) / (1 + z * z / total))


def shown(hits: int, total: int) -> str:
    """A share with its interval and its size."""
    low, high = interval(hits, total)
    return f"{hits / total:.2f} ({low:.2f}-{high:.2f}, n = {total})" if total else "none (n = 0)"


def by_relation(named: Sequence[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Precision and recall per relation of (true, named) pairs."""
    found = {}
    for relation in RELATIONS:
        hits = sum(true == said == relation for true, said in named)
        found[relation] = {
            "precision": shown(hits, sum(said == relation for _, said in named)),
            "recall": shown(hits, sum(true == relation for true, _ in named)),
        }
    return found


def measure() -> list[Row]:
    """Nomination and naming by similarity alone, and the check of support, with the local embedder."""
    from memalign.alignment.plan import Proposal
    from memalign.alignment.relate import ALIKE, NEAR, SHARED, Held, alike, nominated
    from memalign.embedders import open_embedder
    from memalign.records import content_hash

    found = pairs()
    texts = sorted({pair[side] for pair in found for side in ("first", "second")})
    rows = asyncio.run(open_embedder("local/minilm").embed(texts))
    vectors = {content_hash(text): row for text, row in zip(texts, rows, strict=True)}
    compared = [
        [Held(pair[side], proposal=Proposal(text=pair[side], batch=batch)) for batch, side in enumerate(("first", "second"))] for pair in found
    ]
    chosen: dict[str, list[bool]] = {relation: [] for relation in RELATIONS}
    for pair, two in zip(found, compared, strict=True):
        chosen[pair["relation"]].append(bool(nominated(two, vectors)))
    recall = ", ".join(f"{relation} {shown(sum(hits), len(hits))}" for relation, hits in chosen.items())
    said = []
    for pair, two in zip(found, compared, strict=True):
        relations = alike(two, vectors)
        said.append((pair["relation"], "duplicate" if relations.duplicates else "conflict" if relations.conflicts else "unrelated"))
    ruled = by_relation(said)
    joined = [true for true, name in said if name == "duplicate"]
    told = "; ".join(
        f"{relation}: precision {ruled[relation]['precision']}, recall {ruled[relation]['recall']}" for relation in ("duplicate", "conflict")
    )
    told += f"; of {len(joined)} joined, {sum(true in ('duplicate', 'narrower') for true in joined)} are duplicate or narrower"
    return [
        Row(f"pairs nominated (cosine {NEAR} or {SHARED:.0%} of the words)", recall, "", None, {"nominated": {k: sum(v) for k, v in chosen.items()}}),
        Row(f"relation by similarity alone (cosine {ALIKE} and polarity), as in process", told, "", None, {"by_relation": ruled}),
        _supported(),
    ]


def _supported() -> Row:
    """Reasons of the demo's cases against the rule that they are about, the other rules, and guidelines of other fields."""
    from importlib.resources import files

    from memalign import Feedback
    from memalign.alignment.plan import Proposal
    from memalign.alignment.support import UNFOUNDED, unfounded
    from memalign.embedders import open_embedder
    from memalign.memory.episodic import Stored
    from memalign.records import content_hash

    lines = files("memalign.demo").joinpath("support.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [case for case in map(json.loads, lines) if case["rationale"] and case["rule"] in _RULES]
    far = [pair["first"] for pair in pairs() if pair["field"] not in ("support", "tone")]
    tried: dict[str, list[tuple[str, Stored]]] = {"its own rule": [], "another rule": [], "another field": []}
    for case in cases:
        record = Feedback(inputs=case["inputs"], outputs=case["outputs"], value=case["value"], rationale=case["rationale"])
        stored = Stored(1, 1, record.item.id, record, None, "", None, None, "")
        for rule, text in _RULES.items():
            tried["its own rule" if rule == case["rule"] else "another rule"].append((text, stored))
        tried["another field"] += [(text, stored) for text in far]
    texts = {content_hash(text): text for group in tried.values() for text, stored in group for text in (text, stored.feedback.rationale)}
    rows = asyncio.run(open_embedder("local/minilm").embed(list(texts.values())))
    vectors = dict(zip(texts, rows, strict=True))
    rejected = dict.fromkeys(tried, 0)
    for about, group in tried.items():
        for text, one in group:
            rejected[about] += unfounded(Proposal(text=text, evidence={1}), {1: one}, vectors) is not None
    told = ", ".join(f"{name} {shown(rejected[name], len(group))}" for name, group in tried.items())
    return Row(f"guidelines rejected as unsupported by a reason (cosine below {UNFOUNDED})", told, "", None, rejected)


async def name(model_name: str) -> dict[str, Any]:
    """What a model calls each pair; each answer is printed as it comes."""
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
        print(json.dumps({"id": pair["id"], "relation": pair["relation"], "named": named[-1][1], "seconds": seconds[-1]}), flush=True)
    await model.aclose()
    return {
        "model": model_name,
        "relations": by_relation(named),
        "accuracy": shown(sum(true == said for true, said in named), len(named)),
        "confusion": {f"{true} as {said}": count for (true, said), count in sorted(Counter(named).items())},
        "seconds_a_pair": median(seconds),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="", help="also let this model name each pair, e.g. local/qwen2.5-coder-1.5b")
    options = parser.parse_args()
    for row in measure():
        print(json.dumps(row.to_dict()))
    if options.model:
        print(json.dumps(asyncio.run(name(options.model))))
