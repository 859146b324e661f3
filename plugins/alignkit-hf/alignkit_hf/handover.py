"""Weights for another engine: tensor by tensor, whole and under the names that `save_pretrained` writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from alignkit_hf.storage import in_4_bits, whole_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from alignkit_hf.trunk import TrunkModel


@torch.no_grad()
def named_weights(model: TrunkModel, *, adapter: bool = True) -> Iterator[tuple[str, Tensor]]:
    """The causal LM, with its adapter merged into each weight if `adapter` is set; tied weights once."""
    from transformers.core_model_loading import revert_weight_conversion

    if any(in_4_bits(module) for module in model.modules()):
        weights = _weights(whole_model(model), adapter=False)
    else:
        weights = _weights(model.lm, adapter=adapter)
    lm: Any = model.lm
    if _is_converted(lm):  # several weights become one of another name, so all of them are needed at once
        yield from revert_weight_conversion(lm, dict(weights)).items()
    else:
        yield from weights


def _is_converted(lm: Any) -> bool:
    """Whether transformers stores weights under other names or shapes than it computes with."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return bool(getattr(lm, "_weight_conversions", None) or get_model_conversion_mapping(lm, add_legacy=False))


def _weights(lm: Any, *, adapter: bool) -> Iterator[tuple[str, Tensor]]:
    # not state_dict(): it would split weights again that are gathered for sampling
    for name, tensor in (*lm.named_parameters(), *_stored_buffers(lm)):
        if ".lora_" in name:
            continue
        place, base, kind = name.partition(".base_layer.")
        weight = tensor.detach()
        if base and kind == "weight" and adapter:
            layer = lm.get_submodule(place)
            weight = weight + sum(layer.get_delta_weight(one) for one in layer.active_adapters).to(weight.dtype)
        yield (f"{place}.{kind}" if base else name), whole(weight)


def _stored_buffers(lm: Any) -> Iterator[tuple[str, Tensor]]:
    for place, module in lm.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{place}.{name}".lstrip("."), buffer


def weights_of_adapter(model: TrunkModel) -> Iterator[tuple[str, Tensor]]:
    """The adapter alone, under peft's names; nothing if there is none."""
    if model.has_adapter:
        from peft import get_peft_model_state_dict

        found = get_peft_model_state_dict(model.model, save_embedding_layers=False)
        for name in sorted(found):
            yield name, whole(found[name].detach())


def whole(tensor: Any) -> Tensor:
    """The tensor itself, or all parts of a sharded one; collective for the latter."""
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found
