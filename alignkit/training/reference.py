"""A moving reference: a copy of the policy every few steps, or an exponential moving average of its weights.

Every `reference_refresh_every` optimisation steps, counted over the whole run:

    reference = reference_decay * reference + (1 - reference_decay) * policy

Gorbatovski et al., arXiv:2404.09656, call a decay of 0 the hard update and any other the soft update; updating after
each step gives the moving average of Tarvainen and Valpola, arXiv:1703.01780. Deliberately different: an update is
skipped if the policy is too far from the reference (`reference_max_kl`). Weights below float32 are averaged in float32,
so that small shares do not round away.
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
    """Updates the reference as the options say. Make it before the policy's modules are wrapped.

    Raises:
        InputError: the reference shares the policy's weights, so it can't move by itself.
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
                "the reference is the policy with its adapter off, so it can't move",
                where="optimizer.reference_refresh_every",
                fix='set policy.reference = "copy", or leave this option out',
            )
        self._averages: dict[str, Tensor] = {name: _exact(frozen.detach()) for name, frozen in self._frozen.items()}

    @torch.no_grad()
    def after_step(self, step: int) -> dict[str, float]:
        """Updates the reference if `step`, counted from 1, is due. Returns the number of updates so far, to log."""
        if step % self._every == 0 and self._allowed():
            trained = _named(self._modules)
            for name, average in self._averages.items():
                average.lerp_(trained[name].detach().to(average.dtype), 1 - self._decay)
            self._write()
            self._refreshes += 1
        return {"reference_refreshes": float(self._refreshes)}

    def _allowed(self) -> bool:
        """Whether the last batch's KL to the reference allows an update."""
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
    """The weights themselves, or a float32 copy if they are below float32."""
    return frozen.float() if torch.finfo(frozen.dtype).bits < 32 else frozen
