"""docs/generate/reliability.toml lists every fault with tests that exist and run."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
LISTING = ROOT / "docs/generate/reliability.toml"
FAULTS: list[dict[str, Any]] = tomllib.loads(LISTING.read_text(encoding="utf-8"))["fault"]
LISTED = ROOT.parent / "shared/FAULTS.md"


@cache
def found_in(path: Path) -> dict[str, list[str]]:
    """Test function -> its decorators; also those inside classes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {node.name: [ast.unparse(decorator) for decorator in node.decorator_list] for node in found}


def test_every_fault_has_its_number_and_says_what_must_happen() -> None:
    assert [fault["number"] for fault in FAULTS] == list(range(1, len(FAULTS) + 1))
    assert len(FAULTS) >= 35
    assert all(fault["fault"] and fault["must"] for fault in FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["fault"])
def test_a_fault_has_tests_that_run_with_the_quick_ones(fault: dict[str, Any]) -> None:
    quick = 0
    for test in fault["tests"]:
        path, name = test.split("::")
        assert (ROOT / path).is_file(), path
        assert name in found_in(ROOT / path), f"{path} has no {name}"
        quick += not any(re.search(r"mark\.(skip\b|slow|gpu)", decorator) for decorator in found_in(ROOT / path)[name])
    assert quick, f"fault {fault['number']} has no quick test"
    assert len({*fault["tests"]}) == len(fault["tests"])


@pytest.mark.skipif(not LISTED.is_file(), reason="needs the list of faults in ../shared")
def test_no_fault_is_left_out() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \|", LISTED.read_text(encoding="utf-8"), re.MULTILINE)
    assert [(fault["number"], fault["fault"], fault["must"]) for fault in FAULTS] == [
        (int(number), fault, must) for number, fault, must in rows
    ]
