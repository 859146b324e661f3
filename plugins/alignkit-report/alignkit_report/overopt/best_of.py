"""Best of n along n, from one pool of samples to each prompt.

The mean over all subsets of n of the pool's N samples of what the one with the highest reward scores: an unbiased
estimate for each n (Nakano et al. 2021, arXiv:2112.09332, appendix I; Gao et al. 2023, arXiv:2210.10760, section 2).
"""

from __future__ import annotations

from dataclasses import replace
from math import comb, log
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit import InputError, Run, read_groups, write_groups
from alignkit.algorithms import checked_scores
from alignkit.commands import SAMPLE_FIGURES
from alignkit_report.compare.statistics import mean_of
from alignkit_report.overopt.curves import GOLD

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from alignkit import Group, Policy, Prompt, RewardSource
    from alignkit.commands import Resolved
    from alignkit_report.compare.statistics import Floats

AT_ONCE = 4096
"""Responses that are sampled together."""
BEST_OF = "best of n"
"""Stands for a variant where the start's best of n is meant."""
READ = ("run", "policy", "demonstrations", "sft", "prompts", "preferences", "reward", "sampling", "candidates", "eval")
"""The tables that a pool depends on."""


def sizes(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, which is always among them."""
    return [*(2**power for power in range((most - 1).bit_length())), most]


def kl_of(n: int) -> float:
    """log n - (n - 1) / n: the KL of best of n, in nats, if no two responses tie (arXiv:2009.01325, appendix G.3)."""
    return log(n) - (n - 1) / n


def weights(most: int, n: int) -> Floats:
    """[N]: of the N values in rising order, how likely each is the highest of n that are drawn without replacement."""
    subsets = comb(most, n)
    return np.array([comb(below, n - 1) / subsets for below in range(most)])


def expected(rewards: Floats, values: Floats, n: int) -> Floats:
    """[P]: the expected value of the response with the highest reward among n; equal rewards share the choice.

    Args:
        rewards, values: [P, N].
    """
    chance = weights(rewards.shape[1], n)
    found = np.empty(len(rewards))
    for place, (row, own) in enumerate(zip(rewards, values, strict=True)):
        order = np.argsort(row, kind="stable")
        _, tied, count = np.unique(row[order], return_inverse=True, return_counts=True)
        shared = np.bincount(tied, own[order]) / count
        found[place] = chance @ shared[tied]
    return found


def curve(rewards: Floats, golds: Floats) -> Floats:
    """[2, n, S, P]: the expected reward and gold of best of n on each seed and prompt, for all `sizes`.

    Prompts with an abstention (NaN) are left out for all seeds.

    Args:
        rewards, golds: [S, P, N].
    """
    judged = ~np.isnan(rewards + golds).any(axis=(0, 2))
    rewards, golds = rewards[:, judged], golds[:, judged]
    pools = [(rewards, rewards), (rewards, golds)]
    return np.array(
        [[[expected(*seed, n) for seed in zip(*both, strict=True)] for n in sizes(rewards.shape[2])] for both in pools]
    )


def rows_of(found: Floats, most: int) -> list[dict[str, float]]:
    """A row for each n; `low` and `high` bound gold's 95% interval.

    Args:
        found: of `curve`. most: size of the pool.
    """
    rows = []
    for n, reward, gold in zip(sizes(most), *found, strict=True):
        mean = mean_of(gold)
        row = {"kl": kl_of(n), "reward": float(reward.mean()), "gold": mean.value, "low": mean.low, "high": mean.high}
        rows.append({"n": n, **{name: round(value, 4) for name, value in row.items()}})
    return rows


def pool(resolved: Resolved, folder: Path, file: Path, *, n: int) -> tuple[Floats, Floats]:
    """(rewards, golds), each [P, n], of n samples of a run's start to each prompt of its evaluation.

    Args:
        resolved: the recipe of the run.
        folder: the run directory, evaluated.
        file: keeps the samples with their scores; nothing is sampled again if it exists.
    """
    if not file.exists():
        prompts = [group.prompt for group in Run(folder).samples if group.source == "start"]
        start: Policy[Any] = resolved.build("policy", folder=folder, saved=_sft(folder))
        groups = _sampled(resolved, start, prompts, n)
        sources = {"reward": Run(folder, resolved=resolved).reward()}
        sources["gold"] = resolved.build_spec("reward", resolved.eval.rewards[GOLD], folder=folder)
        write_groups(file, _scored(groups, sources))
    figures = [group.meta[SAMPLE_FIGURES] for group in read_groups(file)]
    rewards, golds = (np.array([said[name] for said in figures], dtype=np.float64) for name in ("reward", "gold"))
    return rewards, golds


def check_best_of(resolved: Resolved, n: int) -> None:
    """Raises InputError if a recipe lacks what best of `n` needs; 0 needs nothing."""
    if n and ("reward" not in resolved.names or GOLD not in resolved.eval.rewards):
        what = "needs a learned reward that chooses and gold that judges the choice"
        raise InputError(what, where="--best-of", fix="add [reward] and --gold NAME, or leave --best-of out")


def pools_of(
    runs: Mapping[str, Sequence[tuple[int, Resolved, Path]]], folder: Path, n: int
) -> dict[str, list[tuple[Floats, Floats]]]:
    """The pools of all seeds, for every distinct start and reward of the variants; see `pool`.

    Args:
        runs: variant -> (seed, recipe, run directory). folder: keeps the pools.
        n: size of a pool; 0 for none.
    """
    starts: dict[tuple[str, ...], str] = {}
    for variant, of in runs.items() if n else ():
        starts.setdefault(tuple(resolved.digest_of(*READ) for _, resolved, _ in of), variant)
    found = {}
    for digests, variant in starts.items():
        name = BEST_OF if len(starts) == 1 else f"{BEST_OF}, {variant}"
        files = [folder / f"best-of-{n}-{digest[:12]}.jsonl" for digest in digests]
        places = zip(runs[variant], files, strict=True)
        found[name] = [pool(resolved, place, file, n=n) for (_, resolved, place), file in places]
    return found


def _sft(folder: Path) -> Path | None:
    return folder / "sft" if "sft" in Run(folder).stages else None


def _sampled(resolved: Resolved, policy: Policy[Any], prompts: Sequence[Prompt], n: int) -> list[Group]:
    sampler, at_once = resolved.sampler(), max(1, AT_ONCE // n)
    sampler.sync(policy, 0)
    groups: list[Group] = []
    for place in range(0, len(prompts), at_once):
        # Seeds in a row are other random numbers; the evaluation and training have their own.
        seed = resolved.run.seed + 2 + place
        batch = sampler.generate(prompts[place : place + at_once], n=n, sampling=resolved.sampling, seed=seed)
        groups += batch.groups
    sampler.close()
    return groups


def _scored(groups: Sequence[Group], sources: dict[str, RewardSource[Any]]) -> Iterable[Group]:
    rows = {name: checked_scores(source, groups) for name, source in sources.items()}
    for place, group in enumerate(groups):
        figures = {name: row[place] for name, row in rows.items()}
        yield replace(group, source="start", scores=None, meta={**group.meta, SAMPLE_FIGURES: figures})
