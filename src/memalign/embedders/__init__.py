"""Embedders: the protocol, and the one place that turns an embedder's name into an implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from memalign.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]


class Embedder(Protocol):
    """Turns texts into vectors.

    ``embed`` returns an array of shape (len(texts), dimension), float32, each row of Euclidean length 1, row i for text i. It raises
    ModelUnavailable, ModelRefused or EmbeddingError and never returns NaN. It may be called concurrently. Rows of another length are brought to
    1 before they are stored or compared; a row of zeros is refused.
    """

    @property
    def id(self) -> str:
        """Changes whenever the vectors would: vectors are stored under it."""

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One unit vector a text."""

    async def aclose(self) -> None:
        """Give back connections and memory; the embedder may be used again afterwards."""


def open_embedder(name: str) -> Embedder:
    """The embedder of a ``provider/model`` name: ``local/minilm`` (in process) or ``openai/...`` (any OpenAI-compatible endpoint).

    Opening is cheap: weights are loaded at the first call. Raises ConfigurationError for an unknown name.
    """
    provider, _, model = name.partition("/")
    if name == "local/minilm":
        from memalign.embedders.minilm import MiniLM

        return MiniLM()
    if provider == "openai" and model:
        from memalign.embedders.openai import OpenAIEmbedder

        return OpenAIEmbedder(model)
    raise ConfigurationError(f"unknown embedder {name!r}; known: local/minilm, openai/<model>")


def reopened(embedder_id: str) -> Embedder:
    """The embedder that once had an id. Raises ConfigurationError when none can be opened that gives the same vectors."""
    found = open_embedder(embedder_id.partition("@")[0])  # what follows is the version of its weights
    if found.id != embedder_id:
        raise ConfigurationError(f"embedder {embedder_id!r} is not installed; the installed one is {found.id!r}")
    return found
