"""Which layers of a model are trained: the embeddings and the lower layers may stay as they are.

What lies below the first layer is found by running the model up to there, so that no model's names are needed.
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
    """Takes what the options say is not trained out of training."""
    for parameter in frozen_parameters(model, options, where=where):
        parameter.requires_grad_(False)


def frozen_parameters(model: TrunkModel, options: HFOptions, *, where: str = "") -> list[nn.Parameter]:
    """What the options say is not trained; nothing where they say nothing.

    A vocabulary head that is tied to the token embedding is the same parameter, and so among them. With an adapter,
    that of a layer that is not trained is, too, and stays zero.

    Raises:
        InputError: there are fewer layers, or it can't be told which they are.
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
    """The layers, the lowest first. Raises InputError where the model has no one list of them."""
    count = getattr(model.lm.config.get_text_config(), "num_hidden_layers", None)
    for module in model.trunk.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise InputError(
        f"{type(model.lm).__name__} has no list of layers that could be told apart",
        where="policy.freeze_layers",
        fix="leave out freeze_layers and train_last",
    )


def parameters_below(model: TrunkModel, first_layer: nn.Module) -> list[nn.Parameter]:
    """Those that the input goes through before it comes to the first layer: embeddings, of positions as well."""
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
    """What of a policy is not trained, for people."""
    layers = layers_of(model)
    frozen = sum(not any(parameter.requires_grad for parameter in layer.parameters()) for layer in layers)
    tied = model.vocabulary_head.weight is model.lm.get_input_embeddings().weight
    head = " (with the vocabulary head, which is tied to them)" if tied else ""
    return f"the embeddings{head} and the first {frozen} of {len(layers)} layers are not trained"
