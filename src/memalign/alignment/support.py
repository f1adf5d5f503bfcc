"""Whether the reasons that a proposal cites say anything of what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from memalign.alignment.plan import Proposal
from memalign.alignment.relate import content_words
from memalign.memory.episodic import Stored
from memalign.records import content_hash
from memalign.rendering import item_text, trimmed
from memalign.session import Meter, Session

if TYPE_CHECKING:
    from memalign.embedders import Vectors

UNFOUNDED = 0.15
"""Cosine similarity below which a guideline has nothing to do with a reason, unless they share words; ``benchmarks.relations`` measures it."""
TERSE = 3
"""Content words below which a reason says too little to be compared: what was made of it, and of its case, passes."""
_OF_THE_CASE = 2
"""Content words that a guideline must share with a cited case when it shares none with the reason."""
_MOST_REASONS = 8
_LONGEST = 2000
_SCRIPTS = re.compile(r"([a-zA-Z\u00c0-\u024f])|([\u0400-\u04ff])|([\u0590-\u08ff])|([\u0900-\u0dff])|([\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])")


async def unsupported(session: Session, meter: Meter, proposals: Sequence[Proposal], records: Mapping[int, Stored]) -> list[tuple[Proposal, str]]:
    """The proposals that their reasons do not support, with why; raises what the embedder raises."""
    doubtful = {proposal: reasons for proposal in proposals if (reasons := doubts(proposal, records))}
    texts = {content_hash(text): text for proposal, reasons in doubtful.items() for text in (proposal.text, *reasons)}
    vectors = await session.vectors(meter, texts) if texts else {}
    return [(proposal, fault) for proposal in doubtful if (fault := unfounded(proposal, records, vectors)) is not None]


def unfounded(proposal: Proposal, records: Mapping[int, Stored], vectors: Mapping[str, Vectors]) -> str | None:
    """Why a proposal is not supported, or None; ``vectors``: by content hash, of its text and of its ``doubts``."""
    reasons = doubts(proposal, records)
    if not reasons:
        return None
    likeness = max(float(vectors[content_hash(proposal.text)] @ vectors[content_hash(reason)]) for reason in reasons)
    return f"says nothing of what the cited reasons say (similarity {likeness:.2f})" if likeness < UNFOUNDED else None


def doubts(proposal: Proposal, records: Mapping[int, Stored]) -> list[str]:
    """The reasons that its text must be likened to, since no words tell that they support it; none when they do, or when nobody can tell.

    Nobody can tell of a reason of a word or two, or in another script than the text.
    """
    words = content_words(proposal.text)
    reasons = []
    for stored in (records[row] for row in sorted(proposal.evidence)[:_MOST_REASONS] if row in records):
        reason = trimmed(" ".join(stored.feedback.rationale.split()), _LONGEST)
        said = content_words(reason)
        if len(said) < TERSE or said & words or script(reason) != script(proposal.text):
            return []
        if len(content_words(trimmed(item_text(stored.feedback.item), _LONGEST)) & words) >= _OF_THE_CASE:
            return []
        reasons.append(reason)
    return reasons


def script(text: str) -> int:
    """The script most of a text's letters belong to, as a number; 0: none of those that are told apart."""
    counts: dict[int, int] = {}
    for match in _SCRIPTS.finditer(text):
        counts[match.lastindex or 0] = counts.get(match.lastindex or 0, 0) + 1
    return max(counts, key=lambda key: counts[key], default=0)
