"""Proof of the plugin interface: a package that a stranger could have written, installed and used by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import installed_in

from alignkit import cli
from alignkit.records import Group, Prompt, write_groups
from alignkit.testing.scaffold import write_distribution

EXAMPLE = Path(__file__).parent.parent / "examples/third-party-plugin"


def run(*arguments: str, site: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed by pip into a folder of its own."""
    folder = tmp_path_factory.mktemp("third-party")
    source = shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    ran = run(*pip, "--target", str(folder / "site"), str(source), site=folder)
    assert ran.returncode == 0, ran.stderr
    return folder / "site"


def test_it_is_listed_and_described(site: Path) -> None:
    listed = json.loads(run("-m", "alignkit", "plugins", "list", "--json", site=site).stdout)
    assert {"role": "reward", "name": "brevity", "distribution": "alignkit-brevity"} in listed["plugins"]
    assert "words: int >= 1 = 20" in run("-m", "alignkit", "plugins", "show", "brevity", site=site).stdout


def test_it_scores_by_name_from_the_command_line(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_groups(tmp_path / "groups.jsonl", [Group(Prompt.of("Hello?"), ("one two three four", "one two", ""))])
    score = ["score", str(tmp_path / "groups.jsonl"), "--reward", "brevity"]
    out = tmp_path / "scored.jsonl"
    with installed_in(site):
        assert cli.run([*score, "-o", "reward.words=4", "--out", str(out), "--quiet"]) == 0
        assert json.loads(out.read_text())["scores"] == [0.0, -0.5, -1.0]
        assert cli.run([*score, "-o", "reward.words=0", "--out", str(out)]) == 2
    assert capsys.readouterr().err == "error: -o reward.words: must be at least 1, found 0\n"


def test_it_keeps_its_contract(site: Path, tmp_path: Path) -> None:
    tests = shutil.copytree(EXAMPLE / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    ran = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tests), site=site)
    assert ran.returncode == 0, ran.stdout
    with installed_in(site):
        assert cli.run(["plugins", "check", "brevity"]) == 0


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and not {"__pycache__", "build"} & set(path.parts) and "egg-info" not in str(path)
    }


def test_the_example_is_what_plugins_new_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plugins", "new", "brevity", "--out", str(tmp_path)]) == 0
    assert files_of(tmp_path / "alignkit-brevity") == files_of(EXAMPLE)
    assert cli.run(["plugins", "new", "brevity", "--out", str(tmp_path)]) == 2
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Brevity", "a_b", "-x", "x-", "1x", ""])
def test_a_name_that_no_package_can_have(name: str, tmp_path: Path) -> None:
    assert cli.run(["plugins", "new", "--out", str(tmp_path), "--", name]) == 2


def test_a_name_of_several_words(tmp_path: Path) -> None:
    folder = write_distribution("kind-words", tmp_path)
    source = (folder / "alignkit_kind_words.py").read_text()
    assert "class KindWordsReward(RewardSource[KindWordsOptions])" in source
    assert 'register("kind-words", KindWordsReward)' in source
    compile(source, "alignkit_kind_words.py", "exec")
