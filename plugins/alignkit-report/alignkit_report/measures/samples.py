"""All measures of a run's samples and held-out texts. [P]: prompts, n: replies to each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from alignkit.commands import SAMPLE_FIGURES, Estimate
from alignkit_report.compare.statistics import mean_of, share_of
from alignkit_report.measures.lengths import at_equal_length
from alignkit_report.measures.prompts import ratio
from alignkit_report.measures.solved import pass_rates
from alignkit_report.measures.texts import of_texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Group
    from alignkit_report.measures.prompts import Floats

    Table = dict[str, Floats]

OF_MODELS = ("kl", "kl_bound", "kl_sampled", "tokens", "cut_off", "entropy")
"""Figures of samples that are no rewards."""
START = "start"
SCALES: dict[str, Any] = {"perplexity": np.exp, "win_rate_same_length": expit}
"""Measure -> from the scale on which it is averaged and compared to that on which it is told."""
POSITIVE = ("kl", "tokens", "words", "entropy")
"""Measures that are never negative, however wide their interval."""
SHARES = ("cut_off", "distinct_", "pass@", "repetition", "self_bleu", "win_rate/")
"""How the names of measures begin that lie between 0 and 1."""


def figures_of(samples: Sequence[Group]) -> dict[str, Floats]:
    """Every stored figure of one policy's samples, [P, n]; NaN where a source abstained."""
    names = samples[0].meta[SAMPLE_FIGURES]
    return {name: np.array([group.meta[SAMPLE_FIGURES][name] for group in samples], dtype=np.float64) for name in names}


def of_samples(samples: Mapping[str, Sequence[Group]]) -> dict[str, Table]:
    """Policy -> measure -> [P], from the stored samples of all policies of a run, `start` among them.

    What the figures of the samples themselves say (rewards, KL, entropy, ...) is not repeated. P >= 2.
    """
    figures = {name: figures_of(groups) for name, groups in samples.items()}
    lengths = {
        name: np.array([[len(text) for text in group.responses] for group in of]) for name, of in samples.items()
    }
    found: dict[str, Table] = {}
    for name, groups in samples.items():
        found[name] = of_texts([group.responses for group in groups])
        for reward, scores in figures[name].items():
            if reward in OF_MODELS:
                continue
            found[name] |= {f"{rate}/{reward}": values for rate, values in pass_rates(scores).items()}
            if name != START:
                wins = decided(scores, figures[START][reward])
                rate = at_equal_length(wins, lengths[name] - lengths[START])
                found[name] |= {} if rate is None else {f"win_rate_same_length/{reward}": rate}
    return found


def decided(ours: Floats, theirs: Floats) -> Floats:
    """1 where ours is larger, 0 where theirs is, 0.5 for a tie; NaN where either is unknown."""
    wins: Floats = np.where(np.isnan(ours) | np.isnan(theirs), np.nan, (ours > theirs) + 0.5 * (ours == theirs))
    return wins


def mean_of_replies(values: Floats) -> Floats:
    """[P, n] -> [P] means of what is known; NaN where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    means: Floats = np.where(count > 0, np.where(known, values, 0.0).sum(axis=1) / np.maximum(count, 1), np.nan)
    return means


def of_held_out(texts: Sequence[Group]) -> Floats:
    """[T] log of the perplexity of one policy on the texts: surprise per token."""
    figures = figures_of(texts)
    return ratio(figures["surprise"].sum(axis=1), figures["tokens"].sum(axis=1))


def told(measures: Mapping[str, Floats]) -> dict[str, dict[str, float]]:
    """Each measure with its interval, as JSON; those known for fewer than two prompts are left out.

    Args:
        measures: name -> [S, P], one row per seed; prompts with NaN are left out.
    """
    found = {}
    for name, values in measures.items():
        if (whole := whole_prompts(values)).shape[1] > 1:
            estimate = (share_of if name.startswith(SHARES) else mean_of)(whole)
            scale = SCALES.get(name.partition("/")[0])
            if scale:
                value, low, high = (float(scale(x)) for x in (estimate.value, estimate.low, estimate.high))
                estimate = Estimate(value, low, high, estimate.count)
            found[name] = {**estimate.to_json(), **({"low": 0.0} if name in POSITIVE and estimate.low < 0 else {})}
    return found


def whole_prompts(values: Floats) -> Floats:
    """[S, P] without the prompts for which a seed's value is unknown."""
    whole: Floats = values[:, ~np.isnan(values).any(axis=0)]
    return whole


def _lengths(groups: Sequence[Group]) -> Floats:
    """[P, n] in characters."""
    return np.array([[len(text) for text in group.responses] for group in groups], dtype=np.float64)
