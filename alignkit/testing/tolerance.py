"""How far two computations of one quantity may differ by rounding alone: the tolerance of every numeric test.

Each processor, number of threads and library version adds in its own order and approximates exp or tanh in its own way,
so a bound measured on one machine fails on the next. These bounds come from the arithmetic. With the unit roundoff u
(2^-24 in float32, 2^-53 in float64) the error of a sum of n terms is at most gamma_n = n u / (1 - n u) times the sum of
their absolute values, in any order of addition; the same holds for chains of n operations and products of matrices
(Higham, Accuracy and Stability of Numerical Algorithms, sections 3.1, 3.5 and 4.2).

That is the worst case, in which all errors have one sign. Errors of random sign grow like sqrt(n) (section 2.8; Higham
and Mary, A New Approach to Probabilistic Rounding Error Analysis, doi:10.1137/18M1226312): each lies between -u and u,
with a standard deviation of at most u / sqrt(3); n of them have sqrt(n / 3) u, and the difference of two computations,
both with errors, has sqrt(2 n / 3) u. The tolerance is five of these deviations times the largest absolute value
compared. A mistake in the mathematics is larger by powers of ten.

Computations that do the same in the same order need no tolerance: they agree bit for bit on any machine.
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
"""Terms for one exp, log, tanh and the like: libraries promise four units in the last place, which are 8 u."""


def rounding(terms: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """The largest difference that rounding explains.

    Args:
        terms: operations on the longest path from an input to the result: the additions of its sums, and `ELEMENTARY`
            per function. An estimate is enough, because only its square root counts.
        scale: the largest absolute value compared; if values cancel, the largest one that they were computed from.
        dtype: of the computation.
    """
    return DEVIATIONS * math.sqrt(2 * terms / 3) * torch.finfo(dtype).eps / 2 * scale


def adam_rounding(terms: int, *, steps: int, learning_rate: float) -> float:
    """The largest difference of a weight after AdamW steps in float64 whose gradients differ by rounding.

    A step is the gradient over the root of its second moment plus 1e-8, so an error in a gradient near zero moves the
    weight by up to 1e8 times the learning rate times the error. In float32 this may be a whole step.
    """
    return steps * learning_rate / 1e-8 * rounding(terms, dtype=torch.float64)


def terms_of_network(modules: nn.Module | Mapping[str, nn.Module], tokens: int) -> int:
    """Terms of a pass through a network and back: a matrix sums over inputs, its gradient over outputs and tokens."""
    found = modules.values() if isinstance(modules, Mapping) else [modules]
    shapes = [parameter.shape for module in found for parameter in module.parameters()]
    return tokens + sum(sum(shape) for shape in shapes if len(shape) > 1)


def near(expected: Any, *, terms: int, scale: float | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """`pytest.approx` of a number, list or dict, with the tolerance of `rounding`.

    Args:
        scale: by default the largest expected absolute value.
    """
    import pytest

    if scale is None:
        values = expected.values() if isinstance(expected, Mapping) else expected
        scale = _largest([torch.as_tensor(values if isinstance(values, int | float) else list(values))])
    return pytest.approx(expected, rel=0, abs=_bound(terms, scale, dtype))


def assert_near(
    found: Tensors, expected: Tensors, *, terms: int, scale: float | None = None, dtype: torch.dtype | None = None
) -> None:
    """Fails if a tensor, or one of several (in order or by name), differs by more than `rounding` explains.

    Args:
        scale: by default the largest expected absolute value, because small values are often sums of large terms.
        dtype: by default the dtype of each tensor.
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
        raise ValueError("all expected values are zero: set scale, or compare exactly")
    return rounding(terms, scale=scale, dtype=dtype)
