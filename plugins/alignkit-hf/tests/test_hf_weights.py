"""bfloat16 weights with float32 copies: training stays near float32's, and resumes bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_hf.options import HFOptions, LoraOptions, SFTOptions
from alignkit_hf.policy import HFPolicy
from alignkit_hf.sft import SFT

from alignkit.components import Context
from alignkit.errors import InputError, StoppedByCheck
from alignkit.records import Group, Prompt
from alignkit.training.engine import train
from alignkit.training.feeds import OfflineFeed

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import BuildFolder

GROUPS = [Group(Prompt(text=f"once upon a {word}"), (" time there was",)) for word in ("dog", "ball", "big", "red")]


def run(model: Path, out: Path, *, stop: bool = False, resume: bool = False, **options: Any) -> dict[str, torch.Tensor]:
    """The weights after 12 steps of SFT."""
    policy = HFPolicy(HFOptions(model=str(model), **options), Context(device="cpu"))
    config = SFTOptions(learning_rate=1e-3, minibatch_size=2, n_epochs=6, save_every=1, max_tokens=20)

    def on_step(record: dict[str, float]) -> None:
        if stop and record["step"] == 7:
            raise StoppedByCheck("here")

    feed = OfflineFeed(GROUPS, policy)
    train(SFT(config, policy=policy), feed, folder=out, seed=0, on_step=on_step, resume=resume)
    return {name: tensor.detach() for name, tensor in policy.raw.state_dict().items()}


@pytest.mark.parametrize("lora", [LoraOptions(), LoraOptions(r=2)])
def test_a_resumed_run_ends_in_the_same_bits(build_folder: BuildFolder, tmp_path: Path, lora: LoraOptions) -> None:
    model = build_folder("llama")
    options: dict[str, Any] = {"weights": "bfloat16", "lora": lora}
    torch.manual_seed(0)
    whole = run(model, tmp_path / "a", **options)
    torch.manual_seed(0)
    with pytest.raises(StoppedByCheck):
        run(model, tmp_path / "b", stop=True, **options)
    torch.manual_seed(0)
    resumed = run(model, tmp_path / "b", resume=True, **options)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    kept = torch.bfloat16 if not lora.r else torch.float32
    assert {t.dtype for name, t in whole.items() if "lora_" in name or not lora.r} == {kept}


def test_training_stays_near_that_of_float32_weights(build_folder: BuildFolder, tmp_path: Path) -> None:
    model = build_folder("llama")
    start = {
        name: t.clone()
        for name, t in HFPolicy(HFOptions(model=str(model)), Context(device="cpu")).raw.state_dict().items()
    }
    exact = run(model, tmp_path / "a", dtype="bfloat16")
    short = run(model, tmp_path / "b", weights="bfloat16")
    moved = sum(float((exact[name] - start[name]).square().sum()) for name in exact)
    apart = sum(float((exact[name] - short[name]).square().sum()) for name in exact)
    assert 0 < apart < 0.1 * moved


def test_bfloat16_weights_are_not_computed_with_in_float32(build_folder: BuildFolder) -> None:
    with pytest.raises(InputError, match="bfloat16"):
        HFOptions(model=str(build_folder("llama")), weights="bfloat16", dtype="float32").check()
