"""`alignkit plugins new`: one working plugin of each kind, from its files to a passed check."""

from __future__ import annotations

import json
import site
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from alignkit import cli, read_groups
from alignkit.plugins import ROLES
from alignkit.testing.scaffold import KINDS, write_distribution
from alignkit.versions import FIRST_PARTY

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {kind: f"my-{kind}" for kind in KINDS}
RUNS = {
    "optimizer": ["--optimizer", "my-optimizer", "-o", "optimizer.iterations=2"],
    "reward": ["--reward", "my-reward", "--optimizer", "grpo", "-o", "optimizer.iterations=2"],
    "preferences": ["--preferences", "my-preferences", "--optimizer", "dpo"],
    "policy": ["--policy", "my-policy", "--reward", "my-reward", "--optimizer", "grpo", "-o", "optimizer.iterations=2"],
    "sampler": ["--sampler", "my-sampler", "-o", "optimizer.iterations=2"],
    "metrics": ["-o", 'run.metrics=[{plugin = "my-metrics"}]', "--optimizer", "dpo"],
}
"""Kind -> the flags of a run on the demo's world. The iterations keep the test short."""


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the python of the virtual environment with the written plugins."""
    command = [str(folder / "venv" / "bin" / "python"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a distribution of each kind, and all of them installed by `pip install -e` in its environment
    `venv`, which sees what is installed here."""
    folder = tmp_path_factory.mktemp("new")
    for kind, name in NAMES.items():
        assert cli.run(["plugins", "new", name, "--kind", kind, "--out", str(folder)]) == 0
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    here = "; ".join(f"site.addsitedir({place!r})" for place in site.getsitepackages())
    (packages / "here.pth").write_text(f"import site; {here}\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def installed(written: Path) -> Path:
    """The same folder, once all of them are installed."""
    pip = [sys.executable, "-m", "pip", "--python", str(written / "venv" / "bin" / "python"), "install", "--quiet"]
    sources = [word for name in NAMES.values() for word in ("-e", str(written / f"alignkit-{name}"))]
    flags = ["--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    ran = subprocess.run([*pip, *flags, *sources], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return written


def test_there_is_one_for_every_role() -> None:
    assert set(KINDS) == set(ROLES)


@pytest.mark.slow
def test_their_own_tests_pass(installed: Path) -> None:
    tests = [str(installed / f"alignkit-{name}" / "tests") for name in NAMES.values()]
    ran = python(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={installed}", *tests)
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert "skipped" not in ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_their_checks_pass(installed: Path, kind: str) -> None:
    ran = python(installed, "-m", "alignkit", "plugins", "check", f"alignkit-{NAMES[kind]}")
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout[-3000:]
    assert " passed" in ran.stdout.splitlines()[-1]
    assert "failed" not in ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_they_work_on_the_demos_world(installed: Path, demo_folder: Path, kind: str, tmp_path: Path) -> None:
    words = ["run", str(demo_folder / "from-sft.toml"), *RUNS[kind], "-o", "run.device=cpu", "--out", str(tmp_path)]
    ran = python(installed, "-m", "alignkit", *words, "--quiet", "--json")
    assert ran.returncode == 0, ran.stderr[-3000:]
    summary = json.loads(ran.stdout)
    assert summary["align"]["steps"] > 0
    assert {"policy", "start"} <= summary["eval"].keys()
    assert (tmp_path / "report.html").exists()
    if kind == "sampler":
        assert (tmp_path / "rollouts.jsonl").stat().st_size > 0
    if kind == "metrics":
        assert (tmp_path / "figures.csv").stat().st_size > 0
    if kind == "preferences":
        assert {group.source for group in read_groups(tmp_path / "preferences.jsonl")} == {"my-preferences"}
    if kind == "optimizer":
        assert any("advantage_size" in line for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_their_files_are_in_order(written: Path) -> None:
    sources = [str(written / f"alignkit-{name}") for name in NAMES.values()]
    ran = python(written, "-m", "ruff", "check", "--isolated", "--line-length=120", *sources)
    assert ran.returncode == 0, ran.stdout
    ran = python(written, "-m", "ruff", "format", "--isolated", "--line-length=120", "--check", *sources)
    assert ran.returncode == 0, ran.stdout


def test_readmes_say_what_it_is_and_how_to_use_it(written: Path) -> None:
    texts = {kind: (written / f"alignkit-{name}" / "README.md").read_text() for kind, name in NAMES.items()}
    assert "An algorithm for [alignkit]" in texts["optimizer"]
    assert "A metric sink for [alignkit]" in texts["metrics"]
    for kind, text in texts.items():
        assert "$" not in text
        assert text.count(NAMES[kind]) >= 4


@pytest.mark.parametrize("distribution", FIRST_PARTY)
def test_the_projects_own_names_are_taken(
    distribution: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["plugins", "new", distribution.removeprefix("alignkit-"), "--out", str(tmp_path)]) == 2
    assert f"NAME: {distribution} is one of alignkit's own distributions" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plugins", "new", "mine", "--kind", "rewards", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: --kind: no kind 'rewards' of plugins\n  fix: did you mean 'reward'?\n"
    assert write_distribution("mine", tmp_path).is_dir()
