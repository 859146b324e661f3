"""The win rate at the same length (Dubois et al. 2024, arXiv:2404.04475).

A logistic regression of the duels on tanh(difference of lengths in characters / its standard deviation); the rate is
the one that it predicts where the difference is 0. Different from AlpacaEval: no term for the difficulty of each
instruction, which takes the results of many models, and instead of a penalty chosen by cross-validation two half duels
that tie, at differences of +1 and -1, so that the fit is finite where one side, or the longer reply, always wins.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM
from statsmodels.tools.sm_exceptions import PerfectSeparationWarning

if TYPE_CHECKING:
    from alignkit_report.measures.prompts import Floats


def at_equal_length(wins: Floats, longer: Floats) -> Floats | None:
    """[P] log-odds of a win at the same length, for `scipy.special.expit`; None where nobody judged.

    Args:
        wins: [P, n] 1, 0.5 or 0; NaN where the judge abstained.
        longer: [P, n] length of ours less that of theirs.
    """
    prompts, places = np.nonzero(~np.isnan(wins))
    if not len(prompts):
        return None
    apart = longer[prompts, places]
    scaled = np.tanh(apart / (apart.std() or 1.0))
    rows = np.column_stack([np.ones(len(apart) + 2), [*scaled, 1.0, -1.0]])
    won = np.array([*wins[prompts, places], 0.5, 0.5])
    weights = np.array([*np.ones(len(apart)), 0.5, 0.5])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PerfectSeparationWarning)  # also said where all tie, which 0 predicts
        fit = GLM(won, rows, family=Binomial(), freq_weights=weights).fit()
    moved = rows @ fit.normalized_cov_params[0] * (won - fit.fittedvalues)
    of_prompts = np.bincount(prompts, moved[:-2], minlength=len(wins))
    values: Floats = fit.params[0] + len(wins) * (of_prompts - of_prompts.mean())
    return values
