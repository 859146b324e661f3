"""Writes comparison.json, which the pages of the algorithms show, from a folder of the demo with its comparisons.

    export OMP_NUM_THREADS=1
    alignkit demo --out demo --compare all
    alignkit compare demo/comparison.toml --optimizers dpo --sweep reward.loss=infonce,plackett-luce --out demo/rewards
    python -m docs.generate.measured demo
    python -m docs.generate

The demo takes an hour; the next command trains the reward models that it doesn't.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from alignkit import Run
from docs.generate.text import INPUTS

if TYPE_CHECKING:
    from collections.abc import Iterator

FIGURES = (("gold_reward", "reward", "kl"), ("accuracy", "margin", "reference_kl"), ("loss",))
"""What curves show: the figures of the first of these lines of which a run has any."""
BATCHES, POINTS = 30, 20
"""At most so many points in a curve, of batches of rollouts and of other steps, whose figures vary more."""
ALONG = {"sft": "demonstrations", "reward": "rankings", "policy": "prompts"}
"""Stage in metrics.jsonl -> what its steps go through."""
SUMMARIES = {"policy": "align"}
"""Stage in metrics.jsonl -> its name in run.json, where it is another one."""
REWARD_LOSSES = {"pairwise": "bradley-terry", "infonce": "infonce", "plackett-luce": "plackett-luce"}


def main(folder: Path) -> None:
    """Writes comparison.json beside this file."""
    comparison = folder / "comparison"
    said = json.loads((comparison / "comparison.json").read_text(encoding="utf-8"))
    if said["failed"]:
        sys.exit(f"failed: {', '.join(said['failed'])}")
    curves = {name: curve(comparison / "runs" / name / "seed-0", "policy") for name in said["variants"]}
    for path, stage, name in _stages(folder):
        curves[name] = curve(path, stage)
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "torch": torch.__version__,
        "rows": rows(said),
        "curves": curves,
    }
    (INPUTS / "comparison.json").write_text(_lines(found), encoding="utf-8")


def rows(said: Any) -> dict[str, dict[str, Any]]:
    """The start, named sft, and each algorithm: true and learned reward, KL, win rate, FLOPs and MiB."""
    start = {name: said["start"][name]["value"] for name in ("gold", "reward", "kl")}
    found = {"sft": {"algorithm": "sft", **start}}
    for name, variant in said["variants"].items():
        figures = {figure: variant[figure]["value"] for figure in ("gold", "reward", "kl", "win_rate")}
        spent = {"flops": variant["spent"]["flops"], "memory": variant["memory"]}
        found[name] = {"algorithm": name, **figures, **spent}
    return found


def curve(folder: Path, stage: str) -> dict[str, Any]:
    """The figures of a run's stage along its training: `along`, `x`, and under `figures` a list of each.

    A point is the mean over a few steps. All steps on a batch of rollouts have its figures, and count as one.
    """
    run = Run.open(folder)
    records = [record for record in run.metrics if record["stage"] == stage]
    names = next(kept for names in FIGURES if (kept := [name for name in names if name in records[-1]]))
    points = [[record[name] for name in names] for record in records]
    rollouts = names[0] in FIGURES[0]
    if rollouts:
        points = [point for point, _ in groupby(points)]
    size = -(-len(points) // (BATCHES if rollouts else POINTS))
    bins = [points[place : place + size] for place in range(0, len(points), size)]
    summary = run.stages[SUMMARIES.get(stage, stage)]
    every = summary["spent"]["prompts"] / len(points)
    found: dict[str, Any] = {
        "along": ALONG[stage],
        "x": [round(every * (place * size + (len(part) - 1) / 2)) for place, part in enumerate(bins)],
        "figures": {
            name: [float(f"{fmean(point[place] for point in part):.4g}") for part in bins]
            for place, name in enumerate(names)
        },
    }
    if stage == "reward":
        found["unseen"] = {"accuracy": summary["accuracy"]["value"], "prompts": summary["prompts"]}
    return found


def _stages(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Run directory, stage and algorithm of what is trained before the alignment."""
    first = folder / "comparison/runs/dpo/seed-0"
    yield first, "sft", "sft"
    for run in (first, *sorted(folder.glob("rewards/runs/*/seed-0"))):
        yield run, "reward", REWARD_LOSSES[_recipe(run)["reward"]["loss"]]


def _recipe(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))


def _lines(found: dict[str, Any]) -> str:
    """As JSON, with a line for each algorithm's figures and for each curve."""
    parts = []
    for key, value in found.items():
        said = json.dumps(value)
        if isinstance(value, dict):
            lines = [f"  {json.dumps(name)}: {json.dumps(one)}" for name, one in value.items()]
            said = "{\n" + ",\n".join(lines) + "\n }"
        parts.append(f" {json.dumps(key)}: {said}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
