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
SAMPLED_BY = ("run", "policy", "demonstrations", "sft", "prompts", "preferences", "candidates", "sampling", "eval")
"""The tables that the samples of a pool depend on."""


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


def pool(resolved: Resolved, folder: Path, kept: Path, n: int) -> tuple[Floats, Floats]:
    """(rewards, golds), each [P, n], of n samples of a run's start to each prompt of its evaluation.

    Args:
        resolved: the recipe of the run.
        folder: the run directory, evaluated.
        kept: keeps the samples, for every reward, and their scores; nothing that is there is made again.
    """
    samples = kept / f"samples-{n}-{resolved.digest_of(*SAMPLED_BY)[:12]}.jsonl"
    if not samples.exists():
        prompts = [group.prompt for group in Run(folder).samples if group.source == "start"]
        start: Policy[Any] = resolved.build("policy", folder=folder, saved=_sft(folder))
        write_groups(samples, _sampled(resolved, start, prompts, n))
    scored = kept / f"best-of-{n}-{_digest(resolved)[:12]}.jsonl"
    if not scored.exists():
        sources = {"reward": Run(folder, resolved=resolved).reward()}
        sources["gold"] = resolved.build_spec("reward", resolved.eval.rewards[GOLD], folder=folder)
        write_groups(scored, _scored(list(read_groups(samples)), sources))
    figures = [group.meta[SAMPLE_FIGURES] for group in read_groups(scored)]
    rewards, golds = (np.array([said[name] for said in figures], dtype=np.float64) for name in ("reward", "gold"))
    return rewards, golds


def check_best_of(resolved: Resolved, n: int) -> None:
    """Raises InputError if a recipe lacks what best of `n` needs; 0 needs nothing."""
    if n and ("reward" not in resolved.names or GOLD not in resolved.eval.rewards):
        what = "needs a learned reward that chooses and gold that judges the choice"
        raise InputError(what, where="--best-of", fix="add [reward] and --gold NAME, or leave --best-of out")


def pools_of(
    runs: Mapping[str, Sequence[tuple[int, Resolved, Path]]], kept: Path, n: int
) -> dict[str, list[tuple[Floats, Floats]]]:
    """The pools of all seeds, for every distinct start and reward of the variants; see `pool`.

    Args:
        runs: variant -> (seed, recipe, run directory). kept: folder that keeps the pools.
        n: size of a pool; 0 for none.
    """
    starts: dict[tuple[str, ...], str] = {}
    for variant, of in runs.items() if n else ():
        starts.setdefault(tuple(_digest(resolved) for _, resolved, _ in of), variant)
    found = {}
    for variant in starts.values():
        name = BEST_OF if len(starts) == 1 else f"{BEST_OF}, {variant}"
        found[name] = [pool(resolved, folder, kept, n) for _, resolved, folder in runs[variant]]
    return found


def _digest(resolved: Resolved) -> str:
    """Of everything that a pool's scores depend on."""
    return resolved.digest_of(*SAMPLED_BY, "reward")


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
