"""Weights that several layers of a vLLM model share."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

Shared = list[tuple[Any, str, list[tuple[Any, str]]]]
"""(module, name of its parameter, the other modules that have it and its name there)."""


def sharing(model: Any) -> Shared:
    """Who shares a weight with whom, as tied embeddings do."""
    owners: dict[int, list[tuple[Any, str]]] = defaultdict(list)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            owners[id(parameter)].append((module, name))
    return [(*places[0], places[1:]) for places in owners.values() if len(places) > 1]


def prepare_again(shared: Shared) -> None:
    """After an update: the others get the first one's weight, and place it where their kernels read it."""
    for owner, name, others in shared:
        for other, its_name in others:
            setattr(other, its_name, getattr(owner, name))
            method: Any = getattr(other, "quant_method", None)
            if hasattr(method, "process_weights_after_loading"):
                method.process_weights_after_loading(other)
