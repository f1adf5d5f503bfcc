"""Disks that are full or cannot be written: clear errors, nothing half done, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

# Aligns in a process of its own under a limit on the size of any file it writes: what a full disk looks like to SQLite, without being root.
LIMITED = """
import json, resource, signal, sys
sys.path.insert(0, {tests!r})
from conftest import record
from memalign import Judge, MemalignError, Scale
from memalign.embedders.scripted import HashEmbedder
from memalign.models.scripted import ScriptedChatModel
judge = Judge("polite", "Polite?", Scale.boolean(), ScriptedChatModel([]), memory=sys.argv[1], embedder=HashEmbedder())
judge.align([record(1, value=True)])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = 600_000
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
told = []
for number in range(2, 40):
    try:
        judge.align([record(number, value=True, outputs="x" * 50_000 + str(number))])
    except MemalignError as error:
        told = [type(error).__name__, str(error), number]
        break
try:
    judge.memory.export(sys.argv[2])
    exported = ""
except MemalignError as error:
    exported = str(error)
print(json.dumps([told, exported]))
sys.stdout.flush()
import os; os._exit(0)
"""

BELOW = """
import json, sys
from memalign import Judge, MemalignError, Scale
from memalign.embedders.scripted import HashEmbedder
from memalign.models.scripted import ScriptedChatModel
judge = Judge("polite", "Polite?", Scale.boolean(), ScriptedChatModel([]), memory=sys.argv[1], embedder=HashEmbedder())
told = []
for verb in sys.argv[2:]:
    try:
        if verb == "export":
            judge.memory.export(sys.argv[1] + ".memalign")
        else:
            judge.align([])
        told.append("")
    except MemalignError as error:
        told.append(type(error).__name__ + ": " + str(error))
print(json.dumps(told))
"""


def python(script: str, *arguments: object) -> list[object]:
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout.splitlines()[-1])
    return found


def healthy(db: Path) -> list[str]:
    """The ids that a process without limits finds and can go on with."""
    from conftest import record
    from memalign import Judge, Scale
    from memalign.embedders.scripted import HashEmbedder
    from memalign.models.scripted import ScriptedChatModel

    judge = Judge("polite", "Polite?", Scale.boolean(), ScriptedChatModel([]), memory=str(db), embedder=HashEmbedder())
    with judge.memory.store.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    judge.align([record(1000, value=True)])
    ids = [episode.feedback.id for episode in judge.memory.episodes()]
    assert judge.memory.waiting() == 0
    judge.close()
    return ids


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_is_told_and_nothing_accepted_is_lost(tmp_path: Path) -> None:
    from conftest import record

    db, out = tmp_path / "judge.db", tmp_path / "out.memalign"
    (kind, told, number), _ = python(LIMITED.format(tests=str(Path(__file__).parent)), db, out)  # type: ignore[misc]
    assert kind == "StoreError"
    assert "the disk is full" in told
    assert "free some space and repeat it" in told
    ids = healthy(db)
    assert {record(n, outputs="x" * 50_000 + str(n)).id for n in range(2, number)} <= set(ids)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte of its own."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=False)


def test_a_full_file_system(mounted: Path, tmp_path: Path) -> None:
    db = mounted / "judge.db"
    healthy(db)
    with (mounted / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while filler.write(b"\0" * 4096):
            pass
    aligned, exported = python(BELOW.replace("judge.align([])", "judge.memory.add('x' * 1999)"), db, "align", "export")
    assert "the disk is full" in str(aligned)
    assert "nothing of this change was stored" in str(aligned)
    assert "No space left on device" in str(exported) or "the disk is full" in str(exported)
    assert sorted(path.name for path in mounted.iterdir() if path.suffix == ".part") == []
    (mounted / "filler").unlink()
    assert healthy(db)


def test_a_read_only_file_system(mounted: Path) -> None:
    db = mounted / "judge.db"
    healthy(db)
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    aligned, exported = python(BELOW.replace("judge.align([])", "judge.memory.add('Be brief.')"), db, "align", "export")
    assert "StoreError" in str(aligned)
    assert "cannot be written" in str(aligned)
    assert "cannot be written" in str(exported)
    subprocess.run(["mount", "-o", "remount,rw", mounted], check=True)
    assert healthy(db)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_a_read_only_folder() -> None:
    """Root may write everywhere, so it becomes nobody, once all is imported."""
    become = "Judge('x', 'Polite?', Scale.boolean(), ScriptedChatModel([]), embedder=HashEmbedder()).align([])\n"
    become += "import os\nif os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\njudge ="
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "locked"
        folder.mkdir(mode=0o555)
        Path(place).chmod(0o755)
        (told,) = python(BELOW.replace("judge =", become, 1), folder / "judge.db", "align")
        assert "cannot be written" in str(told)
        assert "check the permissions of the file and of its folder" in str(told)
        assert list(folder.iterdir()) == []
