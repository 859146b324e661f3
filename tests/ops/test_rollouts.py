"""The figures of a batch of rollouts, added up by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alignkit.batch import GroupBatch
from alignkit.ops.rollouts import rollout_figures
from alignkit.records import Group, Prompt


def batch(**more: Any) -> GroupBatch:
    """Two responses of 3 and 2 tokens; the second is cut off."""
    group = Group(Prompt(text="a"), ("b", "c"))
    made = GroupBatch.from_ids([[1]], [[[1, 2, 3], [4, 5]]], [group], finished=[True, False])
    return made.replace(
        logprobs=torch.tensor([-1.0, -0.5, -2.0, -0.25, -3.0]), rewards=torch.tensor([1.0, 4.0]), **more
    )


def test_figures_of_two_responses() -> None:
    figures, responses = rollout_figures(batch(ref_logprobs=torch.tensor([-1.5, -1.5, -2.0, -1.25, -2.0])))
    assert responses == 2
    assert figures == pytest.approx(
        {
            "reward": 2.5,
            "reward_std": 1.5,
            "entropy": 6.75 / 5,
            "response_length": 2.5,
            "finished": 0.5,
            "repetition": 0.0,
            "kl": (0.5 + 1.0 + 0.0 + 1.0 - 1.0) / 2,
        }
    )


def test_without_a_reference_there_is_no_kl() -> None:
    assert "kl" not in rollout_figures(batch())[0]


@pytest.mark.parametrize("absent", ["rewards", "logprobs"])
def test_what_they_need(absent: str) -> None:
    with pytest.raises(ValueError, match="rollout figures need rewards and logprobs"):
        rollout_figures(batch().replace(**{absent: None}))
