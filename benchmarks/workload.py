"""What is judged and learned in the measurements, and what the scripted model answers. Pure functions of a seed.

Records belong to themes. A theme's guideline is worded after the record it is first met in, so independent batches word it differently, as a
real model does, and both sides get the same words for the same record.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from memalign import Feedback

INSTRUCTIONS = "Decide whether the reply is appropriate for this customer."
RATIONALE = "The reply answers the question, keeps the tone that the shop asks for and names what happens next, so it is appropriate."
"""The reason of every scripted verdict: one length for both sides."""

_THEMES: tuple[tuple[str, str, str, str], ...] = (
    # what the expert complains of, when, decide, because
    ("Far too cold", "a customer reports damage", "require an apology before any solution", "people want to be heard first"),
    ("No date given", "a delivery is late", "require a concrete new date", "vague promises cause more contacts"),
    ("Blames the customer", "an order was entered wrongly", "reject wording that assigns fault", "blame loses the relation"),
    ("Promises money back at once", "a refund is asked for", "require a check of the refund rules first", "promises bind the shop"),
    ("Asks for a card number", "a payment failed", "reject any request for card details", "card details must stay in the payment form"),
    ("Legal talk", "somebody threatens to sue", "require handing over to a person", "only trained staff may answer claims"),
    ("Far too long", "a simple status is asked", "require at most three sentences", "short answers are read on telephones"),
    ("Links to nowhere", "a return label is needed", "require a working link to the label page", "searching for it annoys"),
    ("Guesses the stock", "availability is asked", "reject statements that no stock system backs", "wrong stock numbers cause cancellations"),
    ("Jokes about it", "someone is visibly angry", "reject humour of any kind", "it reads as mockery"),
    ("Internal names leak", "an internal team is involved", "reject names of internal teams", "customers cannot use them"),
    ("Skips the warranty", "a device breaks within two years", "require mentioning the warranty", "the law gives that right"),
    ("Medical advice", "a skin reaction is reported", "require advice to see a doctor", "the shop must not diagnose"),
    ("No next step", "a complaint is closed", "require naming one next step", "open ends bring people back"),
    ("Wrong form of address", "a business customer writes", "require the formal address", "trade partners expect it"),
)
_FIRST = 12
"""Themes of the first records; the rest are met later."""
_MORE = (
    "this cannot go out to anybody",
    "we agreed otherwise in spring",
    "please never send such a thing",
    "our people were trained differently",
    "I would have rewritten all of it",
)
_SHADES = ("in the very first line", "in plain words", "without exception", "before anything else", "as house style has it")
_NOUNS = ("kettle", "lamp", "bicycle", "jacket", "router", "sofa", "camera", "tent", "printer", "blender", "guitar", "monitor", "carpet", "drill")
_CITIES = ("Graz", "Lyon", "Porto", "Turku", "Gdansk", "Leeds", "Malmo", "Bergen", "Cork", "Basel", "Ghent", "Trieste")
_OPENINGS = ("Hello there", "Good day", "Thanks for writing", "We have read your note", "Hi")
_VERBS = ("will look into", "have passed on", "can confirm", "are checking", "have noted", "will replace", "cannot find")


def records(count: int, *, start: int = 0, themes: Sequence[int] = range(_FIRST), reasons: bool = True) -> list[Feedback]:
    """Experts' verdicts on some 33 to 40 tokens of text each; record n is the same in every process."""
    return [_record(number, themes, reasons) for number in range(start, start + count)]


def later_records(count: int, *, start: int) -> list[Feedback]:
    """Records that come after the first alignment: mostly known themes, three new ones."""
    return records(count, start=start, themes=[*range(0, _FIRST, 2), *range(_FIRST, len(_THEMES))])


def item(number: int) -> dict[str, Any]:
    """Inputs and outputs that no record has."""
    made = _record(1_000_000 + number, range(_FIRST), False)
    return {"inputs": made.inputs, "outputs": made.outputs}


def _record(number: int, themes: Sequence[int], reasons: bool) -> Feedback:
    luck = random.Random(number)
    theme = themes[number % len(themes)]
    noun, city = luck.choice(_NOUNS), luck.choice(_CITIES)
    question = f"My {noun} (order {number:07d}) went to {city} and {_THEMES[theme][1]}. What will you do for me?"
    reply = f"{luck.choice(_OPENINGS)}, we {luck.choice(_VERBS)} the {noun} from {city} and write again about order {number:07d}."
    reason = f"{_THEMES[theme][0]}: {luck.choice(_MORE)}." if reasons else ""
    return Feedback(inputs={"question": question}, outputs=reply, value=luck.random() < 0.5, rationale=reason, annotator="ann", id=f"r{number}")


def answer(messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any] | None) -> tuple[str, str]:
    """(kind, text) of the scripted model's reply: kind is distil, relate or judge."""
    prompt = "\n".join(str(message["content"]) for message in messages)
    if "distill a set of guidelines" in prompt:
        return "distil", _mlflow_guidelines(prompt)
    inner = (schema or {}).get("properties", {}).get("result", {})
    if {"operations", "duplicates"} & set(inner.get("properties", {})):  # ours, asked through MLflow's adapters
        kind, text = answer(messages, inner)
        return kind, _dumps({"result": json.loads(text)})
    if schema is not None and "operations" in schema.get("properties", {}):
        return "distil", _operations(prompt)
    if schema is not None and "duplicates" in schema.get("properties", {}):
        return "relate", _relations(prompt)
    return "judge", _dumps(_filled(schema)) if schema is not None else "yes"


def _operations(prompt: str) -> str:
    known = {theme: key for key, text in re.findall(r"^((?:g|new)\d+): (.+)$", prompt, re.MULTILINE) if (theme := _theme(text)) is not None}
    cases = re.findall(r"^Case (\d+)$.*?^Expert: [^.\n]+\.[ ]?([^\n]*)$", prompt, re.MULTILINE | re.DOTALL)
    operations: list[dict[str, Any]] = []
    for theme, (reason, numbers) in _by_theme((int(number), reason) for number, reason in cases).items():
        if theme in known:
            operations.append({"op": "support", "guideline": known[theme], "cases": numbers})
        else:
            when, decide, because = _wording(theme, reason)
            operations.append({"op": "add", "when": when, "decide": decide, "because": because, "cases": numbers})
    return _dumps({"operations": operations})


def _mlflow_guidelines(prompt: str) -> str:
    head, _, rest = prompt.partition("Here are the user judgement examples:")
    known = {_theme(line) for line in re.findall(r"^  - (.+)$", head, re.MULTILINE)}
    cases = re.findall(r"\"id\": (\d+),.*?\"rationale\": \"([^\"]*)\"", rest, re.DOTALL)
    found = []
    for theme, (reason, numbers) in _by_theme((int(number), reason) for number, reason in cases).items():
        if theme not in known:
            when, decide, because = _wording(theme, reason)
            found.append({"guideline_text": f"When {when}, {decide}, because {because}.", "source_trace_ids": numbers})
    return _dumps({"guidelines": found})


def _relations(prompt: str) -> str:
    groups: dict[int, list[int]] = {}
    for number, text in re.findall(r"^(\d+)\. (.+)$", prompt, re.MULTILINE):
        if (theme := _theme(text)) is not None:
            groups.setdefault(theme, []).append(int(number))
    return _dumps({"duplicates": [group for group in groups.values() if len(group) > 1], "narrower": [], "conflicts": []})


def _by_theme(cases: Iterable[tuple[int, str]]) -> dict[int, tuple[str, list[int]]]:
    found: dict[int, tuple[str, list[int]]] = {}
    for number, reason in cases:
        theme = next((place for place, parts in enumerate(_THEMES) if reason.startswith(parts[0])), None)
        if theme is not None:
            found.setdefault(theme, (reason, []))[1].append(number)
    return found


def wordings(count: int) -> list[str]:
    """So many different guidelines, as the scripted model words them."""
    every = [f"When {when}, {decide} {shade}, because {because}." for shade in _SHADES for _, when, decide, because in _THEMES]
    return every[:count]


def _wording(theme: int, reason: str) -> tuple[str, str, str]:
    _, when, decide, because = _THEMES[theme]
    shade = _SHADES[hashlib.blake2b(reason.encode(), digest_size=1).digest()[0] % len(_SHADES)]
    return when, f"{decide} {shade}", because


def _theme(guideline: str) -> int | None:
    return next((place for place, (_, when, _, because) in enumerate(_THEMES) if when in guideline and because in guideline), None)


def _filled(schema: Mapping[str, Any]) -> Any:
    """A value of a JSON schema: yes, 1 or the first of an enumeration; every text is the one rationale."""
    if "enum" in schema:
        return schema["enum"][0]
    for variants in ("anyOf", "oneOf"):
        if variants in schema:
            return _filled(schema[variants][0])
    kind = schema.get("type")
    if kind == "object":
        return {name: _filled(part) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return []
    return {"boolean": True, "integer": 1, "number": 1.0}.get(str(kind), RATIONALE)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
