"""The demo's figures as a person reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAMES = {"base": "base model", "sft": "SFT", "dpo": "DPO", "ppo": "PPO"}


def show(summary: Mapping[str, Any], folder: Path) -> None:
    """Prints the table, three prompts with replies before and after, the files, and what to try next."""
    reward = {name: figure["value"] for name, figure in summary["reward_model"].items()}
    sentences = (
        "gold: the true reward, which no model has seen; reward: the learned one (0 is a demonstration, 1 a standard "
        "deviation above); KL: to SFT, in nats a reply; wins: replies of more gold than SFT's.",
        f"The reward model orders {reward['agreement']:.0%} of held-out pairs as gold does. The annotators it learned "
        f"from: {reward['annotators']:.0%}. The best it could do, knowing their taste without noise: "
        f"{reward['best_possible']:.0%}.",
    )
    files = (
        f"  {folder}/summary.json        these figures\n"
        f"  {folder}/recipe.toml         the recipe; {folder}/data the data\n"
        f"  {folder}/ppo, {folder}/dpo  models (sft, reward, policy), preferences.jsonl, metrics.jsonl, samples.jsonl"
    )
    again = (
        f"  alignkit run {folder}/recipe.toml --optimizer ipo --out {folder}/ipo\n"
        f"  alignkit run {folder}/recipe.toml -o optimizer.kl_coef=0 -o optimizer.iterations=60 --out {folder}/hacked"
    )
    Console(highlight=False).print(
        _table(summary), *sentences, "", *_examples(summary), "Files", files, "", "Try next", again, sep="\n"
    )


def _table(summary: Mapping[str, Any]) -> Group:
    table = Table(title=f"Support desk, {summary['seconds']:.0f} seconds in all", title_justify="left")
    table.add_column("")
    for heading in ("gold", "reward", "KL", "wins against SFT", "seconds"):
        table.add_column(heading, justify="right")
    for row in summary["models"]:
        wins = "" if row["model"] == "sft" else f"{row['win_rate']:.0%}"
        figures = (f"{row['gold']:.2f}", f"{row['reward']:.2f}", f"{row['kl']:.1f}", wins, f"{row['seconds']:.0f}")
        table.add_row(NAMES[row["model"]], *figures)
    return Group(table)


def _examples(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    for example in summary["examples"]:
        lines.append(f"Customer: {example['prompt'].removeprefix('user: ')}")
        lines += [f"  {NAMES[name]}: {example[name]}" for name in ("sft", "dpo", "ppo")]
        lines.append("")
    return lines
