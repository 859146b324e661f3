"""`--plugin FILE`: a plugin that is no package, on every command that takes components, and what a run keeps of it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
from python_material import dpo_tables, online_tables, write_material
from test_strangers import SEVEN_LINES

import alignkit
from alignkit import Group, Prompt, cli, read_groups, registry, write_groups
from alignkit.cli import stages

if TYPE_CHECKING:
    from conftest import Refusal, Resolve

SQUARES = SEVEN_LINES.replace("-float(len(text))", "-float(len(text) ** 2)")
GROUP = Group(Prompt.of("Say hello."), ("hello", "hi"))


@pytest.fixture(autouse=True)
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plugin in a file of the current directory."""
    monkeypatch.chdir(tmp_path)
    Path("short.py").write_text(SEVEN_LINES)
    write_groups("groups.jsonl", [GROUP])
    return Path("short.py")


def with_file(*more: str) -> dict[str, Any]:
    return {"overrides": ['run.plugins=["short.py"]', *more], "flags": {"reward": "short"}}


def names() -> set[str]:
    return {str(one) for one in registry().registrations}


def test_a_command_uses_it_and_the_next_one_does_not_know_it(capsys: pytest.CaptureFixture[str]) -> None:
    score = ["score", "groups.jsonl", "--reward", "short", "--quiet", "--out"]
    assert cli.run([*score, "one.jsonl", "--plugin", "short.py"]) == 0
    assert [group.scores for group in read_groups("one.jsonl")] == [(-5.0, -2.0)]
    assert "short.py:short" not in names()
    Path("short.py").write_text(SQUARES)
    assert cli.run([*score, "two.jsonl", "--plugin", "short.py"]) == 0
    assert [group.scores for group in read_groups("two.jsonl")] == [(-25.0, -4.0)]
    assert cli.run([*score, "three.jsonl"]) == 2
    assert "no reward plugin 'short'" in capsys.readouterr().err


def test_plugins_list_and_show_take_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plugins", "list", "--plugin", "short.py", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["plugins"]
    assert {"role": "reward", "name": "short", "distribution": "short.py"} in listed
    assert cli.run(["plugins", "show", "short.py:short", "--plugin", "short.py"]) == 0
    assert capsys.readouterr().out.startswith("reward short (from short.py)")


@pytest.mark.parametrize("source", [SEVEN_LINES, SEVEN_LINES.replace("-float(len(text))", "len(text)")])
def test_its_contract_is_checked_without_its_name(source: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("short.py").write_text(source)
    assert cli.run(["plugins", "check", "--plugin", "short.py"]) == (0 if source == SEVEN_LINES else 1)
    said = capfd.readouterr().out.splitlines()[-1]
    assert said == ("13 passed" if source == SEVEN_LINES else "1 failed, 12 passed")


def test_a_recipe_keeps_the_path_and_counts_the_text(resolve: Resolve) -> None:
    first = resolve(**with_file())
    assert first.registry.files == {"short.py": hashlib.sha256(SEVEN_LINES.encode()).hexdigest()}
    tables = tomllib.loads(first.to_toml())
    assert tables["run"]["plugins"] == ["short.py"]
    assert tables["reward"] == {"plugin": "short"}
    Path("again.toml").write_text(first.to_toml())
    assert resolve(Path("again.toml")).digest == first.digest
    Path("moved.py").write_text(SEVEN_LINES)
    assert resolve(overrides=['run.plugins=["moved.py"]'], flags={"reward": "short"}).digest == first.digest
    Path("short.py").write_text(SEVEN_LINES + "# changed\n")
    assert resolve(**with_file()).digest != first.digest
    assert "short.py:short" not in names()


def test_the_flag_adds_to_the_recipes_files(resolve: Resolve, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.py").write_text(SEVEN_LINES.replace('"short"', '"other"'))
    Path("recipe.toml").write_text('[run]\nplugins = ["other.py"]\n[reward]\nplugin = "other"\n')
    score = ["score", "groups.jsonl", "--recipe", "recipe.toml", "--quiet"]
    for reward in ("other", "short"):
        out = f"{reward}.jsonl"
        assert cli.run([*score, "--plugin", "short.py", "--reward", reward, "--out", out]) == 0
        assert [group.scores for group in read_groups(out)] == [(-5.0, -2.0)]


@pytest.mark.parametrize(
    ("source", "what", "fix"),
    [
        (None, "can't be read: No such file or directory", "give the path of a Python file"),
        ("1 / 0", "can't be loaded: ZeroDivisionError: division by zero", "to see where"),
        ("import no_such_package", "can't be loaded: ModuleNotFoundError: No module named 'no_such_package'", ""),
        ("raise SystemExit", "can't be loaded: SystemExit", ""),
        ("def f(:", "can't be loaded: SyntaxError", ""),
        ("x = 1", "can't be loaded: short.py registers nothing: the module has no hook with @hookimpl", ""),
        (
            SEVEN_LINES.replace("reward_sources", "rewards"),
            "an unknown hook 'register_rewards'",
            "`alignkit plugins new`",
        ),
        ("ALIGNKIT_INTERFACE = 99", "can't be loaded: short.py needs plugin interface 99", ""),
        (
            SEVEN_LINES.replace('"short"', '"rules"'),
            "the reward plugin 'rules', which alignkit-reward has",
            "another",
        ),
    ],
)
def test_a_file_that_can_not_be_used(source: str | None, what: str, fix: str, refusal: Refusal) -> None:
    if source is None:
        Path("short.py").unlink()
    else:
        Path("short.py").write_text(source)
    error = refusal(**with_file())
    assert error.where == "plugin file short.py"
    assert what in error.what
    assert fix in error.fix


def test_the_processes_of_a_launch_get_it() -> None:
    given = {"recipe": Path("recipe.toml"), "plugin": [Path("a.py"), Path("b.py")], "launch": "torchrun"}
    assert stages._words(given) == ["recipe.toml", "--plugin", "a.py", "--plugin", "b.py"]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A run of one iteration with the file's reward."""
    tables = online_tables(write_material(tmp_path), "grpo")
    tables["optimizer"]["iterations"] = 1
    tables.pop("reward", None)
    Path("recipe.toml").write_text(tomli_w.dumps(tables))
    return ["run", "recipe.toml", "--reward", "short", "--out", "run", "--quiet"]


@pytest.mark.slow
def test_several_processes_load_it(command: list[str]) -> None:
    launch = ["--plugin", "short.py", "--launch", "torchrun", "--processes", "2", "--json"]
    words = [sys.executable, "-m", "alignkit", *command, *launch]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout)["eval"]["policy"]["reward"]["value"] < 0


def test_a_run_keeps_its_digest_and_resumes_with_the_same_text_only(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*command, "--plugin", "short.py"]) == 0
    state = json.loads(Path("run/run.json").read_text())
    assert state["plugins"] == {"short.py": hashlib.sha256(SEVEN_LINES.encode()).hexdigest()}
    assert alignkit.Run.open("run").reward().score([GROUP]) == [[-5.0, -2.0]]
    assert cli.run([*command, "--plugin", "short.py", "--resume"]) == 0
    Path("short.py").write_text(SQUARES)
    capsys.readouterr()
    assert cli.run([*command, "--plugin", "short.py", "--resume"]) == 2
    assert "the recipe has changed" in capsys.readouterr().err
    assert cli.run([*command, "--plugin", "short.py", "--resume", "--force"]) == 0


def test_a_comparison_passes_it_to_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignkit_report.compare import comparison

    given: list[Any] = []

    class Recorded(comparison.Comparison):
        def run(self, reporter: Any) -> dict[str, Any]:
            given.extend(self.options)
            return {"variants": []}

    monkeypatch.setattr(comparison, "Comparison", Recorded)
    Path("recipe.toml").write_text(tomli_w.dumps(dpo_tables(tmp_path)))
    assert cli.run(["compare", "recipe.toml", "--plugin", "short.py", "--json", "-o", "eval.count=3"]) == 1
    assert given == ['run.plugins=["short.py"]', "eval.count=3"]
