"""The plugin that the README shows is whole: installed with one entry point, it scores from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alignkit import Group, Prompt, cli, read_groups, write_groups

if TYPE_CHECKING:
    from conftest import InstallPlugin

SOURCE = Path(__file__).parents[1] / "examples" / "brevity.py"


def test_the_plugin_of_the_readme_works_and_is_as_short_as_it_says(
    install_plugin: InstallPlugin, tmp_path: Path
) -> None:
    text = SOURCE.read_text(encoding="utf-8")
    assert sum(1 for line in text.splitlines() if line.strip()) <= 20
    install_plugin("brevity", text)
    write_groups(tmp_path / "groups.jsonl", [Group(Prompt(text="Say hello."), ("good day to you", "good day"))])
    words = ["score", str(tmp_path / "groups.jsonl"), "--reward", "brevity", "-o", "reward.words=4", "--quiet"]
    assert cli.run([*words, "--out", str(tmp_path / "scored.jsonl")]) == 0
    assert [group.scores for group in read_groups(tmp_path / "scored.jsonl")] == [(0.0, -0.5)]
