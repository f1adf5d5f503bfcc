"""The index as a file beside the database: it saves the reading and linking of a large memory, and can be made again at any time.

A file is used only when it is whole (a digest over all its bytes) and stands for what the database holds (a fingerprint keyed by the judge's
secret). It appears by an atomic rename, so that readers meet all of it or none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

_MAGIC = b"memalign index 1\n"
_DIGEST_BYTES = 32
_ALIGNMENT = 64
_CHUNK = 1 << 22
_FIELDS = {"revision": int, "fingerprint": str, "size": int, "words": bool, "rest": dict, "parts": dict}
_MOST_REVISIONS = 1 << 62
"""More than a database can be asked for."""


def path_for(location: str | None, judge_id: int, embedder: str) -> Path | None:
    """Where a judge's index lies: beside a database in a file; None for others."""
    if location is None or "://" in location:
        return None
    return Path(f"{location}-index-{judge_id}-{hashlib.blake2b(embedder.encode(), digest_size=4).hexdigest()}")


def drop(location: str | None, judge_id: int) -> int:
    """Delete all index files of a judge, half-written ones too; gives how many there were."""
    if location is None or "://" in location:
        return 0
    database = Path(location)
    found = [path for path in database.parent.glob(f"{_escaped(database.name)}-index-{judge_id}-*") if path.suffix != ".lock"]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


@contextmanager
def making(path: Path) -> Iterator[bool]:
    """Whether this process is the one that makes the file; another may be at it already. Raises OSError where nothing can be written."""
    lock = FileLock(f"{path}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def write(path: Path, header: Mapping[str, Any], parts: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write the file whole, then give it its name. Raises OSError."""
    table, at = {}, 0
    for name, part in parts.items():
        table[name] = (part.dtype.str, part.shape, at)
        at += -(-part.nbytes // _ALIGNMENT) * _ALIGNMENT
    text = json.dumps({**header, "parts": table}).encode()
    start = len(_MAGIC) + _DIGEST_BYTES + 8
    text += b" " * (-(start + len(text)) % _ALIGNMENT)
    half = path.with_name(f"{path.name}.{os.getpid()}.part")
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    try:
        with half.open("wb") as file:
            file.write(_MAGIC + bytes(_DIGEST_BYTES))
            for data in _pieces(text, parts):
                digest.update(data)
                file.write(data)
            file.seek(len(_MAGIC))
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def header(path: Path) -> dict[str, Any] | None:
    """What a file says of itself, before its digest is compared; None when it cannot be read as an index."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
            file.seek(_DIGEST_BYTES, os.SEEK_CUR)
            return _parsed(file.read(int.from_bytes(file.read(8), "little")))
    except (OSError, ValueError, OverflowError, MemoryError, RecursionError):
        return None


def read(path: Path, found: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]] | None:
    """The parts of a file whose header was read, in place and not to be written to.

    None when a byte of it is not as it was written, or when another file has taken its name since the header was read.
    """
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError):
        return None
    first = len(_MAGIC) + _DIGEST_BYTES
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for at in range(first, len(data), _CHUNK):
        digest.update(data[at : at + _CHUNK].data)
    if digest.digest() != data[len(_MAGIC) : first].tobytes():
        return None
    length = int.from_bytes(data[first : first + 8].tobytes(), "little")
    if _parsed(data[first + 8 : first + 8 + length].tobytes()) != found:
        return None
    parts = {}
    for name, (kind, shape, at) in found["parts"].items():
        dtype = np.dtype(kind)
        start = found["start"] + at
        parts[name] = data[start : start + dtype.itemsize * int(np.prod(shape))].view(dtype).reshape(shape)
    return parts


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A header, with where the parts begin; None when it lacks what is looked at before the digest is compared. Raises ValueError."""
    found = json.loads(text)
    if not isinstance(found, dict) or any(type(found.get(name)) is not kind for name, kind in _FIELDS.items()):
        return None
    return found | {"start": len(_MAGIC) + _DIGEST_BYTES + 8 + len(text)} if abs(found["revision"]) <= _MOST_REVISIONS else None


def _pieces(text: bytes, parts: Mapping[str, npt.NDArray[Any]]) -> Iterator[bytes | memoryview]:
    yield len(text).to_bytes(8, "little")
    yield text
    for part in parts.values():
        flat = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
        for at in range(0, len(flat), _CHUNK):
            yield flat[at : at + _CHUNK].data
        yield bytes(-len(flat) % _ALIGNMENT)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
