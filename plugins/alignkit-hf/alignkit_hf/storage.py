"""Writes models as the folders that transformers loads."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from alignkit_hf.modeling import PackedModel


def save_policy(model: PackedModel, tokenizer: Any, path: Path) -> None:
    """The causal LM with its tokenizer; an adapter is merged into it and stands alone in `path/adapter` beside it."""
    path.mkdir(parents=True, exist_ok=True)
    merged_model(model).save_pretrained(path)
    tokenizer.save_pretrained(path)
    if model.has_adapter:
        model.model.save_pretrained(path / "adapter")  # type: ignore[operator]


def merged_model(model: PackedModel) -> PreTrainedModel:
    """The transformers model with its adapter merged: the model itself where there is none, otherwise a copy."""
    if not model.has_adapter:
        return model.lm
    merged: PreTrainedModel = copy.deepcopy(model.model).merge_and_unload()  # type: ignore[operator]
    return merged
