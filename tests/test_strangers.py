"""Strangers' packages, from `pip install` to a finished PPO run: seven lines; a policy without an option `model`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import installed_in

from alignkit import Group, Prompt, cli, write_groups
from alignkit.testing.scaffold import write_distribution
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from collections.abc import Iterator

FAKES = Path(__file__).parent / "fakes"
SEVEN_LINES = """\
from alignkit import RewardSource, hookimpl
class Short(RewardSource):
    def score(self, groups):
        return [[-float(len(text)) for text in group.responses] for group in groups]
@hookimpl
def register_reward_sources(register):
    register("short", Short)
"""
VOWELS = """\
def vowels(text):
    return sum(letter in "aeiou" for letter in text)
"""
MELODIOUS = """\
from vowelcounter import vowels
from alignkit import RewardSource, hookimpl
class Melodious(RewardSource):
    def score(self, groups):
        return [[float(vowels(text)) for text in group.responses] for group in groups]
@hookimpl
def register_reward_sources(register):
    register("melodious", Melodious)
"""
NEEDS = {"vowelcounter": [], "melodious": ["alignkit-core", "vowelcounter>=1"]}
PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "{name}"
version = "1.0"
dependencies = {needs}
[project.entry-points.alignkit]
{name} = "{name}"
[tool.setuptools]
py-modules = ["{name}"]
"""
OPTIONS = [
    "-o", "policy.checkpoint={model}", "-o", "sampling.max_tokens=6", "-o", "optimizer.iterations=2",
    "-o", "optimizer.batch_size=4", "-o", "optimizer.minibatch_size=4", "-o", "eval.count=4", "-o", "run.device=cpu",
    "-o", "prompts.path={prompts}",
]  # fmt: skip


def alignkit(*arguments: str, site: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def project(name: str) -> str:
    """A pyproject.toml; `vowelcounter` is no plugin."""
    whole = PROJECT.format(name=name, needs=NEEDS.get(name, ["alignkit-core"]))
    entry = f'[project.entry-points.alignkit]\n{name} = "{name}"\n'
    return whole if "alignkit-core" in whole else whole.replace(entry, "")


def install(folder: Path, sources: dict[str, str], *others: Path) -> Path:
    """Installs these modules as packages, by pip, into `folder/site`; returns that."""
    for name, source in sources.items():
        (folder / name).mkdir()
        (folder / name / f"{name}.py").write_text(source, encoding="utf-8")
        (folder / name / "pyproject.toml").write_text(project(name), encoding="utf-8")
    pip = ["pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    folders = [*(folder / name for name in sources), *others]
    ran = alignkit(*pip, "--target", str(folder / "site"), *map(str, folders), site=folder)
    assert ran.returncode == 0, ran.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def _strangers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Both packages, installed by pip into a folder of their own."""
    sources = {"short": SEVEN_LINES, "wrapped": (FAKES / "wrapped.py").read_text(encoding="utf-8")}
    with installed_in(install(tmp_path_factory.mktemp("strangers"), sources)):
        yield


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`-o` of a run of seconds, on a tiny model and its prompts."""
    folder = tmp_path_factory.mktemp("data")
    model = write_tiny_llama(folder / "model")
    write_groups(folder / "prompts.jsonl", [Group(Prompt.of(f"Say {n}."), ("",)) for n in range(8)])
    return [option.format(model=model, prompts=folder / "prompts.jsonl") for option in OPTIONS]


def said_by_a_run(out: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.run(["run", *words, "--out", str(out), "--json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


@pytest.mark.usefixtures("_strangers")
def test_seven_lines_are_a_reward(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(SEVEN_LINES.splitlines()) == 7
    words = ["--policy", "wrapped", "--reward", "short", "--optimizer", "ppo", *options]
    said = said_by_a_run(tmp_path / "run", words, capsys)
    assert said["align"]["steps"] == 8
    assert said["eval"]["policy"]["reward"]["value"] < 0
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists()


@pytest.mark.usefixtures("_strangers")
def test_a_policy_and_a_reward_without_an_option_called_model(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [Group(Prompt.of(f"Say {n}."), ("yes", "no"), ranks=(0, 1)) for n in range(12)]
    write_groups(tmp_path / "pairs.jsonl", pairs)
    sft = [Group(Prompt.of(f"Say {n}."), ("yes",)) for n in range(8)]
    write_groups(tmp_path / "sft.jsonl", sft)
    words = ["--policy", "wrapped", "--reward", "learned", "--optimizer", "ppo", *options]
    words += [
        "-o",
        f"demonstrations.path={tmp_path / 'sft.jsonl'}",
        "-o",
        f"preferences.path={tmp_path / 'pairs.jsonl'}",
    ]
    said = said_by_a_run(tmp_path / "run", words, capsys)
    assert {"sft", "preferences", "reward", "align", "eval"} <= said.keys()
    assert said["reward"]["steps"] > 0
    recipe = (tmp_path / "run" / "recipe.toml").read_text()
    assert "checkpoint = " in recipe


@pytest.mark.slow
def test_a_reward_with_a_dependency_of_its_own_and_an_algorithm(options: list[str], tmp_path: Path) -> None:
    sources = {"vowelcounter": VOWELS, "melodious": MELODIOUS}
    site = install(tmp_path, sources, write_distribution("nudge", tmp_path, "optimizer"))
    options = [option.replace("policy.checkpoint", "policy.model") for option in options]
    words = ["--reward", "melodious", "--optimizer", "nudge", *options]
    ran = alignkit("alignkit", "run", *words, "--out", str(tmp_path / "run"), "--json", site=site)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout)["align"]["steps"] == 2
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "advantage_size" in record] == [1, 2]
    (site / "vowelcounter.py").unlink()
    lacking = alignkit("alignkit", "plugins", "list", site=site)
    assert "No module named 'vowelcounter'" in next(line for line in lacking.stdout.splitlines() if "broken" in line)


@pytest.mark.usefixtures("_strangers")
@pytest.mark.parametrize("name", ["short", "learned"])
def test_their_checks_pass(name: str) -> None:
    assert cli.run(["plugins", "check", name]) == 0
