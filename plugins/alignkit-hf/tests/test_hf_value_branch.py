"""A value head on its own copies of the last layers: it starts with a plain head's values, then goes its own way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from alignkit_hf.options import LoraOptions
from alignkit_hf.value_branch import ValueBranch
from hf_tiny import TOKENS, assert_equal_figures, token_batch

from alignkit.errors import InputError
from alignkit.testing import near, terms_of_network

if TYPE_CHECKING:
    from alignkit_hf.policy import HFPolicy
    from conftest import BuildFolder, LoadPolicy

UPPER = {
    "llama": ("model.layers.1.", "model.norm."),
    "gpt2": ("transformer.h.1.", "transformer.ln_f."),
    "opt": ("model.decoder.layers.1.", "model.decoder.final_layer_norm."),
}


def make_loud(head: torch.nn.Module) -> None:
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]


def values(policy: HFPolicy) -> torch.Tensor:
    found = policy.forward(token_batch(), values=True).values
    assert found is not None
    return found


def branch_of(policy: HFPolicy) -> ValueBranch:
    assert isinstance(policy.raw.value_head, ValueBranch)
    return policy.raw.value_head


def with_branch(load_policy: LoadPolicy, layers: int, **options: object) -> HFPolicy:
    policy = load_policy(**options)  # type: ignore[arg-type]
    policy.add_value_branch(layers)
    make_loud(branch_of(policy).head)
    return policy


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mistral", "gemma2", "bloom"])
def test_at_the_start_values_are_those_of_a_head_on_the_trunk(
    load_policy: LoadPolicy, build_folder: BuildFolder, family: str, layers: int, layout: str
) -> None:
    if layout == "packed" and family == "bloom":
        pytest.skip("has no packed layout")
    folder = build_folder(family)
    plain = load_policy(folder=folder, layout=layout)
    plain.add_value_head()
    make_loud(plain.raw.get_submodule("value_head"))
    policy = with_branch(load_policy, layers, folder=folder, layout=layout)
    assert_equal_figures(plain.raw, values(policy), values(plain))
    assert float(values(plain).detach().std()) > 1e-2
    logprobs = policy.forward(token_batch(), values=True).logprobs
    assert_equal_figures(plain.raw, logprobs, policy.forward(token_batch()).logprobs)


def test_the_head_is_zero_before_training(load_policy: LoadPolicy) -> None:
    policy = load_policy("llama")
    policy.add_value_branch(1)
    assert not values(policy).any()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_gradients_go_through_the_copies_into_the_shared_layers(
    load_policy: LoadPolicy, build_folder: BuildFolder, family: str, checkpointing: bool
) -> None:
    """They equal a plain head's: below in the shared layers, above in the copies."""
    folder = build_folder(family)
    plain = load_policy(folder=folder)
    plain.add_value_head()
    make_loud(plain.raw.get_submodule("value_head"))
    policy = with_branch(load_policy, 1, folder=folder, gradient_checkpointing=checkpointing)
    for each in (plain, policy):
        values(each).square().sum().backward()  # type: ignore[no-untyped-call]
    from_plain = {name: p.grad for name, p in plain.raw.lm.named_parameters()}
    shared = {name: p.grad for name, p in policy.raw.lm.named_parameters()}
    upper = {name for name in shared if name.startswith(UPPER[family])}
    assert 4 < len(upper) < len(shared) - 4
    found = {name: gradient for name, gradient in shared.items() if gradient is not None}
    below = {name: gradient for name, gradient in from_plain.items() if name not in upper and gradient is not None}
    assert_equal_figures(plain.raw, found, below)
    copies = [p.grad for p in (*branch_of(policy).layers.parameters(), *branch_of(policy).behind.parameters())]
    originals = [from_plain[name] for name in shared if name in upper and from_plain[name] is not None]
    assert len(copies) == len(originals) == len(upper)
    total = sum(float(gradient.square().sum()) for gradient in copies if gradient is not None)
    expected = sum(float(gradient.square().sum()) for gradient in originals if gradient is not None)
    assert total == near(expected, terms=2 * terms_of_network(plain.raw, tokens=TOKENS))


def test_the_copies_are_the_critics_alone(load_policy: LoadPolicy) -> None:
    policy = with_branch(load_policy, 1)
    batch = token_batch()
    before, logprobs = values(policy).detach(), policy.forward(batch).logprobs.detach()
    policy.forward(batch).logprobs.sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in branch_of(policy).parameters())
    with torch.no_grad():
        for parameter in branch_of(policy).layers.parameters():
            parameter.add_(0.1)
    assert not torch.allclose(values(policy), before, atol=1e-3)
    assert torch.equal(policy.forward(batch).logprobs, logprobs)
    names = policy.modules()["policy"].state_dict()
    assert "value_head.layers.0.mlp.down_proj.weight" in names
    assert not any("_watched" in name for name in names)
    assert policy.reference().raw.value_head is None


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_with_lora_the_copies_have_adapters_of_their_own(load_policy: LoadPolicy) -> None:
    policy = with_branch(load_policy, 1, lora=LoraOptions(r=2))
    trained = {name for name, parameter in branch_of(policy).named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {"head.weight", "head.bias"}
    assert any("layers.0" in name for name in trained)


def test_layers_that_are_kept_are_trained_in_their_copies(load_policy: LoadPolicy) -> None:
    policy = with_branch(load_policy, 2, freeze_layers=1)
    assert all(parameter.requires_grad for parameter in branch_of(policy).parameters())
    assert not any(p.requires_grad for name, p in policy.raw.lm.named_parameters() if "layers.0" in name)


def test_more_layers_than_there_are_is_an_error(load_policy: LoadPolicy) -> None:
    with pytest.raises(InputError, match=r"optimizer\.critic_layers: the model has 2 layers, not 3"):
        load_policy("llama").add_value_branch(3)
