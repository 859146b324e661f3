"""A few hundred mutated inputs: each is read or refused. `make fuzz` runs more; ALIGNKIT_FUZZ says how many here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.fuzz.targets import TARGETS, example

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = {"readers": 150, "replies": 150, "labels": 60, "recipes": 60, "manifests": 60, "only_manifests": 40}


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_inputs_are_read_or_refused(target: str, tmp_path: Path) -> None:
    count = int(os.environ.get("ALIGNKIT_FUZZ") or EXAMPLES[target])
    outcomes = set()
    for number in range(count):
        try:
            outcomes.add(example(target, number, tmp_path))
        except Exception as error:
            raise AssertionError(f"example {number} of {target}: {error}") from error
    assert "refused" in outcomes
