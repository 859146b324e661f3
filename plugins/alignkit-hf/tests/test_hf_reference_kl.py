"""The exact KL to a reference from the policy's own pass equals that of materialised logits, in value and gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from alignkit_hf.options import LoraOptions
from hf_tiny import TOKENS, assert_equal_figures, plain_logits, token_batch

from alignkit.testing import rounding, terms_of_network
from alignkit.testing.tiny import TinyPolicy

if TYPE_CHECKING:
    from alignkit_hf.policy import HFPolicy
    from conftest import LoadPolicy


def moved(policy: HFPolicy) -> HFPolicy:
    """The policy with weights that differ from its reference's."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.raw.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


def mean_surprise(distribution: torch.Tensor) -> float:
    """The size of what the KL is the difference of."""
    return -float((distribution.exp() * distribution).detach().sum(-1).min())


@pytest.mark.parametrize(
    ("family", "layout", "fused"),
    [("llama", "auto", True), ("llama", "padded", True), ("gemma2", "auto", True), ("mamba", "auto", None)],
)
def test_the_kl_and_its_gradient_equal_those_of_materialised_logits(
    family: str, layout: str, fused: bool | None, load_policy: LoadPolicy
) -> None:
    policy = load_policy(family, layout=layout)
    if fused is not None:
        assert policy.raw.path.fused_head is fused
    reference = policy.reference()
    moved(policy)
    batch = token_batch().replace(temperature=0.7)
    ours = (plain_logits(policy.raw.lm, batch) / 0.7).log_softmax(-1)
    with torch.no_grad():
        theirs = (plain_logits(reference.raw.lm, batch) / 0.7).log_softmax(-1)
    expected = (ours.exp() * (ours - theirs)).sum(-1)
    weights = torch.linspace(-1, 2, batch.num_tokens)
    policy.raw.zero_grad()
    (weights * expected).sum().backward()
    wanted = {name: p.grad.clone() for name, p in policy.raw.named_parameters() if p.grad is not None}
    policy.raw.zero_grad()
    output = policy.forward(batch, kl_to=reference)
    assert output.kl is not None
    assert_equal_figures(policy.raw, output.kl, expected, scale=mean_surprise(ours))
    assert_equal_figures(policy.raw, output.logprobs, policy.forward(batch).logprobs)
    (weights * output.kl).sum().backward()
    got = {name: p.grad for name, p in policy.raw.named_parameters() if p.grad is not None}
    assert_equal_figures(policy.raw, got, wanted)
    assert all(p.grad is None for p in reference.raw.parameters())


def test_a_head_that_is_not_fused_gives_the_same_kl(load_policy: LoadPolicy) -> None:
    policy = load_policy(layout="padded")
    reference = policy.reference()
    moved(policy)
    batch = token_batch()
    fused = policy.forward(batch, kl_to=reference).kl
    for each in (policy, reference):
        object.__setattr__(each.raw.path, "fused_head", False)
    plain = policy.forward(batch, kl_to=reference).kl
    assert fused is not None and plain is not None
    ours = plain_logits(policy.raw.lm, batch).log_softmax(-1)
    assert_equal_figures(policy.raw, plain, fused, scale=mean_surprise(ours))


def test_the_reference_may_be_the_same_weights_with_the_adapter_off(load_policy: LoadPolicy) -> None:
    policy = load_policy(lora=LoraOptions(r=2))
    reference = policy.reference()
    assert reference.raw is policy.raw
    batch = token_batch()
    same = policy.forward(batch, kl_to=reference).kl
    ours = plain_logits(policy.raw.model, batch).log_softmax(-1)
    bound = rounding(terms_of_network(policy.raw, tokens=TOKENS), scale=mean_surprise(ours))
    assert same is not None and float(same.detach().abs().max()) <= bound
    moved(policy)
    kl = policy.forward(batch, kl_to=reference).kl
    assert kl is not None
    ours = plain_logits(policy.raw.model, batch).log_softmax(-1)
    with torch.no_grad(), policy.raw.adapter_off():
        theirs = plain_logits(policy.raw.model, batch).log_softmax(-1)
    expected = (ours.exp() * (ours - theirs)).sum(-1)
    assert_equal_figures(policy.raw, kl, expected, scale=mean_surprise(ours))
    assert float(kl.detach().min()) > 1e-4
    kl.sum().backward()
    assert all(p.grad is not None for p in policy.raw.parameters() if p.requires_grad)


def test_a_policy_of_another_kind_has_no_kl(load_policy: LoadPolicy) -> None:
    with pytest.raises(ValueError, match="TinyPolicy"):
        load_policy().forward(token_batch(), kl_to=TinyPolicy())
