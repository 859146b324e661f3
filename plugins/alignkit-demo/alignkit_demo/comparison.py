"""Algorithms side by side on the demo's world: a recipe of `alignkit compare`."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from alignkit_report.compare.cells import cells_of
from alignkit_report.compare.comparison import Comparison

from alignkit import InputError, closest
from alignkit_demo.demo import COMPARISON

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignkit.commands import Reporter


def algorithms(folder: Path) -> list[str]:
    """The algorithms with settings in the folder's comparison.toml, in its order."""
    return list(_tables(folder)["optimizer"]["for"])


def compare(folder: Path, names: Sequence[str], *, reporter: Reporter) -> dict[str, Any]:
    """Compares algorithms by the true reward in `comparison/` of a demo's folder; returns its comparison.json.

    Args:
        names: some of `algorithms`; empty means all.

    Raises:
        InputError: an algorithm has no settings.
    """
    known = algorithms(folder)
    for name in names:
        if name not in known:
            raise InputError(f"{name!r} has no settings in {COMPARISON}", where="--compare", fix=closest(name, known))
    cells = cells_of(names or known, (), [_tables(folder)["run"]["seed"]])
    return Comparison(folder / COMPARISON, cells, folder / "comparison").run(reporter)


def _tables(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / COMPARISON).read_text(encoding="utf-8"))
