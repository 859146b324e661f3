"""FLOPs of the passes of models, counted where a policy or a scorer computes.

Per parameter and token: 2 forward (Kaplan et al., arXiv:2001.08361, section 2.1) and, with gradients, 2 backward, and 2
more if the parameter is trained; 6 where all are (Hoffmann et al., arXiv:2203.15556). Attention over the context and
what is computed again to save memory don't count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from alignkit.batch import GroupBatch

_TOTAL = [0]


def count_pass(modules: Mapping[str, nn.Module], batch: GroupBatch, *, learns: bool = True) -> None:
    """Counts a pass of a model over a batch, each prompt once.

    Args:
        learns: whether a backward pass follows if gradients are on; false for sampling.
    """
    parameters = {id(parameter): parameter for module in modules.values() for parameter in module.parameters()}
    size = sum(map(_size, parameters.values()))
    trained = sum(_size(parameter) for parameter in parameters.values() if parameter.requires_grad)
    backward = 2 * (size + trained) if trained and learns and torch.is_grad_enabled() else 0
    tokens = batch.prompt_ids.shape[0] + batch.num_tokens
    _TOTAL[0] += (2 * size + backward) * tokens


def counted_flops() -> int:
    """The FLOPs that this process has counted so far."""
    return _TOTAL[0]


def _size(parameter: Tensor) -> int:
    """Its numbers; weights in 4 bits hold two in each of theirs and know their own shape."""
    quantised = getattr(parameter, "quant_state", None)
    shape: torch.Size = (parameter if quantised is None else quantised).shape
    return shape.numel()
