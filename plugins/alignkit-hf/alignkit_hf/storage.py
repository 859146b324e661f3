"""Writes models as folders that transformers, peft and vLLM load as the same."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from alignkit_hf.adapters import save_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from alignkit_hf.trunk import TrunkModel


def save_policy(model: TrunkModel, tokenizer: Any, path: Path) -> None:
    """Writes the causal LM with its tokenizer; an adapter is merged, and also saved alone in `path/adapter`."""
    save_model(whole_model(model), tokenizer, path)
    save_adapter(model, path / "adapter")
    if (path / "adapter").is_dir():
        tokenizer.save_pretrained(path / "adapter")
    follow_umask(path)


def save_model(model: PreTrainedModel, tokenizer: Any, path: Path) -> None:
    """Writes a model and its tokenizer."""
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    (path / "chat_template.jinja").unlink(missing_ok=True)  # of an earlier tokenizer
    tokenizer.save_pretrained(path)
    follow_umask(path)


def follow_umask(path: Path) -> None:
    """Gives weights the mode of the config beside them: safetensors writes files that only their owner can read."""
    mode = (path / "config.json").stat().st_mode
    for file in path.rglob("*.safetensors"):
        file.chmod(mode)


def merged_model(model: TrunkModel) -> PreTrainedModel:
    """As `whole_model`, but below an adapter that is still zero, weights in 4 bits stay."""
    if model.has_adapter and not model.adapter_is_trained:
        bare: PreTrainedModel = copy.deepcopy(model.model).unload()  # type: ignore[operator]
        return bare
    return whole_model(model)


def whole_model(model: TrunkModel) -> PreTrainedModel:
    """The transformers model with its adapter merged (a copy), or the model itself if it has no adapter.

    Weights in 4 bits are converted back, because an adapter that is merged in 4 bits is rounded away.
    """
    if not model.has_adapter:
        return model.lm
    copied: Any = copy.deepcopy(model.model)
    if not any(in_4_bits(module) for module in model.modules()):
        merged: PreTrainedModel = copied.merge_and_unload()
        return merged
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {
        name: part for name, part in copied.get_base_model().named_modules() if isinstance(part, LoraLayer)
    }
    added = {name: layer.get_delta_weight(layer.active_adapters[0]) for name, layer in layers.items()}
    lm: PreTrainedModel = copied.unload()
    with torch.no_grad():
        for name, module in list(lm.named_modules()):
            linear = _converted_back(module) if in_4_bits(module) else module
            if name in added:
                linear.weight += added[name].to(linear.weight.dtype)
            if linear is not module:
                lm.set_submodule(name, linear)
    for owner, name in ((lm.config, "quantization_config"), (lm, "hf_quantizer"), (lm, "is_loaded_in_4bit")):
        if hasattr(owner, name):
            delattr(owner, name)
    return lm


def in_4_bits(module: nn.Module) -> bool:
    return hasattr(getattr(module, "weight", None), "quant_state") and not hasattr(module, "base_layer")


def _converted_back(module: Any) -> nn.Linear:
    """A linear module with the values that the 4 bits stand for."""
    from bitsandbytes.functional import dequantize_4bit

    module.state_dict()  # puts weights that a CPU has reordered back into their order
    weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
    linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
    linear.weight, linear.bias = nn.Parameter(weight), module.bias
    return linear
