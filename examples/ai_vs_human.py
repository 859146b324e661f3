"""Compares rankings by an AI, by people, and by both: `python examples/ai_vs_human.py`, next to a folder demo/.

Runs ai-vs-human.toml once for each, and once with people only, but as few rankings as the mixture takes from them.
Shows how many pairs of the rankings are right by the true reward, their cost, and the resulting policy's true reward,
KL to the SFT policy, and wins against it.
"""

from __future__ import annotations

import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit_demo.world import gold
from rich.console import Console
from rich.table import Table
from support_judge import make_judge

import alignkit
from alignkit import Group, Run, read_groups
from alignkit.preferences import annotations_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RECIPE = Path(__file__).with_name("ai-vs-human.toml")
PRICE = 0.50
"""Assumed cost of a ranking by a person."""


@dataclass(frozen=True)
class Row:
    """The results of one kind of rankings.

    Attributes:
        right: share of the ordered pairs that the true reward orders the same way.
        judged, people: rankings by the AI and by people. money: their total cost. seconds: labelling time.
        gold, kl, wins: the policy's figures; wins against the SFT policy.
    """

    name: str
    right: float
    judged: int
    people: int
    money: float
    gold: float
    kl: float
    wins: float
    seconds: float


def compare(out: Path, options: Mapping[str, Any] | None = None) -> list[Row]:
    """Runs all kinds of rankings into folders of `out`, each with these options."""
    budget = tomllib.loads(RECIPE.read_text(encoding="utf-8"))["preferences"]["for"]["mix"]["budget"]
    few = {"path": out / "people/preferences.jsonl", "limit": budget}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "AI": ("ai", {}),
        "people": ("people", {"plugin": "function"}),
        "both": ("mixed", {"plugin": "mix"}),
        "few people": ("few", {"plugin": "dataset", **few}),
    }
    rows = []
    for name, (folder, preferences) in kinds.items():
        chosen = {f"preferences.{key}": value for key, value in preferences.items()}
        run = alignkit.run(RECIPE, options={**chosen, **(options or {})}, out=out / folder, overwrite=True)
        rows.append(_row(name, run))
    return rows


def _row(name: str, run: Run) -> Row:
    stages = run.summary
    groups = list(read_groups(run.path / "preferences.jsonl"))
    kinds = [{one.kind for one in annotations_of(group)} for group in groups]
    people = sum(kind != {"ai"} for kind in kinds)
    policy = stages["eval"]["policy"]
    return Row(
        name,
        right=agreement_with_gold(groups),
        judged=sum("ai" in kind for kind in kinds),
        people=people,
        money=PRICE * people + sum(group.meta.get("cost", {}).get("money", 0) for group in groups),
        gold=policy["gold"]["value"],
        kl=policy["kl"]["value"],
        wins=stages["eval"]["win_rate/gold"]["value"],
        seconds=stages["preferences"]["seconds"],
    )


def agreement_with_gold(groups: Iterable[Group]) -> float:
    """Among the pairs ordered by both a ranking and the true reward, the share that both order the same way."""
    found = []
    for group in groups:
        scores = [gold(group.prompt, reply) for reply in group.responses]
        found += [scores[i] > scores[j] for i, j in group.preferred_pairs() if scores[i] != scores[j]]
    return sum(found) / len(found)


def show(rows: Iterable[Row]) -> None:
    """Prints the table."""
    table = Table(title="The same model and training, with rankings by", title_justify="left")
    table.add_column("")
    for heading in ("right", "by AI", "by people", "cost", "seconds", "gold", "KL", "wins"):
        table.add_column(heading, justify="right")
    for row in rows:
        counts = (str(row.judged), str(row.people), f"{row.money:.0f}", f"{row.seconds:.0f}")
        table.add_row(row.name, f"{row.right:.0%}", *counts, f"{row.gold:.2f}", f"{row.kl:.1f}", f"{row.wins:.0%}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    if not Path("demo/judge/config.json").exists():
        make_judge(Path("demo/judge"))
    show(compare(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/ai-vs-human")))
