"""What the documents say is true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import memalign
from memalign.cli import app
from memalign.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_pages_exist_with_their_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^\s*\$?\s*memalign (.+)$", text, re.MULTILINE):
        words = line.split("#")[0].split()
        depth = 2 if words[0] in ("db", "memory") else 1
        result = CliRunner().invoke(app, [*words[:depth], "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
        assert result.exit_code == 0, line
        for option in (word for word in words if word.startswith("--")):
            assert option in result.output, f"{option} in: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_variable_of_the_environment_is_told() -> None:
    variables = {str(field.validation_alias) for field in Settings.model_fields.values()}
    for source in (ROOT / "src").rglob("*.py"):
        variables |= set(re.findall(r"\bMEMALIGN_[A-Z_]+", source.read_text(encoding="utf-8")))
    told = set(re.findall(r"`([A-Z][A-Z_]+)`", (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")))
    assert told == variables


def test_every_page_can_be_reached() -> None:
    linked = {(page.parent / target).resolve() for page in PAGES for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))}
    assert linked >= {page.resolve() for page in ROOT.glob("docs/*.md")}


def test_python_of_the_readme_parses_and_names_what_is_public() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "memalign":
                assert {alias.name for alias in node.names} <= set(memalign.__all__)


def test_make_targets_of_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"^\s*make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
