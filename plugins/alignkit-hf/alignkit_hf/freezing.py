"""Freezes the embeddings and the lower layers of a model.

The modules below the first layer are found by running the model up to it, so no names of model parts are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from alignkit import InputError

if TYPE_CHECKING:
    from alignkit_hf.options import HFOptions
    from alignkit_hf.trunk import TrunkModel


class _ReachedError(Exception):
    """The first layer is about to be run."""


def freeze(model: TrunkModel, options: HFOptions, *, where: str = "") -> None:
    """Freezes the parameters that the options exclude from training."""
    for parameter in frozen_parameters(model, options, where=where):
        parameter.requires_grad_(False)


def frozen_parameters(model: TrunkModel, options: HFOptions, *, where: str = "") -> list[nn.Parameter]:
    """The parameters that the options exclude from training.

    They include a vocabulary head tied to the token embedding, which is the same parameter, and the adapters of frozen
    layers, which stay zero.

    Raises:
        InputError: the model has fewer layers, or its layers can't be found.
    """
    if not (options.freeze_layers or options.train_last):
        return []
    layers = layers_of(model)
    name = "freeze_layers" if options.freeze_layers else "train_last"
    number = getattr(options, name)
    if number > len(layers):
        raise InputError(f"the model has {len(layers)} layers, not {number}", where=where + name, fix="lower it")
    kept = options.freeze_layers or len(layers) - options.train_last
    lower = (parameter for layer in layers[:kept] for parameter in layer.parameters())
    return [*parameters_below(model, layers[0]), *lower]


def layers_of(model: TrunkModel) -> nn.ModuleList:
    """The layers, lowest first. Raises InputError if the model does not keep them in one list."""
    count = getattr(model.lm.config.get_text_config(), "num_hidden_layers", None)
    for module in model.trunk.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise InputError(
        f"can't find the list of layers in {type(model.lm).__name__}",
        where="policy.freeze_layers",
        fix="leave out freeze_layers and train_last",
    )


def parameters_below(model: TrunkModel, first_layer: nn.Module) -> list[nn.Parameter]:
    """The parameters that the input passes before the first layer: token and position embeddings."""
    met: list[nn.Module] = []

    def stop(*_: object) -> None:
        raise _ReachedError

    hooks = [
        module.register_forward_pre_hook(lambda module, _: met.append(module))
        for module in model.trunk.modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    hooks.append(first_layer.register_forward_pre_hook(stop, prepend=True))
    try:
        with torch.no_grad():
            model.trunk(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    except _ReachedError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return [parameter for module in met for parameter in module.parameters(recurse=False)]


def frozen_text(model: TrunkModel) -> str:
    """The frozen parts of a policy, as text."""
    layers = layers_of(model)
    frozen = sum(not any(parameter.requires_grad for parameter in layer.parameters()) for layer in layers)
    tied = model.vocabulary_head.weight is model.lm.get_input_embeddings().weight
    head = " (with the tied vocabulary head)" if tied else ""
    return f"the embeddings{head} and the first {frozen} of {len(layers)} layers are not trained"
