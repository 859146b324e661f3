"""On a CUDA device: every layout computes the same as plain transformers, sampling agrees with the forward pass, and
training runs through the engine. Skipped without a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_hf.options import HFOptions, LoraOptions, SFTOptions
from alignkit_hf.policy import HFPolicy
from alignkit_hf.sft import SFT
from hf_tiny import build_model, build_tokenizer, plain_logprobs, token_batch

from alignkit.components import Context
from alignkit.options import Sampling
from alignkit.records import Group, Prompt
from alignkit.training.engine import train
from alignkit.training.feeds import OfflineFeed

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # torch.compile and its cache warn about the machine they run on
    pytest.mark.filterwarnings("default"),
]
WIDE = {"hidden_size": 64, "head_dim": 16}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.15}
"""For a log-probability, in nats; bfloat16 has 8 bits of mantissa, and the model's weights are large on purpose."""


def policy_of(tmp_path: Path, family: str = "llama", **options: Any) -> HFPolicy:
    changes = WIDE if family != "gpt2" else {}
    build_model(family, loud=1.5, **changes).save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    return HFPolicy(HFOptions(model=str(tmp_path / "model"), **options), Context(device="cuda"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mistral"])
def test_logprobs_and_gradients_equal_plain_transformers(tmp_path: Path, family: str, layout: str, dtype: str) -> None:
    policy = policy_of(tmp_path, family, layout=layout, dtype=dtype)
    batch = token_batch(prompts=(40, 9, 1), responses=((30, 3, 17), (5, 1, 11), (20,)))
    model = build_model(family, loud=1.5, **(WIDE if family != "gpt2" else {}))
    expected = plain_logprobs(model, batch)
    got = policy.forward(batch.to("cuda")).logprobs
    torch.testing.assert_close(got.cpu(), expected, atol=TOLERANCE[dtype], rtol=0)
    expected.mean().backward()
    got.mean().backward()
    theirs = model.get_input_embeddings().weight.grad
    (ours,) = [
        p.grad.cpu()
        for module in policy.modules().values()
        for name, p in module.named_parameters()
        if p.grad is not None and p.shape == theirs.shape and ("embed_tokens" in name or "wte" in name)
    ]
    difference = float((ours - theirs).norm() / theirs.norm())
    assert difference < {"float32": 1e-4, "bfloat16": 0.05}[dtype]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sampled_logprobs_equal_the_forward_pass(tmp_path: Path, dtype: str) -> None:
    policy = policy_of(tmp_path, dtype=dtype)
    prompts = [Prompt(text=text) for text in ("once upon", "a little dog who liked", "the park")]
    batch = policy.generate(prompts, n=4, sampling=Sampling(max_tokens=24, temperature=0.7), seed=1)
    again = policy.generate(prompts[1:2], n=4, sampling=Sampling(max_tokens=24, temperature=0.7), seed=1, places=[1])
    assert len(set(batch.groups[1].responses)) > 1
    if dtype == "float32":
        assert again.groups[0].responses == batch.groups[1].responses
    with torch.no_grad():
        forward = policy.forward(batch.to("cuda")).logprobs
    assert batch.logprobs is not None
    assert float((forward - batch.logprobs).abs().mean()) < TOLERANCE[dtype] / 3


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_on_the_device_learns(tmp_path: Path, lora: int, checkpointing: bool) -> None:
    policy = policy_of(tmp_path, lora=LoraOptions(r=lora), gradient_checkpointing=checkpointing)
    groups = [Group(Prompt(text=f"the {word}"), ("likes the big red ball",)) for word in ("dog", "park", "ball", "day")]
    options = SFTOptions(learning_rate=1e-2, minibatch_size=2, n_epochs=20)
    losses: list[float] = []
    train(
        SFT(options, policy=policy), OfflineFeed(groups, policy), folder=tmp_path, seed=0,
        on_step=lambda record: losses.append(record["loss"]),
    )  # fmt: skip
    assert losses[-1] < losses[0] - 1
