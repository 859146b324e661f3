"""What finished runs say about each variant: figures with intervals, duels, ratings, tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit import Run
from alignkit.commands import SAMPLE_FIGURES
from alignkit_report.compare.statistics import corrected, mean_of, p_value, ratings, wins_between, won

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from alignkit import Group
    from alignkit_report.compare.statistics import Floats

START, POLICY = "start", "policy"
COST = "cost.json"
"""Next to a run's recipe: what its own process needed."""


@dataclass(frozen=True)
class Measured:
    """A finished run.

    Attributes:
        values: policy (start, policy) -> figure -> [P, n], a value per prompt and response; NaN where a source
            abstained.
        seconds: of the alignment stage. memory: peak of the process, in MiB; None if this process did not see it end.
    """

    seed: int
    on: str
    values: Mapping[str, Mapping[str, Floats]]
    seconds: float
    tokens: int
    memory: int | None
    stopped: str

    @classmethod
    def read(cls, folder: Path, seed: int) -> Measured:
        """Reads a run directory whose evaluation is done."""
        run = Run.open(folder)
        samples, summary = run.samples, run.summary
        align, cost = summary["align"], folder / COST
        by_source = {name: [group for group in samples if group.source == name] for name in (START, POLICY)}
        return cls(
            seed,
            summary["eval"]["on"],
            {name: _figures(groups) for name, groups in by_source.items()},
            align["seconds"],
            align.get("tokens", 0),
            json.loads(cost.read_text(encoding="utf-8"))["memory"] if cost.exists() else None,
            align.get("stopped", ""),
        )


def _figures(groups: Sequence[Group]) -> dict[str, Floats]:
    names = groups[0].meta[SAMPLE_FIGURES]
    found = {name: np.array([group.meta[SAMPLE_FIGURES][name] for group in groups], dtype=np.float64) for name in names}
    return {**found, "words": np.array([[len(text.split()) for text in group.responses] for group in groups], float)}


def of_variant(runs: Sequence[Measured], judge: str) -> dict[str, Any]:
    """The figures of one variant over its seeds, with 95% intervals.

    Args:
        judge: the reward that decides duels.
    """
    against_start = np.stack([won(run.values[POLICY][judge], run.values[START][judge]) for run in runs])
    return {
        "seeds": [run.seed for run in runs],
        **_means(runs, POLICY),
        "win_rate": mean_of(against_start).to_json(),
        "seconds": round(float(np.mean([run.seconds for run in runs])), 1),
        "tokens": round(float(np.mean([run.tokens for run in runs]))),
        "memory": max((run.memory for run in runs if run.memory is not None), default=None),
        "stopped": [run.stopped for run in runs if run.stopped],
    }


def of_start(runs: Sequence[Measured]) -> dict[str, Any]:
    """The figures of the policies that all variants started from, one for each seed."""
    return _means(runs, START)


def _means(runs: Sequence[Measured], policy: str) -> dict[str, Any]:
    values = {name: _stacked(run.values[policy][name] for run in runs) for name in runs[0].values[policy]}
    return {name: mean_of(of_prompts).to_json() for name, of_prompts in values.items()}


def duels(runs: Mapping[str, Sequence[Measured]], judge: str) -> dict[str, Any]:
    """Every two variants against each other, and all of them and their start on one scale.

    Args:
        runs: of each variant, for the same seeds.

    Returns:
        pairs: each with the win rate of `a`, the difference of the judge's scores, and p before and after Holm's
            correction for the number of pairs.
        ratings: of each variant, in Elo points above the start.
    """
    names = list(runs)
    first = next(iter(runs.values()))
    scores = [np.stack([run.values[START][judge] for run in first])]
    scores += [np.stack([run.values[POLICY][judge] for run in runs[name]]) for name in names]
    wins = wins_between(scores)
    pairs: list[dict[str, Any]] = []
    for (row, a), (column, b) in combinations(enumerate(names, start=1), 2):
        differences = _stacked(scores[row] - scores[column])
        pairs.append(
            {
                "a": a,
                "b": b,
                "win_rate": mean_of(wins[row, column]).to_json(),
                "difference": mean_of(differences).to_json(),
                "p": p_value(differences),
            }
        )
    for pair, p in zip(pairs, corrected([float(pair["p"]) for pair in pairs]), strict=True):
        pair["p_corrected"] = p
    rated = ratings(wins)[1:]
    return {"pairs": pairs, "ratings": {name: one.to_json() for name, one in zip(names, rated, strict=True)}}


def _stacked(runs: Iterable[Floats]) -> Floats:
    """[S, P]: means over the responses to a prompt, without prompts where a source abstained on all of one run's."""
    values = np.stack(list(runs))
    judged = (~np.isnan(values)).any(axis=-1).all(axis=0)
    means: Floats = np.nanmean(values[:, judged], axis=-1)
    return means
