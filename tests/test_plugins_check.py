"""`alignkit plugins check`: it takes the options that a component needs, and what it skips is no pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from alignkit import InputError, cli, registry
from alignkit.testing import run_contracts

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import InstallPlugin

WORDS = """
from dataclasses import dataclass
from pathlib import Path
from alignkit import Config, Count, RewardSource, hookimpl

@dataclass(frozen=True, kw_only=True)
class WordsOptions(Config):
    "Counts listed words."
    path: str
    "File of words."
    least: Count = 1
    "Letters of a word."

class Words(RewardSource[WordsOptions]):
    def score(self, groups):
        listed = Path(self.config.path).read_text().split()
        return [[float(sum(text.count(word) for word in listed)) for text in group.responses] for group in groups]

class Plain(RewardSource):
    def score(self, groups):
        return [[{score} for text in group.responses] for group in groups]

@hookimpl
def register_reward_sources(register):
    register("words", Words)
    register("plain", Plain)
"""


def check(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    """(exit code, lines of stdout, stderr) of the command."""
    capfd.readouterr()
    code = cli.run(["plugins", "check", *arguments])
    said = capfd.readouterr()
    return code, said.out.splitlines(), said.err


def test_what_is_skipped_says_why_and_is_no_pass(
    install_plugin: InstallPlugin, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    install_plugin("word-rewards", WORDS.format(score="float(len(text))"))
    code, said, error = check(capfd, "word-rewards")
    # 4 of options, 9 of a reward, 1 of the distribution
    assert said[-1] == "14 passed, 1 skipped: word-rewards:words needs -o reward.path=VALUE"
    assert code == 2
    assert error.startswith("error: not checked: word-rewards:words needs -o reward.path=VALUE\n  fix: ")
    assert "alignkit plugins check word-rewards -o KEY=VALUE" in error
    (tmp_path / "words.txt").write_text("cat ran")
    code, said, error = check(capfd, "word-rewards", "-o", f"reward.path={tmp_path / 'words.txt'}")
    assert (code, said[-1], error) == (0, "27 passed", "")


def test_what_fails_counts_and_is_shown(install_plugin: InstallPlugin, capfd: pytest.CaptureFixture[str]) -> None:
    install_plugin("word-rewards", WORDS.format(score="len(text)"))
    code, said, _ = check(capfd, "plain")
    assert code == 1
    assert any("8 is no finite float: use None to abstain" in line for line in said)
    assert not any("Warning" in line for line in said)
    assert said[-1] == "1 failed, 13 passed"


def test_a_check_of_everything_is_not_refused_for_what_it_skips(
    install_plugin: InstallPlugin, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody has options for all that is installed."""
    install_plugin("word-rewards", WORDS.format(score="1.0"))
    found = registry()
    found.registrations[:] = [r for r in found.registrations if r.distribution == "word-rewards"]
    code, said, error = check(capfd)
    assert (code, error) == (0, "")
    assert said[-1] == "14 passed, 1 skipped: word-rewards:words needs -o reward.path=VALUE"


@pytest.mark.parametrize(
    ("options", "where", "what", "fix"),
    [
        (["reward.pth=x"], "-o reward.pth", "no such option", "did you mean 'path'?"),
        (["reward.path=x", "reward.least=0"], "-o reward.least", "must be at least 1, found 0", ""),
        (["policy.path=x"], "-o policy.path", "no policy plugin with options is tested", ""),
        (["path=x"], "-o path", "'path' is not table.option", None),
        (["reward.path"], "-o reward.path", "has no '='", None),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    install_plugin: InstallPlugin, options: list[str], where: str, what: str, fix: str | None
) -> None:
    install_plugin("word-rewards", WORDS.format(score="1.0"))
    with pytest.raises(InputError) as refused:
        run_contracts("word-rewards", options)
    assert (refused.value.where, refused.value.what) == (where, what)
    assert fix is None or refused.value.fix == fix


def test_what_a_plugin_prints_when_it_is_loaded_stays_out_of_the_json(install_plugin: InstallPlugin) -> None:
    site = install_plugin("word-rewards", f"print('welcome')\n{WORDS.format(score='1.0')}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "alignkit", "plugins", "list", "--json"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert {"role": "reward", "name": "plain", "distribution": "word-rewards"} in json.loads(said.stdout)["plugins"]
    assert "welcome" in said.stderr
