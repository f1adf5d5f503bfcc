"""A mixed stream of feedback, as a team gives it over months, and a scripted model that reads it. Pure functions of a seed.

A theme is a situation and something that replies may hold ("a delivery is late", "a concrete new date"). Experts demand it, or forbid it. Of
the records, at a new theme every twelve: half give a reason in one of four wordings, a fifth repeat an earlier reason on a new item, a tenth are an
earlier record once more, a fifth are noise: a verdict at random and a reason without a principle. From certain records on the experts demand the
opposite of what they demanded before (reversals); on one theme two experts always disagree.

The model. Distilling, it writes one guideline a theme and demand, in words of the record it met it in. If it is *attentive*, it writes none that the
prompt lists already (it supports it, where that can be said); if not, it words every proposal anew. Relating, it names all duplicates
and conflicts truly. Judging, it does as the guidelines in the prompt say, by their majority; without one for the situation, or at a tie, as most
cases in the prompt say that are like the item in theme and content; without those, it says yes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.workload import RATIONALE
from memalign import Feedback

THEMES: tuple[tuple[str, str], ...] = (
    ("a parcel arrives damaged", "an apology"),
    ("a delivery is late", "a concrete new date"),
    ("an order was entered wrongly", "the corrected order line"),
    ("a refund is asked for", "the exact amount"),
    ("a payment failed", "the link to the payment form"),
    ("somebody threatens to sue", "a legal opinion"),
    ("a simple status is asked", "the tracking number"),
    ("a return label is needed", "the label page"),
    ("availability is asked", "the stock count"),
    ("someone is visibly angry", "a joke"),
    ("an internal team is involved", "the name of that team"),
    ("a device breaks within two years", "the warranty terms"),
    ("a skin reaction is reported", "advice to see a doctor"),
    ("a complaint is closed", "one next step"),
    ("a business customer writes", "the formal address"),
    ("a voucher has expired", "a replacement code"),
    ("two accounts should be merged", "a check of identity"),
    ("a manual is missing", "the download address"),
    ("a colour differs from the picture", "a photograph"),
    ("a gift came without wrapping", "free wrapping paper"),
    ("a subscription is cancelled", "an offer to stay"),
    ("a child's toy is asked about", "the age limit"),
    ("spare parts are wanted", "the part number"),
    ("a review is threatened", "a discount"),
)
CONTESTED = 5
"""The theme on which two experts always disagree."""
REVERSALS = {0: 35, 1: 80, 2: 120, 3: 180, 4: 260, 9: 320}
"""Theme -> the record from which on the experts demand the opposite."""
_DEMAND, _FORBID = ("require", "insist on", "expect", "look for"), ("reject", "forbid", "do without", "leave out")
_SHADES = ("in the first line", "in plain words", "as house style has it", "before anything else")
_BECAUSE = ("customers notice it", "the shop wants it so", "that was agreed", "experience teaches it")
_MISSING = ("No {} here.", "It lacks {}.", "I looked for {} and found none.", "Where is {}? It is always wanted.")
_THERE = ("Good: it has {}.", "Right, {} is in it.", "It holds {}, as it should.", "With {}, as agreed.")
_UNWANTED = ("We give no more {}.", "Drop {}, it must not be in it.", "{} has no place here any more.", "Not with {}, please.")
_LEFT_OUT = ("Right to leave out {}.", "Good: without {}.", "{} is rightly absent.", "Fine, nothing of {} in it.")
_NOISE = ("Hm.", "Not for me.", "I would have done it otherwise.", "Well, all right.", "")
_NOUNS = ("kettle", "lamp", "bicycle", "jacket", "router", "sofa", "camera", "tent", "printer", "blender", "guitar", "monitor", "carpet", "drill")
_CITIES = ("Graz", "Lyon", "Porto", "Turku", "Gdansk", "Leeds", "Malmo", "Bergen", "Cork", "Basel", "Ghent", "Trieste")
_VERBS = ("will look into", "have passed on", "are checking", "have noted")


def themes(count: int) -> int:
    """How many themes have come up in the first ``count`` records."""
    return min(len(THEMES), 6 + count // 12)


def demanded(theme: int, count: int) -> bool:
    """Whether experts demand a theme's thing after ``count`` records, rather than forbid it; half of the themes begin with a ban."""
    return (theme % 3 != 2) ^ (count > REVERSALS.get(theme, count))


def stream(count: int) -> list[Feedback]:
    """The first ``count`` records; a longer stream begins with the shorter one."""
    found: list[Feedback] = []
    told: list[int] = []
    for number in range(count):
        luck = random.Random(number)
        kind, theme = luck.random(), luck.randrange(themes(number))
        if kind < 0.1 and number > 10:
            place = luck.randrange(number)  # once more, unless the experts have changed their minds about it
            if demanded(told[place], place + 1) == demanded(told[place], number + 1):
                found.append(found[place])
                told.append(told[place])
                continue
        wording = 0 if kind < 0.3 else luck.randrange(4)
        found.append(_record(number, theme, wording, luck, noise=kind >= 0.8))
        told.append(theme)
    return found


def unseen(count: int, size: int) -> list[Feedback]:
    """Items that no record has, of the themes of the first ``count`` records, with the verdicts that experts would give then."""
    known = [theme for theme in range(themes(count)) if theme != CONTESTED]
    made = []
    for number in range(size):
        luck, theme = random.Random(f"unseen {number}"), known[number % len(known)]
        has = number // len(known) % 2 == 0 if size >= 2 * len(known) else luck.random() < 0.5
        made.append(_feedback(2_000_000 + number, theme, has, has == demanded(theme, count), "", "ann", luck))
    return made


def _record(number: int, theme: int, wording: int, luck: random.Random, *, noise: bool) -> Feedback:
    has, annotator = luck.random() < 0.5, luck.choice(("ann", "ben"))
    wanted = annotator == "ann" if theme == CONTESTED else demanded(theme, number + 1)
    value = has == wanted
    reasons = {(True, True): _THERE, (False, True): _MISSING, (True, False): _UNWANTED, (False, False): _LEFT_OUT}[has, wanted]
    reason = reasons[wording].format(THEMES[theme][1])
    if noise:
        value, reason = luck.random() < 0.5, luck.choice(_NOISE)
    return _feedback(number, theme, has, value, reason, annotator if theme == CONTESTED else "ann", luck)


def _feedback(number: int, theme: int, has: bool, value: bool, reason: str, annotator: str, luck: random.Random) -> Feedback:
    situation, thing = THEMES[theme]
    noun, city = luck.choice(_NOUNS), luck.choice(_CITIES)
    question = f"Order {number:07d}, {noun} to {city}: {situation}. What will you do?"
    reply = f"You write that {situation}. We {luck.choice(_VERBS)} the {noun} from {city}."
    reply += f" We add {thing}." if has else " We write again."
    return Feedback(inputs={"question": question}, outputs=reply, value=value, rationale=reason, annotator=annotator)


# What guidelines say


def demand(text: str) -> tuple[int, bool] | None:
    """The theme of a guideline in the model's words, and whether it demands; None for any other text."""
    for theme, (situation, thing) in enumerate(THEMES):
        if situation in text and (found := re.search(rf"({'|'.join(_DEMAND + _FORBID)}) {re.escape(thing)}", text)):
            return theme, found[1] in _DEMAND
    return None


def contradicting(texts: Iterable[str]) -> int:
    """Themes of which some guidelines demand what others forbid."""
    said = {found for found in map(demand, texts) if found is not None}
    return sum((theme, True) in said and (theme, False) in said for theme in range(len(THEMES)))


def distinct(texts: Iterable[str]) -> int:
    """Different demands among guidelines."""
    return len({found for found in map(demand, texts) if found is not None})


# The model


def answer(messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any] | None, *, attentive: bool) -> tuple[str, str]:
    """(kind, text) of the model's reply: kind is distil, relate or judge."""
    prompt = "\n".join(str(message["content"]) for message in messages)
    properties = (schema or {}).get("properties", {})
    if "distill a set of guidelines" in prompt:
        return "distil", _dumps({"guidelines": list(_distilled_for_mlflow(prompt, attentive=attentive))})
    if "operations" in properties:
        return "distil", _dumps({"operations": list(_operations(prompt, attentive=attentive))})
    if "duplicates" in properties:
        return "relate", _dumps(_relations(prompt))
    yes = _verdict(messages)
    return "judge", _dumps(_filled(schema, yes)) if schema is not None else ("yes" if yes else "no")


def _operations(prompt: str, *, attentive: bool) -> Iterator[dict[str, Any]]:
    held = re.findall(r"^((?:g|new)\d+): (.+)$", prompt, re.MULTILINE)
    known = {found: key for key, text in held if (found := demand(text)) is not None} if attentive else {}
    cases = re.findall(r"^Case (\d+)$(.*?)^Expert: [^.\n]+\.[ ]?([^\n]*)$", prompt, re.MULTILINE | re.DOTALL)
    for found, (reason, numbers) in _grouped((int(number), item, reason) for number, item, reason in cases).items():
        if found in known:
            yield {"op": "support", "guideline": known[found], "cases": numbers}
        else:
            when, decide, because = _wording(*found, reason, numbers)
            yield {"op": "add", "when": when, "decide": decide, "because": because, "cases": numbers}


def _distilled_for_mlflow(prompt: str, *, attentive: bool) -> Iterator[dict[str, Any]]:
    head, _, rest = prompt.partition("Here are the user judgement examples:")
    known = {demand(line) for line in re.findall(r"^  - (.+)$", head, re.MULTILINE)} if attentive else set()
    records = re.findall(r"\"id\": (\d+),(.*?)\n}", rest, re.DOTALL)
    cases = [(int(number), record, told[1]) for number, record in records if (told := re.search(r"\"rationale\": \"([^\"]*)\"", record))]
    for found, (reason, numbers) in _grouped(cases).items():
        if found not in known:
            when, decide, because = _wording(*found, reason, numbers)
            yield {"guideline_text": f"When {when}, {decide}, because {because}.", "source_trace_ids": numbers}


def _grouped(cases: Iterable[tuple[int, str, str]]) -> dict[tuple[int, bool], tuple[str, list[int]]]:
    """(theme, whether it is demanded) -> a reason and the numbers of the cases that say so."""
    found: dict[tuple[int, bool], tuple[str, list[int]]] = {}
    for number, item, reason in cases:
        theme = next((place for place, (situation, thing) in enumerate(THEMES) if situation in item and thing in reason), None)
        if theme is not None:
            thing = THEMES[theme][1]
            wanted = any(form.format(thing) in reason for form in _MISSING + _THERE)
            found.setdefault((theme, wanted), (reason, []))[1].append(number)
    return found


def _wording(theme: int, wanted: bool, reason: str, numbers: Sequence[int]) -> tuple[str, str, str]:
    """The guideline in words that the reason and the cases decide."""
    one, two, three = (byte % 4 for byte in hashlib.blake2b(f"{reason} {numbers}".encode(), digest_size=3).digest())
    situation, thing = THEMES[theme]
    return situation, f"{(_DEMAND if wanted else _FORBID)[one]} {thing} {_SHADES[two]}", _BECAUSE[three]


def _relations(prompt: str) -> dict[str, Any]:
    groups: dict[tuple[int, bool], list[int]] = {}
    for number, text in re.findall(r"^(\d+)\. (.+)$", prompt, re.MULTILINE):
        if (found := demand(text)) is not None:
            groups.setdefault(found, []).append(int(number))
    pairs = [(one, two) for (theme, wanted), ones in groups.items() if wanted for one in ones for two in groups.get((theme, False), [])]
    conflicts = [{"pair": sorted(pair), "first_when": "", "second_when": ""} for pair in pairs]
    return {"duplicates": [group for group in groups.values() if len(group) > 1], "narrower": [], "conflicts": conflicts}


def _verdict(messages: Sequence[Mapping[str, Any]]) -> bool:
    """What the judge says, by its rule."""
    prompt = "\n".join(str(message["content"]) for message in messages)
    theme, has = _seen(str(messages[-1]["content"]))
    ruled = Counter(found[1] for line in prompt.splitlines() if (found := demand(line)) is not None and found[0] == theme)
    if ruled[True] != ruled[False]:
        return has is (ruled[True] > ruled[False])
    shown = Counter(verdict for item, verdict in _cases(messages, prompt) if item == (theme, has))
    return shown[True] >= shown[False]


def _seen(text: str) -> tuple[int, bool]:
    """The last item of a text: its theme, and whether it holds the theme's thing."""
    places = [(text.rfind(f"You write that {situation}."), theme) for theme, (situation, _) in enumerate(THEMES)]
    place, theme = max(places)
    return theme, place >= 0 and f"We add {THEMES[theme][1]}." in text[place:]


def _cases(messages: Sequence[Mapping[str, Any]], prompt: str) -> Iterator[tuple[tuple[int, bool], bool]]:
    """The cases of a prompt with the experts' verdicts, in our form (earlier turns) and in MLflow's (lines of its instructions)."""
    for before, after in pairwise(messages):
        if after["role"] == "assistant":
            yield _seen(str(before["content"])), '"verdict": "yes"' in str(after["content"]) or str(after["content"]).strip() == "yes"
    for line in re.findall(r"^  Example \d+: (\{.*\})$", prompt, re.MULTILINE):
        example = ast.literal_eval(line)
        yield _seen(str(example["outputs"])), str(example["result"]).casefold() in ("true", "yes")


def _filled(schema: Mapping[str, Any], yes: bool) -> Any:
    """A value of a verdict's schema; every other text is the one rationale."""
    if "enum" in schema:
        return "yes" if yes and "yes" in schema["enum"] else "no" if "no" in schema["enum"] else schema["enum"][0]
    for variants in ("anyOf", "oneOf"):
        if variants in schema:
            return _filled(schema[variants][0], yes)
    if schema.get("type") == "object":
        return {name: _filled(part, yes) for name, part in schema.get("properties", {}).items()}
    return {"boolean": yes}.get(str(schema.get("type")), RATIONALE)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
