"""The vectors of records that are about to enter memory: a text that the embedder refuses stands in the way of no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from uuid import uuid4

from memalign.alignment.report import FailedBatch
from memalign.errors import EmbeddingError, ItemTooLong, MemalignError, ModelRefused
from memalign.memory.episodic import Stored
from memalign.records import content_hash
from memalign.session import Meter, Session

if TYPE_CHECKING:
    from memalign.embedders import Vectors

_REFUSALS = (EmbeddingError, ItemTooLong, ModelRefused)


class Refused(Exception):
    """The embedder works, but not for some texts; ``errors``: content hash -> why."""

    def __init__(self, errors: Mapping[str, MemalignError]) -> None:
        super().__init__(f"{len(errors)} text(s) were refused")
        self.errors = errors

    def batches(self, waiting: Sequence[Stored], embedder: str) -> dict[str, FailedBatch]:
        """Content hash -> the records that have to wait for it."""
        advice = "shorten the item, or name an embedder that reads long texts in windows, such as local/minilm"
        return {
            key: FailedBatch(
                feedback_ids=tuple(stored.feedback.id for stored in waiting if stored.content_hash == key),
                error=f"{embedder} refuses the item, which is no case until then ({error}); {advice}",
                retryable=False,
            )
            for key, error in self.errors.items()
        }


async def embed(session: Session, meter: Meter, texts: Mapping[str, str]) -> dict[str, Vectors]:
    """Content hash -> vector. Raises Refused for single texts, and what the embedder raises when it refuses any text, or is not there."""
    try:
        return await session.vectors(meter, texts)
    except _REFUSALS as error:
        word = uuid4().hex
        try:
            await session.vectors(meter, {content_hash(word): word})
        except _REFUSALS:
            raise error from None
        found, refused = await _by_halves(session, meter, texts, error)
    if refused:
        raise Refused(refused)
    return found


async def _by_halves(
    session: Session, meter: Meter, texts: Mapping[str, str], error: MemalignError
) -> tuple[dict[str, Vectors], dict[str, MemalignError]]:
    """The vectors, and the errors, of texts that were refused together."""
    if len(texts) == 1:
        return {}, dict.fromkeys(texts, error)
    keys = list(texts)
    found: dict[str, Vectors] = {}
    refused: dict[str, MemalignError] = {}
    for part in (keys[: len(keys) // 2], keys[len(keys) // 2 :]):
        half = {key: texts[key] for key in part}
        try:
            found |= await session.vectors(meter, half)
        except _REFUSALS as again:
            embedded, at_fault = await _by_halves(session, meter, half, again)
            found, refused = found | embedded, refused | at_fault
    return found, refused
