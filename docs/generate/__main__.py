"""Writes the parts of the docs that are generated from the program: `make docs`. `--check` only says what is stale.

- cli.md: the help of every command.
- algorithms.md, options.md: from the installed plugins of this project (plugins.md, "How a plugin is documented").
- reliability.md: from reliability.toml, where every fault stands with its tests.
- in the README and docs/**/*.md, code blocks below `<!-- from: PATH -->` or `<!-- from: PATH#Name -->`: the file, or
  the class or function in it.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.interfaces import Feed, Optimizer
from alignkit.plugins import FIRST_PARTY, Registration, registry
from alignkit.recipe.describe import OptionHelp, describe, groups_of, heading, plugin_text, sections
from alignkit.recipe.tables import OPTION_TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

INPUTS = Path(__file__).resolve().parent
DOCS = INPUTS.parent
ROOT = DOCS.parent
WIDTH = 80
NOTE = "<!-- Written by docs/generate (`make docs`); don't edit. -->\n"
FEEDS = {
    Feed.DEMONSTRATIONS: "Demonstrations",
    Feed.RANKINGS: "Rankings and pairs",
    Feed.LABELS: "Desirable or not",
    Feed.ROLLOUTS: "Rollouts and a reward",
}
ROLES = {
    "policy": "Policies",
    "reward": "Rewards",
    "preferences": "Preferences, demonstrations and prompts",
    "metrics": "Receivers of metrics",
}
ALGORITHMS = """\
Every algorithm is one plugin: `alignkit run recipe.toml --optimizer NAME`, its options by `-o optimizer.KEY=VALUE`.
Which stages a run has follows from what the algorithm learns from. Those that learn from demonstrations are named in
the recipe's `[sft]` table (`-o sft.plugin=NAME`); those that train reward models are chosen by `-o reward.loss=...`.

In the formulas, pi is the policy, pi_ref the reference, x a prompt, y a response of |y| tokens, y_w the better and y_l
the worse of two, t a token.
"""
COMPARISON = """\
Each starts from the same SFT policy and is given 1440 prompts: an offline algorithm every ranking of four replies once,
an online one 30 batches of 48 prompts, to each of which it samples four replies that the learned reward scores. gold is
the true reward, which no model sees, of replies to the evaluation's prompts; reward the learned one, KL that to the SFT
policy in nats a reply. Seconds are those of the algorithm alone, memory is the peak of its whole process. The settings
stand in `alignkit_demo/recipes/comparison.toml`. Learning rates were tried on this world, two or three for most, and
there is one seed on one machine, so small differences say little: another machine moves gold by about 0.3. Before
2026-11-29 a third of the evaluation's prompts stood in the demo's other files; now none does.
"""
RELIABILITY = """\
What can go wrong, what then happens, and the tests that hold it; a test fails where a row has none. `make test` runs
them, those that take long by `make test-slow`.
"""
SNIPPET = re.compile(r"(<!-- from: (\S+) -->\n+```\w*\n)(.*?)(^```$)", re.DOTALL | re.MULTILINE)


def cli_page() -> str:
    """The help of every command, as it is printed."""
    parts = [NOTE, "# The command line\n"]
    for command in (), *_commands():
        parts.append(f"## `{' '.join(('alignkit', *command))}`\n\n```console\n{_help(command)}\n```\n")
    return "\n".join(parts)


def _commands() -> Iterator[tuple[str, ...]]:
    """The words of every command, those of groups after the group."""
    from typer.main import get_command

    from alignkit.cli.app import build_app

    def below(group: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for name, command in group.commands.items():
            yield (*words, name)
            if hasattr(command, "commands"):
                yield from below(command, (*words, name))

    yield from below(get_command(build_app([])), ())


def _help(command: Sequence[str]) -> str:
    from alignkit.cli import run

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        code = run([*command, "--help"])
    assert code == 0, (command, text.getvalue())
    return "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())


def options_page() -> str:
    """The options of a recipe's own tables and of every plugin but the algorithms."""
    parts = [
        NOTE,
        "# Options\n",
        "What can stand in a recipe, or follow `-o`. The algorithms have a page of their own,"
        " [algorithms.md](algorithms.md); `alignkit plugins show NAME` says the same on the command line.\n",
        "## Tables of every recipe\n",
    ]
    for table, config in OPTION_TABLES.items():
        parts += [f"### `[{table}]`\n", *_options(describe(config))]
    for role, title in ROLES.items():
        found = _plugins(role)
        parts += [f"## {title}\n"] if found else []
        for plugin in found:
            parts += [f"### `{plugin.name}`\n", plugin_text(plugin.config).summary + "\n"]
            parts.append(f"From {plugin.distribution}.\n")
            for heads, rows in sections(plugin.config).items():
                parts += [f"{heads}:\n" if heads else "", *_options(rows)]
    return "\n".join(parts)


def algorithms_page() -> str:
    """Every Optimizer, by what it learns from, after a table of all; then the groups of options that several share."""
    loaded = {plugin: plugin.load() for plugin in _plugins("optimizer")}
    algorithms = {plugin: target for plugin, target in loaded.items() if issubclass(target, Optimizer)}
    ordered = [plugin for feed in FEEDS for plugin, target in algorithms.items() if target.consumes is feed]
    parts = [NOTE, "# Algorithms\n", ALGORITHMS, *_index({plugin: algorithms[plugin] for plugin in ordered})]
    parts += [*_comparison(), *_optima()]
    for feed, title in FEEDS.items():
        chosen = [plugin for plugin in ordered if algorithms[plugin].consumes is feed]
        parts += [f"## {title}\n"] if chosen else []
        for plugin in chosen:
            parts += _algorithm(plugin, _reference(plugin, algorithms[plugin]))
    shared = {group: None for plugin in ordered for group in groups_of(plugin.config) if group is not plugin.config}
    parts.append("## Groups of options\n")
    for group in shared:
        parts += [f"### {heading(group)}\n", *_options(_of_group(group, group))]
    return "\n".join(parts)


def _index(algorithms: Mapping[Registration, type[Optimizer[Any]]]) -> list[str]:
    """One line an algorithm: what it learns from, and which peers have it."""
    peers = tomllib.loads((INPUTS / "peers.toml").read_text(encoding="utf-8"))
    anchors = _anchors(list(algorithms))
    head = ["algorithm", "learns from", "reference", *(peer["title"] for peer in peers.values())]
    rows = []
    for plugin, target in algorithms.items():
        marks = [_cell(peer["has"].get(plugin.name, "-")) for peer in peers.values()]
        link = f"[{plugin.name}](#{anchors[plugin]})"
        rows.append([link, target.consumes.value, _reference(plugin, target), *marks])
    sources = "".join(f"\n- {peer['title']}: {peer['source']}" for peer in peers.values())
    return [
        *_table(head, rows),
        f"Under which name peers have it; - where it was not found in their source:\n{sources}\n",
    ]


def _comparison() -> list[str]:
    """What a first `alignkit demo --compare all` measured: its file as a table, the best by gold reward first."""
    found = json.loads((INPUTS / "comparison.json").read_text(encoding="utf-8"))
    head = ["algorithm", "gold reward", "learned reward", "KL", "wins against SFT", "seconds", "peak memory, MiB"]
    rows = sorted(found["rows"].values(), key=lambda row: -row["gold"])
    machine = f"{found['cores']} cores, PyTorch threads: {found['threads']}, torch {found['torch']}"
    return [
        "## Side by side on the demo's world\n",
        f"`alignkit demo --compare all` on {found['date']} ({machine}{found.get('note', '')}).\n",
        COMPARISON,
        *_table(head, [[row["algorithm"], *_measured(row)] for row in rows]),
    ]


def _measured(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Gold, learned reward, KL, win rate, seconds and MiB of an algorithm."""
    figures = (f"{row['gold']:.2f}", f"{row['reward']:.2f}", f"{round(row['kl'], 1) + 0.0:.1f}")
    if row["algorithm"] == "sft":
        return (*figures, "", "", "")
    return (*figures, f"{row['win_rate']:.0%}", f"{row['seconds']:.0f}", str(row["memory"]))


def _optima() -> list[str]:
    """How near the algorithms come to optima that are known."""
    found = tomllib.loads((INPUTS / "optima.toml").read_text(encoding="utf-8"))
    rows = [
        [name, problem["target"], f"{problem['start']:g}", f"{distance:g}"]
        for problem in found["problem"]
        for name, distance in problem["distance"].items()
    ]
    tests = "; ".join(problem["tests"] for problem in found["problem"])
    return [
        "## How near they come to a known optimum\n",
        "Total variation distance (0 to 1) of the reference and of the trained policy from the optimum in closed form,"
        f" on policies over a few tokens, as the tests measure it ({tests}).\n",
        *_table(["algorithm", "optimum", "reference", "trained"], rows),
    ]


def reliability_page() -> str:
    """Every fault with its tests, and what long runs of kills and of mutated inputs have found."""
    said = tomllib.loads((INPUTS / "reliability.toml").read_text(encoding="utf-8"))
    rows = [
        [str(fault["number"]), _cell(fault["fault"]), _cell(fault["must"]), "; ".join(map(_test_link, fault["tests"]))]
        for fault in said["fault"]
    ]
    parts = [NOTE, "# Reliability\n", RELIABILITY, *_table(["#", "fault or input", "what happens", "tests"], rows)]
    for name, table in (("soak", _kills), ("fuzz", _inputs)):
        measured, file = said[name], INPUTS / f"{name}.json"
        counts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        parts += [f"## {measured['title']}\n", measured["text"]]
        parts += [f"On {measured['date']}, {measured['machine']}:\n", *table(counts)] if counts else []
        parts += [f"{measured['found']}\n"] if measured["found"] else []
    return "\n".join(parts)


def _kills(counts: Mapping[str, int]) -> list[str]:
    """What `make soak ARGS="--resume FILE"` has written: every kill led to the same models."""
    moments = {"any": "at any moment", "save": "inside a save", "model": "while the model is written"}
    by_run = {name: [counts.get(f"{name}: {moment}", 0) for moment in moments] for name in _runs(counts)}
    total = list(map(sum, zip(*by_run.values(), strict=True)))
    rows = [[name, *map(str, found), str(sum(found))] for name, found in {**by_run, "together": total}.items()]
    return _table(["run", *moments.values(), "kills, all resumed bitwise"], rows)


def _runs(counts: Mapping[str, int]) -> list[str]:
    return list(dict.fromkeys(key.rpartition(":")[0] for key in counts))


def _inputs(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What `make fuzz-long ARGS="--resume FILE"` has written."""
    total = {outcome: sum(count.get(outcome, 0) for count in counts.values()) for outcome in ("read", "refused")}
    rows = [
        [name, f"{found.get('read', 0):,}", f"{found.get('refused', 0):,}", f"{sum(found.values()):,}"]
        for name, found in {**counts, "together": total}.items()
    ]
    return _table(["target", "read", "refused", "inputs"], rows)


def _test_link(test: str) -> str:
    path, name = test.split("::")
    return f"[{name.removeprefix('test_').replace('_', ' ')}](../../{path})"


def _reference(plugin: Registration, target: type[Optimizer[Any]]) -> str:
    by_options = hasattr(plugin.config, "needs_reference")
    return "where kl_coef > 0" if by_options else "yes" if target.uses_reference else "no"


def _algorithm(plugin: Registration, reference: str) -> list[str]:
    text = plugin_text(plugin.config)
    parts = [f"### `{plugin.name}`\n", f"{text.summary}\n"]
    if formula := text.sections.get("Formula"):
        parts.append(f"```text\n{formula}\n```\n")
    for name in ("Paper", "Use it when"):
        if said := text.sections.get(name):
            parts.append(f"{name}: {said}\n")
    more = [f"{text.more}\n"] if text.more else []
    about = f"Reference policy: {reference}. From {plugin.distribution}.\n"
    return [*parts, *more, about, *_options_of(plugin.config)]


def _options_of(config: type[Any]) -> list[str]:
    """What matters first, the options that a class has or changes, and the groups in which the others stand."""
    groups = [group for group in groups_of(config) if group is not config]
    unchanged = [row for group in groups for row in _of_group(group, group)]
    own = [row for row in _of_group(config, *groups_of(config)) if row not in unchanged]
    links = [f"[{heading(group)}](#{_slug(heading(group))})" for group in groups]
    first = ", ".join(f"`{key}`" for key in config.matters)
    return [f"What matters first: {first}.\n", *_options(own), f"Groups: {', '.join(links)}.\n"]


def _of_group(config: type[Any], *groups: type[Any]) -> list[OptionHelp]:
    """The options of some groups as a class has them, without what it says of their order."""
    titles = {"", *map(heading, groups)}
    return [replace(row, group="", matters=False) for row in describe(config) if row.group in titles]


def _slug(title: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _anchors(plugins: Sequence[Registration]) -> dict[Registration, str]:
    """The anchors that GitHub makes of the headings, in their order."""
    seen: dict[str, int] = {}
    anchors = {}
    for plugin in plugins:
        slug = _slug(plugin.name)
        anchors[plugin] = slug if slug not in seen else f"{slug}-{seen[slug]}"
        seen[slug] = seen.get(slug, 0) + 1
    return anchors


def _plugins(role: str) -> list[Registration]:
    """The project's own plugins of a role, by name."""
    broken = [f"{plugin.distribution}: {plugin.error}" for plugin in registry().broken]
    assert not broken, broken
    found = [plugin for plugin in registry().registrations if plugin.role == role]
    return sorted((p for p in found if p.distribution in FIRST_PARTY), key=lambda plugin: plugin.name)


def _options(rows: Sequence[OptionHelp]) -> list[str]:
    if not rows:
        return []
    cells = [[f"`{row.key}`", _cell(row.type), f"`{_cell(row.default)}`", _cell(row.help)] for row in rows]
    return _table(["option", "type", "default", "what it does"], cells)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def with_snippets(text: str) -> str:
    """The page with every code block below `<!-- from: ... -->` as the file now is."""
    return SNIPPET.sub(lambda match: match[1] + _excerpt(match[2]) + "\n" + match[4], text)


def _excerpt(source: str) -> str:
    """The text of `PATH`, or of a class or function at its top level: `PATH#Name`."""
    path, _, name = source.partition("#")
    text = (ROOT / path).read_text(encoding="utf-8").strip()
    if not name:
        return text
    found = next(node for node in ast.parse(text).body if getattr(node, "name", "") == name)
    first = min([found.lineno, *(node.lineno for node in getattr(found, "decorator_list", []))])
    return "\n".join(text.splitlines()[first - 1 : found.end_lineno])


def pages() -> dict[Path, str]:
    """Every generated page, and every page with snippets, as it should be."""
    os.environ["COLUMNS"] = str(WIDTH)
    made = {
        DOCS / "reference/cli.md": cli_page(),
        DOCS / "reference/options.md": options_page(),
        DOCS / "reference/algorithms.md": algorithms_page(),
        DOCS / "explanation/reliability.md": reliability_page(),
    }
    written = [path for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))) if path not in made and path.exists()]
    return made | {path: with_snippets(path.read_text(encoding="utf-8")) for path in written}


def main(arguments: Sequence[str]) -> int:
    """Writes the pages, or with `--check` names those that are stale; 1 where there are any."""
    wanted = pages()
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale: run `make docs`", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
