"""Any number of processes takes the steps of one, from the first step or from another number's checkpoint.

The bound on all losses, gradient norms and weights is 1e-5, the contract of the project. AdamW divides gradients by
their size, so that an error e in one near zero moves its weight by up to the learning rate times e / 1e-8. Offline
algorithms run on the tiny policy in float64 (e below 1e-15) with a learning rate of 1e-2: 1e-9 a step. Rollouts and
transformers models are in float32 (e about 1e-8), so their learning rate is 1e-4, and only weights with a gradient
below 1e-6 can move by a tenth of it. A group, a token or a mean in the wrong place shows in the losses and gradient
norms, as 1e-3 to 1e-1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from many_processes import CASES, MODELS, largest_difference, results, started, trained

if TYPE_CHECKING:
    from pathlib import Path

BOUND = 1e-5
QUICK = ("dpo", "kto", "ppo-shared", "online-dpo")


def check(folder: Path, processes: int, cases: tuple[str, ...]) -> None:
    assert started(folder / "many", processes, cases) == [0] * processes
    for case in cases:
        alone = trained(case, folder / "one")
        for found in results(folder / "many", processes, case):
            assert len(found["loss"]) == len(alone["loss"]) > 1
            assert largest_difference(found, alone) < BOUND, case


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    check(tmp_path, 2, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_all_algorithms_take_the_same_steps(tmp_path: Path, processes: int) -> None:
    check(tmp_path, processes, tuple(CASES))


@pytest.mark.slow
def test_transformers_models_take_the_same_steps(tmp_path: Path) -> None:
    check(tmp_path, 2, tuple(MODELS))


@pytest.mark.slow
def test_a_killed_run_goes_on_with_any_number_of_processes(tmp_path: Path) -> None:
    """Killed inside a batch of rollouts: bitwise with as many processes, else up to rounding."""
    case = "ppo"
    assert started(tmp_path / "whole", 2, [case]) == [0, 0]
    whole = results(tmp_path / "whole", 2, case)[0]
    for processes in (2, 1, 4):
        folder = tmp_path / str(processes)
        assert started(folder, 2, [case], last=4) == [-9, -9]
        assert started(folder, processes, [case], resume=True) == [0] * processes
        for found in results(folder, processes, case):
            assert found["loss"] == pytest.approx(whole["loss"][3:], rel=0, abs=1e-6)
            assert len(whole["loss"]) > 4
            assert float((found["weights"] - whole["weights"]).abs().max()) < 1e-6
            if processes == 2:
                assert torch.equal(found["weights"], whole["weights"])
