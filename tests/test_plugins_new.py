"""`alignkit plugins new`: one working plugin of each kind, from its files to a passed check."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from alignkit import cli
from alignkit.plugins import FIRST_PARTY, ROLES
from alignkit.testing.scaffold import KINDS, write_distribution

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {kind: f"my-{kind}" for kind in KINDS}


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a distribution of each kind, and all of them installed by pip in its subfolder `site`."""
    folder = tmp_path_factory.mktemp("new")
    for kind, name in NAMES.items():
        assert cli.run(["plugins", "new", name, "--kind", kind, "--out", str(folder)]) == 0
    pip = ["pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    sources = [str(folder / f"alignkit-{name}") for name in NAMES.values()]
    ran = python(folder, "-m", *pip, "--target", str(folder / "site"), *sources)
    assert ran.returncode == 0, ran.stderr
    return folder


def test_there_is_one_for_every_role() -> None:
    assert set(KINDS) == set(ROLES)


@pytest.mark.slow
def test_their_own_tests_pass(written: Path) -> None:
    tests = [str(written / f"alignkit-{name}" / "tests") for name in NAMES.values()]
    ran = python(written / "site", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={written}", *tests)
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert "skipped" not in ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_their_checks_pass(written: Path, kind: str) -> None:
    ran = python(written / "site", "-m", "alignkit", "plugins", "check", f"alignkit-{NAMES[kind]}")
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout[-3000:]
    assert " passed" in ran.stdout.splitlines()[-1]
    assert "failed" not in ran.stdout


def test_their_files_are_in_order(written: Path) -> None:
    sources = [str(written / f"alignkit-{name}") for name in NAMES.values()]
    ran = python(
        written / "site", "-m", "ruff", "check", "--isolated", "--line-length=120", "--exclude=build", *sources
    )
    assert ran.returncode == 0, ran.stdout
    ran = python(written / "site", "-m", "ruff", "format", "--isolated", "--line-length=120", "--check", *sources)
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
