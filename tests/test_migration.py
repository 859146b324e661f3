"""The guides from other programs: their options are what TRL's source has, and ours exist."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from alignkit.plugins import registry
from alignkit.recipe.describe import describe
from alignkit.recipe.tables import OPTION_TABLES

GUIDES = Path(__file__).parent.parent / "docs" / "how-to"
PAGES = [GUIDES / f"from-{name}.md" for name in ("trl", "openrlhf", "llama-factory")]
SPAN = re.compile(r"`([^`]+)`")


def rows(page: Path) -> list[list[str]]:
    """The cells of the table of options, without its head."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def known_options() -> set[str]:
    """`table.option` of every plugin and table."""
    found = {f"{table}.{row.key}" for table, config in OPTION_TABLES.items() for row in describe(config)}
    for one in registry().registrations:
        found |= {f"{one.role}.{row.key}" for row in describe(one.config)}
    return found


def options_of(cell: str) -> list[str]:
    """The options that a cell names; `.alpha` behind `policy.lora.r` is policy.lora.alpha."""
    found, before = [], ""
    for span in SPAN.findall(cell):
        name = re.split(r"[ =]", span)[0]
        if name.startswith("."):
            name = f"{before}{name}"
        elif not re.fullmatch(r"[a-z]+(\.[a-z_]+)+", name):
            continue
        before = name.rpartition(".")[0]
        found.append(name)
    return found


def test_options_are_read_from_cells() -> None:
    assert options_of('`policy.lora.r`, `.alpha`, nothing; `run.shard = "fsdp2"`, `--resume`') == [
        "policy.lora.r",
        "policy.lora.alpha",
        "run.shard",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_our_options_and_algorithms_exist(page: Path) -> None:
    known, algorithms = known_options(), registry().names("optimizer")
    named = [option for cells in rows(page) for option in options_of(cells[1])]
    assert len(named) > 20
    assert not {*named} - known
    for cells in rows(page):
        choice = re.search(r"`--optimizer ([\w-]+\+*)`((?:, `[\w+-]+`)*)", cells[1])
        chosen = [choice[1], *SPAN.findall(choice[2])] if choice else []
        assert not {*chosen} - {*algorithms}, cells


def test_trls_options_stand_in_its_source() -> None:
    trl, transformers, peft = (find_spec(name) for name in ("trl", "transformers", "peft"))
    if not (trl and trl.origin and transformers and transformers.origin and peft and peft.origin):
        pytest.skip("needs trl, transformers and peft")
    files = [*(Path(trl.origin).parent / "trainer").glob("*.py"), Path(transformers.origin).parent / "training_args.py"]
    files.append(Path(peft.origin).parent / "tuners" / "lora" / "config.py")
    words = {word for file in files for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))}
    said = {word for cells in rows(PAGES[0]) for span in SPAN.findall(cells[0]) for word in re.findall(r"\w+", span)}
    assert len(said) > 30
    assert not said - words
