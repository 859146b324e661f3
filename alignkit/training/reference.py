"""A reference that follows the policy: taken over every few steps, or an exponential moving average of its weights.

Every `reference_refresh_every` optimisation steps, counted over the whole run:

    reference = reference_decay * reference + (1 - reference_decay) * policy

Gorbatovski et al., arXiv:2404.09656, call a decay of 0 the hard and any other the soft update; with a refresh at each
step it is the moving average of Tarvainen and Valpola, arXiv:1703.01780. Different on purpose: where the policy is
too far from the reference (`reference_max_kl`), it is not followed, and a later refresh decides anew. Weights shorter
than float32 are averaged in float32, where small shares do not round away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from alignkit.companions import Companion
from alignkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from alignkit.interfaces import Optimizer
    from alignkit.options import MovingReferenceOptions


class MovingReference(Companion):
    """Moves a reference as the options say. Made before the policy's modules are wrapped.

    Raises:
        InputError: the reference shares the policy's weights, so that it can't be moved apart from them.
    """

    name = "reference"

    def __init__(self, options: MovingReferenceOptions, optimizer: Optimizer[Any]) -> None:
        assert optimizer.reference is not None
        self._every, self._decay = options.reference_refresh_every, options.reference_decay
        self._max_kl, self._optimizer = options.reference_max_kl, optimizer
        self._refreshes = 0
        self._modules = dict(optimizer.policy.modules())
        kept = _named(optimizer.reference.modules())
        trained = {name: p for name, p in _named(self._modules).items() if p.requires_grad and name in kept}
        self._frozen: dict[str, Tensor] = {name: kept[name] for name in trained}
        if any(p is self._frozen[name] for name, p in trained.items()):
            raise InputError(
                "the reference is the policy with its adapter off, and can't be moved",
                where="optimizer.reference_refresh_every",
                fix='set policy.reference = "copy", or leave the reference where it is',
            )
        self._averages: dict[str, Tensor] = {name: _exact(frozen.detach()) for name, frozen in self._frozen.items()}

    @torch.no_grad()
    def after_step(self, step: int) -> dict[str, float]:
        """Refreshes the reference where `step`, counted from 1, is due; the number of refreshes so far, to log."""
        if step % self._every == 0 and self._allowed():
            trained = _named(self._modules)
            for name, average in self._averages.items():
                average.lerp_(trained[name].detach().to(average.dtype), 1 - self._decay)
            self._write()
            self._refreshes += 1
        return {"reference_refreshes": float(self._refreshes)}

    def _allowed(self) -> bool:
        """Whether the last batch's KL to the reference lets it follow."""
        return not self._max_kl or self._optimizer.batch_metrics["kl"] <= self._max_kl

    def _write(self) -> None:
        for name, average in self._averages.items():
            self._frozen[name].copy_(average)

    def tensors(self) -> dict[str, Any]:
        return {"refreshes": self._refreshes, "weights": self._averages}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Any]) -> None:
        for name, average in self._averages.items():
            average.copy_(tensors["weights"][name])
        self._write()
        self._refreshes = int(tensors["refreshes"])


def _named(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {f"{name}.{key}": p for name, module in modules.items() for key, p in module.named_parameters()}


def _exact(frozen: Tensor) -> Tensor:
    """The weights themselves, or a float32 copy of shorter ones."""
    return frozen.float() if torch.finfo(frozen.dtype).bits < 32 else frozen
