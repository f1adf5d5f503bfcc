"""From a model's reply to a verdict's value and confidence. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def read(scale: Scale, reply: ChatReply, *, explain: bool, decision: Decision, vote: float = 0.0) -> Reading:
    """Parse a reply strictly; on the boolean scale, where the model gives probabilities, what the experts' labels fitted decides.

    ``vote`` is the vote of the cases, about -1 (no) to 1 (yes). Raises UnreadableReply.
    """
    value, rationale = scale.parse(reply.text, rationale=True) if explain else (scale.parse_label(reply.text), "")
    probabilities = label_probabilities(scale.labels, reply.logprobs) if reply.logprobs else None
    return weighed(scale, Reading(value, rationale, None, probabilities), decision=decision, vote=vote)


def weighed(scale: Scale, said: Reading, *, decision: Decision, vote: float = 0.0) -> Reading:
    """What a model said, after the experts' labels and the cases' vote had their part in it."""
    value, rationale, probabilities = said.value, said.rationale, said.probabilities
    if probabilities is None:
        return Reading(value, rationale, None, None)
    if scale.kind == "boolean" and decision != Decision(cases=decision.cases):
        yes = stacked(probabilities["yes"], vote, decision)
        return Reading(yes >= 0.5, rationale, max(yes, 1.0 - yes), probabilities)
    return Reading(value, rationale, probabilities[scale.label_of(value)], probabilities)


def stacked(probability: float, vote: float, decision: Decision) -> float:
    """The probability of yes from the model's probability and the cases' vote, by the fitted weights."""
    odds = decision.model_weight * log_odds(probability) + decision.vote_weight * vote + decision.bias
    return 1.0 / (1.0 + math.exp(-max(min(odds, 50.0), -50.0)))


def log_odds(probability: float) -> float:
    """The logarithm of the odds, kept finite."""
    kept = min(max(probability, 1e-6), 1.0 - 1e-6)
    return math.log(kept / (1.0 - kept))


_LEAST_SPREAD = 0.25
"""Of log-odds and of votes: less says nothing."""


def fitted(probabilities: Sequence[float | None], votes: Sequence[float], values: Sequence[bool]) -> Decision | None:
    """The weights under which model and vote agree best with the experts: logistic regression with a unit Gaussian prior (MAP, Newton's method).

    Features are scaled to unit variance for the prior, but one that hardly varies is not blown up; both verdicts weigh the same. A probability of
    None, for a case that the model did not judge, counts as the mean. None unless both verdicts occur.
    """
    import numpy as np

    labels = np.array(values, dtype=float)
    if not 0 < labels.sum() < len(labels):
        return None
    features = np.column_stack([[math.nan if p is None else log_odds(p) for p in probabilities], list(votes)])
    centre, spread = np.nanmean(features, axis=0), np.maximum(np.nanstd(features, axis=0), _LEAST_SPREAD)
    features = np.where(np.isnan(features), centre, features)
    design = np.column_stack([(features - centre) / spread, np.ones(len(labels))])
    weight = np.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    prior = np.diag([1.0, 1.0, 1e-3])
    found = np.zeros(3)
    for _ in range(50):
        predicted = 1.0 / (1.0 + np.exp(-design @ found))
        gradient = design.T @ (weight * (predicted - labels)) + prior @ found
        curvature = design.T @ (design * (weight * predicted * (1 - predicted))[:, None]) + prior
        step = np.linalg.solve(curvature, gradient)
        found -= step
        if np.abs(step).max() < 1e-9:
            break
    slopes = np.maximum(found[:2], 0.0) / spread
    return Decision(model_weight=float(slopes[0]), vote_weight=float(slopes[1]), bias=float(found[2] - slopes @ centre))
