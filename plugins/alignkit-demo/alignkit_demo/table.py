"""The demo's figures as tables and text."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from alignkit import visible

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAMES = {"base": "base model", "sft": "SFT", "dpo": "DPO", "ppo": "PPO"}


def show_table(summary: Mapping[str, Any], folder: Path) -> None:
    """Prints the table, three prompts with replies before and after, the files, and commands to try next."""
    console = Console(highlight=False)
    console.print()
    console.print(_table(summary))
    for line in (*_meaning(summary), "", *_examples(summary), *_files(folder), "", "Try next"):
        console.print(visible(line), markup=False)
    for command in next_commands(folder):
        console.print(f"  {shlex.join(command)}", markup=False, soft_wrap=True)


def next_commands(folder: Path) -> list[list[str]]:
    """Commands to try next, as words of the command line."""
    return [
        ["alignkit", "run", f"{folder}/from-sft.toml", "--optimizer", "ipo", "--out", f"{folder}/ipo"],
        ["alignkit", "run", f"{folder}/recipe.toml", "-o", "reward.loss=infonce", "--out", f"{folder}/infonce"],
    ]


def _table(summary: Mapping[str, Any]) -> Table:
    table = Table(
        title=f"Support desk: on {summary['on']}, {summary['seconds']:.0f} seconds in all", title_justify="left"
    )
    table.add_column("")
    for heading in ("gold", "reward", "KL", "wins against SFT", "seconds"):
        table.add_column(heading, justify="right")
    for row in summary["models"]:
        wins = "" if row["model"] == "sft" else f"{row['win_rate']:.0%}"
        figures = (f"{row['gold']:.2f}", f"{row['reward']:.2f}", f"{row['kl']:.1f}", wins, f"{row['seconds']:.0f}")
        table.add_row(NAMES[row["model"]], *figures)
    return table


def _meaning(summary: Mapping[str, Any]) -> list[str]:
    share = {name: f"{figure['value']:.0%}" for name, figure in summary["reward_model"].items()}
    return [
        "gold: the true reward, which no model has seen. reward: the learned one; 0 is the mean of the demonstrations",
        "and 1 one standard deviation above it. KL: to SFT, in nats per reply. wins: how often gold prefers it to SFT.",
        f"The reward model orders {share['agreement']} of held-out pairs as gold does. The annotators it learned from:",
        f"{share['annotators']}. A reward model that knew their taste without their noise: {share['best_possible']}.",
    ]


def _examples(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    for example in summary["examples"]:
        lines.append(f"Customer: {example['prompt'].removeprefix('user: ')}")
        lines += [f"  {NAMES[name]}: {example[name]}" for name in ("sft", "dpo", "ppo")]
        lines.append("")
    return lines


def _files(folder: Path) -> list[str]:
    return [
        f"Files in {folder}",
        "  data/*.jsonl       raw text, demonstrations and prompts",
        "  recipe.toml        from the base model to PPO; from-sft.toml starts from its SFT policy and rankings",
        "  ppo/, dpo/         models (sft, reward, policy), preferences.jsonl, metrics.jsonl, report.html",
        "  summary.json       these figures",
    ]
