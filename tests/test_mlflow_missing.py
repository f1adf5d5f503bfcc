"""What is said where MLflow is not installed, or too old."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from memalign import ConfigurationError, MissingExtra

_OLD = """
import sys, types
package, version = types.ModuleType("mlflow"), types.ModuleType("mlflow.version")
package.__path__, version.VERSION = [], "3.8.1"
sys.modules |= {"mlflow": package, "mlflow.version": version}
import memalign.integrations.mlflow
"""


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is not None, reason="MLflow is installed")
def test_the_extra_is_named() -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'memalign\[mlflow,minilm\]', or 'memalign\[mlflow\]' where"):
        importlib.import_module("memalign.integrations.mlflow")


def test_an_mlflow_that_is_too_old_is_said() -> None:
    done = subprocess.run([sys.executable, "-c", _OLD], capture_output=True, text=True, check=False)
    assert f"{ConfigurationError.__name__}: mlflow 3.8.1 has no judges with memory; install mlflow 3.9 or newer" in done.stderr


def test_memalign_itself_imports_neither() -> None:
    script = "import sys, memalign, memalign.integrations; sys.exit(bool({'mlflow', 'dspy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
