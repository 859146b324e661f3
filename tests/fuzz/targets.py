"""What is fuzzed: each target makes a mutated input, reads it, and returns "read" or "refused". A raise is a fault."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.fuzz.judging import replies
from tests.fuzz.labelling import labels
from tests.fuzz.reading import readers
from tests.fuzz.settings import manifests, only_manifests, recipes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TARGETS: dict[str, Callable[[random.Random, Path], str]] = {
    target.__name__: target for target in (readers, replies, labels, recipes, manifests, only_manifests)
}


def example(target: str, number: int, folder: Path) -> str:
    """Runs one example in a folder of its own or of other examples of this target; the number decides all of it."""
    return TARGETS[target](random.Random(f"{target}/{number}"), folder)
