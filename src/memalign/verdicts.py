"""From a model's reply to a verdict's value and confidence. Pure functions."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from memalign.memory.revisions import Decision
from memalign.models import ChatReply
from memalign.probabilities import label_probabilities
from memalign.scale import Scale


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reply says."""

    value: Any
    rationale: str
    confidence: float | None
    probabilities: dict[str, float] | None
    """Of each label, as the model gave them."""


def read(scale: Scale, reply: ChatReply, *, explain: bool, decision: Decision) -> Reading:
    """Parse a reply strictly; where the experts' labels fitted a threshold and the model gives probabilities, the threshold decides.

    Raises UnreadableReply.
    """
    value, rationale = scale.parse(reply.text, rationale=True) if explain else (scale.parse_label(reply.text), "")
    probabilities = label_probabilities(scale.labels, reply.logprobs) if reply.logprobs else None
    if probabilities is None:
        return Reading(value, rationale, None, None)
    if scale.kind == "boolean" and decision.threshold is not None:
        yes = recentred(probabilities["yes"], decision.threshold)
        return Reading(yes >= 0.5, rationale, max(yes, 1.0 - yes), probabilities)
    return Reading(value, rationale, probabilities[scale.label_of(value)], probabilities)


def recentred(probability: float, threshold: float) -> float:
    """A probability whose log-odds are moved so that the threshold comes to lie at one half."""
    odds = [min(max(p, 1e-9), 1.0 - 1e-9) for p in (probability, threshold)]
    shift = math.log(odds[0] / (1.0 - odds[0])) - math.log(odds[1] / (1.0 - odds[1]))
    return 1.0 / (1.0 + math.exp(-shift))


def fitted_threshold(probabilities: list[float], values: list[bool]) -> float | None:
    """The probability of yes from which "yes" agrees best with the experts (balanced accuracy), midway between its two neighbours.

    Ties go to the middle of the longest best stretch. None unless both verdicts occur.
    """
    positives, negatives = values.count(True), values.count(False)
    if not positives or not negatives:
        return None
    ranked = sorted(zip(probabilities, values, strict=True))
    cuts = [0.0, *((a[0] + b[0]) / 2 for a, b in itertools.pairwise(ranked)), 1.0]
    scored = []
    for cut in dict.fromkeys(cuts):
        true_positives = sum(p >= cut and v for p, v in ranked)
        true_negatives = sum(p < cut and not v for p, v in ranked)
        scored.append((round(true_positives / positives + true_negatives / negatives, 9), cut))
    best = max(score for score, _ in scored)
    good = [cut for score, cut in scored if score == best]
    return sum(good) / len(good) if len(good) < 3 else good[len(good) // 2]
