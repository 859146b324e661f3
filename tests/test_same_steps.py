"""Any number of processes takes the steps of one, from the first step or from another number's checkpoint.

The bound on all losses, gradient norms and weights is 1e-5, the contract of the project. AdamW divides gradients by
their size, so that an error e in one near zero moves its weight by up to the learning rate times e / 1e-8. Offline
algorithms run on the tiny policy in float64 (e below 1e-15) with a learning rate of 1e-2: 1e-9 a step. Rollouts and
transformers models are in float32 (e about 1e-8), so their learning rate is 1e-4, and only weights with a gradient
below 1e-6 can move by a tenth of it. A group, a token or a mean in the wrong place shows in the losses and gradient
norms, as 1e-3 to 1e-1.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from many_processes import CASES, MODELS, killed, largest_difference, results, started, trained
from safetensors.torch import load_file

Alone = tuple[Path, dict[str, dict[str, Any]]]
BOUND = 1e-5
ALGORITHMS = tuple(case for case in CASES if not case.endswith(("-long", "-ahead")))
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
    check(tmp_path, processes, ALGORITHMS)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """What one process gets for each transformers model."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, {case: trained(case, folder) for case in MODELS}


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp2"])
@pytest.mark.parametrize("processes", [2, 4])
def test_transformers_models_take_the_same_steps(tmp_path: Path, alone: Alone, processes: int, shard: bool) -> None:
    """All weights or LoRA, tied or not, whole or split; and what the first process saves."""
    folder, expected = alone
    assert started(tmp_path, processes, tuple(MODELS), shard=shard) == [0] * processes
    for case in MODELS:
        for found in results(tmp_path, processes, case)[: 1 if shard else None]:
            assert len(found["loss"]) == len(expected[case]["loss"]) > 1
            assert largest_difference(found, expected[case]) < BOUND, case
        saved = [sorted((place / f"{case}-saved").glob("*.safetensors")) for place in (tmp_path, folder)]
        assert [path.name for path in saved[0]] == [path.name for path in saved[1]] != []
        for one, other in zip(*saved, strict=True):
            assert largest_difference(load_file(one), load_file(other)) < BOUND, case


@pytest.mark.slow
def test_a_sampler_that_works_ahead_takes_the_same_steps(tmp_path: Path) -> None:
    check(tmp_path, 2, ("grpo-ahead",))


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


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ppo", "grpo-ahead"])
def test_a_run_that_is_killed_at_twenty_random_steps_ends_bit_for_bit(tmp_path: Path, case: str) -> None:
    """Both processes, most often in the middle of a batch of rollouts: its six steps are two passes over it."""
    long = f"{case}-long"
    assert started(tmp_path / "whole", 2, [long]) == [0, 0]
    whole = results(tmp_path / "whole", 2, long)
    steps = random.Random(12).sample(range(2, len(whole[0]["loss"])), 20)
    assert killed(tmp_path / "killed", 2, long, sorted(steps)) == [0, 0]
    for found, expected in zip(results(tmp_path / "killed", 2, long), whole, strict=True):
        assert torch.equal(found["weights"], expected["weights"])
        assert found["loss"] == expected["loss"][-len(found["loss"]) :]
