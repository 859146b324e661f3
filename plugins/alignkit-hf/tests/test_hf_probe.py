"""The probe finds every mistake that a packed attention can make, whatever the weights, and no other ones."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_hf import attention, exact, probe
from alignkit_hf.kernels import attention as kernels
from alignkit_hf.kernels.logprobs import LogitTransform
from alignkit_hf.modeling import Accuracy, PackedModel, Request
from hf_tiny import assert_equal_figures, build_model, plain_logprobs, token_batch

from alignkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from alignkit_hf.kernels.attention import AttentionRule
    from torch import Tensor

SCALED = {"query_pre_attn_scalar": 16}
FAULTS: dict[str, tuple[Callable[[AttentionRule], AttentionRule], tuple[tuple[str, dict[str, Any]], ...]]] = {
    "window one too short": (
        lambda rule: replace(rule, window=rule.window and rule.window - 1),
        (("mistral", {}), ("gemma2", {}), ("gemma3", {}), ("gpt_oss", {})),
    ),
    "window one too long": (
        lambda rule: replace(rule, window=rule.window and rule.window + 1),
        (("mistral", {"sliding_window": 100}), ("gemma3", {}), ("gpt_oss", {})),
    ),
    "window missing": (
        lambda rule: replace(rule, window=None),
        (("mistral", {}), ("gpt_oss", {"sliding_window": 100})),
    ),
    "soft cap missing": (lambda rule: replace(rule, softcap=None), (("gemma2", {}),)),
    "soft cap wrong": (lambda rule: replace(rule, softcap=rule.softcap and rule.softcap * 1.01), (("gemma2", {}),)),
    "sinks missing": (lambda rule: replace(rule, sinks=None), (("gpt_oss", {}),)),
    "scale missing": (
        lambda rule: replace(rule, scale=None),
        (("gemma2", SCALED), ("gemma3", SCALED), ("granite", {"attention_multiplier": 0.5})),
    ),
    "scale wrong": (lambda rule: replace(rule, scale=(rule.scale or 8**-0.5) * 1.001), (("llama", {}), ("gpt2", {}))),
}
CASES = [(fault, family, changes) for fault, (_, where) in FAULTS.items() for family, changes in where]
SIZES = {"small": 0.3, "usual": 1.0, "large": 3.0, "massive": 1.0}
BEYOND = {("soft cap wrong", "small"), ("soft cap wrong", "massive")}
"""Scores of 1e-4 there: a hundredth of what a cap of 50 does to them is below float64's rounding."""


def sized_model(family: str, size: str, **changes: Any) -> Any:
    """A model with small or large weights; massive: as in real models, one channel is a thousand times the others."""
    model = build_model(family, loud=SIZES[size], **changes)
    if size == "massive":
        with torch.no_grad():
            weight = model.get_input_embeddings().weight
            weight[:, 5] = 1000 * weight.std()
    return model


def found_path(model: Any) -> Any:
    return probe.find_path(model, layout="auto", attention="auto")


@pytest.mark.parametrize(
    ("fault", "family", "changes", "size"),
    [(*case, size) for case in CASES for size in ("small", "large", "massive") if (case[0], size) not in BEYOND],
)
def test_a_planted_fault_is_found(
    fault: str, family: str, changes: dict[str, Any], size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, _ = FAULTS[fault]
    monkeypatch.setattr(
        attention, "packed_attention",
        lambda query, key, value, layout, rule: kernels.packed_attention(query, key, value, layout, plant(rule)),
    )  # fmt: skip
    path = found_path(sized_model(family, size, **changes))
    assert not path.packed
    assert "in float64" in path.reason


@pytest.mark.parametrize("size", ["small", "usual", "massive"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3", "gpt_oss", "granite", "qwen3_moe", "phi3"])
def test_rounding_is_no_fault(family: str, size: str) -> None:
    path = found_path(sized_model(family, size))
    assert path.packed
    assert path.accuracy is not None


@pytest.mark.parametrize(
    ("family", "changes"),
    [("cohere", {"logit_scale": 0.25}), ("granite", {}), ("gemma2", {"final_logit_softcapping": 3.0})],
)
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_missing_transform_of_the_logits_is_found(
    family: str, changes: dict[str, Any], size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit_hf.modeling.logit_transform", lambda lm: LogitTransform())
    model, batch = sized_model(family, size, **changes), token_batch()
    expected = plain_logprobs(model, batch)
    path = found_path(model)
    assert not path.packed
    assert not path.fused_head
    assert "logits" in path.reason
    found = PackedModel(model, path=path)(batch, Request(logprobs=True))["logprobs"]
    assert_equal_figures(model, found, expected)


def _leaking(query: Tensor, key: Tensor, value: Tensor, layout: Any, rule: Any) -> Tensor:
    """Every token sees all tokens before it on the axis, even of other groups and responses."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=rule.scale)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_a_broken_attention_falls_back_and_is_named(
    family: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attention, "packed_attention", _leaking)
    model, batch = build_model(family), token_batch()
    expected = plain_logprobs(model, batch)
    path = found_path(model)
    assert not path.packed
    assert "differ by" in caplog.text
    with pytest.raises(InputError, match="packed layout"):
        probe.find_path(model, layout="packed", attention="auto")
    assert_equal_figures(model, PackedModel(model, path=path)(batch, Request(logprobs=True))["logprobs"], expected)


@pytest.mark.parametrize("family", ["mistral", "gemma3", "gpt_oss"])
def test_a_large_model_is_judged_by_the_layers_that_hold_every_kind(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "WHOLE_MODEL", 0)
    monkeypatch.setattr(exact, "AT_ONCE", 0)
    types = {"layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 2} if family == "gemma3" else {}
    model = build_model(family, num_hidden_layers=8, **types)
    assert exact.layers_to_run(PackedModel(model)) == {"mistral": 2, "gemma3": 4, "gpt_oss": 2}[family]
    path = found_path(model)
    assert path.packed
    assert path.accuracy is not None
    probe._SEEN.clear()
    plant, _ = FAULTS["window one too long"]
    monkeypatch.setattr(
        attention, "packed_attention",
        lambda query, key, value, layout, rule: kernels.packed_attention(query, key, value, layout, plant(rule)),
    )  # fmt: skip
    assert not found_path(model).packed


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_moe"])
def test_without_float64_the_models_own_noise_is_the_measure(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "layers_to_run", lambda model: None)
    model = build_model(family)
    path = found_path(model)
    assert (path.packed, path.accuracy) == (True, None)
    probe._SEEN.clear()
    monkeypatch.setattr(attention, "packed_attention", _leaking)
    assert not found_path(model).packed


def test_it_says_which_layout_is_nearer_to_float64() -> None:
    accuracy = found_path(build_model("gemma2")).accuracy
    assert accuracy is not None
    assert 0 < accuracy.packed < 1e-3
    assert 0 < accuracy.padded < 1e-3
    assert accuracy.same < 1e-9
    near, far = Accuracy("log-probabilities", 2e-5, 3e-5, 0.0), Accuracy("hidden states", 0.5, 0.25, 0.0)
    assert str(near) == "log-probabilities are 2.0e-05 from float64, padded 3.0e-05: packed is nearer"
    assert str(far) == "hidden states are 5.0e-01 from float64, padded 2.5e-01: padded is nearer"


@pytest.mark.parametrize("at_once", [0, 10**9])
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_float64_is_that_of_the_whole_model_in_double(
    family: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In these architectures nothing asks for float32, so that transformers' own `double` is in float64 throughout."""
    monkeypatch.setattr(exact, "AT_ONCE", at_once)
    model = build_model(family)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        double = copy.deepcopy(model).double()
        expected, logits = double.base_model(input_ids=ids).last_hidden_state, double(ids).logits
        packed = PackedModel(model)
        with exact.float64(packed):
            found = model.base_model(input_ids=ids).last_hidden_state
            found_logits = exact.logits(packed, found[0])
    assert found.dtype == torch.float64
    bound = 1000 * torch.finfo(torch.float64).eps
    assert float((found - expected).abs().max() / expected.abs().max()) < bound
    assert float((found_logits - logits[0]).abs().max() / logits.abs().max()) < bound


@pytest.mark.parametrize("family", ["llama", "gemma3", "mamba", "bloom", "phi3"])
def test_the_probe_leaves_the_model_as_it_was(family: str) -> None:
    model = build_model(family)
    model.train()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: (x.data_ptr(), x.dtype, x.detach().clone()) for name, x in tensors.items()}
    config, implementation = model.config.to_dict(), model.config._attn_implementation
    probe.find_path(model, layout="auto", attention="auto")
    model.set_attn_implementation(implementation)
    assert model.training
    assert torch.get_default_dtype() == torch.float32
    assert model.config.to_dict() == config
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, (place, dtype, values) in before.items():
        assert (after[name].data_ptr(), after[name].dtype) == (place, dtype), name
        assert torch.equal(after[name], values) or "inv_freq" in name


@pytest.mark.parametrize("at_once", [0, 10**9])
def test_a_model_that_fails_in_float64_gets_its_weights_back(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "AT_ONCE", at_once)
    model = build_model("llama")
    places = {name: p.data_ptr() for name, p in model.named_parameters()}

    def fail(*_: Any) -> None:
        raise RuntimeError("no float64 here")

    hook = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no float64 here"), exact.float64(PackedModel(model)):
        model(torch.arange(5)[None])
    hook.remove()
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places
    assert {p.dtype for p in model.parameters()} == {torch.float32}
