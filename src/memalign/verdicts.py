"""From a model's replies to a verdict's value and confidence. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memalign.memory.revisions import Decision
from memalign.memory.vote import support
from memalign.models import ChatReply
from memalign.pairwise import swapped
from memalign.probabilities import label_probabilities
from memalign.scale import Scale

LEAST_PROBABILITY = 1e-4
"""What a label is given at least before logarithms are taken: a label that is not among the alternatives told is unlikely, not impossible."""

PRIOR_VOTES = 1.0
"""Shared by all labels, it keeps the share of five equal replies below 1."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one reply says, of the item as the user gave it."""

    value: Any
    rationale: str
    probabilities: Mapping[str, float] | None
    """Of each label, from the tokens; None when the model does not tell."""
    swapped: bool = False
    """Whether outputs a and b were shown in the other order."""

    def seen_from(self, scale: Scale) -> Answer:
        """The same answer after a swap of a and b."""
        told = self.probabilities
        renamed = None if told is None else {scale.label_of(swapped(scale.value_of(label))): share for label, share in told.items()}
        return replace(self, value=swapped(self.value), probabilities=renamed, swapped=not self.swapped)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What all replies together say."""

    value: Any
    rationale: str
    confidence: float | None
    """Probability of the value; None when the model does not tell and was asked once."""
    probabilities: Mapping[str, float] | None
    """Of each label by the replies alone, before anything fitted."""
    expected: float | None
    """Scores: the mean under the final probabilities."""
    votes: int
    """Replies whose labels were counted; 0 when all told the probabilities of their tokens."""
    orders: tuple[Any, Any] | None
    """Pairwise: the verdict in the order given and in the other one."""
    disputed: bool
    """Whether the two orders disagree where no tie is allowed, and nothing fitted decides."""


def read(scale: Scale, reply: ChatReply, *, explain: bool) -> Answer:
    """Parse a reply strictly. Raises UnreadableReply."""
    value, rationale = scale.parse(reply.text, rationale=True) if explain else (scale.parse_label(reply.text), "")
    return Answer(value, rationale, label_probabilities(scale.labels, reply.logprobs) if reply.logprobs and scale.labels else None)


def settled(scale: Scale, answers: Sequence[Answer], *, decision: Decision, vote: Sequence[float] = (), expected_score: bool = False) -> Reading:
    """One reading of one or more answers; what was fitted decides if it was fitted on as many.

    ``expected_score``: the value is the score nearest to the mean, not the likeliest one.
    """
    shares, votes = pooled(scale, answers)
    fits = decision.fitted and decision.votes == votes
    final = stacked(scale, shares, vote, decision) if fits else shares
    known = fits or votes != 1
    orders = _orders(scale, answers)
    disputed = orders is not None and orders[0] != orders[1] and not (fits and decision.changes_values)
    tied = disputed and "tie" in scale.values
    if fits and decision.changes_values:
        value = _likeliest(scale, final, prefer=answers[0].value)
    elif tied:
        value = "tie"
    else:
        value = answers[0].value if len(answers) == 1 else _likeliest(scale, shares, prefer=answers[0].value)
    expected = None
    if scale.kind == "score" and known:
        expected = sum(share * float(score) for share, score in zip(final.values(), scale.values, strict=True))
        value = nearest_score(scale, expected) if expected_score else value
    return Reading(
        value=value,
        rationale=next((answer.rationale for answer in answers if answer.value == value and not answer.swapped), answers[0].rationale),
        confidence=final[scale.label_of(value)] if known else None,
        probabilities=None if votes == 1 else shares,
        expected=expected,
        votes=votes,
        orders=orders,
        disputed=disputed and not tied,
    )


def pooled(scale: Scale, answers: Sequence[Answer]) -> tuple[dict[str, float], int]:
    """Probability of each label by the answers alone, and how many of them were counted as votes: 0 when all tell their tokens' probabilities.

    Token probabilities are averaged; else each answer is a vote, and the share of a label is smoothed by one vote that all labels share.
    """
    told = [answer.probabilities for answer in answers if answer.probabilities is not None]
    if len(told) == len(answers):
        return {label: sum(shares[label] for shares in told) / len(told) for label in scale.labels}, 0
    said = [scale.label_of(answer.value) for answer in answers]
    labels = scale.labels or tuple(dict.fromkeys(said))  # the open scale has those that were said
    prior = PRIOR_VOTES / len(labels)
    return {label: (said.count(label) + prior) / (len(said) + PRIOR_VOTES) for label in labels}, len(said)


def stacked(scale: Scale, shares: Mapping[str, float], vote: Sequence[float], decision: Decision) -> dict[str, float]:
    """Probability of each label from those by the replies and the cases' vote, by the fitted weights."""
    import numpy as np

    evidence = decision.model_weight * np.array(log_shares(scale, shares)) + decision.vote_weight * support(scale, vote)
    if decision.offsets:
        evidence = evidence + np.array(decision.offsets)
    odds = np.exp(evidence - evidence.max())
    return dict(zip(scale.labels, map(float, odds / odds.sum()), strict=True))


def log_shares(scale: Scale, shares: Mapping[str, float]) -> list[float]:
    """The logarithm of each label's probability, kept finite."""
    return [math.log(max(shares[label], LEAST_PROBABILITY)) for label in scale.labels]


def nearest_score(scale: Scale, number: float) -> Any:
    """The score nearest to a number."""
    return min(scale.values, key=lambda score: abs(float(score) - number))


def _likeliest(scale: Scale, shares: Mapping[str, float], *, prefer: Any) -> Any:
    """The value of the largest share; of equal ones the preferred, else the first."""
    most = max(shares.values())
    best = [scale.value_of(label) for label, share in shares.items() if share >= most - 1e-12]
    return prefer if prefer in best else best[0]


def _orders(scale: Scale, answers: Sequence[Answer]) -> tuple[Any, Any] | None:
    sides = [[answer for answer in answers if answer.swapped is side] for side in (False, True)]
    if not all(sides):
        return None
    given, other = (side[0].value if len(side) == 1 else _likeliest(scale, pooled(scale, side)[0], prefer=side[0].value) for side in sides)
    return given, other
