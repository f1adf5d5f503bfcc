"""Probabilities of a scale's labels, from the likelihoods of the tokens a model wrote. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memalign.models import TokenLogprobs

_VERDICT_KEY = re.compile(r'"verdict"\s*:\s*"?\s*')  # cannot match inside a JSON string: there the quotes are escaped
_LEADING = " \t\r\n\"'`:{"
_TRAILING = " \t\r\n\"'`,.}"


def label_probabilities(scale_labels: Sequence[str], tokens: Sequence[TokenLogprobs]) -> dict[str, float] | None:
    """Probability of each label, summing to 1, read where the verdict starts in a bare label or a JSON reply.

    Every alternative token there counts for the one label that it begins ("Yes", " yes" and "YES" together). None when it cannot be told:
    no verdict was written, labels share their first token, or the alternatives' mass is zero.
    """
    position = _verdict_position(tokens)
    if position is None:
        return None
    written = tokens[position]
    alternatives = {written.token: written.logprob, **dict(written.top)}
    texts = {token: _bare(token) for token in alternatives}
    seen = frozenset(texts.values())
    mass = dict.fromkeys(scale_labels, 0.0)
    for token, logprob in alternatives.items():
        begun = _labels_begun(texts[token], scale_labels, seen)
        if len(begun) > 1 or (not begun and token == written.token):
            return None
        if begun and not math.isnan(logprob):
            mass[begun[0]] += math.exp(min(logprob, 0.0))
    total = sum(mass.values())
    return {label: share / total for label, share in mass.items()} if total > 0 else None


def _verdict_position(tokens: Sequence[TokenLogprobs]) -> int | None:
    """Index of the token that holds the first character of the verdict's value."""
    text = "".join(token.token for token in tokens)
    keys = list(_VERDICT_KEY.finditer(text))
    start = keys[-1].end() if keys else len(text) - len(text.lstrip(_LEADING.replace("{", "")))
    end = 0
    for position, token in enumerate(tokens):
        end += len(token.token)
        if end > start:
            return position
    return None


def _bare(token: str) -> str:
    return token.lstrip(_LEADING).rstrip(_TRAILING).casefold()


def _labels_begun(text: str, labels: Iterable[str], seen: frozenset[str]) -> list[str]:
    """Find the labels that start with the text.

    A text that is itself a label stands for that label alone when every longer label it begins is a token of its own ("1" beside "10").
    """
    begun = [label for label in labels if text and label.casefold().startswith(text)]
    whole = [label for label in begun if label.casefold() == text]
    longer = [label for label in begun if label.casefold() != text]
    return whole if whole and all(label.casefold() in seen for label in longer) else begun
