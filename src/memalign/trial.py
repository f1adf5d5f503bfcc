"""What a way of deciding is worth on records that were left out when it was fitted. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memalign.agreement import short
from memalign.fitting import Case, Floats, Parts, fitted, weights
from memalign.memory.revisions import Decision
from memalign.reliability import Reliability, reliability
from memalign.scale import Scale
from memalign.verdicts import log_shares, nearest_score, stacked

_PARTS: tuple[Parts, ...] = ("whole", "model", "trust")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A record that experts and the model judged."""

    place: int
    """Its place among the cases."""
    truth: Any
    """The experts' value; where they differ, the one with the most weight behind it."""
    said: Any
    """The model's own value."""
    shares: Mapping[str, float]
    """Probability of each label by the model's replies."""
    bare: bool
    """Whether they are those of one reply without token probabilities, which claims certainty."""
    disputed: bool = False
    """Whether the two orders of a pair disagree, so that the judge abstains unless what was fitted decides."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The best founded decision, and what it was worth."""

    decision: Decision
    before: Reliability
    after: Reliability
    note: str
    losses: tuple[float, ...]
    """Log loss on each judged record when it was left out, by the weight of its label."""


def case_of(scale: Scale, said: Mapping[Any, float], shares: Mapping[str, float] | None, vote: tuple[float, ...]) -> Case:
    """An item as fitting sees it: experts' values by weight, the model's probabilities if it judged the item, and the vote of the other cases."""
    total = sum(said.values())
    label = tuple(said.get(value, 0.0) / total for value in scale.values)
    return Case(label=label, model=None if shares is None else tuple(log_shares(scale, shares)), vote=vote)


def tried(scale: Scale, cases: Sequence[Case], judged: Sequence[Judged], *, mirrored: bool, expected_score: bool = False) -> Trial | None:
    """The decision that the records bear out; None when all labels are equal. ``expected_score``: the judge gives the score nearest to the mean.

    Of three (model, vote and offsets; without the vote; confidences only, so that no verdict changes) the richest is taken, unless a simpler one
    has a log loss on left-out records that is lower by more than one standard error of the difference.
    """
    rows: dict[Parts, Floats] = {}
    for parts in _PARTS:
        if parts == "whole" and not any(any(case.vote) for case in cases):
            continue  # nothing votes: the same as without the vote
        rows[parts] = left_out(scale, cases, judged, parts, mirrored=mirrored)
    losses = _losses(scale, cases, judged, rows)
    best = _best_founded(losses)
    decision = fitted(scale, cases, best, mirrored=mirrored)
    if decision is None:
        return None
    truth = [record.truth for record in judged]
    said = [record.said for record in judged]
    claimed = [[float(label == scale.label_of(r.said)) if r.bare else r.shares[label] for label in scale.labels] for r in judged]
    disputed = [record.disputed for record in judged]
    decided = said
    if expected_score and scale.kind == "score":
        decided = [nearest_score(scale, mean) for mean in rows[best] @ np.array(scale.values, dtype=float)]
    elif decision.changes_values:
        decided = [scale.values[int(row.argmax())] for row in rows[best]]
    before = reliability(scale, truth, said, claimed, undecided=disputed)
    after = reliability(scale, truth, decided, rows[best].tolist(), undecided=[] if decision.changes_values else disputed)
    note = _remarks(scale, best, "whole" in rows, before, after, moved=decided != said)
    return Trial(decision, before, after, note, tuple(map(float, losses[best])))


def better(losses: Sequence[float] | Floats, others: Sequence[float] | Floats, *, errors: float = 1.0) -> bool:
    """Whether losses on some records are lower than other losses on them, by more than so many standard errors of the difference."""
    gain = np.subtract(others, losses)
    return len(gain) > 1 and bool(gain.mean() > errors * gain.std(ddof=1) / np.sqrt(len(gain)))


def left_out(scale: Scale, cases: Sequence[Case], judged: Sequence[Judged], parts: Parts, *, mirrored: bool) -> Floats:
    """Probabilities of the labels of each judged record by what was fitted without it, shape (judged, labels)."""
    found = np.zeros((len(judged), len(scale.labels)))
    for fold in rounds([record.truth for record in judged]):
        without = {judged[number].place for number in fold}
        rest = [case for place, case in enumerate(cases) if place not in without]
        decision = fitted(scale, rest, parts, mirrored=mirrored) or Decision()
        for number in fold:
            record = judged[number]
            found[number] = list(stacked(scale, record.shares, cases[record.place].vote, decision).values())
    return found


def rounds(labels: Sequence[Any]) -> list[list[int]]:
    """Folds for leaving out: one record of each label as far as they go, so that leaving out does not tip the balance of the rest."""
    by_label: dict[Any, list[int]] = {}
    for place, label in enumerate(labels):
        by_label.setdefault(label, []).append(place)
    most = max(map(len, by_label.values()), default=0)
    return [[places[turn] for places in by_label.values() if turn < len(places)] for turn in range(most)]


def _losses(scale: Scale, cases: Sequence[Case], judged: Sequence[Judged], rows: Mapping[Parts, Floats]) -> dict[Parts, Floats]:
    weight = weights(scale, np.array([cases[record.place].label for record in judged]))
    truth = [scale.values.index(record.truth) for record in judged]
    return {parts: -np.log(np.maximum(found[range(len(truth)), truth], 1e-6)) * weight for parts, found in rows.items()}


def _best_founded(losses: Mapping[Parts, Floats]) -> Parts:
    best, *simpler = losses
    for parts in simpler:
        if better(losses[parts], losses[best]):
            best = parts
    return best


def _remarks(scale: Scale, best: Parts, votes: bool, before: Reliability, after: Reliability, *, moved: bool) -> str:
    remarks = []
    if best == "model" and votes:
        remarks.append("the vote of similar cases did not help on these records and takes no part")
    if best == "trust":
        what = "the mean score moves with them" if moved else "no verdict changes"
        remarks.append(f"no way of deciding otherwise than the model did better on these records: only confidences were fitted, {what}")
    worse = _worse(scale, before, after)
    if worse:
        remarks.append(f"on these records it does worse than the model alone ({worse}); measure it on others with evaluate before relying on it")
    return "; ".join(remarks)


def _worse(scale: Scale, before: Reliability, after: Reliability) -> str:
    """In which figure the fitted judge falls behind the model alone; empty when in none."""
    if before.mae is not None and after.mae is not None:
        return f"mean absolute error {short(after.mae)} against {short(before.mae)}" if after.mae > before.mae + 1e-9 else ""
    old, new = before.balanced_accuracy, after.balanced_accuracy
    if old is None or new is None:
        old, new = before.accuracy, after.accuracy
    return f"balanced accuracy {short(new)} against {short(old)}" if new < old - 1e-9 else ""
