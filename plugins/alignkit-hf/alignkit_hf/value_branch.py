"""A critic that shares a policy's lower layers and has its own copies of the upper layers.

The policy's pass records the arguments of its upper layers. Each copy is called with the same arguments, except that
its hidden states come from the copy below it (the first copy's from the lower layers). So any model's layers work.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from alignkit import InputError
from alignkit_hf.freezing import layers_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from alignkit_hf.trunk import TrunkModel

    Call = tuple[tuple[Any, ...], dict[str, Any]]

WHERE = "optimizer.critic_layers"


class ValueBranch(nn.Module):
    """Copies of a policy's last layers and of the modules behind them, and a scalar head.

    Args:
        count: number of copied layers, at least 1.
        head: [H] -> 1.

    Raises:
        InputError: the model has fewer layers, or the copies don't compute the same.
    """

    def __init__(self, model: TrunkModel, count: int, head: nn.Linear) -> None:
        super().__init__()
        layers = layers_of(model)
        if count > len(layers):
            raise InputError(f"the model has {len(layers)} layers, not {count}", where=WHERE, fix="lower it")
        self._watched = tuple(layers[len(layers) - count :])  # a tuple, because they are not this module's own
        self.layers = nn.ModuleList(copy.deepcopy(layer) for layer in self._watched)
        self.behind = nn.ModuleList(copy.deepcopy(module) for module in modules_behind(model, layers[-1]))
        self.head = head
        if not model.has_adapter:
            self.requires_grad_(True)
        self._check(model)

    @contextmanager
    def noting(self) -> Iterator[list[Call]]:
        """Records the arguments of the policy's last layers, in order."""
        calls: list[Call] = []

        def note(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            calls.append((arguments, keywords))

        hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in self._watched]
        try:
            yield calls
        finally:
            for hook in hooks:
                hook.remove()

    def forward(self, calls: Sequence[Call]) -> Tensor:
        """[rows, columns, H] last hidden states of the branch."""
        arguments, keywords = calls[0]
        hidden: Tensor = arguments[0] if arguments else keywords["hidden_states"]
        for layer, (arguments, keywords) in zip(self.layers, calls, strict=True):
            if arguments:
                output = layer(hidden, *arguments[1:], **keywords)
            else:
                output = layer(**{**keywords, "hidden_states": hidden})
            hidden = output[0] if isinstance(output, tuple) else output
        for module in self.behind:
            hidden = module(hidden)
        return hidden

    def _check(self, model: TrunkModel) -> None:
        with torch.no_grad(), model.computing(), self.noting() as calls:
            expected = _run(model)
            same = torch.allclose(self(calls), expected, atol=1e-4, rtol=1e-3)
        if not same:
            raise InputError(
                f"copies of the last layers of {type(model.lm).__name__} don't compute the same as the layers",
                where=WHERE,
                fix='set it to 0, or set critic = "policy"',
            )


def modules_behind(model: TrunkModel, last_layer: nn.Module) -> list[nn.Module]:
    """The modules that hidden states pass after the last layer: the last norm, in some models a projection."""
    met: list[nn.Module] = []
    hooks = [last_layer.register_forward_hook(lambda *_: met.clear())]
    hooks += [
        module.register_forward_hook(lambda module, *_: met.append(module))
        for module in model.trunk.modules()
        if next(module.parameters(recurse=False), None) is not None and module is not last_layer
    ]
    try:
        with torch.no_grad(), model.computing():
            _run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return met


def _run(model: TrunkModel) -> Tensor:
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    hidden: Tensor = model.trunk(input_ids=ids, use_cache=False).last_hidden_state
    return hidden
