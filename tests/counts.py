"""How large and how repetitive the code is, beside its peers: `python -m tests.counts`, or `--json`.

Code lines are those with code: no blank lines, comments or docstrings. The core is `alignkit/` without its `testing`.
The length of a function leaves its docstring out. A line is repeated if it stands in a run of six or more code lines,
imports left out, that is found elsewhere in the same part, too.
"""

from __future__ import annotations

import ast
import io
import json
import sys
import tokenize
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).parent.parent
RUN, LONG = 6, 60
HEAD = ("", "code lines", "largest file", "functions > 60 lines", "repeated", "test:code")
PEERS = (
    ("simonw/llm", "16,089", "4,306", "41", "16%", "1.16"),
    ("datasette", "29,181", "3,314", "82", "9%", "1.36"),
    ("pluggy", "1,736", "749", "2", "2%", "1.88"),
    ("tox", "16,490", "656", "14", "3.5%", "1.27"),
    ("stable-baselines3", "15,664", "987", "25", "17%", "0.55"),
    ("nanochat", "6,587", "604", "12", "4.5%", "0.16"),
    ("torchtune", "71,758", "1,478", "173", "70% of recipes", "0.43"),
    ("TRL", "62,224", "3,374", "164", "44% of trainers", "0.59"),
    ("verifiers", "72,304", "3,601", "153", "9%", "0.32"),
    ("confection", "1,648", "759", "1", "3.5%", "2.22"),
)
"""The same figures of others, on snapshots of mid-2026."""

Lines = list[tuple[int, str]]


@dataclass(frozen=True)
class Counts:
    """What was counted in a part of the repository."""

    files: int
    code_lines: int
    largest_file: str
    largest_lines: int
    longest_function: str
    longest_lines: int
    long_functions: int
    repeated_lines: int
    runs: int


def docstrings(tree: ast.AST) -> set[int]:
    """The lines of docstrings, those below fields included."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def code_lines(text: str) -> Lines:
    """The lines with code, by number and without indentation."""
    said = docstrings(ast.parse(text))
    kinds = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    with_code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in kinds:
            with_code |= set(range(token.start[0], token.end[0] + 1))
    lines = text.splitlines()
    return [(number, " ".join(lines[number - 1].split())) for number in sorted(with_code - said)]


def functions(tree: ast.AST) -> Iterable[tuple[str, int]]:
    """Every function with its lines, its docstring left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            last = node.end_lineno or node.lineno
            said = docstrings(ast.Module(body=node.body[:1], type_ignores=[]))
            yield node.name, last - node.lineno + 1 - len(said)


def repeated(files: Sequence[Path]) -> tuple[int, int]:
    """(lines that stand in such runs, how many runs begin somewhere)."""
    places: dict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
    numbers: dict[Path, list[int]] = {}
    for path in files:
        text = path.read_text(encoding="utf-8")
        imports = {
            number
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        lines = [(number, line) for number, line in code_lines(text) if number not in imports]
        numbers[path] = [number for number, _ in lines]
        for start in range(len(lines) - RUN + 1):
            places[tuple(line for _, line in lines[start : start + RUN])].append((path, start))
    twice = [where for where in places.values() if len(where) > 1]
    covered = {(path, numbers[path][start + n]) for where in twice for path, start in where for n in range(RUN)}
    return len(covered), len(twice)


def count(files: Sequence[Path], root: Path = ROOT) -> Counts:
    """The figures of some files below a folder."""
    sizes, total, lengths = {}, 0, Counter[str]()
    for path in files:
        text = path.read_text(encoding="utf-8")
        sizes[str(path.relative_to(root))] = text.count("\n")
        total += len(code_lines(text))
        lengths |= Counter({f"{path.relative_to(root)}: {name}": lines for name, lines in functions(ast.parse(text))})
    (largest, lines), (longest, length) = max(sizes.items(), key=lambda one: one[1]), lengths.most_common(1)[0]
    long = sum(lines > LONG for lines in lengths.values())
    return Counts(len(files), total, largest, lines, longest, length, long, *repeated(files))


def parts() -> dict[str, list[Path]]:
    """The parts of the repository, and their files."""
    core = sorted((ROOT / "alignkit").rglob("*.py"))
    testing = [path for path in core if "testing" in path.parts]
    tests = [*(ROOT / "tests").rglob("*.py"), *ROOT.glob("plugins/*/tests/**/*.py")]
    return {
        "core": [path for path in core if path not in testing],
        "alignkit.testing": testing,
        "plugins": sorted(ROOT.glob("plugins/*/alignkit_*/**/*.py")),
        "tests": sorted(tests),
    }


def table(found: dict[str, Counts]) -> list[tuple[str, ...]]:
    """The rows of alignkit's parts, then those of the peers."""
    code = sum(one.code_lines for name, one in found.items() if name != "tests")
    rows = []
    for name, one in found.items():
        share = f"{one.repeated_lines / one.code_lines:.1%}"
        ratio = f"{found['tests'].code_lines / code:.2f}" if name == "tests" else ""
        figures = (f"{one.code_lines:,}", str(one.largest_lines), str(one.long_functions), share, ratio)
        rows.append((f"alignkit: {name}", *figures))
    return [HEAD, *rows, *PEERS]


def main(arguments: Sequence[str]) -> None:
    """Prints the table, or all figures as JSON."""
    found = {name: count(files) for name, files in parts().items()}
    if "--json" in arguments:
        print(json.dumps({name: asdict(one) for name, one in found.items()}, indent=1))
        return
    rows = table(found)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    for name, one in found.items():
        print(f"{name}: largest {one.largest_file}; longest {one.longest_function}, {one.longest_lines} lines")


if __name__ == "__main__":
    main(sys.argv[1:])
