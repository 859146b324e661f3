"""The memory of a model from its config: weights by hand, activations by the formula of docs/how-to/scale.md."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_hf import footprint as module
from alignkit_hf.footprint import LiveBytes, footprint
from alignkit_hf.options import HFOptions, LoraOptions

from alignkit import Held, Load

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, INNER, VOCABULARY, HEADS, KEYS = 64, 160, 500, 8, 2
POLICY, REFERENCE = Held(name="policy", trained=True), Held(name="reference")
LOAD = Load(device="cpu", max_tokens=2048, prompt=64, response=64, responses=3, rows=8)
LAYER = 2 * WIDTH + 2 * WIDTH * WIDTH * (1 + KEYS / HEADS) + 3 * WIDTH * INNER


def write_config(folder: Path, layers: int = 2, **more: Any) -> str:
    """A folder as a hub repository looks before its weights are there."""
    folder.mkdir()
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS, "tie_word_embeddings": False, **more,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"")
    return str(folder)


def test_weights_gradients_and_moments_are_those_of_the_parameters(tmp_path: Path) -> None:
    options = HFOptions(model=write_config(tmp_path / "m"))
    count = 2 * LAYER + WIDTH + 2 * VOCABULARY * WIDTH
    found = footprint(options, POLICY, LOAD)
    assert (found.parameters, found.trained, found.gradients, found.adam) == (count, count, 4 * count, 8 * count)
    assert 0 <= found.weights - 4 * count < 256, "and the buffers of the rotary embedding"
    assert found.largest == 4 * (2 * VOCABULARY + 1) * WIDTH, "embedding, head and last norm"
    # Two numbers for each of 2 layers, 2 key heads of 8: of 8 responses and a third of as many prompts, all of 64.
    assert found.cache == int(2 * 2 * KEYS * 8 * 4 * 8 * (64 + 64 / 3))
    assert footprint(options, POLICY, replace(LOAD, adam="8bit", rows=0)).adam == 2 * count
    frozen = footprint(options, REFERENCE, LOAD)
    assert (frozen.weights, frozen.trained, frozen.gradients, frozen.adam, frozen.activations, frozen.cache) == (
        found.weights, 0, 0, 0, 0, 0,
    )  # fmt: skip
    tied = footprint(HFOptions(model=write_config(tmp_path / "t", tie_word_embeddings=True)), POLICY, LOAD)
    assert tied.parameters == count - VOCABULARY * WIDTH


def test_short_weights_lora_and_frozen_layers(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "m", layers=3)
    count = 3 * LAYER + WIDTH + 2 * VOCABULARY * WIDTH
    short = footprint(HFOptions(model=folder, weights="bfloat16"), POLICY, LOAD)
    assert (short.gradients, short.adam) == (4 * count, 12 * count), "with float32 copies"
    assert 0 <= short.weights - 2 * count < 256
    lora = HFOptions(model=folder, lora=LoraOptions(r=4))
    key_width = WIDTH * KEYS // HEADS
    added = 3 * 4 * (2 * (2 * WIDTH) + 2 * (WIDTH + key_width) + 3 * (WIDTH + INNER))
    found = footprint(lora, POLICY, LOAD)
    assert (found.trained, found.gradients, found.adam) == (added, 4 * added, 8 * added)
    assert footprint(lora, REFERENCE, LOAD).weights == 0, "the adapter off"
    assert footprint(replace(lora, reference="copy"), REFERENCE, LOAD).weights == found.weights
    frozen = footprint(HFOptions(model=folder, train_last=1), POLICY, LOAD)
    assert frozen.trained == LAYER + WIDTH + VOCABULARY * WIDTH
    assert frozen.activations is not None
    whole = footprint(HFOptions(model=folder), POLICY, LOAD).activations
    assert whole is not None
    assert frozen.activations < whole, "nothing is kept below the first trained layer"


def test_critics_and_reward_models(tmp_path: Path) -> None:
    options = HFOptions(model=write_config(tmp_path / "m"), lora=LoraOptions(r=4))
    trunk = 2 * LAYER + WIDTH + VOCABULARY * WIDTH
    critic = footprint(options, Held(name="critic", trained=True, scores=True), LOAD)
    assert 0 < critic.trained < trunk / 4
    of_reward = footprint(options, Held(name="critic", trained=True, scores=True, of_reward=True), LOAD)
    assert of_reward.trained == of_reward.parameters == trunk + WIDTH, "a trunk and a head without bias"
    reward = footprint(options, Held(name="reward", scores=True, of_reward=True), LOAD)
    assert (reward.parameters, reward.trained, reward.activations) == (trunk + WIDTH, 0, 0)
    full = replace(options, lora=LoraOptions())
    head = footprint(full, replace(POLICY, value_layers=0), LOAD)
    alone = footprint(full, POLICY, LOAD)
    assert head.trained - alone.trained == WIDTH + 1
    branch = footprint(full, replace(POLICY, value_layers=1), LOAD)
    assert branch.trained - head.trained == LAYER
    assert branch.activations is not None and head.activations is not None
    assert branch.activations == head.activations + head.activations // 2


def activations(folder: Path, layers: int, load: Load = LOAD, **options: Any) -> int:
    folder = folder / f"{layers}-{load.device}-{'-'.join(options)}"
    found = footprint(HFOptions(model=write_config(folder, layers), **options), POLICY, load).activations
    assert found is not None
    return found


def test_a_layer_keeps_what_the_docs_say(tmp_path: Path) -> None:
    once = activations(tmp_path, 3)
    layer = once - activations(tmp_path, 2)
    keys, group = WIDTH * KEYS // HEADS, 64 + 3 * 64
    assert layer == 4 * 2048 * (11 * WIDTH + 2 * keys + 4 * INNER + HEADS + 2 + group)
    (tmp_path / "twice").mkdir()
    twice = activations(tmp_path / "twice", 3, replace(LOAD, max_tokens=4096))
    assert twice == pytest.approx(2 * once, rel=0.05)


def test_checkpoints_keep_a_state_for_each_layer(tmp_path: Path) -> None:
    on = {"gradient_checkpointing": True}
    layer = activations(tmp_path, 3, **on) - activations(tmp_path, 2, **on)
    assert layer == pytest.approx(4 * 2048 * WIDTH, rel=0.03)


def test_cuda_computes_in_half_the_bytes(tmp_path: Path) -> None:
    load = replace(LOAD, device="cuda")
    layer = activations(tmp_path, 3, load) - activations(tmp_path, 2, load)
    # bfloat16 in the products, float32 in the residual stream and the norms.
    assert 4 * WIDTH * 2048 * 5 < layer < 4 * 2048 * (11 * WIDTH + 4 * INNER) * 0.75


def test_a_model_that_fake_tensors_can_not_run_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = HFOptions(model=write_config(tmp_path / "m"))

    def fails(*_: Any) -> None:
        raise RuntimeError("depends on numbers")

    monkeypatch.setattr(module, "_pass", fails)
    assert footprint(options, POLICY, LOAD).activations is None
    assert footprint(replace(options, layout="padded"), POLICY, LOAD).activations is None


def test_live_bytes_are_those_of_tensors_in_use() -> None:
    with LiveBytes() as live:
        a = torch.zeros(1000)
        assert live.live == 4000
        b = a.view(10, 100)
        c = a + 1
        assert live.live == 8000
        del a, c
        assert live.live == 4000
        c = b.add_(1)
        assert (live.live, live.peak) == (4000, 8000)
        del b, c
    assert (live.live, live.peak) == (0, 8000)
