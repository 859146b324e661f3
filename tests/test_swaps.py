"""Swapping parts by flags alone, from the demo's files: each combination that makes sense runs for a few steps."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
from demo_files import FEW_REWARD_STEPS, FEW_STEPS

from alignkit import cli

if TYPE_CHECKING:
    from pathlib import Path

MODEL = ()
RULES = ("--reward", "rules", "-o", "reward.length.target=20")
GOLD = "alignkit_demo.world:gold_reward"
FUNCTION = ("--reward", GOLD)
LORA = ("-o", "policy.lora.r=8")
LOSSES = [("-o", f"reward.loss={loss}") for loss in ("pairwise", "infonce", "plackett-luce")]
COMBINATIONS = [
    ("--optimizer", "ppo", *LOSSES[1]),
    ("--optimizer", "ppo", *FUNCTION),
    ("--optimizer", "ppo", *RULES, *LORA),
    ("--optimizer", "dpo", *RULES),
    ("--optimizer", "ipo", *LORA),
    ("--optimizer", "ppo", "-o", "optimizer.critic=reward"),
    (
        "--optimizer",
        "ppo",
        "--preferences",
        "reward",
        "-o",
        "preferences.source.plugin=alignkit_demo.world:gold_reward",
    ),
]
MORE = [
    *[("--optimizer", "ppo", *loss) for loss in (LOSSES[0], LOSSES[2])],
    ("--optimizer", "ppo", *RULES),
    *[("--optimizer", "ppo", *reward, *LORA) for reward in (MODEL, FUNCTION)],
    *[("--optimizer", "dpo", *lora) for lora in ((), LORA)],
    ("--optimizer", "ipo"),
    ("--optimizer", "ppo", "-o", "optimizer.critic=policy"),
]
ALL = [*COMBINATIONS, *[pytest.param(flags, marks=pytest.mark.slow) for flags in MORE]]


@pytest.mark.parametrize("flags", ALL, ids=" ".join)
def test_parts_are_swapped_by_flags_alone(demo_folder: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    trains_reward = "--reward" not in flags
    options = FEW_STEPS + (FEW_REWARD_STEPS if trains_reward else ())
    few_steps = [word for option in options for word in ("-o", option)]
    out = tmp_path / "run"
    words = ["run", str(demo_folder / "recipe.toml"), *flags, *few_steps, "--out", str(out), "--quiet"]
    assert cli.run(words) == 0

    stages = json.loads((out / "run.json").read_text())["stages"]
    recipe = (out / "recipe.toml").read_text()
    assert f'plugin = "{flags[1]}"' in recipe
    assert math.isfinite(stages["align"]["metrics"]["loss"])
    assert math.isfinite(stages["eval"]["policy"]["kl"]["value"])
    assert ("reward" in stages) == trains_reward
    assert (out / "policy" / "model.safetensors").is_file()
    assert (out / "policy" / "adapter").is_dir() == (flags[-2:] == LORA)
