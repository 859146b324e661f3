"""What finished runs say about each variant: figures with intervals, duels, ratings, tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit import Run, read_groups
from alignkit_report.compare.statistics import corrected, mean_of, p_value, ratings, share_of, wins_between, won
from alignkit_report.measures.samples import (
    OF_MODELS,
    START,
    decided,
    figures_of,
    mean_of_replies,
    of_held_out,
    of_samples,
    told,
    whole_prompts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignkit import Group
    from alignkit_report.compare.statistics import Floats

    Table = Mapping[str, Floats]

POLICY = "policy"
COST = "cost.json"
"""Next to a run's recipe: what its own process needed."""
TEXTS = "texts.jsonl"
"""In a run directory: held-out texts with their surprise."""
OF_REWARD_MODEL = ("accuracy", "agreement_with_ai", "shorter_wins", "brier", "calibration_error", "reliability")


@dataclass(frozen=True)
class Measured:
    """A finished run.

    Attributes:
        values: policy (start, policy) -> figure -> [P, n], a value per prompt and response; NaN where a source
            abstained.
        measures: policy -> figure or measure -> [P], a mean per prompt.
        reward_model: how well its reward model orders pairs; empty if it has none of its own.
        seconds: of the alignment stage. memory: peak of the process, in MiB; None if this process did not see it end.
    """

    seed: int
    on: str
    values: Mapping[str, Table]
    measures: Mapping[str, Table]
    reward_model: Mapping[str, Any]
    seconds: float
    tokens: int
    memory: int | None
    stopped: str

    @classmethod
    def read(cls, folder: Path, seed: int, samples: Sequence[Group] | None = None) -> Measured:
        """Reads a run directory whose evaluation is done.

        Args:
            samples: its samples, if they have more figures than it keeps.
        """
        run = Run.open(folder)
        samples, summary = samples or run.samples, run.summary
        align, cost = summary["align"], folder / COST
        by_source = {name: [group for group in samples if group.source == name] for name in (START, POLICY)}
        values = {name: figures_of(groups) for name, groups in by_source.items()}
        reward = summary.get("reward", {})
        return cls(
            seed,
            summary["eval"]["on"],
            values,
            _measures(folder, by_source, values),
            {name: reward[name] for name in OF_REWARD_MODEL if name in reward},
            align["seconds"],
            align.get("tokens", 0),
            json.loads(cost.read_text(encoding="utf-8"))["memory"] if cost.exists() else None,
            align.get("stopped", ""),
        )


def _measures(folder: Path, samples: Mapping[str, Sequence[Group]], values: Mapping[str, Table]) -> Mapping[str, Table]:
    measures = of_samples(samples)
    texts = list(read_groups(folder / TEXTS)) if (folder / TEXTS).exists() else []
    for name, groups in samples.items():
        words = np.array([[len(text.split()) for text in group.responses] for group in groups], dtype=np.float64)
        measures[name] |= {figure: mean_of_replies(of) for figure, of in {**values[name], "words": words}.items()}
        if own := [text for text in texts if text.source == name]:
            measures[name]["perplexity"] = of_held_out(own)
    for name, scores in values[POLICY].items():
        if name not in OF_MODELS:
            measures[POLICY][f"win_rate/{name}"] = mean_of_replies(decided(scores, values[START][name]))
    return measures


def of_variant(runs: Sequence[Measured], judge: str) -> dict[str, Any]:
    """The figures of one variant over its seeds, with 95% intervals.

    Args:
        judge: the reward that decides duels.
    """
    against_start = np.stack([won(run.values[POLICY][judge], run.values[START][judge]) for run in runs])
    return {
        "seeds": [run.seed for run in runs],
        **_told(runs, POLICY),
        "win_rate": share_of(against_start).to_json(),
        "seconds": round(float(np.mean([run.seconds for run in runs])), 1),
        "tokens": round(float(np.mean([run.tokens for run in runs]))),
        "memory": max((run.memory for run in runs if run.memory is not None), default=None),
        "stopped": [run.stopped for run in runs if run.stopped],
    }


def of_start(runs: Sequence[Measured]) -> dict[str, Any]:
    """The figures of the policies that all variants started from, one for each seed."""
    return _told(runs, START)


def of_reward_models(runs: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    """How well each reward model orders pairs, by seed; by variant too where those have different ones."""
    found: dict[str, Any] = {}
    by_seed: dict[int, dict[str, Mapping[str, Any]]] = {}
    for name, of_seeds in runs.items():
        for run in of_seeds:
            if run.reward_model:
                by_seed.setdefault(run.seed, {})[name] = run.reward_model
    for seed, models in by_seed.items():
        same = all(model == next(iter(models.values())) for model in models.values())
        named = {f"{name}, seed {seed}": model for name, model in models.items()}
        found |= {f"seed {seed}": next(iter(models.values()))} if same else named
    return found


def _told(runs: Sequence[Measured], policy: str) -> dict[str, Any]:
    """Rewards, KL and words; below `measures` what else is known."""
    every = told(_table(runs, policy))
    main = {"kl", "words", *(name for name in runs[0].values[policy] if name not in OF_MODELS)}
    return {
        **{name: figure for name, figure in every.items() if name in main},
        "measures": {name: figure for name, figure in every.items() if name not in main},
    }


def _table(runs: Sequence[Measured], policy: str) -> dict[str, Floats]:
    """Figure or measure -> [S, P], of those that every run has."""
    tables = [run.measures[policy] for run in runs]
    return {name: np.stack([table[name] for table in tables]) for name in tables[0] if all(name in t for t in tables)}


def duels(runs: Mapping[str, Sequence[Measured]], judge: str) -> dict[str, Any]:
    """Every two variants against each other, and all of them and their start on one scale.

    Args:
        runs: of each variant, for the same seeds.

    Returns:
        pairs: each with the win rate of `a`, the difference of the judge's scores, and p before and after Holm's
            correction for the number of pairs; below `measures` the same of every figure and measure.
        changes: variant -> the same of every figure and measure, less its start's.
        ratings: of each variant, in Elo points above the start.
    """
    names = list(runs)
    first = next(iter(runs.values()))
    scores = [np.stack([run.values[START][judge] for run in first])]
    scores += [np.stack([run.values[POLICY][judge] for run in runs[name]]) for name in names]
    wins = wins_between(scores)
    tables = {name: _table(of, POLICY) for name, of in runs.items()}
    pairs: list[dict[str, Any]] = [
        {"a": a, "b": b, "win_rate": share_of(wins[row, column]).to_json()}
        for (row, a), (column, b) in combinations(enumerate(names, start=1), 2)
    ]
    for pair, measures in zip(pairs, differences([(tables[p["a"]], tables[p["b"]]) for p in pairs]), strict=True):
        of_judge = {"p": 1.0, "p_corrected": 1.0, **measures.get(judge, {})}
        pair |= {"p": of_judge.pop("p"), "p_corrected": of_judge.pop("p_corrected"), "difference": of_judge}
        pair["measures"] = measures
    changes = differences([(tables[name], _table(of, START)) for name, of in runs.items()])
    rated = ratings(wins)[1:]
    return {
        "pairs": pairs,
        "changes": dict(zip(names, changes, strict=True)),
        "ratings": {name: one.to_json() for name, one in zip(names, rated, strict=True)},
    }


def differences(cases: Sequence[tuple[Table, Table]]) -> list[dict[str, dict[str, float]]]:
    """For each two tables the difference of each measure that both have, its p, and that after Holm's correction for
    the cases that have this measure.

    A perplexity is compared by its log, a win rate at the same length by its log-odds.
    """
    found: list[dict[str, dict[str, float]]] = [{} for _ in cases]
    for name in dict.fromkeys(name for ours, _ in cases for name in ours):
        both = [
            (place, one[name], other[name]) for place, (one, other) in enumerate(cases) if name in one and name in other
        ]
        apart = [(place, whole_prompts(ours - theirs)) for place, ours, theirs in both]
        whole = [(place, values) for place, values in apart if values.shape[1] > 1]
        ps = [p_value(values) for _, values in whole]
        for (place, values), p, p_corrected in zip(whole, ps, corrected(ps), strict=True):
            found[place][name] = {**mean_of(values).to_json(), "p": p, "p_corrected": p_corrected}
    return found
