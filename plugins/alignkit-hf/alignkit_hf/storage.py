"""Writes models as folders that transformers can load."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from alignkit_hf.modeling import PackedModel


def save_policy(model: PackedModel, tokenizer: Any, path: Path) -> None:
    """Writes the causal LM with its tokenizer; an adapter is merged, and also saved alone in `path/adapter`."""
    path.mkdir(parents=True, exist_ok=True)
    merged_model(model).save_pretrained(path)
    tokenizer.save_pretrained(path)
    if model.has_adapter:
        model.model.save_pretrained(path / "adapter")  # type: ignore[operator]


def merged_model(model: PackedModel) -> PreTrainedModel:
    """The transformers model with its adapter merged (a copy), or the model itself if it has no adapter."""
    if not model.has_adapter:
        return model.lm
    merged: PreTrainedModel = copy.deepcopy(model.model).merge_and_unload()  # type: ignore[operator]
    return merged
