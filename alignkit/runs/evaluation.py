"""Measures trained models, with confidence intervals: reward, KL, length, entropy, perplexity, win rate, agreement.

Intervals are 95% percentile bootstraps over prompts (clusters), because responses to one prompt are not independent.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from alignkit.algorithms.passes import each_piece, policy_logprobs
from alignkit.errors import StoppedByCheck
from alignkit.interfaces import SCORING_TOKENS, Policy, RewardSource
from alignkit.ops.rollouts import highest_of_groups
from alignkit.runs.results import SAMPLE_FIGURES
from alignkit.training.scores import checked_scores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from alignkit.batch import GroupBatch
    from alignkit.records import Group

    Rows = Sequence[Sequence[float | None]]

RESAMPLES = 1000
MEASURES = "measures"
"""Key, among a policy's figures, of those beside its rewards, KL and length."""
KL_TOKENS = 2048
"""Tokens of a pass that compares whole distributions, where a model's head may need them all at once."""


@dataclass(frozen=True)
class Estimate:
    """A mean over clusters and its 95% interval."""

    value: float
    low: float
    high: float
    count: int

    def to_json(self) -> dict[str, float]:
        rounded = {name: round(getattr(self, name), 4) + 0.0 for name in ("value", "low", "high")}
        return {**rounded, "n": self.count}


def clustered_mean(clusters: Mapping[str, Sequence[float]]) -> Estimate:
    """Mean of all values, with an interval from resampling whole clusters.

    Raises:
        ValueError: there are no values.
    """
    sums = [(sum(values), len(values)) for values in clusters.values() if values]
    count = sum(n for _, n in sums)
    if not count:
        raise ValueError("no values to average")
    draw = random.Random(0)
    means = []
    for _ in range(RESAMPLES):
        chosen = draw.choices(sums, k=len(sums))
        means.append(sum(total for total, _ in chosen) / sum(n for _, n in chosen))
    means.sort()
    low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]
    return Estimate(sum(total for total, _ in sums) / count, low, high, count)


def ranking_accuracy(scores: Sequence[Sequence[float | None]], groups: Sequence[Group]) -> Estimate:
    """Share of strictly ranked pairs that the scores order the same way; equal scores count as half.

    Skips pairs with an abstention. The interval resamples prompts.
    """
    clusters: dict[str, list[float]] = defaultdict(list)
    for row, group in zip(scores, groups, strict=True):
        for better, worse in group.preferred_pairs():
            a, b = row[better], row[worse]
            if a is not None and b is not None:
                clusters[group.prompt.key].append(0.5 if a == b else float(a > b))
    return clustered_mean(clusters)


def shorter_wins(groups: Sequence[Group]) -> Estimate:
    """The accuracy of preferring the response with fewer words: the baseline for reward models."""
    return ranking_accuracy([[-float(len(r.split())) for r in group.responses] for group in groups], groups)


def verdicts(
    ours: Sequence[Sequence[float | None]], theirs: Sequence[Sequence[float | None]], keys: Sequence[str]
) -> dict[str, list[float]]:
    """Prompt -> for each pair of samples (k-th against k-th), whether ours wins; a tie counts as half."""
    clusters: dict[str, list[float]] = defaultdict(list)
    for a_row, b_row, key in zip(ours, theirs, keys, strict=True):
        for a, b in zip(a_row, b_row, strict=False):
            if a is not None and b is not None:
                clusters[key].append(0.5 if a == b else float(a > b))
    return clusters


def best_of(batch: GroupBatch, scores: Sequence[Sequence[float | None]], n: int) -> GroupBatch:
    """The best of each `n` consecutive responses of every group; the first of equals, and any score beats an
    abstention.

    Args:
        scores: one row per group, a multiple of n long.
    """
    flat = torch.tensor([-math.inf if score is None else score for row in scores for score in row])
    candidates = torch.arange(batch.num_responses, device=batch.device) // n
    return batch.select_responses(highest_of_groups(flat.to(batch.device), candidates))


def best_of_kl(n: int) -> float:
    """log n - (n - 1) / n: an upper bound, in nats, on the KL of best of n to the sampled policy.

    It is exact if no two responses score the same (Stiennon et al., arXiv:2009.01325, appendix G.3), and above the KL
    otherwise (Beirami et al., arXiv:2401.01879).
    """
    return math.log(n) - (n - 1) / n


def figures_of_responses(
    batch: GroupBatch, policy: Policy[Any], reference: Policy[Any], *, best_of: int = 1
) -> dict[str, Rows]:
    """What the models say of each response, one row per group: `tokens`, `cut_off` (1 or 0), `entropy` (of the policy,
    in nats per token), and its KL to the reference in nats.

    `kl` compares the two policies' whole distributions at the temperature, however the text was sampled: the exact KL
    at each token, summed. `kl_sampled` is the log-ratio of the response itself: its mean is the same KL if the whole
    distribution was sampled. For best of n it is `kl_bound` instead: the log-ratio plus `best_of_kl`.
    """

    def measured(piece: GroupBatch) -> list[Tensor]:
        ours = policy.forward(piece, entropy=True, kl_to=reference if best_of == 1 else None)
        ratio = ours.logprobs - reference.forward(piece).logprobs
        return [figure for figure in (ratio, ours.entropy, ours.kl) if figure is not None]

    parts = zip(*each_piece(measured, batch, KL_TOKENS), strict=True)
    ratio, entropy, *exact = (batch.sum_by_response(torch.cat(part)) for part in parts)
    kl = {"kl": exact[0], "kl_sampled": ratio} if exact else {"kl_bound": ratio + best_of_kl(best_of)}
    found = {**kl, "tokens": batch.lengths, "cut_off": ~batch.finished, "entropy": entropy / batch.lengths}
    return {name: _rows(batch, figure) for name, figure in found.items()}


def perplexity(policy: Policy[Any], texts: Sequence[Group]) -> tuple[Estimate, dict[str, Rows]]:
    """exp of the mean surprise (-log p) of the texts' tokens, with an interval from resampling texts; and the sum of
    the `surprise` and the number of `tokens` of each."""
    batch = policy.encode(texts)
    surprise = -policy_logprobs(policy, batch, SCORING_TOKENS)
    of_texts = {str(number): part.tolist() for number, part in enumerate(surprise.split(batch.lengths.tolist()))}
    log = clustered_mean(of_texts)
    found = Estimate(math.exp(log.value), math.exp(log.low), math.exp(log.high), log.count)
    return found, {"surprise": _rows(batch, batch.sum_by_response(surprise)), "tokens": _rows(batch, batch.lengths)}


def with_figures(groups: Sequence[Group], rows: Mapping[str, Rows], source: str) -> list[Group]:
    """The groups with the figures of each response in their meta, without scores."""
    return [
        replace(group, source=source, scores=None, meta={**group.meta, SAMPLE_FIGURES: figures})
        for place, group in enumerate(groups)
        for figures in [{name: row[place] for name, row in rows.items()}]
    ]


def _rows(batch: GroupBatch, figure: Tensor) -> Rows:
    """[S] as one row per group."""
    return [part.tolist() for part in figure.float().split(batch.group_sizes.tolist())]


def mean_score(scores: Sequence[Sequence[float | None]], keys: Sequence[str]) -> Estimate:
    """Mean of the scores, without abstentions; `keys` are the prompts of the rows."""
    clusters: dict[str, list[float]] = defaultdict(list)
    for row, key in zip(scores, keys, strict=True):
        clusters[key] += [value for value in row if value is not None]
    return clustered_mean(clusters)


def compare_samples(
    batches: Mapping[str, GroupBatch],
    rewards: Mapping[str, RewardSource[Any]],
    *,
    policies: Mapping[str, Policy[Any]],
    best_of: int = 1,
) -> tuple[dict[str, Any], dict[str, dict[str, Rows]]]:
    """Figures of each policy's samples, and under each reward the win rates of all others over the first.

    Args:
        batches: samples by name: the initial policy, the final one, then any best of `best_of`.
        policies: which sampled them.

    Returns:
        The figures, and for each name those of `figures_of_responses` and the rewards, one row per group.
    """
    report: dict[str, Any] = {name: {} for name in batches}
    measures: dict[str, dict[str, Any]] = {name: {} for name in batches}
    values: dict[str, dict[str, Rows]] = {}
    first, second, *choosing = batches
    keys = [group.prompt.key for group in batches[first].groups]
    for name, batch in batches.items():
        chosen_from = best_of if name in choosing else 1
        values[name] = figures_of_responses(batch, policies[name], policies[first], best_of=chosen_from)
        for figure, rows in values[name].items():
            place = report if figure in ("tokens", "kl", "kl_bound") else measures
            place[name][figure] = mean_score(rows, keys).to_json()
    for reward_name, reward in rewards.items():
        for name, batch in batches.items():
            rows = values[name][reward_name] = checked_scores(reward, batch.groups)
            flat = [score for row in rows for score in row]
            if (missing := flat.count(None)) == len(flat):
                raise StoppedByCheck(f"reward {reward_name} abstained on all {len(flat)} responses of {name}")
            report[name][reward_name] = mean_score(rows, keys).to_json()
            if missing:
                report[name][f"{reward_name}_abstained"] = round(missing / len(flat), 4)
        for name in (second, *choosing):
            key = f"win_rate/{reward_name}" + ("" if name == second else f"/{name}")
            if found := verdicts(values[name][reward_name], values[first][reward_name], keys):
                report[key] = clustered_mean(found).to_json()
    for name in batches:
        report[name][MEASURES] = measures[name]
    return report, values
