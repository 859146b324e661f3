"""The demo: a data generator, three runs of ordinary recipes, and figures of what came out.

Everything between the data and the figures is what any other model would go through.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from importlib.resources import files as package_files
from itertools import islice
from typing import TYPE_CHECKING, Any

from alignkit import pipeline
from alignkit.errors import InputError
from alignkit.plugins import registry
from alignkit.recipe import load_recipe
from alignkit_demo.data import Sizes, write_data
from alignkit_demo.measures import measure
from alignkit_demo.model import save_untrained_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from alignkit.recipe import Recipe
    from alignkit.reporting import Reporter

SUMMARY = "summary.json"
PLACEHOLDER = "demo"
"""How the packaged recipes name the demo's folder."""
FIRST_STAGES = ("demonstrations", "sft")
TOKENIZER_TEXTS = 4000


def run_demo(
    folder: Path,
    *,
    seed: int,
    reporter: Reporter,
    overwrite: bool = False,
    sizes: Sizes | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Makes the world's data and a base model, aligns it by PPO and by DPO, and measures what came out.

    Args:
        folder: takes data/, untrained/, recipe.toml, the runs pretraining/, ppo/ and dpo/, and summary.json.
        sizes: of the data.
        overrides: `-o` of all runs, as `sft.n_epochs=2`.

    Returns:
        What summary.json holds: `models` and `reward_model` (`alignkit_demo.measures`), `examples`, `seed`, `seconds`.

    Raises:
        InputError: the folder holds a demo and `overwrite` is not given.
    """
    if (folder / SUMMARY).exists() and not overwrite:
        raise InputError("this folder holds a demo", where=str(folder), fix="--overwrite or another --out")
    start = time.perf_counter()
    write_data(folder / "data", sizes or Sizes(), seed=seed)
    write_recipes(folder, seed=seed)
    make_untrained_model(folder, seed=seed)
    runs = {}
    for name, make_recipe in RUNS.items():
        resolved = make_recipe(folder, overrides).resolve(registry())
        runs[name] = pipeline.run(resolved, folder / name, reporter=reporter, overwrite=overwrite)
    summary = measure(folder, resolved, runs)
    summary |= {"seed": seed, "seconds": round(time.perf_counter() - start, 1)}
    (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def make_untrained_model(folder: Path, *, seed: int) -> None:
    """A tokenizer of the raw text, and a model of random weights -> untrained/."""
    with (folder / "data" / "raw.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["completion"] for line in islice(lines, TOKENIZER_TEXTS)]
    save_untrained_model(folder / "untrained", texts, seed=seed)


def pretraining(folder: Path, overrides: Sequence[str]) -> Recipe:
    """Raw text -> the base model."""
    return load_recipe(folder / "pretraining.toml", flags={}, overrides=_of_tables(("sft",), overrides))


def whole_path(folder: Path, overrides: Sequence[str]) -> Recipe:
    """The base model -> SFT, rankings, reward model, PPO."""
    return load_recipe(folder / "recipe.toml", flags={}, overrides=overrides)


def from_sft(folder: Path, overrides: Sequence[str]) -> Recipe:
    """The same recipe by DPO, without its first stages: from the SFT policy, rankings and reward model of ppo/ on."""
    done = {"policy.model": "sft", "preferences.path": "preferences.jsonl", "reward.model": "reward"}
    reuse = [f"{key}={json.dumps((folder / 'ppo' / name).as_posix())}" for key, name in done.items()]
    kept = [override for override in overrides if override not in _of_tables(FIRST_STAGES, overrides)]
    flags = {"preferences": "dataset", "optimizer": "dpo"}
    recipe = load_recipe(folder / "recipe.toml", flags=flags, overrides=[*reuse, *kept])
    return replace(recipe, tables={name: table for name, table in recipe.tables.items() if name not in FIRST_STAGES})


RUNS: dict[str, Callable[[Path, Sequence[str]], Recipe]] = {
    "pretraining": pretraining,
    "ppo": whole_path,
    "dpo": from_sft,
}
"""The runs in their order, by the name of their directories."""


def _of_tables(tables: Sequence[str], overrides: Sequence[str]) -> list[str]:
    return [override for override in overrides if override.partition(".")[0] in tables]


def write_recipes(folder: Path, *, seed: int) -> None:
    """Writes the packaged recipes into the folder, with its path and the seed in place."""
    path = json.dumps(folder.as_posix()).strip('"')
    for entry in (package_files("alignkit_demo") / "recipes").iterdir():
        text = entry.read_text(encoding="utf-8").replace(f'"{PLACEHOLDER}/', f'"{path}/')
        text = text.replace("[policy]", f"[run]\nseed = {seed}\n\n[policy]", 1)
        (folder / entry.name).write_text(text, encoding="utf-8")
