"""Every algorithm is short, and nothing in the plugins is written twice."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from inspect import getsourcefile
from pathlib import Path

import pytest

from alignkit.interfaces import Optimizer
from alignkit.plugins import registry
from alignkit.versions import FIRST_PARTY

PLUGINS = Path(__file__).parent.parent / "plugins"
LONGEST, RUN = 100, 6

Lines = list[tuple[int, str]]


@cache
def code_lines(path: Path) -> Lines:
    """Lines with code, by number and without indentation: no docstrings, comments, imports or blank lines."""
    text = path.read_text(encoding="utf-8")
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        says = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if says or isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = [(number, " ".join(line.split())) for number, line in enumerate(text.splitlines(), start=1)]
    return [(number, line) for number, line in lines if line and number not in left_out and line[0] != "#"]


def repeated_runs(files: list[Path], length: int = RUN) -> list[str]:
    """Where runs of code lines stand that stand elsewhere too; each is named at its first line."""
    places: dict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
    for path in files:
        lines = code_lines(path)
        for start in range(len(lines) - length + 1):
            run = lines[start : start + length]
            places[tuple(line for _, line in run)].append((path, run[0][0]))
    twice = [where for where in places.values() if len(where) > 1]
    return [", ".join(f"{path.name}:{line}" for path, line in where) for where in twice]


def algorithm_files() -> set[Path]:
    own = [r for r in registry().registrations if r.role == "optimizer" and r.distribution in FIRST_PARTY]
    algorithms = [r.load() for r in own if r.distribution != "alignkit-trl"]
    return {Path(getsourcefile(algorithm) or "") for algorithm in algorithms if issubclass(algorithm, Optimizer)}


def test_every_algorithm_is_short() -> None:
    files = algorithm_files()
    assert len(files) > 15
    long = {file.name: len(code_lines(file)) for file in files if len(code_lines(file)) > LONGEST}
    assert not long


def test_no_run_of_lines_stands_twice_in_the_plugins() -> None:
    files = sorted(PLUGINS.glob("*/alignkit_*/**/*.py"))
    assert len(files) > 50
    assert repeated_runs(files) == []


@pytest.mark.parametrize(("copied", "found"), [(6, True), (5, False)])
def test_a_copy_is_found(tmp_path: Path, copied: int, found: bool) -> None:
    body = [f"x{number} = {number}" for number in range(copied)]
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text('"""One."""\n' + "\n".join(body) + "\na = 1\n")
    other.write_text("b = 2\nif b:\n" + "".join(f"    {line}\n\n" for line in body))
    assert bool(repeated_runs([one, other])) == found
