"""From sums, and from figures of all texts together, to a value per prompt whose mean is the figure. [P]: prompts.

Both are first-order (Efron and Stein 1981, Annals of Statistics 9, 586-596): the variance of the mean of these values
is that of the linearised ratio, or the jackknife's. Resampling texts instead would draw some twice, and a figure of
diversity would call that repetition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def ratio(sums: Floats, counts: Floats) -> Floats:
    """[P] with the mean sum(sums) / sum(counts). Prompts without counts say nothing of it."""
    whole = sums.sum() / counts.sum()
    values: Floats = whole + (sums - whole * counts) / counts.mean()
    return values


def jackknifed(whole: float, without: Floats) -> Floats:
    """[P] with the mean `whole`.

    Args:
        whole: a figure of all prompts.
        without: [P] the figure of all prompts but one.
    """
    values: Floats = whole + (len(without) - 1) * (without.mean() - without)
    return values
