"""Weights for another engine: those that a saved folder has, tensor by tensor; adapters merged or alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_hf.options import LoraOptions
from hf_tiny import PEFT_WARNS
from safetensors.torch import load_file

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import LoadPolicy

pytestmark = pytest.mark.filterwarnings(PEFT_WARNS)
LORA = LoraOptions(r=2)


def shake(module: Any) -> None:
    """Moves every trained parameter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def test_an_adapter_is_merged_as_peft_merges_it(load_policy: LoadPolicy, tmp_path: Path) -> None:
    policy = load_policy(lora=LORA)
    shake(policy.raw)
    before = [tensor.clone() for tensor in policy.raw.state_dict().values()]
    policy.save(tmp_path)
    saved, given = load_file(tmp_path / "model.safetensors"), dict(policy.named_weights())
    assert given.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.allclose(given[name], tensor, rtol=1e-5, atol=1e-6), name
    bare = load_policy().raw.lm.state_dict()
    assert any(not torch.allclose(given[name], bare[name], atol=1e-3) for name in given), "the adapter adds nothing"
    after = policy.raw.state_dict().values()
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True)), "handing weights out moved them"


def test_an_adapter_alone_is_what_peft_stores(load_policy: LoadPolicy, tmp_path: Path) -> None:
    policy = load_policy(lora=LORA)
    shake(policy.raw)
    policy.save(tmp_path)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    given = dict(policy.named_weights(merged=False))
    assert list(given) == sorted(saved)
    assert all(torch.equal(given[name], saved[name]) for name in saved)
    assert dict(load_policy().named_weights(merged=False)) == {}


def test_the_reference_hands_out_the_weights_below_the_adapter(load_policy: LoadPolicy) -> None:
    policy = load_policy(lora=LORA)
    reference = policy.reference()
    shake(policy.raw)
    bare, given = load_policy().raw.lm.state_dict(), dict(reference.named_weights())
    assert given
    assert all(torch.equal(given[name], bare[name]) for name in given)


def test_a_value_head_stays_here(load_policy: LoadPolicy) -> None:
    policy = load_policy()
    names = [name for name, _ in policy.named_weights()]
    policy.add_value_head()
    assert [name for name, _ in policy.named_weights()] == names


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_handed_out_once(load_policy: LoadPolicy, tied: bool) -> None:
    policy = load_policy()
    lm: Any = policy.raw.lm
    if not tied:
        lm.lm_head.weight = torch.nn.Parameter(lm.lm_head.weight.detach().clone())
    elif lm.lm_head.weight is not lm.get_input_embeddings().weight:
        lm.lm_head.weight = lm.get_input_embeddings().weight
    assert ("lm_head.weight" in dict(policy.named_weights())) != tied


def test_weights_that_transformers_joins_come_apart_again(tmp_path: Path) -> None:
    """The experts of a mixture are one tensor while it computes, and many in its files."""
    from alignkit_hf.handover import named_weights
    from alignkit_hf.trunk import TrunkModel
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    model = MixtralForCausalLM(config)
    model.save_pretrained(tmp_path)
    saved, given = load_file(tmp_path / "model.safetensors"), dict(named_weights(TrunkModel(model, None)))
    assert given.keys() == saved.keys()
    assert sum("experts" in name for name in given) == 6
    assert all(torch.equal(given[name], saved[name]) for name in saved)
