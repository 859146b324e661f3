"""Measures trained models, with confidence intervals: reward, KL, length, diversity, win rate, agreement.

Intervals are 95% percentile bootstraps over prompts (clusters), because responses to one prompt are not independent.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from alignkit.algorithms.passes import policy_kl, policy_logprobs
from alignkit.errors import StoppedByCheck
from alignkit.interfaces import SCORING_TOKENS, Policy, RewardSource
from alignkit.ops.rollouts import highest_of_groups
from alignkit.training.scores import checked_scores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit.batch import GroupBatch
    from alignkit.records import Group

    Rows = Sequence[Sequence[float | None]]

RESAMPLES = 1000
SAMPLE_FIGURES = "figures"
"""Key, in the meta of stored samples, of the KL and the rewards of each response."""
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


def distinct_share(responses: Sequence[str], n: int = 2) -> float:
    """Distinct word n-grams over all n-grams (Li et al. 2016, arXiv:1510.03055); 0 if there are none."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, responses) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


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


def kl_of_responses(
    batch: GroupBatch, policy: Policy[Any], reference: Policy[Any], *, best_of: int = 1
) -> tuple[str, Rows]:
    """("kl", the KL to the reference of each response in nats), one row per group.

    It compares the two policies' whole distributions at the temperature, however the text was sampled: the exact KL at
    each token, summed. For best of n it is the log-ratio of the chosen responses plus `best_of_kl`, called `kl_bound`.
    """
    if best_of == 1:
        name, kl = "kl", policy_kl(policy, reference, batch, KL_TOKENS)
    else:
        ours, theirs = (policy_logprobs(model, batch, SCORING_TOKENS) for model in (policy, reference))
        name, kl = "kl_bound", ours - theirs
    values = iter((batch.sum_by_response(kl) + best_of_kl(best_of)).tolist())
    return name, [[next(values) for _ in group.responses] for group in batch.groups]


def describe_samples(batch: GroupBatch) -> dict[str, Any]:
    """Figures of the sampled texts: length and diversity."""
    responses = [response for group in batch.groups for response in group.responses]
    return {
        "tokens": clustered_mean(_by_prompt(batch, batch.lengths.tolist())).to_json(),
        "finished": round(float(batch.finished.float().mean()), 4),
        "distinct_responses": round(len(set(responses)) / len(responses), 4),
        "distinct_bigrams": round(distinct_share(responses), 4),
    }


def mean_score(scores: Sequence[Sequence[float | None]], keys: Sequence[str]) -> Estimate:
    """Mean of the scores, without abstentions; `keys` are the prompts of the rows."""
    clusters: dict[str, list[float]] = defaultdict(list)
    for row, key in zip(scores, keys, strict=True):
        clusters[key] += [value for value in row if value is not None]
    return clustered_mean(clusters)


def _by_prompt(batch: GroupBatch, values: Sequence[float]) -> dict[str, list[float]]:
    clusters: dict[str, list[float]] = defaultdict(list)
    for value, group in zip(values, batch.group_index.tolist(), strict=True):
        clusters[batch.groups[group].prompt.key].append(float(value))
    return clusters


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
        The figures, and for each name the KL and the rewards of each response, one row per group.
    """
    report: dict[str, Any] = {name: describe_samples(batch) for name, batch in batches.items()}
    values: dict[str, dict[str, Rows]] = {name: {} for name in batches}
    first, second, *choosing = batches
    keys = [group.prompt.key for group in batches[first].groups]
    for name, batch in batches.items():
        chosen_from = best_of if name in choosing else 1
        figure, rows = kl_of_responses(batch, policies[name], policies[first], best_of=chosen_from)
        report[name][figure], values[name][figure] = mean_score(rows, keys).to_json(), rows
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
    return report, values
