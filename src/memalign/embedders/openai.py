"""Embeddings from any OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import SecretStr

from memalign.errors import EmbeddingError, ItemTooLong
from memalign.models.http import Endpoint
from memalign.records import Usage

if TYPE_CHECKING:
    from memalign.embedders import Vectors

BATCH_TEXTS = 128
_ADVICE = "check that this is an embedding model, and OPENAI_BASE_URL"


class OpenAIEmbedder:
    """Batches of up to 128 texts, sent concurrently; vectors are brought to length 1.

    ``usage`` adds up what was consumed since the embedder was made. ``dimension``, when given, is asked for and checked; the id then names
    it, because the vectors differ.
    """

    def __init__(
        self,
        model: str,
        *,
        dimension: int | None = None,
        base_url: str | None = None,
        api_key: str | SecretStr | None = None,
        concurrency: int | None = None,
        timeout_seconds: float | None = None,
        retries: int | None = None,
    ) -> None:
        """Unset arguments come from the environment; nothing is opened. Raises ConfigurationError."""
        self.model = model
        self.dimension = dimension
        self.usage = Usage()
        self._endpoint = Endpoint(base_url=base_url, api_key=api_key, concurrency=concurrency, timeout_seconds=timeout_seconds, retries=retries)

    @property
    def id(self) -> str:
        """``openai/<model>``, with the dimension when one was asked for."""
        return f"openai/{self.model}" + (f"-{self.dimension}" if self.dimension else "")

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One unit vector a text, shape (len(texts), dimension).

        Raises EmbeddingError, ModelUnavailable, ModelRefused, ConfigurationError.
        """
        if not texts:
            return np.zeros((0, self.dimension or 0), dtype=np.float32)
        batches = [texts[start : start + BATCH_TEXTS] for start in range(0, len(texts), BATCH_TEXTS)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._batch(batch)) for batch in batches]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        parts = [task.result() for task in tasks]
        if len({part.shape[1] for part in parts}) > 1:
            raise EmbeddingError(f"{self.id} returned vectors of different dimensions; {_ADVICE}")
        return np.concatenate(parts)

    async def aclose(self) -> None:
        """Close the running loop's connections; the embedder may be used again."""
        await self._endpoint.aclose()

    async def _batch(self, texts: Sequence[str]) -> Vectors:
        # An empty text is refused by OpenAI; a space is not, and means as much.
        body: dict[str, Any] = {"model": self.model, "input": [text or " " for text in texts], "encoding_format": "float"}
        if self.dimension:
            body["dimensions"] = self.dimension
        try:
            answer = await self._endpoint.post("embeddings", body)
        except ItemTooLong as error:
            raise EmbeddingError(f"a text does not fit the window of {self.id}: {error}") from error
        vectors = self._vectors(answer, len(texts))
        said = answer.get("usage")
        prompt_tokens = int(said.get("prompt_tokens") or 0) if isinstance(said, dict) else 0
        self.usage += Usage(calls=1, prompt_tokens=prompt_tokens, embedded_texts=len(texts))
        return vectors

    def _vectors(self, answer: Mapping[str, Any], count: int) -> Vectors:
        """The answer's vectors in the order of the texts: by ``index``, because the order of ``data`` is not promised."""
        try:
            rows = {int(row.get("index", place)): row["embedding"] for place, row in enumerate(answer["data"])}
            vectors: Vectors = np.array([rows[place] for place in sorted(rows)], dtype=np.float32)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EmbeddingError(f"{self.id} returned no readable vectors ({type(error).__name__}: {error}); {_ADVICE}") from error
        if sorted(rows) != list(range(count)) or vectors.ndim != 2:
            raise EmbeddingError(f"{self.id} returned {len(rows)} vector(s), not one for each of {count} texts; {_ADVICE}")
        if self.dimension and vectors.shape[1] != self.dimension:
            raise EmbeddingError(f"{self.id} returned dimension {vectors.shape[1]}, expected {self.dimension}; name that one, or another model")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or not lengths.all():
            raise EmbeddingError(f"{self.id} returned a vector that is not finite or has length 0; {_ADVICE}")
        unit: Vectors = vectors / lengths
        return unit
