"""Derivatives of f-divergences: the implicit reward of a policy.

Under a penalty beta * D_f(policy || reference), a policy is optimal for the reward beta * f'(pi / pi_ref), up to a
constant per prompt, if f'(0) is minus infinity: Wang et al., arXiv:2309.16240, theorem 1 and table 2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch.nn.functional import logsigmoid

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_EXPONENT = 80.0
"""exp() of slightly more overflows float32. Beyond it the reward is constant, so that the loss stays finite."""


def derivative(logratios: Tensor, kind: str, alpha: float) -> Tensor:
    """[S] -> [S]: f'(u) at u = exp(logratios); 0 at u = 1.

    reverse-kl: log(u); forward-kl: 1 - 1 / u; js: log(2 u / (1 + u)); alpha: (1 - u^-alpha) / alpha.

    Raises:
        ValueError: unknown divergence.
    """
    if kind == "reverse-kl":
        return logratios
    if kind == "js":
        return math.log(2) + logsigmoid(logratios)
    if kind in ("forward-kl", "alpha"):
        power = 1.0 if kind == "forward-kl" else alpha
        return -(-power * logratios).clamp(max=LARGEST_EXPONENT).expm1() / power
    raise ValueError(f"no divergence {kind!r}: choose one of reverse-kl, forward-kl, js, alpha")
