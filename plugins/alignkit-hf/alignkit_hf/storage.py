"""Writes models as folders that transformers, peft and vLLM load as the same."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from alignkit_hf.adapters import save_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from alignkit_hf.modeling import PackedModel


def save_policy(model: PackedModel, tokenizer: Any, path: Path) -> None:
    """Writes the causal LM with its tokenizer; an adapter is merged, and also saved alone in `path/adapter`."""
    save_model(merged_model(model), tokenizer, path)
    save_adapter(model, path / "adapter")
    if (path / "adapter").is_dir():
        tokenizer.save_pretrained(path / "adapter")
    follow_umask(path)


def save_model(model: PreTrainedModel, tokenizer: Any, path: Path) -> None:
    """Writes a model and its tokenizer."""
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    follow_umask(path)


def follow_umask(path: Path) -> None:
    """Gives weights the mode of the config beside them: safetensors writes files that only their owner can read."""
    mode = (path / "config.json").stat().st_mode
    for file in path.rglob("*.safetensors"):
        file.chmod(mode)


def merged_model(model: PackedModel) -> PreTrainedModel:
    """The transformers model with its adapter merged (a copy), or the model itself if it has no adapter."""
    if not model.has_adapter:
        return model.lm
    merged: PreTrainedModel = copy.deepcopy(model.model).merge_and_unload()  # type: ignore[operator]
    return merged
