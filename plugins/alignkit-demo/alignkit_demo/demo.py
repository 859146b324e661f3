"""The demo: a data generator, three runs of ordinary recipes, and the figures of the results.

Everything between the data and the figures is the same as for any other model.
"""

from __future__ import annotations

import json
import time
import tomllib
from importlib.resources import files as package_files
from itertools import islice
from typing import TYPE_CHECKING, Any

import tomli_w

from alignkit import InputError
from alignkit.commands import read_recipe, run_recipe
from alignkit_demo.data import HOLDOUT, Sizes, write_data
from alignkit_demo.measures import measure
from alignkit_demo.model import save_untrained_model, train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignkit.commands import Reporter, Resolved

SUMMARY, COMPARISON = "summary.json", "comparison.toml"
PLACEHOLDER = "demo"
"""The demo's folder in the packaged recipes."""
RUNS = {
    "pretraining": ("pretraining.toml", {}),
    "ppo": ("recipe.toml", {}),
    "dpo": ("from-sft.toml", {"optimizer": "dpo"}),
}
"""Run directory -> recipe and flags, in the order of the runs."""
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
    """Makes the data and a base model, aligns it by PPO and by DPO, and measures the results.

    Args:
        folder: gets data/, untrained/, the recipes, the runs pretraining/, ppo/ and dpo/, and summary.json.
        sizes: of the data.
        overrides: `-o` of every run with that table, such as `sft.n_epochs=2`.

    Returns:
        summary.json: `models`, `reward_model`, `examples` (see `alignkit_demo.measures`), `seed`, `seconds`.

    Raises:
        InputError: the folder has a demo, and `overwrite` is False.
    """
    if (folder / "recipe.toml").exists() and not overwrite:
        raise InputError("this folder already has a demo", where=str(folder), fix="use --overwrite or another --out")
    start = time.perf_counter()
    write_data(folder / "data", sizes or Sizes(), seed=seed)
    make_untrained_model(folder, seed=seed)
    write_recipes(folder, seed=seed)
    said = {}
    for name in RUNS:
        resolved = resolve(folder, name, overrides)
        said[name] = run_recipe(resolved, folder / name, reporter=reporter, overwrite=overwrite)
    summary = measure(folder, resolved, said)
    summary |= {"seed": seed, "seconds": round(time.perf_counter() - start, 1)}
    (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def make_untrained_model(folder: Path, *, seed: int) -> None:
    """Writes untrained/: a tokenizer for the raw text, and a model with random weights."""
    with (folder / "data" / "raw.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["completion"] for line in islice(lines, TOKENIZER_TEXTS)]
    save_untrained_model(folder / "untrained", train_tokenizer(texts), seed=seed)


def write_recipes(folder: Path, *, seed: int) -> None:
    """Writes the packaged recipes with the folder's path and the seed filled in, from-sft.toml and comparison.toml.

    from-sft.toml is recipe.toml without its first stages: it starts from the SFT policy, rankings and reward model of
    the run ppo/, so that another algorithm on the same preferences takes seconds. comparison.toml is recipe.toml with
    settings of every algorithm for an equal number of prompts.
    """
    path = json.dumps(folder.as_posix()).strip('"')
    packaged = {entry.name: entry for entry in (package_files("alignkit_demo") / "recipes").iterdir()}
    settings = tomllib.loads(packaged.pop(COMPARISON).read_text(encoding="utf-8"))
    for entry in packaged.values():
        text = entry.read_text(encoding="utf-8").replace(f'"{PLACEHOLDER}/', f'"{path}/')
        text = text.replace("[policy]", f"[run]\nseed = {seed}\nholdout = {HOLDOUT}\n\n[policy]", 1)
        (folder / entry.name).write_text(text, encoding="utf-8")
    tables = tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    side_by_side = {**tables, "optimizer": {"plugin": "ppo", **settings["optimizer"]}}
    (folder / COMPARISON).write_text(tomli_w.dumps(side_by_side), encoding="utf-8")
    done = (folder / "ppo").as_posix()
    del tables["demonstrations"], tables["sft"]
    tables["policy"]["model"] = f"{done}/sft"
    tables["preferences"] = {"plugin": "dataset", "path": f"{done}/preferences.jsonl"}
    tables["reward"]["model"] = f"{done}/reward"
    tables["reward"].pop("train", None)
    (folder / "from-sft.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")


def resolve(folder: Path, run: str, overrides: Sequence[str] = ()) -> Resolved:
    """The checked recipe of one of RUNS, with the overrides that fit its tables."""
    name, flags = RUNS[run]
    tables = tomllib.loads((folder / name).read_text(encoding="utf-8"))
    unused = "reward.train." if tables.get("reward", {}).get("model") else None
    fitting = [
        override
        for override in overrides
        if override.partition(".")[0] in tables and not (unused and override.startswith(unused))
    ]
    return read_recipe(folder / name, flags=flags, overrides=fitting)
