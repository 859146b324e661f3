"""The demo at a size that takes seconds, as files for other tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit_demo.data import Sizes
from alignkit_demo.demo import run_demo

from alignkit.runs.reporting import Reporter

if TYPE_CHECKING:
    from pathlib import Path

FEW_STEPS = (
    "optimizer.for.ppo.iterations=1",
    "optimizer.for.ppo.batch_size=6",
    "optimizer.for.ppo.minibatch_size=3",
    "optimizer.for.dpo.n_epochs=1",
    "optimizer.for.ipo.n_epochs=1",
    "sampling.max_tokens=24",
)
FEW_REWARD_STEPS = ("reward.train.n_epochs=1",)


def make_small_demo(folder: Path) -> Path:
    """Runs the whole demo with few records and steps."""
    sizes = Sizes(raw=64, demonstrations=24, prompts=40, evaluation=6)
    run_demo(folder, seed=0, reporter=Reporter(), sizes=sizes, overrides=FEW_STEPS + FEW_REWARD_STEPS)
    return folder
