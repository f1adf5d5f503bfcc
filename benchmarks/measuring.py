"""What all measurements share: medians, rows of the result table, fresh processes, and the facts of the machine."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result table."""

    what: str
    measured: str
    target: str = ""
    ok: bool | None = None
    """None where there is no target."""
    values: dict[str, Any] = field(default_factory=dict)
    """The numbers behind ``measured``."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.0995 else f"{seconds * 1000:.0f} ms"


def fresh(arguments: Sequence[str], *, python: str = sys.executable, timeout_seconds: float = 600.0, **environment: str) -> dict[str, Any]:
    """Run ``python arguments`` in a fresh process; the JSON object on its last line of output. Raises RuntimeError with what it complained of."""
    done = subprocess.run(
        [python, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=timeout_seconds, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def told(arguments: Sequence[str], *, python: str = sys.executable, **environment: str) -> Iterator[dict[str, Any]]:
    """Run ``python arguments`` in a fresh process; each JSON object that it prints, as it comes. Raises RuntimeError if it ends badly."""
    with subprocess.Popen([python, *arguments], cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}")


def beside_mlflow(address: str, folder: Path) -> dict[str, str]:
    """The environment of a side that talks to an endpoint of this machine alone, whatever else MLflow and its libraries would fetch."""
    return {
        "OPENAI_BASE_URL": f"{address}/v1",
        "OPENAI_API_BASE": f"{address}/v1",
        "OPENAI_API_KEY": "dummy",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "64",  # of the default 15 connections its threads may wait for one for ever
        "MLFLOW_MODEL_CATALOG_URI": "",
        "DO_NOT_TRACK": "true",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "DSPY_CACHEDIR": str(folder / "dspy"),
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(ROOT / "src"),
    }


def wall_seconds(arguments: Sequence[str], *, python: str = sys.executable) -> float:
    """Wall time of a fresh process that must succeed."""
    started = time.perf_counter()
    subprocess.run([python, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.perf_counter() - started


def facts() -> dict[str, Any]:
    """The machine, without names or paths."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "vector_instructions": _vector_instructions(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 1),
        "versions": {name: found for name in ("memalign", "numpy", "sqlalchemy", "aiohttp", "onnxruntime") if (found := _version(name))},
    }


def _vector_instructions() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    for name, flag in (("AVX-512", "avx512f"), ("AVX2", "avx2"), ("AVX", "avx"), ("NEON", "asimd")):
        if flag in flags:
            return name
    return "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
