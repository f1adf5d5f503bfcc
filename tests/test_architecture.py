"""The shape of the code: imports only downwards, small modules and functions, a public face that is cheap and complete."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import memalign

ROOT = Path(memalign.__file__).parent

# Lowest first; a module may import from its own layer and from those below it. Packages stand for all they hold.
LAYERS = (
    "errors",
    "records",
    "scale open_scale probabilities settings rendering prompts pairwise retrieval",
    "agreement baseline panel reliability rows files models embedders stores edge",
    "memory",
    "routing meter space succession session prices working verdicts recalling fitting trial labelling",
    "alignment judging replaying calibration suggesting engines",
    "description owning judge",
    "cli demo integrations web plots __main__",
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
MOST_LINES_OF_A_MODULE = 350
MOST_LINES_OF_A_FUNCTION = 60
HEAVY = ("sqlalchemy", "numpy", "aiohttp", "jinja2", "pydantic", "typer")


@cache
def modules() -> dict[str, ast.Module]:
    """Module name, without the package's own -> its source, parsed."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and "versions" not in parts:
            found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports(name: str, *, inside_functions: bool) -> Iterator[str]:
    """What a module imports of this package, without what only type checkers see."""
    waiting: list[ast.AST] = list(modules()[name].body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not inside_functions:
            continue
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("memalign.") for alias in node.names if alias.name.startswith("memalign."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            yield from _imported_from(node)
        else:
            waiting += ast.iter_child_nodes(node)


def _imported_from(node: ast.ImportFrom) -> Iterator[str]:
    home = node.module or ""
    if home == "memalign" or home.startswith("memalign."):
        base = home.removeprefix("memalign").removeprefix(".")
        for alias in node.names:
            full = f"{base}.{alias.name}".removeprefix(".")
            known = full if full in modules() else base
            if known:
                yield known


def layer(name: str) -> int:
    return RANK.get(name.split(".")[0], len(LAYERS))


def test_every_module_has_its_layer() -> None:
    assert {name.split(".")[0] for name in modules()} <= set(RANK)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_downwards(name: str) -> None:
    upwards = sorted({other for other in imports(name, inside_functions=True) if layer(other) > layer(name)})
    assert upwards == []


def test_writers_and_readers_of_memory_know_each_other_only_through_memory() -> None:
    def known(*homes: str) -> set[str]:
        names = [name for name in modules() if name.split(".")[0] in homes]
        return {other.split(".")[0] for name in names for other in imports(name, inside_functions=True)}

    assert not known("alignment") & {"judging", "replaying", "calibration"}
    assert not known("judging", "replaying", "calibration") & {"alignment"}


def test_only_memory_opens_the_tables() -> None:
    """Memory is the only door to the stores; the judge chooses which store it is."""
    users = {name.split(".")[0] for name in modules() for other in imports(name, inside_functions=True) if other == "stores.schema"}
    assert users <= {"stores", "memory"}


def test_no_module_needs_itself_to_be_imported() -> None:
    graph = {name: {other for other in imports(name, inside_functions=False) if other != name} for name in modules()}
    for package in {name for name in modules() if "." in name}:
        graph[package].discard(package.split(".")[0])  # a package is initialised before what it holds, always
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_are_small(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MOST_LINES_OF_A_MODULE
    if "versions" in path.parts:
        return  # migrations are as long as what they make
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    too_long = {node.name: length for node in functions if (length := (node.end_lineno or 0) - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION}
    assert too_long == {}


@pytest.mark.parametrize("name", [name for name in sorted(modules()) if layer(name) < RANK["cli"]])
def test_the_library_does_not_print(name: str) -> None:
    calls = [node for node in ast.walk(modules()[name]) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id in ("print", "input", "breakpoint")] == []


def test_public_names_are_sorted_and_can_be_listed() -> None:
    assert memalign.__all__ == sorted(memalign.__all__)
    assert len(set(memalign.__all__)) == len(memalign.__all__)
    assert set(dir(memalign)) == {*memalign.__all__, "__version__"}


@pytest.mark.parametrize("name", memalign.__all__)
def test_public_names_can_be_imported_and_are_documented(name: str) -> None:
    value = getattr(memalign, name)
    assert value.__name__ == name
    doc = (value.__doc__ or "").strip()
    assert doc
    assert not doc.startswith(f"{name}("), "the signature that dataclasses write is no documentation"


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        memalign.Nothing  # noqa: B018


def test_public_methods_of_the_judge_are_documented() -> None:
    public = {name: getattr(memalign.Judge, name) for name in dir(memalign.Judge) if not name.startswith("_")}
    assert [name for name, value in public.items() if not (value.__doc__ or "").strip()] == []


def test_every_error_says_whether_a_retry_can_cure_it() -> None:
    errors = importlib.import_module("memalign.errors")
    tree = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.MemalignError)]
    leaves = [error for error in tree if error is not errors.MemalignError]
    assert all(issubclass(error, errors.RetryableError | errors.PermanentError) for error in leaves)
    assert all(error.retryable == issubclass(error, errors.RetryableError) for error in leaves)
    assert {error.__name__ for error in tree} <= set(memalign.__all__)


@pytest.mark.parametrize("statement", ["import memalign", "from memalign import Feedback, Scale", "import memalign.judge"])
def test_importing_costs_next_to_nothing(statement: str) -> None:
    script = f"import sys; {statement}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"


def test_only_the_stores_know_which_database_it_is() -> None:
    """No branch by dialect anywhere else."""
    asking = {
        name
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("dialect", "drivername") and not name.startswith("stores")
    }
    assert asking == set()
