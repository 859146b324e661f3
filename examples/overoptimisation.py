"""Over-optimisation, and what helps against it: `python examples/overoptimisation.py`, next to a folder demo/.

Runs overoptimisation.toml over three seeds with one reward model or an ensemble of three, with and without early
stopping (about an hour on two cores). Shows how far gold rose and where it ended, by training and by best of n.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

import alignkit

if TYPE_CHECKING:
    from collections.abc import Mapping

RECIPE = Path(__file__).with_name("overoptimisation.toml")
OUT = Path("runs/overoptimisation")
MEMBERS = 3
SWEEPS = ("reward.plugin=model,ensemble", "optimizer.stop.gold_fall=0,0.3")


def train_members() -> None:
    """Trains the ensemble's reward models: the same rankings in another order."""
    for member in range(1, MEMBERS + 1):
        seed = {"run.seed": 10 + member}
        folder = OUT / f"member-{member}"
        alignkit.run(RECIPE, options=seed, stages=["preferences", "reward"], out=folder, overwrite=True)


def compare(*more: str) -> dict[str, Any]:
    """Runs the comparison, with more flags for it; returns what comparison.json says."""
    words = [
        "compare",
        str(RECIPE),
        "--seeds",
        "3",
        "--best-of",
        "512",
        "--jobs",
        "2",
        "--out",
        str(OUT / "comparison"),
    ]
    sweeps = [word for sweep in SWEEPS for word in ("--sweep", sweep)]
    subprocess.run([sys.executable, "-m", "alignkit", *words, *sweeps, "--quiet", *more], check=True)
    found: dict[str, Any] = json.loads((OUT / "comparison/comparison.json").read_text(encoding="utf-8"))
    return found


def show(found: Mapping[str, Any]) -> None:
    """Prints a row for every law: where gold peaks, what is left of it, and what each seed had lost by the alarm."""
    table = Table(title="Gold, the true reward", title_justify="left")
    for heading in ("", "start", "peak", "at KL", "end", "at KL", "lost by the alarm"):
        table.add_column(heading)
    for name, fit in found["fits"].items():
        last = found["best_of_n"].get(name, [None])[-1]
        ended = [last[key] if last else found["variants"][name][key]["value"] for key in ("gold", "kl")]
        lost = [run["lost_by_alarm"] for run in fit.get("runs", ())]
        said = ", ".join("no alarm" if share is None else f"{share:.0%}" for share in lost)
        table.add_row(name, *map(_text, (fit["start"], fit["peak_gold"], fit["peak_kl"], *ended)), said)
    Console(highlight=False).print(table)


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    train_members()
    show(compare())
