"""AdamW for the engine: weight decay and learning rate per parameter, and the choice of implementation.

Weights below float32 are trained through float32 copies (arXiv:1710.03740, section 3.1), and their gradients accumulate
in float32 over micro-batches. Without the copies, steps smaller than the spacing of bfloat16 would be lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from alignkit.errors import InputError
from alignkit.ops.distributed import num_processes

if TYPE_CHECKING:
    from alignkit.interfaces import Optimizer


def make_adam(optimizer: Optimizer[Any], device: torch.device) -> torch.optim.Optimizer:
    """AdamW over everything that the optimizer trains.

    Raises:
        InputError: weights below float32 with 8-bit moments, or in several processes.
    """
    options, groups = optimizer.config, parameter_groups(optimizer)
    known: dict[str, Any] = {"lr": options.learning_rate, "betas": (0.9, options.adam_beta2)}
    short = any(parameter.dtype.itemsize < 4 for group in groups for parameter in group["params"])
    if options.adam == "8bit":
        import bitsandbytes

        if short:
            raise InputError("8-bit moments need float32 weights", where="adam", fix='set policy.weights = "float32"')
        eight_bits: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, **known)
        return eight_bits
    fused = device.type in ("cpu", "cuda")
    if not short:
        return torch.optim.AdamW(groups, **known, fused=fused)
    if num_processes() > 1:
        raise InputError("several processes need float32 weights", fix='set policy.weights = "float32"')
    return MasterAdamW(groups, **known, fused=fused)


class MasterAdamW(torch.optim.AdamW):
    """AdamW on float32 copies of the weights; each step rounds the copies into the weights.

    `param_groups` holds the copies. The gradients stay with the weights, in float32.
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        self._pairs: list[tuple[torch.nn.Parameter, torch.nn.Parameter]] = []
        super().__init__([{**group, "params": [*map(self._copy_of, group["params"])]} for group in groups], **options)

    def _copy_of(self, weight: torch.nn.Parameter) -> torch.nn.Parameter:
        weight.grad_dtype = torch.float32
        master = torch.nn.Parameter(weight.detach().to(torch.float32, copy=True))
        self._pairs.append((weight, master))
        return master

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for weight, master in self._pairs:
            master.grad = weight.grad
        super().step(closure)
        for weight, master in self._pairs:
            if weight.grad is not None:
                weight.copy_(master)
            master.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight, _ in self._pairs:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "masters": [master.detach() for _, master in self._pairs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rest = dict(state_dict)
        with torch.no_grad():
            for (_, master), saved in zip(self._pairs, rest.pop("masters"), strict=True):
                master.copy_(saved)
        super().load_state_dict(rest)


def parameter_groups(optimizer: Optimizer[Any]) -> list[dict[str, Any]]:
    """AdamW's groups: only matrices decay (not norms, biases), and the algorithm scales the learning rate."""
    options, scales = optimizer.config, optimizer.learning_rate_scales()
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    seen: set[int] = set()
    for module_name, module in optimizer.modules().items():
        for key, parameter in module.named_parameters():
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            name = f"{module_name}.{key}"
            scale = next((factor for prefix, factor in scales.items() if name.startswith(prefix)), 1.0)
            groups.setdefault((scale, parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": held, "lr": options.learning_rate * scale, "weight_decay": options.weight_decay * decays}
        for (scale, decays), held in groups.items()
    ]


def restore_adam(adam: Any, scheduler: Any, adam_state: dict[str, Any], schedule: dict[str, Any]) -> None:
    """Restores the moments and the position in the schedule; rates and weight decay stay those of the options."""
    own = [{name: group[name] for name in ("betas", "weight_decay", "initial_lr")} for group in adam.param_groups]
    adam.load_state_dict(adam_state)
    rates = [
        base * factor(schedule["last_epoch"])
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    scheduler.load_state_dict({**schedule, "base_lrs": scheduler.base_lrs, "_last_lr": rates})
    for group, options, rate in zip(adam.param_groups, own, rates, strict=True):
        group.update(options, lr=rate)
