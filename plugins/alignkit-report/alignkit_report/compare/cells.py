"""The cells of a comparison: each algorithm, with each value of what is swept, with each seed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from alignkit import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Variant:
    """What is compared: an algorithm with some options set.

    Attributes:
        optimizer: the plugin's name; empty for the recipe's own.
        settings: (key, value) of every swept option.
    """

    optimizer: str
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Its name in tables: `dpo`, or `dpo kl_coef=0.05`."""
        short = [f"{key.rpartition('.')[2]}={value}" for key, value in self.settings]
        return " ".join(filter(None, (self.optimizer, *short))) or "recipe"

    @property
    def folder(self) -> str:
        """Its name as that of a folder."""
        return re.sub(r"[^\w.=+-]+", "_", self.name)

    def overrides(self) -> list[str]:
        """Its settings as `-o` takes them."""
        return [f"{key}={value}" for key, value in self.settings]


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant.name}, seed {self.seed}"

    @property
    def folder(self) -> str:
        """Its run directory, below the comparison's `runs`."""
        return f"{self.variant.folder}/seed-{self.seed}"

    def overrides(self) -> list[str]:
        return [f"run.seed={self.seed}", *self.variant.overrides()]


def sweeps_of(texts: Sequence[str]) -> list[tuple[str, list[str]]]:
    """`key=a,b` as (key, values); a value in brackets, braces or quotes may hold commas.

    Raises:
        InputError: one is no `key=a,b`, or a key is swept twice.
    """
    found: list[tuple[str, list[str]]] = []
    for text in texts:
        key, equals, values = text.partition("=")
        if not (key and equals and values):
            raise InputError("is not KEY=A,B", where=f"--sweep {text}", fix="write --sweep optimizer.kl_coef=0.01,0.05")
        if key in dict(found):
            raise InputError("is swept twice", where=f"--sweep {key}", fix="list all its values in one --sweep")
        found.append((key, _split(values)))
    return found


def _split(values: str) -> list[str]:
    """Values between the commas that stand outside of brackets and quotes."""
    depth, quoted, parts = 0, "", [""]
    for letter in values:
        if quoted:
            quoted = "" if letter == quoted else quoted
        elif letter in "\"'":
            quoted = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def cells_of(optimizers: Sequence[str], sweeps: Sequence[tuple[str, list[str]]], seeds: Sequence[int]) -> list[Cell]:
    """Every combination. Seeds change slowest, so that a comparison that is stopped has whole seeds.

    Raises:
        InputError: two cells are the same.
    """
    keys = [key for key, _ in sweeps]
    variants = [
        Variant(optimizer, tuple(zip(keys, values, strict=True)))
        for optimizer in optimizers or [""]
        for values in product(*(values for _, values in sweeps))
    ]
    if twice := next((one.name for place, one in enumerate(variants) if one in variants[:place]), ""):
        raise InputError(f"{twice} is named twice", where="--optimizers, --sweep", fix="name each once")
    return [Cell(variant, seed) for seed in seeds for variant in variants]
