"""The house as docs/explanation/design.md draws it: no circles, arrows that point down, a public face that suffices."""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest

ROOT = Path(__file__).parent.parent
PUBLIC = ("alignkit", *(f"alignkit.{name}" for name in ("algorithms", "commands", "ops", "preferences", "testing")))

FLOORS = (
    ("alignkit.lazy", "alignkit.errors", "alignkit.files", "alignkit.versions"),
    ("alignkit.checking", "alignkit.remote"),
    ("alignkit.options", "alignkit.records"),
    ("alignkit.components", "alignkit.footprint", "alignkit.batch", "alignkit.outputs", "alignkit.preferences"),
    ("alignkit.ops", "alignkit.companions"),
    ("alignkit.interfaces", "alignkit.samplers", "alignkit.hookspecs"),
    ("alignkit.plugins",),
    ("alignkit.training",),
    ("alignkit.algorithms",),
    ("alignkit.recipe",),
    ("alignkit.runs",),
    ("alignkit.commands",),
    ("alignkit.testing", "alignkit.cli", "alignkit.__main__"),
)
"""Modules and packages of the core, from the ground up; a module may import what is on its own floor or below."""

Arrows = dict[str, set[str]]


@cache
def files() -> dict[str, Path]:
    """Every module of the core and of the plugins."""
    bases = [(ROOT, "alignkit")] + [(folder.parent, folder.name) for folder in ROOT.glob("plugins/*/alignkit_*")]
    found = {}
    for base, package in bases:
        for path in (base / package).rglob("*.py"):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(text: str) -> list[tuple[str, str]]:
    """(module, name) of everything that is imported anywhere: at the top, in functions, for types."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


@cache
def homes(package: str) -> dict[str, str]:
    """Public name -> the module that defines it, as the package's stub says; empty where there is no stub."""
    stub = files()[package].with_suffix(".pyi")
    if not stub.exists():
        return {}
    found = {}
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        assert isinstance(node, ast.ImportFrom)
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        found |= {alias.name: ".".join([*above, node.module or ""]) for alias in node.names}
    return found


def arrows(modules: dict[str, Path]) -> Arrows:
    """Which module imports which; a public name counts as an import of the module that defines it."""
    found: Arrows = {}
    for module, path in modules.items():
        targets = set()
        for source, name in imports_of(path.read_text(encoding="utf-8")):
            if f"{source}.{name}" in modules:
                targets.add(f"{source}.{name}")
            elif source in modules:
                targets.add(homes(source).get(name, source) if path.suffix == ".py" else source)
        found[module] = targets - {module}
    return found


def circles(found: Arrows) -> list[list[str]]:
    """The groups of modules that import one another (Tarjan's strongly connected components)."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        numbers[module] = lowest[module] = len(numbers)
        stack.append(module)
        for target in found[module]:
            if target not in numbers:
                visit(target)
            if target in stack:
                lowest[module] = min(lowest[module], lowest[target])
        if lowest[module] == numbers[module]:
            start = stack.index(module)
            groups.append(sorted(stack[start:]))
            del stack[start:]

    for module in found:
        if module not in numbers:
            visit(module)
    return [group for group in groups if len(group) > 1]


def floor_of(module: str) -> int:
    """The floor of a core module."""
    for number, names in enumerate(FLOORS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    raise AssertionError(f"{module} stands on no floor: add it to FLOORS and to docs/explanation/design.md")


def test_nothing_imports_in_a_circle() -> None:
    assert circles(arrows(files())) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"d", "f"}, "f": set()}) == [["a", "b", "c"]]


def test_arrows_point_downwards() -> None:
    core = {module: targets for module, targets in arrows(files()).items() if module.split(".")[0] == "alignkit"}
    upwards = {
        f"{module} -> {target}"
        for module, targets in core.items()
        for target in targets
        if module not in PUBLIC and target not in PUBLIC and floor_of(module) < floor_of(target)
    }
    assert not upwards


def test_the_core_imports_no_plugin() -> None:
    core = {module: path for module, path in files().items() if module.split(".")[0] == "alignkit"}
    for module, path in core.items():
        names = [source for source, _ in imports_of(path.read_text(encoding="utf-8"))]
        assert not [name for name in names if name.startswith("alignkit_")], module


def test_plugins_use_nothing_that_a_stranger_could_not() -> None:
    private = []
    for module, path in files().items():
        if module.split(".")[0] == "alignkit":
            continue
        for source, name in imports_of(path.read_text(encoding="utf-8")):
            public = source in PUBLIC and name in import_module(source).__all__
            if source.split(".")[0] == "alignkit" and not public:
                private.append(f"{module}: from {source} import {name}")
    assert not private


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_is_there_and_documented(package: str) -> None:
    face = import_module(package)
    assert len(set(face.__all__)) == len(face.__all__)
    submodules = {module.rpartition(".")[2] for module in files() if module.rpartition(".")[0] == package}
    assert not submodules & set(face.__all__), "a submodule hides the public name"
    for name in face.__all__:
        value = getattr(face, name)
        if isinstance(value, type | FunctionType):
            assert (value.__doc__ or "").strip(), f"{package}.{name} has no docstring"
    with pytest.raises(AttributeError):
        _ = face.no_such_name


def test_files_and_functions_are_short() -> None:
    long = []
    for path in files().values():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 400:
            long.append(f"{path.name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60 + _documented(node):
                long.append(f"{path.name}: {node.name}")
    assert not long


def _documented(function: ast.FunctionDef) -> int:
    """Lines of a function's docstring."""
    first = function.body[0]
    says = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return (first.end_lineno or 0) - first.lineno + 1 if says else 0
