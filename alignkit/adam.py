"""AdamW for the engine: which weights decay, at which rate each is trained, and which implementation runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from alignkit.interfaces import Optimizer


def make_adam(optimizer: Optimizer[Any], device: torch.device) -> torch.optim.Optimizer:
    """AdamW over everything that the optimizer trains."""
    options = optimizer.config
    betas = (0.9, options.adam_beta2)
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(parameter_groups(optimizer), lr=options.learning_rate, betas=betas, fused=fused)


def parameter_groups(optimizer: Optimizer[Any]) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decay, vectors (norms, biases) don't, and the algorithm scales the learning rate."""
    options, scales = optimizer.config, optimizer.learning_rate_scales()
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    seen: set[int] = set()
    for module_name, module in optimizer.modules().items():
        for key, parameter in module.named_parameters():
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            name = f"{module_name}.{key}"
            scale = next((factor for prefix, factor in scales.items() if name.startswith(prefix)), 1.0)
            decay = options.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": options.learning_rate * scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]
