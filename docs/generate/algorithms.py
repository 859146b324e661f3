"""The reference of the algorithms: a page each, one to choose from, and one of the options that several share."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from alignkit.interfaces import Algorithm, Feed
from alignkit.recipe.describe import OptionHelp, PluginText, describe, groups_of, heading, plugin_text
from docs.generate import curves
from docs.generate.curves import FOLDER, measured, page_name
from docs.generate.options import option_table, own_plugins
from docs.generate.text import INPUTS, NOTE, cell, escaped, slug, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from alignkit.plugins import Registration

SHARED = "shared-options"
FEEDS = {
    Feed.DEMONSTRATIONS: "Demonstrations",
    Feed.RANKINGS: "Rankings and pairs",
    Feed.LABELS: "Desirable or not",
    Feed.ROLLOUTS: "Rollouts and a reward",
}
HOW_TO_CHOOSE = """\
Every algorithm is one plugin: `alignkit run recipe.toml --optimizer NAME`, its options by `-o optimizer.KEY=VALUE`.
Which stages a run has follows from what the algorithm learns from. Those that learn from demonstrations are named in
the recipe's `[sft]` table (`-o sft.plugin=NAME`); those that train reward models are chosen by `-o reward.loss=...`.

A reference policy costs a second model in memory, unless LoRA is trained. The gold reward is what each reached
[on the demo's world](#side-by-side-on-the-demos-world). [Choose an algorithm](../../how-to/choose-an-algorithm.md) asks
the questions that come before these tables.
"""
SYMBOLS = """\
In the formula, pi is the policy, pi_ref the reference, x a prompt, y a response of |y| tokens, y_w the better and y_l
the worse of two, t a token.
"""
COMPARISON = """\
Each starts from the same SFT policy. An offline algorithm is given each of 1411 rankings of four replies once, an
online one 1440 prompts in 30 batches, to each of which it samples four replies that the learned reward scores. gold is
the true reward, which no model sees, of replies to the evaluation's prompts; reward the learned one, KL that to the SFT
policy in nats a reply. TFLOPs are those of the algorithm alone, memory is the peak of its whole process. The settings
stand in `alignkit_demo/recipes/comparison.toml`. Learning rates were tried on this world, two or three for most, and
there is one seed on one machine, so small differences say little: another machine moves gold by about 0.3.
"""
FIGURES = ["algorithm", "gold reward", "learned reward", "KL", "wins against SFT", "TFLOPs", "peak memory, MiB"]
CHOICE = ["algorithm", "what it is", "use it when", "reference policy", "gold reward"]
BESIDE = ("dpo", "ppo")
"""Algorithms whose figures stand beside those of every other one."""


@dataclass(frozen=True)
class Described:
    """An algorithm, and what its options class says of it."""

    plugin: Registration
    target: type[Algorithm[Any]]
    text: PluginText

    @property
    def name(self) -> str:
        return self.plugin.name

    @property
    def file(self) -> str:
        """The name of its page."""
        return f"{page_name(self.name)}.md"

    @property
    def link(self) -> str:
        return f"[{self.name}]({self.file})"

    @property
    def reference(self) -> str:
        """Whether it needs the reference policy."""
        if hasattr(self.plugin.config, "needs_reference"):
            return "where kl_coef > 0"
        return "yes" if getattr(self.target, "uses_reference", False) else "no"


def algorithm_pages() -> dict[str, str]:
    """Path under docs/ -> page."""
    found = _algorithms()
    pages = {one.file: _page(one) for one in found} | {"index.md": _index(found), f"{SHARED}.md": _shared(found)}
    return {f"{FOLDER}/{name}": text for name, text in pages.items()}


def pictures() -> dict[str, str]:
    """Path under docs/ -> SVG."""
    return curves.pictures({one.name: _beside(one) for one in _algorithms()})


def _beside(one: Described) -> str:
    """The algorithm whose curves stand beside another one's: one that learns from the same."""
    feeds = {other.name: other.target.consumes for other in _algorithms()}
    return next((name for name in BESIDE if name != one.name and feeds[name] is one.target.consumes), "")


@cache
def _algorithms() -> tuple[Described, ...]:
    """All of them, by what they learn from; TRL's last."""
    loaded = []
    for plugin in own_plugins("optimizer"):
        target = plugin.load()
        assert issubclass(target, Algorithm)
        loaded.append(Described(plugin, target, plugin_text(plugin.config)))
    ordered = [one for feed in FEEDS for one in loaded if one.target.consumes is feed]
    return tuple(sorted(ordered, key=lambda one: one.plugin.distribution == "alignkit-trl"))


def _index(found: Sequence[Described]) -> str:
    """What to choose from, how they did beside each other, and which peers have them."""
    parts = [NOTE, "# Algorithms\n", HOW_TO_CHOOSE]
    own = [one for one in found if one.plugin.distribution != "alignkit-trl"]
    chapters = [(title, [one for one in own if one.target.consumes is feed]) for feed, title in FEEDS.items()]
    for title, chosen in (*chapters, ("TRL's own trainers", [one for one in found if one not in own])):
        rows = [
            [one.link, cell(one.text.summary), cell(one.text.sections["Use it when"]), one.reference, _gold(one)]
            for one in chosen
        ]
        parts += [f"## {title}\n", *table(CHOICE, rows)] if rows else []
    return "\n".join([*parts, *_comparison(found), *_optima(found), *_peers(own)])


def _comparison(found: Sequence[Described]) -> list[str]:
    """What a first `alignkit demo --compare all` measured, the best by gold reward first."""
    ordered = sorted(measured()["rows"].values(), key=lambda row: -row["gold"])
    links = {one.name: one.link for one in found}
    rows = [[links.get(row["algorithm"], row["algorithm"]), *_cells(row)] for row in ordered]
    return ["## Side by side on the demo's world\n", _when(), COMPARISON, *table(FIGURES, rows)]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Gold, learned reward, KL, win rate, TFLOPs and MiB of an algorithm."""
    figures = (f"{row['gold']:.2f}", f"{row['reward']:.2f}", f"{round(row['kl'], 1) + 0.0:.1f}")
    if row["algorithm"] == "sft":
        return (*figures, "", "", "")
    return (*figures, f"{row['win_rate']:.0%}", f"{row['flops'] / 1e12:.2f}", str(row["memory"]))


def _gold(one: Described) -> str:
    """The gold reward that an algorithm reached on the demo's world; empty where it was not measured."""
    rows = measured()["rows"]
    return f"{rows[one.name]['gold']:.2f}" if one.name in rows else ""


def _when() -> str:
    found = measured()
    machine = f"{found['cores']} cores, PyTorch threads: {found['threads']}, torch {found['torch']}"
    return f"`alignkit demo --compare all` on {found['date']} ({machine}).\n"


def _optima(found: Sequence[Described]) -> list[str]:
    """How near the algorithms come to optima that are known."""
    links = {one.name: one.link for one in found}
    rows = [[links[name], *cells] for name, cells in _distances()]
    tests = "; ".join(problem["tests"] for problem in _problems())
    return [
        "## How near they come to a known optimum\n",
        "Total variation distance (0 to 1) of the reference and of the trained policy from the optimum in closed form,"
        f" on policies over a few tokens, as the tests measure it ({tests}).\n",
        *table(["algorithm", "optimum", "reference", "trained"], rows),
    ]


@cache
def _problems() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads((INPUTS / "optima.toml").read_text(encoding="utf-8"))["problem"]
    return found


def _distances() -> Iterator[tuple[str, list[str]]]:
    """Algorithm -> the optimum, and the distances from it before and after."""
    for problem in _problems():
        for name, distance in problem["distance"].items():
            yield name, [problem["target"], f"{problem['start']:g}", f"{distance:g}"]


def _peers(found: Sequence[Described]) -> list[str]:
    """Which peers have each algorithm."""
    peers = _all_peers()
    head = ["algorithm", *(peer["title"] for peer in peers.values())]
    rows = [[one.link, *(cell(peer["has"].get(one.name, "-")) for peer in peers.values())] for one in found]
    sources = "".join(f"\n- {peer['title']}: {peer['source']}" for peer in peers.values())
    return [
        "## Which peers have it\n",
        *table(head, rows),
        f"Under which name peers have it; - where it was not found in their source:\n{sources}\n",
    ]


@cache
def _all_peers() -> dict[str, dict[str, Any]]:
    return tomllib.loads((INPUTS / "peers.toml").read_text(encoding="utf-8"))


def _page(one: Described) -> str:
    """Formula, source, when to use it, the options, and what was measured."""
    said = one.text.sections
    parts = [NOTE, f"# `{one.name}`\n", f"{escaped(one.text.summary)}\n"]
    parts += [f"```text\n{said['Formula']}\n```\n", SYMBOLS] if "Formula" in said else []
    parts += [f"- Source: {escaped(said['Paper'])}"] if "Paper" in said else []
    parts += [f"- Use it when: {escaped(said['Use it when'])}"] if "Use it when" in said else []
    parts += [f"- Learns from: {one.target.consumes.value}", f"- Reference policy: {one.reference}"]
    has = [f"{peer['title']}: {peer['has'][one.name]}" for peer in _all_peers().values() if one.name in peer["has"]]
    parts += [f"- Elsewhere: {'; '.join(has)}"] if has else []
    parts += [f"- Package: {one.plugin.distribution}\n"]
    parts += [f"{escaped(one.text.more)}\n"] if one.text.more else []
    return "\n".join([*parts, *_options(one.plugin.config), *_figures(one)])


def _options(config: type[Any]) -> list[str]:
    """The options that matter, the other ones of its own, and the groups in which the rest stands."""
    rows = {row.key: row for row in _of_groups(config, *groups_of(config))}
    first = [rows[key] for key in config.matters if key in rows]
    groups = [group for group in groups_of(config) if group is not config]
    unchanged = [row for group in groups for row in _of_groups(group, group)]
    own = [row for row in rows.values() if row not in unchanged and row not in first]
    parts = ["## The options that matter\n", *option_table(first)] if first else []
    parts += ["## Other options of its own\n", *option_table(own)] if own else []
    links = [f"- [{heading(group)}]({SHARED}.md#{slug(heading(group))})" for group in groups]
    return [*parts, "## Options that others have too\n", "\n".join(links) + "\n"] if links else parts


def _figures(one: Described) -> list[str]:
    """What was measured of it on the demo's world, beside SFT, DPO and PPO, and how near it came to an optimum."""
    rows: Mapping[str, dict[str, Any]] = measured()["rows"]
    parts = []
    if one.name in rows and one.name != "sft":
        names = dict.fromkeys((one.name, *BESIDE, "sft"))
        cells = [[f"**{name}**" if name == one.name else name, *_cells(rows[name])] for name in names]
        rank = sorted((row["gold"] for row in rows.values()), reverse=True).index(rows[one.name]["gold"]) + 1
        place = f"By gold reward it is number {rank} of {len(rows)}. [How it was measured](index.md#{slug(_SIDE)}).\n"
        parts += ["## Measured on the demo's world\n", _when(), *table(FIGURES, cells), place]
    if drawn := list(curves.parts(one.name, _beside(one))):
        parts += ["## Along training on the demo's world\n", *drawn]
    near = [cells for name, cells in _distances() if name == one.name]
    if near:
        text = "Total variation distance from the optimum in closed form, [as the tests measure it](index.md#{}).\n"
        parts += ["## How near it comes to a known optimum\n", text.format(slug(_NEAR))]
        parts += table(["optimum", "reference", "trained"], near)
    return parts


_SIDE = "Side by side on the demo's world"
_NEAR = "How near they come to a known optimum"


def _shared(found: Sequence[Described]) -> str:
    """The groups of options that several algorithms have."""
    configs = [one.plugin.config for one in found]
    groups = dict.fromkeys(group for config in configs for group in groups_of(config) if group is not config)
    parts = [NOTE, "# Options that algorithms share\n"]
    parts.append("Each algorithm's page links to the groups that it has, [Algorithms](index.md).\n")
    for group in groups:
        parts += [f"## {heading(group)}\n", *option_table(_of_groups(group, group))]
    return "\n".join(parts)


def _of_groups(config: type[Any], *groups: type[Any]) -> list[OptionHelp]:
    """The options of some groups as a class has them, without what it says of their order."""
    titles = {"", *map(heading, groups)}
    return [replace(row, group="", matters=False) for row in describe(config) if row.group in titles]
