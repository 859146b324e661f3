"""The command line: exit codes, one message for each error, what reaches the pipeline, and what is not imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from alignkit import cli
from alignkit.commands import column_overrides
from alignkit.errors import AlignkitError, Interrupted, StoppedByCheck
from alignkit.records import Group, Prompt, write_groups
from alignkit.runs.plan import ORDER
from alignkit.runs.reporting import JsonReporter, Reporter

if TYPE_CHECKING:
    from conftest import InstallPlugin

    from alignkit.recipe.resolved import Resolved

HEAVY = ("torch", "transformers", "accelerate", "rich")


def in_a_process(*arguments: str, site: Path | None = None, program: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PYTHONPATH": str(site)} if site else {})
    command = [sys.executable, *(["-c", program] if program else ["-m", "alignkit"]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def imported_by(*arguments: str, site: Path | None = None) -> tuple[int, set[str]]:
    """Exit code of a command, and the heavy packages that it imported."""
    program = (
        "import json, sys; from alignkit.cli import run; code = run(sys.argv[1:]);"
        f"print('\\n' + json.dumps([code, [name for name in {HEAVY} if name in sys.modules]]))"
    )
    code, found = json.loads(in_a_process(*arguments, site=site, program=program).stdout.splitlines()[-1])
    return code, set(found)


class Calls(list[dict[str, Any]]):
    """What the pipeline was called with; it answers like one that has run."""

    def run(self, resolved: Resolved, out: Path, **keywords: Any) -> dict[str, Any]:
        self.append({"resolved": resolved, "out": out, **keywords})
        out.mkdir(parents=True, exist_ok=True)
        (out / "preferences.jsonl").write_text("{}\n")
        return {"align": {"steps": 3, "kl": {"value": 1.5, "low": 1.0, "high": 2.0, "n": 8}}}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, recipe_file: Path, fake_plugin: Path) -> Calls:
    made = Calls()
    monkeypatch.setattr("alignkit.runs.run.run_recipe", made.run)
    return made


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"], ["plugins"], ["plugins", "list"]])
def test_help_and_list_import_nothing_heavy(arguments: list[str]) -> None:
    assert imported_by(*arguments) == (0, set())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--policy", "nobody"], "error: --policy nobody: no policy plugin 'nobody'\n  fix: "),
        (["run", "none.toml"], "error: none.toml: no such recipe\n  fix: "),
        (
            ["run", "--optimizer", "push", "-o", "optimizer.kl_coef=-1"],
            "error: -o optimizer.kl_coef: must be at least 0",
        ),
        (
            ["run", "--optimizer", "push", "-o", "optimizer.kl_koef=1"],
            "error: -o optimizer.kl_koef: no such option\n  fix: ",
        ),
        (["run", "--frob"], "error: No such option: --frob"),
        (["frob"], "error: No such command 'frob'.\n  fix: alignkit --help"),
    ],
)
def test_wrong_input_ends_with_one_message_and_code_2_before_torch(
    fake_plugin: Path, recipe_file: Path, arguments: list[str], message: str
) -> None:
    ran = in_a_process(*arguments, site=fake_plugin)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(message)
    assert "Traceback" not in ran.stderr
    code, imported = imported_by(*arguments, site=fake_plugin)
    assert code == 2
    assert "torch" not in imported


def test_the_broken_plugin_of_a_stranger_leaves_the_rest_alone(install_plugin: InstallPlugin) -> None:
    site = install_plugin("bad-plugin", "raise RuntimeError('out of cheese')")
    install_plugin("bad-command", "1 / 0", group="alignkit.commands", name="frobnicate")
    listed = in_a_process("plugins", "list", site=site)
    assert listed.returncode == 0
    assert "RuntimeError: out of cheese" in listed.stdout
    helped = in_a_process("--help", site=site)
    assert helped.returncode == 0
    assert "frobnicate" in helped.stdout
    failed = in_a_process("frobnicate", site=site)
    assert failed.returncode == 1
    assert failed.stderr == (
        "error: the command 'frobnicate' of bad-command can't be loaded: ZeroDivisionError: division by zero\n"
    )
    install_plugin("poor-command", "import no_such_package", group="alignkit.commands", name="beg")
    install_plugin(
        "late-command", "def beg(): import no_such_package", group="alignkit.commands", name="later", attribute="beg"
    )
    for name, where in (("beg", "the command 'beg' of poor-command: "), ("later", "")):
        begged = in_a_process(name, site=site)
        assert begged.returncode == 2
        assert begged.stderr.startswith(f"error: {where}needs the package 'no_such_package', which is not installed")
    shown = in_a_process("plugins", "show", "bad-plugin", site=site)
    assert (shown.returncode, shown.stderr) == (1, "error: bad-plugin is broken: RuntimeError: out of cheese\n")


@pytest.mark.parametrize(
    "source",
    [
        "def greet(name: str = 'you') -> int:\n    print('hello', name)\n    return 7",
        "import typer\ngreet = typer.Typer()\n@greet.command()\ndef _(name: str = 'you'):\n    print('hello', name)\n"
        "    raise typer.Exit(7)",
    ],
)
def test_a_plugins_command_is_run(
    install_plugin: InstallPlugin, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install_plugin("greeter", source, group="alignkit.commands", name="greet", attribute="greet")
    assert cli.run(["greet", "--name", "Ada"]) == 7
    assert capsys.readouterr().out == "hello Ada\n"


def test_a_plugins_command_with_sub_commands_and_one_that_would_shadow_our_own(
    install_plugin: InstallPlugin, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (
        "import typer\napp = typer.Typer()\n@app.command()\ndef a(): print('A')\n@app.command()\ndef b(): print('B')"
    )
    install_plugin("greeter", source, group="alignkit.commands", name="greet", attribute="app")
    install_plugin("shadow", source, group="alignkit.commands", name="version", attribute="app")
    assert cli.run(["greet", "b"]) == 0
    assert cli.run(["version", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("B\n")
    assert json.loads(out[2:])["alignkit"]


def test_run_passes_the_resolved_recipe_and_the_switches(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "recipe.toml", "--optimizer", "pull", "-o", "optimizer.beta=0.9", "--resume", "--force", "-q"]
    assert cli.run([*arguments, "--out", "here"]) == 0
    (call,) = calls
    assert (call["out"], call["stages"]) == (Path("here"), None)
    assert (call["resume"], call["overwrite"], call["force"]) == (True, False, True)
    assert call["resolved"].names == {"optimizer": "pull"}
    assert call["resolved"].config("optimizer").beta == 0.9
    assert type(call["reporter"]) is Reporter
    assert capsys.readouterr().out == "out  here\nalign\n  steps  3\n  kl     1.5 [1, 2, n = 8]\n"


def test_rounds_and_best_of_have_flags_of_their_own(calls: Calls) -> None:
    arguments = ["run", "recipe.toml", "--optimizer", "pull", "--rounds", "3", "--best-of", "8", "-o", "eval.best_of=2"]
    assert cli.run(arguments) == 0
    assert calls[0]["resolved"].run.rounds == 3
    assert calls[0]["resolved"].eval.best_of == 2


def test_run_in_json(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["run", "recipe.toml", "--optimizer", "pull", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["align"]["steps"] == 3
    (note,) = map(json.loads, said.err.splitlines())
    assert note["event"] == "note"
    assert "kl_coef, limits: ignored" in note["text"]
    assert type(calls[0]["reporter"]) is JsonReporter
    assert calls[0]["out"] == Path("runs/recipe")


@pytest.mark.parametrize("stage", ORDER)
def test_each_stage_is_a_command(calls: Calls, stage: str) -> None:
    again = [] if stage == "eval" else ["--overwrite"]
    assert cli.run([stage, "recipe.toml", *again]) == 0
    assert (calls[0]["stages"], calls[0]["overwrite"]) == ([stage], bool(again))


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("sft", ["--preferences", "--reward", "--optimizer", "--rounds", "--best-of", "--sample"]),
        ("preferences", ["--reward", "--optimizer", "--rounds", "--best-of", "--force"]),
        ("reward", ["--preferences", "--optimizer", "--columns", "--rounds", "--best-of", "--sample"]),
        ("align", ["--columns", "--best-of", "--sample"]),
        ("eval", ["--preferences", "--optimizer", "--columns", "--rounds", "--sample", "--resume", "--overwrite"]),
    ],
)
def test_a_stage_takes_no_flag_that_would_mean_nothing_to_it(
    calls: Calls, capsys: pytest.CaptureFixture[str], stage: str, flags: list[str]
) -> None:
    for flag in flags:
        assert cli.run([stage, "recipe.toml", flag, "2"]) == 2
        assert f"No such option: {flag}" in capsys.readouterr().err
    assert not calls


def test_preferences_into_a_file(calls: Calls, tmp_path: Path) -> None:
    assert cli.run(["preferences", "recipe.toml", "--out", "p.jsonl"]) == 0
    assert calls[0]["out"] == Path("p.jsonl.run")
    assert Path("p.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoppedByCheck("step 3: loss not finite"), 3),
        (Interrupted(15, "stopped by SIGTERM"), 143),
        (AlignkitError("the disk is full"), 1),
        (RuntimeError("out of cheese"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes_of_what_happens_in_a_run(
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("alignkit.runs.run.run_recipe", fail)
    assert cli.run(["run", "recipe.toml", "--quiet"]) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.startswith("error: ")
    assert (str(error) or "stopped by SIGINT") in said
    monkeypatch.setenv("ALIGNKIT_TRACEBACK", "1")
    assert cli.run(["run", "recipe.toml", "--quiet"]) == code
    assert type(error).__name__ in capsys.readouterr().err or code == 130


def test_what_a_plugin_prints_stays_out_of_the_json(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chatty(*_: object, **__: object) -> dict[str, dict[str, int]]:
        print("hello from a plugin")
        return {"sft": {"steps": 3}}

    monkeypatch.setattr("alignkit.runs.run.run_recipe", chatty)
    assert cli.run(["run", "recipe.toml", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["sft"] == {"steps": 3}
    assert "hello from a plugin" in said.err


def test_an_error_in_json(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["run", "recipe.toml", "-o", "optimizer.kl_koef=1", "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    error = json.loads(said.err)["error"]
    assert error["exit_code"] == 2
    assert error["where"] == "-o optimizer.kl_koef"
    assert error["what"] == "no such option"
    assert error["fix"] == "did you mean 'kl_coef'?"
    assert cli.run(["run", "--frob", "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["what"].startswith("No such option: --frob")


def test_score_writes_the_groups_with_scores(
    tmp_path: Path, fake_plugin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_groups(tmp_path / "groups.jsonl", [Group(Prompt.of("hi"), ("a", "b"))])
    arguments = ["score", str(tmp_path / "groups.jsonl"), "--reward", "given", "-o", "reward.value=1", "--json"]
    out = tmp_path / "scored.jsonl"
    assert cli.run([*arguments, "--out", str(out)]) == 0
    assert json.loads(out.read_text())["scores"] == [0.0, 0.0]
    assert json.loads(capsys.readouterr().out)["scores"] == 2
    assert cli.run([*arguments, "--out", str(out)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert cli.run([*arguments, "--out", str(out), "--resume"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] is True
    assert cli.run([*arguments, "--out", str(out), "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["none.jsonl", "--reward", "given", "-o", "reward.value=1"], "none.jsonl: no such file"),
        (["none.jsonl", "--reward", "trained"], "reward: this reward must be trained first"),
        (["none.jsonl"], "recipe: this needs a reward"),
    ],
)
def test_score_refuses(fake_plugin: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], what: str) -> None:
    assert cli.run(["score", *arguments, "--out", "x.jsonl"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {what}")


def test_columns_become_options_of_the_data_table(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert column_overrides("prompts", ["my.col=prompt"]) == ['prompts.columns."my.col"="prompt"']
    assert cli.run(["sft", "recipe.toml", "--columns", "question"]) == 2
    assert "error: --columns question: is not OLD=NEW" in capsys.readouterr().err
    assert cli.run(["sft", "recipe.toml", "--columns", "a=b"]) == 2
    assert "demonstrations.plugin: no preferences plugin 'dataset'" in capsys.readouterr().err


def test_sample_passes_file_count_and_columns(
    fake_plugin: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[tuple[Any, ...]] = []

    def sampled(resolved: Resolved, *arguments: Any, columns: dict[str, str]) -> dict[str, Any]:
        made.append((resolved.names, resolved.sampling.temperature, *arguments[:3], columns))
        return {"groups": 1}

    monkeypatch.setattr("alignkit.runs.single.sample", sampled)
    out = tmp_path / "out.jsonl"
    arguments = [
        "sample",
        "p.jsonl",
        "-n",
        "4",
        "--out",
        str(out),
        "-o",
        "sampling.temperature=0",
        "--columns",
        "q=prompt",
    ]
    assert cli.run([*arguments, "--policy", "still", "--json"]) == 0
    assert made == [({"policy": "still"}, 0.0, Path("p.jsonl"), 4, out, {"q": "prompt"})]
    assert json.loads(capsys.readouterr().out) == {"groups": 1}
    assert cli.run(arguments) == 2
    assert "this needs a policy" in capsys.readouterr().err
    out.touch()
    assert cli.run([*arguments, "--policy", "still"]) == 2
    assert len(made) == 1


def test_list_and_show(fake_plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plugins", "list"]) == 0
    assert re.search(r"^optimizer +push +fake-plugin$", capsys.readouterr().out, re.MULTILINE)
    assert cli.run(["plugins", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"role": "reward", "name": "given", "distribution": "fake-plugin"} in listed["plugins"]
    assert listed["broken"] == []
    assert cli.run(["plugins", "show", "push"]) == 0
    shown = capsys.readouterr().out
    assert "optimizer push (from fake-plugin)" in shown
    assert "  kl_coef: float >= 0 = 0.05\n      Weight of the KL, at least 0.\n" in shown
    headings = [line for line in shown.splitlines()[1:] if line and line[0].isupper()]
    assert headings == ["What matters first", "Its own", "Learning", "Memory, checkpoints and budget"]
    assert shown.count("  learning_rate:") == 1
    assert cli.run(["plugins", "show", "push", "--json"]) == 0
    options = json.loads(capsys.readouterr().out)["plugins"][0]["options"]
    assert options[0] == {
        "key": "kl_coef",
        "type": "float >= 0",
        "default": "0.05",
        "help": "Weight of the KL, at least 0.",
        "group": "",
        "matters": False,
    }
    assert cli.run(["plugins", "show", "puss"]) == 2
    assert "did you mean 'push'?" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.count(".") >= 1


def test_shell_completion_names_the_commands() -> None:
    environment = os.environ | {"_ALIGNKIT_COMPLETE": "complete_bash", "COMP_WORDS": "alignkit pl", "COMP_CWORD": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "alignkit"], capture_output=True, text=True, check=False, env=environment
    )
    assert ran.stdout.split() == ["plugins"]
