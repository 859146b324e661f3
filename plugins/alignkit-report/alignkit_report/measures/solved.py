"""Pass rates of answers that are right or wrong. [P]: prompts.

pass@k is the chance that one of k replies is right, by the unbiased estimator of Chen et al. 2021 (arXiv:2107.03374,
eq. 1): of n replies with c right ones, 1 - C(n - c, k) / C(n, k).
"""

from __future__ import annotations

from math import comb
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from alignkit_report.measures.prompts import Floats


def pass_rates(scores: Floats) -> dict[str, Floats]:
    """pass@1, pass@2, pass@4, ... up to the number of replies, each [P]; none unless every score is 0 or 1.

    Args:
        scores: [P, n]; NaN where a source abstained, which counts as no reply.
    """
    known = ~np.isnan(scores)
    if not known.any() or not np.isin(scores[known], (0.0, 1.0)).all():
        return {}
    replies, right = known.sum(axis=1).tolist(), np.nansum(scores, axis=1).astype(int).tolist()
    ks = [2**power for power in range(max(replies).bit_length())]
    return {f"pass@{k}": np.array([pass_at(k, n, c) for n, c in zip(replies, right, strict=True)]) for k in ks}


def pass_at(k: int, replies: int, right: int) -> float:
    """The chance that one of k of these replies is right; NaN for fewer than k."""
    return 1 - comb(replies - right, k) / comb(replies, k) if replies >= k else float("nan")
