"""The plugin that the README shows, in every way in which a reader would use it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from alignkit import Group, OptionsError, Prompt, build_component, cli, read_groups, write_groups

if TYPE_CHECKING:
    from conftest import InstallPlugin

SOURCE = Path(__file__).parents[1] / "examples" / "brevity.py"
SHORTEST = SOURCE.with_name("short_answers.py")
GROUP = Group(Prompt(text="Say hello."), ("good day to you", "good day"))


@pytest.fixture
def _site(install_plugin: InstallPlugin) -> None:
    """The plugin, installed with one entry point."""
    install_plugin("brevity", SOURCE.read_text(encoding="utf-8"))


def test_it_is_as_short_as_it_says() -> None:
    assert sum(1 for line in SOURCE.read_text(encoding="utf-8").splitlines() if line.strip()) <= 20


def test_the_shortest_one_has_seven_lines_and_counts_words(install_plugin: InstallPlugin, tmp_path: Path) -> None:
    text = SHORTEST.read_text(encoding="utf-8")
    assert sum(1 for line in text.splitlines() if line.strip()) == 7
    install_plugin("short_answers", text)
    assert build_component("reward", "short-answers").score([GROUP]) == [[-4, -2]]


@pytest.mark.usefixtures("_site")
def test_from_the_command_line(tmp_path: Path) -> None:
    write_groups(tmp_path / "groups.jsonl", [GROUP])
    words = ["score", str(tmp_path / "groups.jsonl"), "--reward", "brevity", "-o", "reward.words=4", "--quiet"]
    assert cli.run([*words, "--out", str(tmp_path / "scored.jsonl")]) == 0
    assert [group.scores for group in read_groups(tmp_path / "scored.jsonl")] == [(0.0, -0.5)]


def test_in_python() -> None:
    made: dict[str, Any] = runpy.run_path(str(SOURCE))
    assert made["Brevity"]().score([GROUP]) == [[-0.8, -0.9]]
    assert made["Brevity"](made["BrevityOptions"](words=4)).score([GROUP]) == [[0.0, -0.5]]
    with pytest.raises(OptionsError, match=r"BrevityOptions words: must be a valid integer, .*, found 'four'"):
        made["BrevityOptions"](words="four")


@pytest.mark.usefixtures("_site")
def test_by_its_name_in_python() -> None:
    assert build_component("reward", "brevity").score([GROUP]) == [[-0.8, -0.9]]
    assert build_component("reward", {"plugin": "brevity", "words": 4}).score([GROUP]) == [[0.0, -0.5]]
    with pytest.raises(OptionsError, match="reward brevity wrods: no such option\n  fix: did you mean 'words'"):
        build_component("reward", {"plugin": "brevity", "wrods": 4})


@pytest.mark.usefixtures("_site")
def test_it_passes_its_check() -> None:
    assert cli.run(["plugins", "check", "brevity"]) == 0
