"""Packed equals padded equals one sequence at a time in plain transformers, for values and gradients."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_hf import probe
from alignkit_hf.adapters import add_adapter
from alignkit_hf.attention import NAME
from alignkit_hf.kernels import attention
from alignkit_hf.loading import enable_checkpointing, switch_dropout_off
from alignkit_hf.modeling import PackedModel, PaddedRows, Path, Request
from alignkit_hf.options import LoraOptions
from hf_tiny import assert_equal_figures, build_model, plain_logits, plain_logprobs, token_batch

if TYPE_CHECKING:
    from torch import Tensor

PACKED = ["llama", "gpt2", "qwen3", "opt", "mistral", "gemma2", "gemma3", "cohere", "granite", "gpt_oss", "qwen3_moe"]
REQUEST = Request(logprobs=True, entropy=True)


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("call_cost", [0, 10**9], ids=["by-segment", "by-padded-group"])
@pytest.mark.parametrize("family", PACKED)
def test_packed_equals_single_sequences(family: str, call_cost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CALL_COST", call_cost)
    model = build_model(family, attn_implementation="eager")
    switch_dropout_off(model)
    batch = token_batch().replace(temperature=0.8)
    weights = torch.linspace(-1, 1, batch.num_tokens)
    expected = plain_logprobs(model, batch)
    distribution = (plain_logits(model, batch) / 0.8).log_softmax(-1)
    expected_entropy = -(distribution.exp() * distribution).sum(-1)
    expected_gradients = gradients(model, (weights * expected).sum() + expected_entropy.mean())
    path = probe.find_path(model, layout="auto", attention="auto")
    assert path == Path(packed=True, fused_head=True)
    output = PackedModel(model, path=path)(batch, REQUEST)
    assert_equal_figures(model, output["logprobs"], expected)
    assert_equal_figures(model, output["entropy"], expected_entropy)
    got = gradients(model, (weights * output["logprobs"]).sum() + output["entropy"].mean())
    assert_equal_figures(model, got, expected_gradients)


@pytest.mark.parametrize("fused_head", [True, False])
@pytest.mark.parametrize("family", [*PACKED, "bloom", "mamba"])
def test_padded_equals_single_sequences(family: str, fused_head: bool) -> None:
    model = build_model(family)
    switch_dropout_off(model)
    batch = token_batch().replace(temperature=1.3)
    expected = plain_logprobs(model, batch)
    expected_gradients = gradients(model, expected.square().sum())
    output = PackedModel(model, path=Path(packed=False, fused_head=fused_head))(batch, REQUEST)
    assert_equal_figures(model, output["logprobs"], expected)
    assert_equal_figures(model, gradients(model, output["logprobs"].square().sum()), expected_gradients)
    packed_entropy = (plain_logits(model, batch) / 1.3).softmax(-1)
    assert_equal_figures(model, output["entropy"], torch.special.entr(packed_entropy).sum(-1))


def test_hidden_states_are_those_that_predict() -> None:
    model = build_model("llama")
    batch = token_batch()
    rows = PaddedRows.of(batch)
    padded = model.model(rows.input_ids, attention_mask=rows.mask).last_hidden_state
    probe.find_path(model, layout="auto", attention="auto")
    packed = PackedModel(model)
    hidden = packed(batch, Request(logprobs=True, hidden=True))["hidden"]
    assert_equal_figures(model, hidden, padded[rows.row, rows.predict_column])
    # token 15 is the one token of a response: the last of the four tokens of its prompt predicts it
    assert batch.lengths.tolist()[3] == 1
    alone = model.model(torch.cat((batch.prompt_ids[9:13], batch.response_ids[15:16]))[None]).last_hidden_state[0]
    assert_equal_figures(model, hidden[15], alone[3])


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gemma3"])
def test_a_padding_id_in_the_sequence_makes_no_difference(family: str) -> None:
    model = build_model(family, pad_token_id=2)
    batch = token_batch()
    ids = batch.response_ids.clone()
    ids[batch.last_token] = 2
    ids[0] = 2
    batch = batch.replace(response_ids=ids)
    expected = plain_logprobs(model, batch)
    for path in (Path(packed=False), probe.find_path(model, layout="packed", attention="auto")):
        assert_equal_figures(model, PackedModel(model, path=path)(batch, REQUEST)["logprobs"], expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", PACKED)
def test_lora_gradients_are_the_same_in_both_layouts(family: str, checkpointing: bool) -> None:
    model = build_model(family)
    switch_dropout_off(model)
    path = probe.find_path(model, layout="auto", attention="auto")
    adapted = add_adapter(model, LoraOptions(r=4))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    packed, batch = PackedModel(adapted, path=path), token_batch()
    outputs = []
    for layout in (Path(packed=False), path):
        packed.path = layout
        if checkpointing and layout.packed:
            enable_checkpointing(model)
            packed.train()
        loss = packed(batch, REQUEST)["logprobs"].square().sum()
        outputs.append((loss.detach(), gradients(packed, loss)))
    assert outputs[0][1], "nothing is trained"
    assert all("lora" in name for name in outputs[0][1])
    assert_equal_figures(model, outputs[1][0], outputs[0][0])
    assert_equal_figures(model, outputs[1][1], outputs[0][1])


@pytest.mark.parametrize("family", ["bloom", "mamba", "gpt_neo", "falcon", "qwen3_next"])
def test_a_model_that_packing_does_not_serve_falls_back_with_one_warning(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, batch = build_model(family), token_batch()
    expected = plain_logprobs(model, batch)
    with caplog.at_level(logging.WARNING, logger="alignkit_hf"):
        path = probe.find_path(model, layout="auto", attention="auto")
        assert probe.find_path(build_model(family), layout="auto", attention="auto") == path
    assert [record.levelname for record in caplog.records if record.name == "alignkit_hf.probe"] == ["WARNING"]
    assert "padded layout" in caplog.text
    assert not path.packed
    assert_equal_figures(model, PackedModel(model, path=path)(batch, REQUEST)["logprobs"], expected)


def test_without_a_kernel_the_model_is_transformers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("llama", "gemma2", "gpt_oss"):
        model = build_model(family, attn_implementation="eager")
        ids = torch.arange(10, 40)[None]
        expected = model(ids).logits
        model.set_attn_implementation(NAME)
        assert_equal_figures(model, model(ids).logits, expected)


def test_autocast_keeps_log_probabilities_near_and_in_float32() -> None:
    model = build_model("llama")
    path = probe.find_path(model, layout="auto", attention="auto")
    batch = token_batch()
    exact = plain_logprobs(model, batch).detach()
    mixed = PackedModel(model, path=path, autocast=torch.bfloat16)(batch, REQUEST)["logprobs"]
    padded = PackedModel(model, path=Path(packed=False), autocast=torch.bfloat16)(batch, REQUEST)["logprobs"]
    assert mixed.dtype == torch.float32
    for approximate in (mixed.detach(), padded.detach()):
        assert 1e-5 < float((approximate - exact).abs().mean()) < 0.05
    mixed.sum().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("family", PACKED)
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    model: Any = build_model(family)
    switch_dropout_off(model)
    path = probe.find_path(model, layout="auto", attention="auto")
    packed, batch = PackedModel(model, path=path), token_batch()
    expected = gradients(packed, packed(batch, REQUEST)["logprobs"].square().sum())
    enable_checkpointing(model)
    packed.train()
    got = gradients(packed, packed(batch, REQUEST)["logprobs"].square().sum())
    assert_equal_figures(model, got, expected)
