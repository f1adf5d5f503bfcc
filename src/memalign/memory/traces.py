"""Traces: what of some texts can be known again in others, word by word. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORD = re.compile(r"\w+")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Scripts that put no space between words."""
_RUN = 3
_LEAST_LETTERS = 4
"""A single word shorter than this says nothing by itself."""
_LEAST_BYTES = 8
_MOST_PASSAGES = 40

Gram = tuple[str, ...]
"""A word, or a run of words."""


def distinctive(gone: Iterable[str], kept: Iterable[str], *, within: Iterable[str] | None = None) -> set[Gram]:
    """Words, and runs of three, that stand in texts that go and in none that stays: a text that has one of them has it from there.

    ``within``: only those that stand in one of these texts as well.
    """
    found = set[Gram]().union(*map(_grams, gone))
    if within is not None:
        found &= set[Gram]().union(*map(_grams, within))
    for text in kept:
        if not found:
            break
        found -= _grams(text)
    return found


def carries(text: str, grams: set[Gram], *, runs_only: bool = False) -> bool:
    """Whether a text holds one of some words or runs."""
    shared = _grams(text) & grams
    return any(len(gram) > 1 for gram in shared) if runs_only else bool(shared)


def passages(texts: Iterable[str], grams: set[Gram]) -> list[bytes]:
    """Short passages of texts by which their bytes would be known again, as they would stand in a file; at most a few of each text."""
    found: dict[bytes, None] = {}
    for text in texts:
        words = [(match.start(), match.end()) for match in _WORD.finditer(text)]
        places = list(range(max(1, len(words) - _RUN + 1)))
        taken = 0
        for place in places:
            chosen = words[place : place + _RUN]
            if not chosen or taken == 2:
                break
            passage = text[chosen[0][0] : chosen[-1][1]]
            data = passage.encode("utf-8", "replace")
            if len(data) >= _LEAST_BYTES and not re.search(r'["\\\x00-\x1f]', passage) and carries(passage, grams):
                found[data] = None
                taken += 1
    every = list(found)
    step = max(1, -(-len(every) // _MOST_PASSAGES))
    return every[::step]


def _grams(text: str) -> set[Gram]:
    words = _WORD.findall(text.casefold())
    if _UNSPACED.search(text):
        words = [part for word in words for part in _parts(word)]
    single = {(word,) for word in words if len(word) >= _LEAST_LETTERS or not word.isascii()}
    return single | set(zip(words, words[1:], words[2:], strict=False))


def _parts(word: str) -> list[str]:
    """A word; in scripts without spaces, its characters in pairs."""
    if not _UNSPACED.search(word) or len(word) < 3:
        return [word]
    return [word[place : place + 2] for place in range(len(word) - 1)]
