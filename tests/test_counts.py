"""What `make counts` counts, on files whose figures are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.counts import HEAD, Counts, code_lines, count, table

if TYPE_CHECKING:
    from pathlib import Path

ONE = '''"""A module
of two lines."""

import os  # a comment after code

# a comment


def first(x):
    """Says
    something."""
    text = """not a
docstring"""
    return (
        text,
        x,
    )
'''
BODY = [f"    x{number} = {number}" for number in range(70)]


def test_code_is_neither_blank_nor_comment_nor_docstring() -> None:
    assert [number for number, _ in code_lines(ONE)] == [4, 9, 12, 13, 14, 15, 16, 17]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files with a run of seven lines in both, one of five, and a function of 71 lines beside its docstring."""
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    shared, few = [f"a{n} = {n}" for n in range(7)], [f"b{n} = {n}" for n in range(5)]
    one.write_text("\n".join([*shared, "c = 1", *few]) + "\n", encoding="utf-8")
    long = ["def long():", '    """Long."""', *BODY]
    other.write_text("\n".join([*few, "d = 1", *shared, *long]) + "\n", encoding="utf-8")
    return [one, other]


def test_the_counts_of_two_files(files: list[Path], tmp_path: Path) -> None:
    found = count(files, tmp_path)
    assert found == Counts(
        files=2,
        code_lines=13 + 13 + 71,
        largest_file="other.py",
        largest_lines=85,
        longest_function="other.py: long",
        longest_lines=71,
        long_functions=1,
        repeated_lines=2 * 7,
        runs=2,
    )


def test_tests_are_compared_with_all_code() -> None:
    def part(lines: int) -> Counts:
        return Counts(1, lines, "a.py", 9, "f", 5, 0, 2, 1)

    head, core, plugins, tests, *peers = table({"core": part(100), "plugins": part(60), "tests": part(200)})
    assert head == HEAD
    assert core == ("alignkit: core", "100", "9", "0", "2.0%", "")
    assert plugins[5] == ""
    assert tests[5] == "1.25"
    assert all(len(peer) == len(HEAD) for peer in peers)
