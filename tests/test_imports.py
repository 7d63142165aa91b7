"""Who may import whom, read from the source; and what `import scoresde` loads."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import scoresde

ROOT = Path(scoresde.__file__).parent

# The one-way order. Each unit (a file or folder of scoresde/) with the units it may import; `checks` is a leaf that all
# but noise and nn may use.
CORE = {"checks", "noise", "sde"}
PROCESS = CORE | {"score", "reverse", "grids", "guidance"}
ALLOWED: dict[str, set[str]] = {
    "checks": set(),
    "extras": set(),
    "noise": set(),
    "nn": set(),
    "sde": {"checks", "noise"},  # noise only inside prior_sample, see below
    "grids": {"checks", "sde"},
    "score": {"checks", "sde"},
    "times": {"checks", "sde"},
    "problems": CORE | {"score"},
    "losses": {"checks", "sde", "score"},
    "guidance": CORE | {"score"},
    "particles": PROCESS | {"solvers"},
    "inverse": PROCESS | {"solvers"},
    "editing": PROCESS | {"solvers"},
    "reverse": {"checks", "sde", "score"},
    "metrics": {"checks", "noise"},
    "solvers": PROCESS,
    "certify": PROCESS | {"problems", "solvers"},
    "fitting": PROCESS | {"solvers"},
    "sampling": PROCESS | {"solvers"},
    "likelihood": PROCESS | {"solvers"},
    "data": {"checks", "extras", "noise"},
    "train": CORE | {"guidance", "extras", "nn", "score", "losses", "times", "data"},
}
# What a function asks for when it is called, against the order; never when its module is loaded.
LATE: dict[str, set[str]] = {"grids": {"fitting", "reverse", "solvers"}, "editing": {"nn"}}
OPTIONAL = {"torchdiffeq", "torchsde", "accelerate", "safetensors", "matplotlib", "sklearn", "pyarrow", "PIL", "tyro"}
HEAVY = OPTIONAL | {"tqdm", "scipy"}


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name without "scoresde."; the root is ""."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:  # relative imports, spelt out
                package = ["scoresde", *parts[:-1]][: len(parts) + 1 - node.level]
                node.module, node.level = ".".join([*package, *filter(None, [node.module])]), 0
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = tree
    return found


def imported(tree: ast.AST, known: dict[str, ast.Module]) -> set[str]:
    """Our modules, as in ``modules()``, that these statements import, inside functions included."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names |= {f"{module}.{a.name}" if f"{module}.{a.name}"[9:] in known else module for a in node.names}
    return {name[9:] for name in names if name == "scoresde" or name.startswith("scoresde.")}


def loaded_at_import(tree: ast.Module) -> ast.Module:
    """The module without what runs later: functions, and imports for type checkers."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.If | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else node

    return ast.fix_missing_locations(Strip().visit(ast.parse(ast.unparse(tree))))


def test_imports_run_one_way() -> None:
    known = modules()
    assert len(known) > 20
    for name, tree in known.items():
        unit = name.split(".")[0]
        if unit == "":
            continue
        assert unit in ALLOWED, f"{unit} is new: give it its place in ALLOWED"
        at_once = {other.split(".")[0] for other in imported(loaded_at_import(tree), known)}
        assert not at_once & LATE.get(unit, set()), f"scoresde.{name} may import {LATE[unit]} inside functions only"
        for other in imported(tree, known):
            target = other.split(".")[0]
            # the root alone (for __version__) is nobody's dependency, but only the top may ask for it
            allowed = (
                target in ALLOWED[unit] | LATE.get(unit, set()) or target == unit or (target == "" and unit == "train")
            )
            assert allowed, f"scoresde.{name} must not import scoresde.{other}: see DESIGN's one-way order"


def test_the_order_has_no_cycles() -> None:
    """Neither the table nor, file by file, the source; a CycleError names the files."""
    known = modules()
    files = {name: imported(loaded_at_import(tree), known) for name, tree in known.items()}
    for graph in (ALLOWED, files):
        assert set(TopologicalSorter(graph).static_order()) >= set(graph)


def test_the_schedule_knows_no_randomness_until_asked() -> None:
    known = modules()
    for name, tree in known.items():
        if name.split(".")[0] == "sde":
            assert not any(other.startswith("noise") for other in imported(loaded_at_import(tree), known)), name


def test_nobody_imports_examples_or_tests() -> None:
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] in ("examples", "tests", "strategies", "pytest") for n in names), path


@pytest.fixture(scope="module")
def loaded() -> list[str]:
    """What `import scoresde` loads beyond `import torch`, in a process of its own."""
    code = (
        "import sys, json, torch; before = set(sys.modules); import scoresde; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("package", sorted(HEAVY))
def test_import_loads_no_optional_package(loaded: list[str], package: str) -> None:
    assert not [name for name in loaded if name.split(".")[0] == package]


def test_import_loads_our_core_only(loaded: list[str]) -> None:
    ours = {name for name in loaded if name.startswith("scoresde.")}
    assert "scoresde.solvers.ode_backend" in ours
    assert not [name for name in ours if name.split(".")[1] in ("train", "data")]


def test_public_names_exist() -> None:
    assert [name for name in scoresde.__all__ if not hasattr(scoresde, name)] == []
    assert len(set(scoresde.__all__)) == len(scoresde.__all__)
