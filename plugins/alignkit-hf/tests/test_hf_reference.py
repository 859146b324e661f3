"""A reference that follows a policy with LoRA: a copy follows it, the adapter's base can't."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from alignkit_hf.options import LoraOptions

from alignkit.algorithms import OnlineAlgorithm, OnlineOptions
from alignkit.errors import InputError
from alignkit.testing.material import groups, nudge
from alignkit.training.reference import MovingReference

if TYPE_CHECKING:
    from alignkit_hf.policy import HFPolicy
    from conftest import LoadPolicy
    from torch import Tensor

    from alignkit.batch import GroupBatch
    from alignkit.companions import Metrics

LORA = LoraOptions(r=2)


class Held(OnlineAlgorithm[OnlineOptions]):
    """Does nothing, but has a reference."""

    uses_reference = True

    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        raise NotImplementedError


def held(policy: HFPolicy) -> Held:
    return Held(OnlineOptions(reference_refresh_every=2), policy=policy)


@pytest.mark.parametrize("lora", [LoraOptions(), LORA], ids=["full", "lora"])
def test_a_copy_follows(load_policy: LoadPolicy, lora: LoraOptions) -> None:
    policy = load_policy(lora=lora, reference="copy")
    optimizer = held(policy)
    moving, batch = MovingReference(optimizer.config, optimizer), policy.encode(groups())
    assert optimizer.reference is not None
    nudge(policy.modules())
    moving.after_step(1)
    now = policy.forward(batch).logprobs.detach()
    assert not torch.allclose(optimizer.reference.forward(batch).logprobs, now, atol=1e-3)
    moving.after_step(2)
    assert torch.equal(optimizer.reference.forward(batch).logprobs, now)
    assert not any(p.requires_grad for p in optimizer.reference.modules()["policy"].parameters())


def test_the_base_of_an_adapter_cannot_follow(load_policy: LoadPolicy) -> None:
    optimizer = held(load_policy(lora=LORA))
    with pytest.raises(InputError, match="adapter off") as raised:
        MovingReference(optimizer.config, optimizer)
    assert raised.value.where == "optimizer.reference_refresh_every"
