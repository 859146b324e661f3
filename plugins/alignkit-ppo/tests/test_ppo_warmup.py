"""The critic's warm-up: the policy stays as it is, bit for bit, while the critic learns; then both move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_ppo.ppo import A2C, PPO
from alignkit_ppo.ppo_kl import PPOKL
from alignkit_ppo.trpo import TRPO

from alignkit.records import Group, Prompt
from alignkit.testing.runs import assert_goes_on_bit_for_bit, online_run

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.batch import GroupBatch

TEXTS = [Group(Prompt(text="say hello"), ("hello there",))]


def split_weights(algorithm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What makes responses, and what makes values."""
    parts: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for module_name, module in algorithm.modules().items():
        for name, parameter in module.named_parameters():
            of_critic = module_name.startswith("critic") or name.startswith("value_head")
            parts[of_critic].append(parameter.detach().flatten().clone())
    return torch.cat(parts[0]), torch.cat(parts[1])


def course(component: type[Any], folder: Path, **options: Any) -> tuple[list[Any], Any]:
    """The weights before training and after each step of four, in two iterations or four."""
    seen: list[Any] = []

    class Watched(component):  # type: ignore[misc]
        def take_step(self, batch: GroupBatch) -> dict[str, float]:
            seen.append(split_weights(self))
            figures: dict[str, float] = super().take_step(batch)
            return figures

    algorithm, _ = online_run(Watched, folder, weight_decay=0.1, warmup=0.0, lr_schedule="constant", **options)
    return [*seen, split_weights(algorithm)], algorithm


@pytest.mark.parametrize(
    ("component", "options"),
    [
        (PPO, {"critic": "shared", "n_epochs": 1}),
        (PPO, {"critic": "policy", "n_epochs": 1, "ptx_coef": 0.5, "texts": TEXTS, "ent_coef": 0.1}),
        (PPO, {"critic": "shared", "n_epochs": 1, "ptx_coef": 0.5, "texts": TEXTS, "kl_place": "loss"}),
        (PPOKL, {"critic": "shared", "n_epochs": 1}),
        (A2C, {"critic": "policy"}),
        (TRPO, {"critic": "policy"}),
    ],
)
def test_only_the_critic_moves_in_the_first_iterations(
    tmp_path: Path, component: type[Any], options: dict[str, Any]
) -> None:
    weights, _ = course(component, tmp_path, iterations=3, minibatch_size=2, critic_warmup=2, **options)
    policies, critics = zip(*weights, strict=True)
    assert len(policies) == 3 * 2 + 1
    for number in range(4):
        assert torch.equal(policies[number + 1], policies[0]), number
        assert not torch.equal(critics[number + 1], critics[number]), number
    assert not torch.equal(policies[6], policies[4])
    assert not torch.equal(critics[6], critics[4])


def test_without_a_warm_up_both_move_at_once(tmp_path: Path) -> None:
    weights, _ = course(PPO, tmp_path, iterations=1, n_epochs=1)
    policies, critics = zip(*weights, strict=True)
    assert not torch.equal(policies[0], policies[1])
    assert not torch.equal(critics[0], critics[1])


def test_controllers_hear_nothing_of_the_warm_up(tmp_path: Path) -> None:
    adaptive = {"kl_controller": "target", "kl_target": 5.0, "kl_coef": 0.1}
    _, algorithm = course(PPOKL, tmp_path / "warm", iterations=3, critic_warmup=3, n_epochs=1, **adaptive)
    assert algorithm.kl_controller.coef == 0.1
    assert algorithm.penalty.coef == algorithm.config.penalty_coef
    _, algorithm = course(PPOKL, tmp_path / "cold", iterations=3, n_epochs=1, **adaptive)
    assert algorithm.kl_controller.coef < 0.1
    assert algorithm.penalty.coef < algorithm.config.penalty_coef


@pytest.mark.parametrize("warmup", [2, 3])
def test_goes_on_bit_for_bit(tmp_path: Path, warmup: int) -> None:
    """Killed in the third iteration: while the critic warms up, or right after it has."""
    assert_goes_on_bit_for_bit(PPO, tmp_path, critic_warmup=warmup, n_epochs=1)
