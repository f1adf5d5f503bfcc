"""From MLflow's name of an embedding model to an embedder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from memalign.embedders import Embedder
from memalign.errors import ConfigurationError, EmbeddingError, ModelUnavailable
from memalign.integrations.mlflow.model import plain_name

if TYPE_CHECKING:
    from memalign.embedders import Vectors

DEFAULT = "local:/minilm"
_BATCH_TEXTS = 150
"""What the narrowest hosted endpoints take at once."""


def embedder_of(uri: str | None, dimension: int | None) -> str | Embedder:
    """``local:/minilm`` (the default, in process), ``openai:/...``, or any other provider through LiteLLM."""
    name = plain_name(uri or DEFAULT)
    provider, _, model = name.partition("/")
    if provider == "local":
        if dimension is not None:
            raise ConfigurationError(f"{name} has a dimension of its own; leave embedding_dim out, or name a hosted embedding_model")
        return name
    if provider == "openai":
        address = os.environ.get("OPENAI_API_BASE")
        if dimension is None and address is None:
            return name
        from memalign.embedders.openai import OpenAIEmbedder

        return OpenAIEmbedder(model, dimension=dimension, base_url=address)
    return LiteLLMEmbedder("databricks/" + model if provider == "endpoints" else name, dimension)


class LiteLLMEmbedder:
    """Embeddings of the providers that LiteLLM knows, as in MLflow."""

    def __init__(self, model: str, dimension: int | None = None) -> None:
        self.model = model
        self.dimension = dimension

    @property
    def id(self) -> str:
        """``<provider>/<model>``, with the dimension when one was asked for."""
        return self.model + (f"-{self.dimension}" if self.dimension else "")

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One unit vector a text. Raises ConfigurationError without LiteLLM, ModelUnavailable, EmbeddingError."""
        try:
            import litellm
        except ImportError as error:
            raise ConfigurationError(
                f"the embedding model {self.model} needs LiteLLM: pip install litellm; or leave embedding_model out for the local one"
            ) from error
        wanted: dict[str, Any] = {"dimensions": self.dimension} if self.dimension else {}
        rows: list[Any] = []
        for start in range(0, len(texts), _BATCH_TEXTS):
            batch = [text or " " for text in texts[start : start + _BATCH_TEXTS]]
            try:
                answer = await litellm.aembedding(model=self.model, input=batch, drop_params=True, **wanted)
            except Exception as error:  # LiteLLM raises what its providers' clients raise
                raise ModelUnavailable(f"{self.id}: {error}") from error
            rows += [row["embedding"] for row in sorted(answer.data, key=lambda row: row["index"])]
        vectors = np.array(rows, dtype=np.float32)
        if vectors.ndim != 2 or not np.isfinite(vectors).all() or not np.linalg.norm(vectors, axis=1).all():
            raise EmbeddingError(f"{self.id} returned vectors that are not finite, empty or of different lengths")
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    async def aclose(self) -> None:
        """Nothing to give back."""
