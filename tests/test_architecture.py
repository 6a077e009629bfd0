"""The house as shared/DESIGN.md lays it out: who may import whom, and what."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "errors": set(),
    "kinds": {"errors"},
    "settings": {"errors", "kinds"},
    "parts": {"errors", "settings"},
    "files": {"errors"},
    "structure": set(),
    "nests": set(),
    "backend": set(),
    "keras_private": set(),
    "convolutions": set(),
    "models": {"errors", "settings", "parts", "keras_private", "convolutions"},
    "links": {"errors", "nests", "settings", "engines.backends"},
    "data": {"errors", "settings", "parts", "files", "engines.backends"},
    "equations": {"errors"},
    "grafting": {
        "errors",
        "keras_private",
        "convolutions",
        "equations",
        "links",
        "engines.backends",
        "settings",
        "parts",
    },
    "engines": {"errors", "keras_private", "models"},
    "training": {
        "errors",
        "keras_private",
        "equations",
        "grafting",
        "engines",
        "data",
        "settings",
        "files",
        "structure",
        "nests",
        "links",
    },
    "retrieval": {"errors", "settings", "files", "data"},
    "analysis": {
        *("errors", "files", "convolutions", "equations", "grafting", "keras_private", "settings")
    },
    "tensorboard": {"errors", "settings", "files", "analysis", "grafting", "training"},
    "runs": {
        "backend",
        "errors",
        "keras_private",
        "equations",
        "grafting",
        "engines",
        "links",
        "training",
        "models",
        "data",
        "kinds",
        "settings",
        "parts",
        "files",
        "structure",
        "retrieval",
        "analysis",
        "tensorboard",
    },
}
BACKENDS = {"torch", "jax", "tensorflow"}
TOP_LEVEL = {"pyproject.toml", "README.md", "kgraft", "tests", "apps", "configs", "LICENSE"}


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path):
    """Every module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(path):
    return path.relative_to(ROOT).parts[1].removesuffix(".py")


@pytest.mark.parametrize("path", sources("kgraft"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    own = part_of(path)
    if own == "__init__":
        return
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "kgraft" and len(parts) > 1 and parts[1] != own:
            allowed = MAY_IMPORT[own] & {parts[1], ".".join(parts[1:3])}
            assert allowed, f"{own} imports {module}"
        assert parts[0] not in ("kgraft_cli", "click"), f"{own} imports {module}"


@pytest.mark.parametrize("path", sources("kgraft"), ids=lambda p: str(p.relative_to(ROOT)))
def test_backends_are_named_only_in_engines_and_where_they_reach_other_processes_or_files(path):
    elsewhere = ("state_dict.py", "torch_store.py", "jax_store.py")
    if part_of(path) != "engines" and path.name not in elsewhere:
        assert not BACKENDS & {module.split(".")[0] for module in imports(path)}


@pytest.mark.parametrize("path", sources("kgraft"), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_can_be_imported_where_torch_is_the_only_backend(path):
    """As the doctests do, and whoever looks through a package."""
    named = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not BACKENDS - {"torch"} & {module.split(".")[0] for module in named}


@pytest.mark.parametrize("path", sources("kgraft"), ids=lambda p: str(p.relative_to(ROOT)))
def test_one_place_acts_on_the_backends_name(path):
    """Elsewhere it is said at most."""
    if "backends" not in path.parts and part_of(path) != "backend":
        asked = r"match keras\.config\.backend\(\)|backend\(\)\s*(\]|[!=]=|in\b)"
        assert not re.search(asked, path.read_text())


@pytest.mark.parametrize("path", sources("kgraft") + sources("apps"), ids=lambda p: p.name)
def test_private_modules_of_keras_are_named_in_one_file(path):
    if part_of(path) != "keras_private":
        assert "keras.src" not in path.read_text()


@pytest.mark.parametrize("path", sources("kgraft"), ids=lambda p: str(p.relative_to(ROOT)))
def test_matplotlib_is_named_only_in_analysis(path):
    if part_of(path) != "analysis":
        assert "matplotlib" not in {module.split(".")[0] for module in imports(path)}


@pytest.mark.parametrize("path", sources("kgraft") + sources("apps"), ids=lambda p: p.name)
def test_bokeh_is_named_only_where_reports_are_drawn(path):
    if path.parent != ROOT / "kgraft" / "analysis" / "report":
        assert "bokeh" not in {module.split(".")[0] for module in imports(path)}


@pytest.mark.parametrize("path", sources("kgraft") + sources("apps"), ids=lambda p: p.name)
def test_a_file_is_one_idea(path):
    assert len(path.read_text().splitlines()) <= 410


def test_the_modules_of_apps_import_each_other_in_no_circle():
    """Wherever in a file they do: an import within a function hides a circle, no more."""
    paths = {
        ".".join(path.relative_to(ROOT / "apps").with_suffix("").parts): path
        for path in sources("apps")
    }
    graph = {name: set(imports(path)) & set(paths) - {name} for name, path in paths.items()}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as circle:
        pytest.fail(f"a circle: {' -> '.join(circle.args[1])}")


def test_nothing_else_lies_at_the_top():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_importing_kgraft_loads_no_other_backend_than_keras_does():
    def loaded(first):
        code = (
            f"import sys, os; os.environ.setdefault('KERAS_BACKEND', 'torch'); import {first}; "
            "print([b for b in ('torch', 'jax', 'tensorflow') if b in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        return ast.literal_eval(done.stdout.splitlines()[-1])

    assert loaded("kgraft") == loaded("keras")
