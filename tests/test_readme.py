"""The README's commands work next to the folder of a demo, with few steps; `make readme` types them in full."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from alignkit_data.hub import is_hub_id
from demo_files import FEW_REWARD_STEPS, FEW_STEPS
from public_data import FEW, LOCAL, ROOT, SHARED
from readme import OWN_MODEL, commands
from test_docs import PAGES
from test_docs import commands as commands_of

from alignkit import cli

TYPED = {typed.command: typed for typed in commands()}
OFFLINE = [
    command for command, typed in TYPED.items() if command.startswith("alignkit ") and not (typed.network or typed.own)
]
FEW_OWN = ["preferences.limit=24", "policy.max_length=256", "sampling.max_tokens=16"]


OWN = (
    "no such file: labels.db|no model folder path/or/owner/name|-o sampler.python: no such file"
    "|-o sampler.colocated: vLLM is not installed"
)
"""What is said of the files and the environment of the reader's own."""


@pytest.fixture
def _beside_a_demo(demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").symlink_to(demo_folder)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)


def words_of(command: str, options: list[str]) -> list[str]:
    return [*shlex.split(command)[1:], *(word for option in options for word in ("-o", option))]


@pytest.mark.usefixtures("_beside_a_demo")
@pytest.mark.parametrize("command", OFFLINE)
def test_a_command_works_after_make_demo(command: str) -> None:
    few = list(FEW_STEPS) if command.startswith("alignkit run ") else []
    few += FEW_REWARD_STEPS if "demo/recipe.toml" in command else []
    assert cli.run(words_of(command, few)) == 0


def test_your_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder with real pairs and a real model, and nothing else."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data in ../shared/data")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").symlink_to(SHARED / "hh_harmless_200_conv.jsonl")
    own = [typed.command.replace(OWN_MODEL, str(SHARED / "stories260K-hf")) for typed in TYPED.values() if typed.own]
    assert len(own) == 4
    for command in own:
        few = [*FEW_OWN, "optimizer.max_tokens=512", "reward.train.max_tokens=512"] if " run " in command else []
        assert cli.run(words_of(command, few)) == 0
    assert (tmp_path / "runs/dpo/policy/model.safetensors").exists()
    assert (tmp_path / "runs/dpo/report.html").exists()


@pytest.mark.usefixtures("_beside_a_demo")
@pytest.mark.parametrize("page", [page for page in PAGES if "plugins" in page.parts], ids=lambda page: page.parent.name)
def test_commands_of_a_plugins_page_fit_the_recipe_of_the_demo(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the files of the reader's own."""
    monkeypatch.setenv("REWARD_KEY", "a key")
    monkeypatch.setattr("alignkit.runs.api.run_resolved", lambda *_, **__: SimpleNamespace(summary={}))
    for line in commands_of(page):
        words = shlex.split(line.replace(" recipe.toml", " demo/recipe.toml"), comments=True)[1:]
        if words[0] in ("run", "sft", "reward"):
            code, said = cli.run(words), capsys.readouterr().err
            assert code == 0 or re.search(OWN, said), said


NETWORK = [command for command, typed in TYPED.items() if typed.network]


@pytest.mark.usefixtures("_beside_a_demo")
@pytest.mark.parametrize("command", NETWORK)
def test_a_command_on_public_data_fits_its_recipe(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/test_examples.py runs the recipes with a few steps."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data in ../shared/data")
    ran: list[Any] = []
    monkeypatch.setattr("alignkit.runs.api.run_resolved", lambda *_, **__: ran.append(_) or SimpleNamespace(summary={}))
    assert cli.run(words_of(command, LOCAL[Path(shlex.split(command)[2]).stem])) == 0
    assert len(ran) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("_beside_a_demo")
@pytest.mark.parametrize("command", NETWORK)
def test_a_command_on_public_data_works_on_local_files(command: str) -> None:
    if not SHARED.is_dir():
        pytest.skip("needs the real data in ../shared/data")
    recipe = Path(shlex.split(command)[2]).stem
    assert cli.run(words_of(command, [*LOCAL[recipe], *FEW[recipe]])) == 0


def test_what_needs_a_network_says_so_and_nothing_stands_beside_the_repository() -> None:
    online = {Path(shlex.split(command)[2]) for command, typed in TYPED.items() if typed.network}
    assert {path.stem for path in online} == LOCAL.keys()
    for path in (ROOT / "examples").glob("*.toml"):
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
        fetched = is_hub_id(tables["policy"]["model"]) and not tables["policy"]["model"].startswith("demo/")
        assert fetched == ("Needs a network" in text) == (path.relative_to(ROOT) in online)
        assert "../" not in text
