"""Choosing the few cases that are shown: past errors first, and every verdict that is close enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from memalign.memory.retrieval.candidates import Candidate


def errors_first(candidates: Sequence[Candidate], within: float) -> list[Candidate]:
    """The ranking, but each case that the judge got wrong moves ahead of others that are at most so much more similar."""
    ranking: list[Candidate] = []
    for candidate in candidates:
        place = len(ranking)
        while candidate.missed and place and not ranking[place - 1].missed and ranking[place - 1].similarity - candidate.similarity <= within:
            place -= 1
        ranking.insert(place, candidate)
    return ranking


def every_verdict(candidates: Sequence[Candidate], k: int, within: float) -> list[Candidate]:
    """The first k; but a verdict that would be absent gets its best case, if that is at most so much less similar than the best of all.

    It takes the place of the last case whose verdicts all stand among the others as well, so that none is lost for it. With k = 1 nothing changes.
    """
    chosen, rest = list(candidates[:k]), candidates[k:]
    if k < 2 or not rest:
        return chosen
    least = max(candidate.similarity for candidate in candidates) - within
    shown = Counter(label for one in chosen for label in one.labels)
    for candidate in rest:
        if candidate.similarity < least or shown.keys() >= candidate.labels:
            continue
        spare = [place for place in range(len(chosen) - 1, 0, -1) if all(shown[label] > 1 for label in chosen[place].labels)]
        if spare:
            shown.subtract(chosen.pop(spare[0]).labels)
            shown.update(candidate.labels)
            chosen.append(candidate)
    return chosen
