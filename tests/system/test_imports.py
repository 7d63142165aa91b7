"""Who may import whom, read from the source; what is private stays so; and what `import scoresde` loads."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import scoresde

ROOT = Path(scoresde.__file__).parent

# The one-way order, bottom to top. Each unit (a file or folder of scoresde/) with the units it may import.
HELPERS = {"checks", "extras", "files", "warning"}  # what any program could use: they import nothing of ours
CORE = HELPERS | {"noise", "sde", "spectrum", "curve", "models"}
PROCESS = CORE | {"reverse", "rules", "solvers"}
ALLOWED: dict[str, set[str]] = {
    "checks": set(),
    "extras": set(),
    "files": set(),
    "warning": set(),
    "noise": {"checks"},
    "sde": {"checks", "noise"},
    "spectrum": {"checks"},
    "curve": {"checks"},
    "models": {"checks", "warning", "noise", "sde", "spectrum", "curve"},
    "nn": {"checks", "extras", "models.conditions"},
    "times": {"checks", "sde", "curve"},
    "rules": {"checks", "sde", "spectrum", "curve"},
    "grids": {"rules", "solvers", "fitting"},
    "metrics": HELPERS | {"noise", "data", "train"},
    "data": HELPERS | {"noise", "models.conditions"},
    "reverse": {"checks", "sde", "models"},
    "losses": {"checks", "sde", "models"},
    "problems": {"checks", "noise", "sde", "models"},
    "guidance": {"checks", "noise", "sde", "models"},
    "solvers": CORE | {"reverse", "rules"},
    "sampling": PROCESS,
    "likelihood": PROCESS,
    "fitting": PROCESS,
    "certify": PROCESS | {"problems", "guidance", "sampling"},
    "inverse": PROCESS | {"guidance"},
    "particles": PROCESS | {"guidance"},
    "editing": PROCESS | {"guidance", "nn"},
    "train": CORE | {"nn", "losses", "times", "data", "sampling", "solvers"},
    "interop": PROCESS | HELPERS | {"guidance", "nn", "data", "sampling", "inverse", "likelihood"},
    "hub": CORE | {"nn", "data", "train"},
    "__main__": {"cli"},
    "cli": PROCESS
    | HELPERS
    | {"guidance", "nn", "data", "times", "losses", "metrics", "grids", "problems", "sampling", "likelihood", "fitting"}
    | {"inverse", "particles", "editing", "train", "interop", "hub"},
}
OPTIONAL = {"torchdiffeq", "torchsde", "accelerate", "safetensors", "matplotlib", "sklearn", "pyarrow", "PIL", "tyro"}
OPTIONAL |= {
    "diffusers",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "datasets",
    "tensorboard",
    "lightning",
    "yaml",
}
UPWARD = "models.pretrained"
"""The one exception: methods of models that write and read folders find scoresde.hub, far above, in the root when they
are called, so that ``model.save_pretrained`` can be a method. What the root answers with is loaded then, not before."""
HEAVY = OPTIONAL | {"tqdm", "scipy"}
# Underscores that are the interface of named tuples and of torch's tensors and graphs.
OTHERS = {"_replace", "_asdict", "_fields", "_make", "_version", "_sequence_nr"}


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


KNOWN = modules()


def inner(name: str) -> str | None:
    """A dotted name without "scoresde."; None where it is not ours."""
    return name.removeprefix("scoresde").removeprefix(".") if name.split(".")[0] == "scoresde" else None


def imported(tree: ast.AST) -> set[str]:
    """Our modules, as in ``modules()``, that these statements import: in functions and for type checkers, too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names |= {f"{module}.{a.name}" if inner(f"{module}.{a.name}") in KNOWN else module for a in node.names}
    return {name for name in map(inner, names) if name is not None}


def test_imports_run_one_way() -> None:
    assert len(KNOWN) > 100
    for name, tree in KNOWN.items():
        unit = name.split(".")[0]
        if unit == "":
            continue
        assert unit in ALLOWED, f"{unit} is new: give it its place in ALLOWED"
        for other in imported(tree):
            target = other.split(".")[0]
            # the root alone (for __version__) is nobody's dependency, but only the top may ask for it
            inside = target == unit or (target == "" and (unit in ("train", "hub", "cli") or name == UPWARD))
            assert inside or any(f"{other}.".startswith(f"{may}.") for may in ALLOWED[unit]), (
                f"scoresde.{name} must not import scoresde.{other}: see DESIGN's one-way order"
            )


def test_the_order_has_no_cycles() -> None:
    """Neither the table nor, file by file, the source, functions included; a CycleError names the files."""
    files = {name: imported(tree) for name, tree in KNOWN.items() if name}  # the root names all for type checkers
    units = {unit: {other.split(".")[0] for other in others} for unit, others in ALLOWED.items()}
    for graph in (units, files):
        assert set(TopologicalSorter(graph).static_order()) >= set(graph)


def test_nothing_of_ours_is_imported_late() -> None:
    """An import inside a function, or for type checkers alone, is a circle that has been hidden."""
    for name, tree in KNOWN.items():
        for node in ast.walk(tree):
            late = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            checkers = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and name
            if late or checkers:
                assert not imported(node), f"scoresde.{name}, line {node.lineno}: import it at the top"


def test_nobody_imports_examples_or_tests() -> None:
    for name, tree in KNOWN.items():
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] in ("examples", "tests", "strategies", "pytest") for n in names), name


# -- private and public names --------------------------------------------------------------------------------------


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_private_name_is_imported() -> None:
    """Nor is a private module, but for the engines behind the solvers, by solvers."""
    for name, tree in KNOWN.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                paths = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                paths = [alias.name for alias in node.names]
            else:
                continue
            for path in filter(None, map(inner, paths)):
                hidden = [part for part in path.split(".") if private(part)]
                engine = name.split(".")[0] == "solvers" and f"solvers.{hidden[0]}" in KNOWN if hidden else False
                assert not hidden or (engine and len(hidden) == 1), f"scoresde.{name} imports scoresde.{path}"


def own(tree: ast.Module) -> set[str]:
    """The private names that a file defines: functions, classes, variables, fields and attributes of self."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)  # a buffer or a field that is set by its name
    return found


def foreign(tree: ast.Module) -> set[str]:
    """Names that stand for something of other packages: their private attributes are not ours to judge."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname or a.name.split(".")[0] for a in node.names if inner(a.name) is None}
        elif isinstance(node, ast.ImportFrom) and inner(node.module or "") is None:
            found |= {a.asname or a.name for a in node.names}
    return found


def reached(name: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Private attributes of things that the file does not define: (line, expression).

    Of ``self`` and ``cls`` those are inherited from a file of another unit.
    """
    mine, others = own(tree), foreign(tree)
    unit = name.split(".")[0]
    family = set().union(*(own(other) for key, other in KNOWN.items() if key.split(".")[0] == unit))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not private(node.attr) or node.attr in OTHERS:
            continue
        base = node.value
        while isinstance(base, (ast.Attribute, ast.Call)):
            base = base.func if isinstance(base, ast.Call) else base.value
        held = isinstance(base, ast.Name) and base.id in ("self", "cls", "super") and base in (node.value, base)
        inherited = (isinstance(node.value, ast.Name) and held) or ast.unparse(node.value) == "super()"
        if isinstance(base, ast.Name) and base.id in others:
            continue
        if node.attr not in (family if inherited else mine):
            yield node.lineno, ast.unparse(node)


def test_no_private_attribute_of_another_module_is_touched() -> None:
    found = [
        f"scoresde.{name}, line {line}: {what}" for name, tree in KNOWN.items() for line, what in reached(name, tree)
    ]
    assert not found, found


def test_these_readers_see() -> None:
    """What the tests above are made of finds what it should, wherever it stands."""
    tree = ast.parse(
        "import torch\nfrom scoresde import checks\n"
        "def f(x):\n    from scoresde.noise.base import Noise\n    y = checks._literals(x)\n    return x.part._hidden\n"
        "class A(B):\n    _field: int\n    def g(self, o):\n"
        "        return self._elsewhere, o._field, torch._C.x, o._replace()"
    )
    assert imported(tree) == {"checks", "noise.base"}
    assert sorted(what for _, what in reached("grids", tree)) == [
        "checks._literals",
        "self._elsewhere",
        "x.part._hidden",
    ]


def test_a_public_name_occurs_in_one_module_only() -> None:
    """Classes, functions and aliases of types: who reads a name knows where it is from."""
    homes: dict[str, list[str]] = defaultdict(list)
    for name, tree in KNOWN.items():
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                homes[node.name] += [name] if name not in homes[node.name] else []  # overloads are one function
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                alias = node.targets[0].id
                homes[alias].append(name) if alias != alias.upper() else None
    twice = {key: found for key, found in homes.items() if len(found) > 1 and not key.startswith("_") and key != "main"}
    assert not twice, twice


def test_every_public_module_says_what_is_in_it_and_how_to_use_it() -> None:
    """At least three lines, of which one below the first shows a call or names something in code."""
    short = []
    for name, tree in KNOWN.items():
        if any(private(part) or part == "__main__" for part in name.split(".")):
            continue
        lines = [line for line in (ast.get_docstring(tree) or "").splitlines() if line.strip()]
        if len(lines) < 3 or not any("(" in line or "`" in line for line in lines[1:]):
            short.append(f"scoresde.{name}".rstrip("."))
    assert not short, short


# -- the root ------------------------------------------------------------------------------------------------------


def run(code: str) -> object:
    """What a Python process of its own prints, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def loaded() -> list[str]:
    """What the most common use loads beyond `import torch`."""
    names = run(
        "import sys, json, torch; before = set(sys.modules); import scoresde; scoresde.sample, scoresde.ScoreModel; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    assert isinstance(names, list)
    return names


@pytest.mark.parametrize("package", sorted(HEAVY))
def test_use_of_the_core_loads_no_optional_package(loaded: list[str], package: str) -> None:
    assert not [name for name in loaded if name.split(".")[0] == package]


def test_use_of_the_core_loads_the_core_only(loaded: list[str]) -> None:
    ours = {name.split(".")[1] for name in loaded if name.startswith("scoresde.")}
    assert "sampling" in ours and ours <= PROCESS | {"sampling"}


def test_the_root_loads_nothing_until_it_is_asked() -> None:
    """And then every submodule, on its own: none leans on another's having been imported before."""
    ours = "[m for m in sys.modules if m.split('.')[0] == 'scoresde']"
    assert run(f"import sys, json, scoresde; print(json.dumps({ours}))") == ["scoresde"]
    assert run("import sys, json, scoresde; print(json.dumps('torch' in sys.modules))") is False
    submodules = sorted({name.split(".")[0] for name in KNOWN} - HELPERS - {"", "__main__", "cli", "rules"})
    assert set(submodules) <= set(scoresde.__all__)
    forget = f"for m in {ours}: del sys.modules[m]\n"
    code = "import sys, json, importlib\nfound = []\n" + "".join(
        f"{forget}import scoresde\nfound.append(scoresde.{name}.__name__)\n" for name in submodules
    )
    assert run(f"{code}print(json.dumps(found))") == [f"scoresde.{name}" for name in submodules]


def test_names_of_the_root_agree() -> None:
    """``__all__``, what is looked up, what type checkers are told and ``dir()`` are one list."""
    assert len(set(scoresde.__all__)) == len(scoresde.__all__)
    assert set(dir(scoresde)) == {*scoresde.__all__, "__version__"}
    (block,) = (n for n in KNOWN[""].body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    told: dict[str, str] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.module is not None
        told |= {alias.name: node.module for alias in node.names}
    assert set(told) == set(scoresde.__all__)
    homes = {name: f"scoresde.{module}" for module, names in scoresde._HOME.items() for name in names}
    for name, module in told.items():
        value = getattr(scoresde, name)
        if name not in homes:
            assert module == "scoresde" and value is sys.modules[f"scoresde.{name}"]
            continue
        # perhaps from a file of its home, where a function and its file have one name
        assert module in (homes[name], f"{homes[name]}.{name}")
        assert value is getattr(sys.modules[homes[name]], name)
        assert name in getattr(sys.modules[homes[name]], "__all__", [name])  # what its home shows to all
    with pytest.raises(AttributeError, match=r"no attribute 'sampel'; see dir\(scoresde\)"):
        scoresde.sampel  # type: ignore[attr-defined]
