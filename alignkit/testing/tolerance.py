"""How far two computations of one quantity may be apart by rounding alone: the tolerance of every numeric test.

Each processor, number of threads and version of a library adds in an order of its own and approximates exp or tanh in
its own way, so a bound that was read off one machine fails on the next. These come from the arithmetic. With the unit
roundoff u (2^-24 in float32, 2^-53 in float64) a sum of n terms is off by at most gamma_n = n u / (1 - n u) times the
sum of their absolute values, in whatever order they are added; so are chains of n operations and products of matrices
(Higham, Accuracy and Stability of Numerical Algorithms, sections 3.1, 3.5 and 4.2).

That is the worst case, in which all errors have one sign. Errors of random sign grow like sqrt(n) (section 2.8; Higham
and Mary, A New Approach to Probabilistic Rounding Error Analysis, doi:10.1137/18M1226312): each lies between -u and u,
with a standard deviation of at most u / sqrt(3); n of them have sqrt(n / 3) u, and the difference of two computations,
which are both off, sqrt(2 n / 3) u. The tolerance is five of these deviations times the largest absolute value of what
is compared. A mistake in the mathematics is larger by powers of ten.

Two computations that do the same in the same order are another matter: they agree bit for bit on any machine.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn

    Tensors = Tensor | Mapping[str, Tensor] | Sequence[Tensor]

DEVIATIONS = 5
ELEMENTARY = 8
"""Terms that exp, log, tanh and the like count for: libraries promise four units in the last place, which are 8 u."""


def rounding(terms: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """The largest difference that rounding explains.

    Args:
        terms: operations on the longest way from an input to the result: the additions of its sums, and `ELEMENTARY`
            for each function. An estimate will do, because only its square root counts.
        scale: the largest absolute value of what is compared; or of what it was computed from, where that cancels.
        dtype: what was computed in.
    """
    return DEVIATIONS * math.sqrt(2 * terms / 3) * torch.finfo(dtype).eps / 2 * scale


def adam_rounding(terms: int, *, steps: int, learning_rate: float) -> float:
    """The largest difference of a weight after steps of AdamW in float64 whose gradients differ by rounding.

    The step is the gradient over the root of its second moment plus 1e-8, so that an error of a gradient that is nearly
    zero moves the weight by the learning rate times 1e8 of it. In float32 this may be a whole step.
    """
    return steps * learning_rate / 1e-8 * rounding(terms, dtype=torch.float64)


def terms_of_network(modules: nn.Module | Mapping[str, nn.Module], tokens: int) -> int:
    """Terms on the way through a network and back: each matrix sums its inputs, its gradient its outputs and tokens."""
    found = modules.values() if isinstance(modules, Mapping) else [modules]
    shapes = [parameter.shape for module in found for parameter in module.parameters()]
    return tokens + sum(sum(shape) for shape in shapes if len(shape) > 1)


def near(expected: Any, *, terms: int, scale: float | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """`pytest.approx` of a number, or of a list or dict of them, that allows what `rounding` explains.

    Args:
        scale: by default the largest absolute value of what is expected.
    """
    import pytest

    if scale is None:
        values = expected.values() if isinstance(expected, Mapping) else expected
        scale = _largest([torch.as_tensor(values if isinstance(values, int | float) else list(values))])
    return pytest.approx(expected, rel=0, abs=_bound(terms, scale, dtype))


def assert_near(
    found: Tensors, expected: Tensors, *, terms: int, scale: float | None = None, dtype: torch.dtype | None = None
) -> None:
    """Fails where a tensor, or one of several in order or by name, differs by more than `rounding` explains.

    Args:
        scale: by default the largest absolute value of all that is expected, because small values are often the sums
            of large terms.
        dtype: by default that of each tensor.
    """
    ours, theirs = _named(found), _named(expected)
    assert ours.keys() == theirs.keys()
    scale = _largest(theirs.values()) if scale is None else scale
    for name, tensor in ours.items():
        bound = _bound(terms, scale, dtype or tensor.dtype)
        message = functools.partial("{} {}".format, name)
        torch.testing.assert_close(tensor, theirs[name], atol=bound, rtol=0, msg=message)


def _named(tensors: Tensors) -> Mapping[Any, Tensor]:
    if isinstance(tensors, torch.Tensor):
        return {"": tensors}
    return tensors if isinstance(tensors, Mapping) else dict(enumerate(tensors))


def _largest(tensors: Iterable[Tensor]) -> float:
    return max((float(tensor.detach().abs().max()) for tensor in tensors if tensor.numel()), default=0.0)


def _bound(terms: int, scale: float, dtype: torch.dtype) -> float:
    if not scale:
        raise ValueError("all that is expected is zero: give the scale of what cancels, or compare exactly")
    return rounding(terms, scale=scale, dtype=dtype)
