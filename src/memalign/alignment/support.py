"""Whether the reasons that a proposal cites say anything of what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from memalign.alignment.plan import Proposal
from memalign.alignment.relate import content_words
from memalign.memory.episodic import Stored
from memalign.records import content_hash
from memalign.rendering import trimmed
from memalign.session import Meter, Session

UNFOUNDED = 0.15
"""Cosine similarity below which a guideline has nothing to do with a reason, unless they share a word; see ``benchmarks.relations``."""
TERSE = 3
"""Content words below which a reason says too little to be compared: what was made of it, and of its case, passes."""
_MOST_REASONS = 8
_LONGEST = 600
_SCRIPTS = re.compile(r"([a-zA-Z\u00c0-\u024f])|([\u0400-\u04ff])|([\u0590-\u08ff])|([\u0900-\u0dff])|([\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])")


async def unsupported(session: Session, meter: Meter, proposals: Sequence[Proposal], records: Mapping[int, Stored]) -> list[tuple[Proposal, str]]:
    """The proposals that the cited reasons do not support, with why; raises what the embedder raises.

    A shared content word is support enough; else the embedder decides. Texts in two scripts cannot be compared, and pass.
    """
    doubtful: list[tuple[Proposal, list[str]]] = []
    for proposal in proposals:
        reasons = [trimmed(" ".join(records[row].feedback.rationale.split()), _LONGEST) for row in sorted(proposal.evidence) if row in records]
        if reasons and not any(_passes(proposal.text, reason) for reason in reasons):
            doubtful.append((proposal, reasons[:_MOST_REASONS]))
    texts = {content_hash(text): text for proposal, reasons in doubtful for text in (proposal.text, *reasons)}
    vectors = await session.vectors(meter, texts) if texts else {}
    found = []
    for proposal, reasons in doubtful:
        likeness = max(float(vectors[content_hash(proposal.text)] @ vectors[content_hash(reason)]) for reason in reasons)
        if likeness < UNFOUNDED:
            found.append((proposal, f"says nothing of what the cited reasons say (similarity {likeness:.2f})"))
    return found


def script(text: str) -> int:
    """The script most of a text's letters belong to, as a number; 0: none of those that are told apart."""
    counts: dict[int, int] = {}
    for match in _SCRIPTS.finditer(text):
        counts[match.lastindex or 0] = counts.get(match.lastindex or 0, 0) + 1
    return max(counts, key=lambda key: counts[key], default=0)


def _passes(text: str, reason: str) -> bool:
    words = content_words(reason)
    return len(words) < TERSE or bool(words & content_words(text)) or script(reason) != script(text)
