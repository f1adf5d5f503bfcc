"""Without the extra ``dspy``: an error that says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

from memalign import MissingExtra


def test_without_dspy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dspy", None)
    for name in [name for name in sys.modules if name.startswith("memalign.integrations.dspy")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtra, match=r"pip install 'memalign\[dspy\]'"):
        __import__("memalign.integrations.dspy")


def test_the_package_does_not_import_dspy() -> None:
    script = "import sys, memalign, memalign.judge, memalign.integrations; print('dspy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
