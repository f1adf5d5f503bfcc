"""Words of any language as numbers, for the lexical index."""

from __future__ import annotations

import re
import unicodedata
import zlib
from functools import cache

import numpy as np
import numpy.typing as npt

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+"
)
"""Runs of scripts that write no spaces between words (Thai, Lao, Burmese, Khmer, Kana, Han), or glue endings to them (Hangul)."""


def words(text: str) -> list[str]:
    """The words of a text, case and compatibility forms folded; runs without spaces as their overlapping pairs of characters."""
    found: list[str] = []
    for word in _word().findall(unicodedata.normalize("NFKC", text).casefold()):
        if word.isascii():
            found.append(word)
            continue
        end = 0
        for run in _UNSPACED.finditer(word):
            found += _plain(word[end : run.start()])
            found += _pairs(run.group())
            end = run.end()
        found += _plain(word[end:])
    return found


@cache
def _word() -> re.Pattern[str]:
    r"""Letters and digits, with the marks of scripts that write vowels above and below them: to Python's own ``\\w`` these end a word."""
    marks = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
    return re.compile(rf"\w[\w{marks}]*")


def terms(text: str) -> npt.NDArray[np.uint32]:
    """The words of a text as 32-bit digests, in their order: the same in every process. Two words in 4e9 share one."""
    return np.fromiter((zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words(text)), dtype=np.uint32)


def _plain(part: str) -> list[str]:
    return [part] if part else []


def _pairs(run: str) -> list[str]:
    return [run[place : place + 2] for place in range(len(run) - 1)] or [run]
