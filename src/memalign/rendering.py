"""How items become text: for prompts and for embedding. Pure functions."""

from __future__ import annotations

import json
import re
from typing import Any

from memalign.records import Item

_FEW_WORDS = 8
"""Outputs shorter than this, an answer of a word or a date, say too little by themselves."""


def value_text(value: Any) -> str:
    """A JSON value for a reader: text as it is, an object as ``key: value`` lines, the rest as JSON."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, dict):
        return "\n".join(f"{key}: {value_text(part) if isinstance(part, str) else _json(part)}" for key, part in value.items())
    return _json(value)


def item_text(item: Item) -> str:
    """An item for a reader: inputs, then outputs, then expectations, each under its name unless it is an object."""
    parts = [_part(item.inputs, "input"), _part(item.outputs, "output"), _part(item.expectations, "expected")]
    return "\n".join(part for part in parts if part)


def search_text(item: Item) -> str:
    """The text by which an item is likened to others: the outputs, since they are what is judged; with the inputs when they are only a few words."""
    outputs = value_text(item.outputs) if item.outputs is not None else ""
    return outputs if len(outputs.split()) >= _FEW_WORDS else item_text(item)


def trimmed(text: str, limit: int) -> str:
    """At most ``limit`` characters of a text; what is left out in the middle is marked with its size."""
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit // 3
    return f"{text[:head].rstrip()} [... {len(text) - head - tail} characters left out ...] {text[len(text) - tail :].lstrip()}"


def guideline_text(when: str, decide: str, because: str = "") -> str:
    """One sentence: When <scope>, <what to decide>, because <why>."""
    scope = re.sub(r"\A(when|if)\s+", "", when.strip().rstrip(".,; "), flags=re.IGNORECASE)
    why = re.sub(r"\A(because|since)\s+", "", because.strip().rstrip(".,; "), flags=re.IGNORECASE)
    what = decide.strip().rstrip(".,; ")
    return f"When {_lower(scope)}, {_lower(what)}{f', because {_lower(why)}' if why else ''}."


def _lower(text: str) -> str:
    first, rest = text[:1], text[1:]
    return first.lower() + rest if rest[:1].islower() or rest[:1] == " " else text


def one_line(text: str, limit: int = 0) -> str:
    """``text`` on one line; with a limit, shortened to so many characters."""
    line = " ".join(text.split())
    return line if not limit or len(line) <= limit else f"{line[: limit - 1]}…"


def _part(value: Any, name: str) -> str:
    if value is None:
        return ""
    text = value_text(value)
    return text if isinstance(value, dict) else f"{name}: {text}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
