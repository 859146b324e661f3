"""What the docs say is so: plugins document themselves, snippets are real, commands and peers exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from alignkit.cli.app import build_app
from alignkit.options import Config
from alignkit.plugins import ROLES, Registration, registry
from alignkit.recipe.describe import SECTIONS, describe, groups_of, heading, plugin_text
from alignkit.recipe.tables import DEFAULT_PLUGIN, OPTION_TABLES, ROLE_OF_TABLE
from alignkit.versions import FIRST_PARTY

ROOT = Path(__file__).parent.parent
WRITTEN = "<!-- Written by docs/generate"
PATTERNS = ("*.md", "docs/**/*.md", "examples/*.md", "plugins/*/README.md")
ALL_PAGES = [path for pattern in PATTERNS for path in ROOT.glob(pattern)]
PAGES = [path for path in ALL_PAGES if not path.read_text(encoding="utf-8").startswith(WRITTEN)]
OWN = [plugin for plugin in registry().registrations if plugin.distribution in FIRST_PARTY]
PLUGIN_FILE = re.compile(r" --plugin \w+\.py\b")
"""A file that the reader has written."""
HOLDS_TABLES = re.compile(r"^\[(\w+)\]", re.MULTILINE)


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """Lines that call alignkit or make, in console blocks and in indented ones."""
    indented = re.findall(r"^    ((?:alignkit|make) .*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    fenced = [line for block in code_blocks(page, "console") for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in (*indented, *fenced) if line.startswith(("alignkit ", "make "))]


class Described(Config):
    """What it is
    in a line.

    Formula: a + b,
        with b = 1
    Paper: Nobody,
        arXiv:0000.00000.
    Use it when: there is
        nothing else.

    Something more: than that.
    """


class Bare(Config):
    __doc__ = None


def test_the_parts_of_a_docstring() -> None:
    text = plugin_text(Described)
    assert text.summary == "What it is in a line."
    assert text.sections == {
        "Formula": "a + b,\nwith b = 1",
        "Paper": "Nobody, arXiv:0000.00000.",
        "Use it when": "there is nothing else.",
    }
    assert text.more == "Something more: than that."
    assert plugin_text(Bare).summary == ""


@pytest.mark.parametrize("plugin", OWN, ids=str)
def test_a_plugin_says_what_it_is(plugin: Registration) -> None:
    text = plugin_text(plugin.config)
    assert text.summary.endswith((".", ")."))
    assert not text.summary.startswith("Options of")
    assert len(text.summary) < 120
    same = [other for other in OWN if other.config is plugin.config]
    assert same == [plugin], "each plugin has an options class of its own"
    assert [row.key for row in describe(plugin.config) if not row.help] == []
    keys, first = [row.key for row in describe(plugin.config)], plugin.config.matters
    assert len({*first} & {*keys}) == len(first) <= 12
    assert first or len([key for key in keys if "." not in key]) <= 12
    titles = [heading(group) for group in groups_of(plugin.config) if group is not plugin.config]
    assert len({*titles}) == len(titles)
    assert all(0 < len(title) < 80 for title in titles)
    if plugin.role == "optimizer":
        missing = [name for name in SECTIONS if not text.sections.get(name)]
        assert not missing, f"{plugin.config.__name__} has no section {missing} (docs/how-to/plugins.md)"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_are_well_formed(page: Path) -> None:
    for block in code_blocks(page, "json"):
        for line in block.splitlines():
            json.loads(line)
    for block in code_blocks(page, "python"):
        compile(block, str(page), "exec")
    for block in code_blocks(page, "toml"):
        tables = tomllib.loads(block)
        for table in HOLDS_TABLES.findall(block):
            if table in ROLE_OF_TABLE:
                check_options(table, tables[table])
            elif table in OPTION_TABLES:
                assert tables[table].keys() <= {row.key for row in describe(OPTION_TABLES[table])}


def check_options(table: str, given: dict[str, Any]) -> None:
    plugin = registry().get(ROLE_OF_TABLE[table], given.get("plugin") or DEFAULT_PLUGIN[table])
    assert given.keys() - {"plugin", "for"} <= {row.key for row in describe(plugin.config)}, table


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_can_be_typed(page: Path) -> None:
    names = {name for role in ROLES for name in registry().names(role)} | {"brevity", "my-ppo", "short", "NAME"}
    names |= {*re.findall(r'register\("([\w-]+)"', page.read_text(encoding="utf-8"))}
    for line in commands(page):
        program, *words = shlex.split(PLUGIN_FILE.sub("", line), comments=True)
        if program == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert words[0] in targets, line
            continue
        group: Any = get_command(build_app(words))
        while hasattr(group, "commands"):
            name, *words = words
            assert name in group.commands, line
            group = group.commands[name]
        context = group.make_context(name, list(words), resilient_parsing="--plugin" in words)
        for role in ROLES:
            chosen = context.params.get(role)
            assert not chosen or chosen in names or ":" in chosen, line
        for word in words:
            assert not word.startswith("examples/") or (ROOT / word).exists(), line


def test_links_lead_somewhere() -> None:
    for page in ALL_PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_what_is_said_of_trl_stands_in_its_source() -> None:
    found = importlib.util.find_spec("trl")
    if found is None or not version("trl").startswith("1.16."):
        pytest.skip("docs/generate/peers.toml is about TRL 1.16")
    beside: dict[Path, str] = {}
    for path in Path(str(found.origin)).parent.rglob("*_*.py"):
        stem = path.with_name(path.name.removesuffix("_trainer.py").removesuffix("_config.py"))
        beside[stem] = beside.get(stem, "") + path.read_text(encoding="utf-8")
    peers = tomllib.loads((ROOT / "docs/generate/peers.toml").read_text(encoding="utf-8"))
    for name, said in peers["trl"]["has"].items():
        trainer = re.findall(r"\w+Trainer", said)[0]
        texts = [text for text in beside.values() if f"class {trainer}(" in text]
        assert texts, f"{name}: {trainer}"
        for word in re.findall(r"`(\w+)`", said):
            assert any(f"'{word}'" in text or f'"{word}"' in text for text in texts), f"{name}: {word}"
