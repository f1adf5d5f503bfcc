"""The notebook for those who come from MLflow: what it shows is there, and it runs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import memalign

NOTEBOOK = Path(__file__).parent.parent / "docs" / "coming_from_mlflow.ipynb"


def code() -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_it_stands_there_with_what_it_printed() -> None:
    for cell in code():
        source = "".join(cell["source"])
        prints = any(isinstance(node, ast.Call) and ast.unparse(node.func) == "print" for node in ast.walk(ast.parse(source)))
        assert prints == bool(cell["outputs"]), source
        assert [output["name"] for output in cell["outputs"]] == ["stdout"] * len(cell["outputs"])


def test_it_goes_all_the_way() -> None:
    source = "\n".join("".join(cell["source"]) for cell in code())
    for step in ("make_judge(", "log_feedback(", ".align(", "genai.evaluate(", ".agreement(", ".unalign(", ".register(", "load_judge("):
        assert step in source


@pytest.mark.model
def test_it_runs(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", minversion="3.17", reason="it runs where the newest MLflow is installed: make integrations")
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in code()), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(Path(memalign.__file__).parent.parent), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=1500, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "True 8 episodes" in done.stdout
