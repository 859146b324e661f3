"""What comparison.json and a run's report say of over-optimisation: `curves`, `best_of_n`, `fits` and `frontier`."""

from __future__ import annotations

import tomllib
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit_report.overopt import best_of
from alignkit_report.overopt.curves import BATCHES, GOLD, Course, lost_by_alarm, means_of
from alignkit_report.overopt.fit import fit_best_of, fit_training, is_enough, to_json, verdict
from alignkit_report.overopt.frontier import frontier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignkit import Run
    from alignkit_report.compare.statistics import Floats


def of_comparison(
    runs: Mapping[str, Sequence[tuple[int, Path]]], pools: Mapping[str, Sequence[tuple[Floats, Floats]]] | None = None
) -> dict[str, Any]:
    """The keys of comparison.json.

    Args:
        runs: variant -> (seed, run directory) of each run that is done.
        pools: of each start, of each seed; see `best_of.pools_of`.
    """
    courses = {name: [Course.read(folder, seed) for seed, folder in of] for name, of in runs.items()}
    fits = {name: fitted for name, of in courses.items() if (fitted := _fitted(of))}
    chosen: dict[str, list[dict[str, float]]] = {}
    for name, of_start in (pools or {}).items():
        rewards, golds = (np.stack(scores) for scores in zip(*of_start, strict=True))
        found = best_of.curve(rewards, golds)
        rows = chosen[name] = best_of.rows_of(found, rewards.shape[2])
        fit = fit_best_of(np.array([best_of.kl_of(int(row["n"])) for row in rows]), found[1])
        if fit is not None:
            fits[name] = to_json(fit, verdict(fit, rows[-1]["kl"], rows[-1][GOLD] - fit.start))
    measured = any(GOLD in run.end for of in courses.values() for run in of)
    return {
        "curves": {name: [row for run in of for row in _rows(run)] for name, of in courses.items()},
        "best_of_n": chosen,
        "fits": fits,
        "frontier": frontier(courses, GOLD if measured else "reward"),
    }


def of_run(run: Run) -> dict[str, Any]:
    """The same keys for a single run, whose variant is its algorithm."""
    recipe = tomllib.loads((run.path / "recipe.toml").read_text(encoding="utf-8"))
    name = recipe.get("optimizer", {}).get("plugin", "")
    return of_comparison({name: [(recipe.get("run", {}).get("seed", 0), run.path)]} if name else {})


def _rows(run: Course) -> list[dict[str, Any]]:
    return [{"seed": run.seed, **{name: round(value, 4) for name, value in row.items()}} for row in run.rows]


def _fitted(runs: Sequence[Course]) -> dict[str, Any] | None:
    """The law of a variant, and where its runs stand to the peak: by the last batches of each, and by their mean."""
    runs = [run for run in runs if is_enough(run.rows)]
    fit = fit_training([run.rows for run in runs])
    if fit is None:
        return None
    ends = [means_of(run.rows[-BATCHES:], BATCHES)[0] for run in runs]
    gains = [end[GOLD] - start for end, start in zip(ends, fit.starts, strict=True)]
    said = verdict(fit, fmean(end["kl"] for end in ends), fmean(gains))
    each = [
        {"seed": run.seed, "verdict": verdict(fit, end["kl"], gain), "lost_by_alarm": lost_by_alarm(run)}
        for run, end, gain in zip(runs, ends, gains, strict=True)
    ]
    return {**to_json(fit, said), "runs": each}
