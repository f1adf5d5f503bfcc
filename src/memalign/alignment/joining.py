"""Acting on relations: what becomes of proposals that say the same, narrow or contradict what is there."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from memalign.alignment.conflicts import Side, Weight, alike_weight, settle
from memalign.alignment.operations import unsound
from memalign.alignment.plan import Proposal, Revised
from memalign.alignment.relate import Held, Relations, content_words
from memalign.memory.episodic import Stored
from memalign.rendering import guideline_text

_LONGEST = 400
"""Characters of a guideline that takes in a narrower one; beyond, the two stay apart."""


class Joining:
    """Relations turned into changed proposals, in place. No evidence is lost, and nothing is deleted."""

    def __init__(
        self,
        held: Sequence[Held],
        records: Mapping[str, Sequence[Stored]],
        rows: Mapping[int, Stored],
        *,
        restated: Collection[int] = (),
        reworded: Collection[str] = (),
        weight: Weight = alike_weight,
        labels: Sequence[str] = (),
        personal: bool = False,
    ) -> None:
        """``records``: guideline id -> the records it rests on; ``rows``: the records that proposals cite; ``restated``: as in ``Side``.

        ``reworded``: ids of guidelines that have a new wording already; one round gives each but one. ``labels``, ``personal``: as for ``unsound``.
        """
        self._held = held
        self._records = records
        self._rows = rows
        self._restated = restated
        self._weight = weight
        self._unsound = partial(unsound, labels=labels, personal=personal)
        self._reworded = set(reworded)
        self._stands_for: dict[int, int] = {}
        self._revived: dict[int, Proposal] = {}
        """Candidates that gain evidence, by place, and what brings it: they would be read again, so conflicts with them count."""
        self.gone: list[Proposal] = []
        """Proposals that became part of others."""

    def act(self, relations: Relations) -> None:
        """Duplicates join the oldest, narrower ones its wording unless they are in a conflict, and conflicts are settled."""
        for group in relations.duplicates:
            for place in group[1:]:
                self._join(group[0], place)
        torn = {self._now(place) for found in relations.conflicts for place in found[:2]}
        for special, general in relations.narrower:
            if not {self._now(special), self._now(general)} & torn:
                self._narrow(special, general)
        for first, second, when, then in relations.conflicts:
            self._settle(first, second, when, then)

    def _now(self, place: int) -> int:
        while place in self._stands_for:
            place = self._stands_for[place]
        return place

    def _join(self, kept: int, place: int) -> None:
        mine, other = self._held[kept], self._held[place].proposal
        if other is None:
            return
        self._stands_for[place] = kept
        if mine.guideline is not None:
            other.guideline_id, other.text, other.scope = mine.guideline.id, "", ""
            if mine.guideline.state == "candidate":
                self._revived[kept] = other
        elif mine.proposal is not None:
            _take(mine.proposal, other)
            self.gone.append(other)

    def _narrow(self, special: int, general: int) -> None:
        special, general = self._now(special), self._now(general)
        older, newer = min(special, general), max(special, general)
        other, mine = self._held[newer].proposal, self._held[older]
        if older == newer or other is None or other.guideline_id is not None:
            return
        text = f"{self._held[general].text} In particular: {self._held[special].text}"
        pinned = mine.guideline is not None and mine.guideline.pinned
        if not pinned and (len(text) > _LONGEST or (mine.guideline is not None and mine.guideline.id in self._reworded)):
            return
        if mine.guideline is not None:
            self._reworded.add(mine.guideline.id)
            other.guideline_id, other.text, other.scope = mine.guideline.id, "" if pinned else text, ""
        elif mine.proposal is not None:
            mine.proposal.text = mine.text = text
            _take(mine.proposal, other)
            self.gone.append(other)
        self._stands_for[newer] = older

    def _settle(self, first: int, second: int, when: str, then: str) -> None:
        first, second = sorted((self._now(first), self._now(second)), key=lambda place: (place in self._revived, place))
        mine, other = self._held[first], self._revived.get(second, self._held[second].proposal)
        if first == second or other is None or (other.guideline_id is not None and second not in self._revived):
            return
        if other.state is not None or _decided(mine):
            return
        sides = self._side(first), self._side(second)
        scoped = self._scoped(mine.text, self._held[second].text, when, then)
        outcome = settle(*sides, splits=scoped is not None, weight=self._weight)
        against = frozenset(other.evidence)
        if outcome == "split" and scoped is not None:
            one, two = scoped
            self._reword(mine, other, one)
            other.text = two
        elif outcome == "first":
            other.state = "superseded"
            self._change(mine, other, Revised(against=against))
        elif outcome == "second":
            self._change(mine, other, Revised(state="superseded", against=against))
        else:
            other.state = "quarantined"
            other.rival = mine.guideline.id if mine.guideline is not None else mine.proposal
            if mine.proposal is not None:
                mine.proposal.rival = other
            self._change(mine, other, Revised(state="quarantined"))

    def _scoped(self, first: str, second: str, when: str, then: str) -> tuple[str, str] | None:
        """Both texts with their situations, when these differ, the texts themselves speak of them and both may be worded like this; else None."""
        if not when.strip() or not then.strip() or content_words(when) == content_words(then):
            return None
        if not content_words(when) & content_words(first) or not content_words(then) & content_words(second):
            return None
        one, two = ((" ".join(scope.split()), _decision(text)) for text, scope in ((first, when), (second, then)))
        if any(self._unsound(guideline_text(*parts), scope=parts[0], decide=parts[1]) for parts in (one, two)):
            return None
        return guideline_text(*one), guideline_text(*two)

    def _change(self, mine: Held, other: Proposal, revised: Revised) -> None:
        if mine.guideline is not None:
            other.others[mine.guideline.id] = revised
        elif mine.proposal is not None:
            mine.proposal.state = revised.state
            mine.proposal.against |= revised.against
            mine.proposal.overcome |= revised.against

    def _reword(self, mine: Held, other: Proposal, text: str) -> None:
        if mine.guideline is not None:
            other.others[mine.guideline.id] = Revised(text=text)
        elif mine.proposal is not None:
            mine.proposal.text = mine.text = text

    def _side(self, place: int) -> Side:
        one = self._held[place]
        proposal = self._revived.get(place, one.proposal)
        cited = [self._rows[row] for row in sorted(proposal.evidence) if row in self._rows] if proposal is not None else []
        if one.guideline is None:
            return Side(False, cited, self._restated)
        return Side(one.guideline.pinned, [*self._records.get(one.guideline.id, ()), *cited], self._restated)


def _take(kept: Proposal, other: Proposal) -> None:
    kept.evidence |= other.evidence
    kept.against |= other.against
    kept.overcome |= other.overcome
    kept.taint |= other.taint


def _decided(one: Held) -> bool:
    return one.proposal is not None and one.proposal.state is not None


def _decision(text: str) -> str:
    """What a guideline's text says without its situation."""
    return re.sub(r"\A(?:when|if)\b[^,]*,\s*", "", text.strip(), flags=re.IGNORECASE)
