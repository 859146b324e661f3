"""Secrets come by the name of an environment variable; anything else that looks like one is refused, never shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from alignkit import Config, cli
from alignkit.checking import looks_secret, secret_arguments
from alignkit.errors import InputError
from alignkit.options import ComponentSpec
from alignkit.recipe.recipe import recipe_of
from alignkit.runs.rundir import RunDir

if TYPE_CHECKING:
    from conftest import Refusal

LONG = "f3Qx9LmZ27aBcD81EfGh54IjKl"
KEYS = (
    f"sk-{LONG}",
    f"sk-proj-Ab_{LONG}",
    "sk-abcdefghijklmnopqrstuvwxyz",
    f"hf_{LONG}",
    f"ghp_{LONG}1234",
    f"github_pat_{LONG}",
    f"glpat-{LONG}",
    "xoxb-123456789012-abcdef",
    "AKIAIOSFODNN7EXAMPLE",
    f"AIza{LONG}0123456789",
    f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{LONG}",
    "-----BEGIN RSA PRIVATE KEY-----",
    f"Bearer {LONG}",
    "password=hunter2",
    "host=db user=me password='hunter2'",
    "https://me:hunter2@host/x",
    f"https://{LONG}@host/x",
    "postgresql://me:hunter2@db/runs",
    "https://host/x?access_token=hunter2",
    "https://host/x?page=2&sig=hunter2",
    "https://host/#token=hunter2",
)
NAMES = ("api_key", "apiKey", "bearer", "pat", "github_pat", "hub_token", "password", "client-secret", "authorization")
HARMLESS = {
    "model": "hf-internal-testing/tiny-random-gpt2",
    "revision": "5af4b1d3a0e1cf2b9d8f8c6ba7dd9a2a3c8f1e7d",
    "folder": "models/sk-learn/hf_models/risk-abcdefgh12345678",
    "key_env": "OPENAI_API_KEY",
    "eos_token": "<|end_of_text|>",
    "pad_token": "[PAD0000000001]",
    "answer_key": "gold_answer_2",
    "keys": "prompt",
    "base_url": "http://127.0.0.1:8000/v1?page_size=3",
    "tracking_uri": "sqlite:////home/me/mlflow@2/runs.db",
    "repository": "ssh://git@host/x",
    "criterion": "The bearer understands that a password is secret; sk- is a prefix.",
    "template": "password={password}, {secret}",
    "max_tokens": 512,
    "secret": None,
    "password": False,
    "token": "",
}


@pytest.mark.parametrize("value", KEYS)
def test_what_looks_like_a_secret_is_one_under_any_name(value: str) -> None:
    assert looks_secret("folder", value)


@pytest.mark.parametrize("name", NAMES)
def test_a_secret_by_name_needs_no_look(name: str) -> None:
    assert looks_secret(name, "hunter2")
    assert looks_secret(name, 12345678)


@pytest.mark.parametrize(("name", "value"), HARMLESS.items())
def test_ordinary_values_are_none(name: str, value: Any) -> None:
    assert not looks_secret(name, value)


@pytest.mark.parametrize("name", ["my_keys", "token", "session-cookie"])
def test_under_a_name_that_may_mean_a_secret_random_text_is_one(name: str) -> None:
    assert looks_secret(name, "0123456789abcdef0123")
    assert looks_secret(name, "a1b2c3d4e5f6")
    assert not looks_secret(name, "the gold answer")


@pytest.mark.usefixtures("fake_plugin")
def test_a_recipe_with_a_secret_is_refused_at_its_line(recipe_file: Path, refusal: Refusal) -> None:
    recipe_file.write_text('[reward]\nplugin = "given"\nvalue = 1\n[[reward.sources]]\nbearer = "hunter2"\n')
    error = refusal(recipe_file)
    assert str(error).splitlines() == [
        "recipe.toml:5 [reward] sources.0.bearer: looks like a secret",
        "  fix: put it into an environment variable; an option such as key_env takes the variable's name",
    ]
    recipe_file.write_text(f'[optimizer]\nplugin = "push"\n[optimizer.for.pull]\nmy_keys = ["x", "{KEYS[0]}"]\n')
    error = refusal(recipe_file)
    assert error.where == "recipe.toml:4 [optimizer] for.pull.my_keys.1"
    assert KEYS[0] not in str(error)


@pytest.mark.usefixtures("fake_plugin")
def test_overrides_flags_and_python_are_refused_alike(refusal: Refusal) -> None:
    assert refusal(None, ["reward.api_key=hunter2"], {"reward": "given"}).where == "-o reward.api_key"
    assert refusal(None, ["reward.sources=[{pat = 'hunter2'}]"], {"reward": "blend"}).where == "-o reward.sources.0.pat"
    assert refusal(None, [], {"reward": KEYS[0]}).where == "reward.plugin"
    with pytest.raises(InputError, match="looks like a secret") as refused:
        recipe_of({"reward": {"plugin": "given"}}, flags={}, options={"reward.bearer": "hunter2"})
    assert refused.value.where == 'options["reward.bearer"]'


def test_options_made_in_python_hold_no_secret() -> None:
    from dataclasses import dataclass, field

    @dataclass(frozen=True, kw_only=True)
    class Options(Config):
        address: str = ""
        args: ComponentSpec = field(default_factory=dict)

    Options(address="http://host/x", args={"answer_key": "gold"})
    for given in ({"address": KEYS[-1]}, {"args": {"headers": {"Authorization": "hunter2"}}}):
        with pytest.raises(InputError, match="looks like a secret") as refused:
            Options(**given)
        assert "hunter2" not in str(refused.value)


@pytest.mark.usefixtures("fake_plugin", "recipe_file")
@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["run", "-o", "reward.bearer=hunter2"], "-o reward.bearer"),
        (["run", "-o", "reward.sources=[{plugin = 'given', api_key = 'hunter2'}]"], "-o reward.sources"),
        (["run", "--hub-token", "hunter2"], "--hub-token"),
        (["run", "--hub-token=hunter2"], "--hub-token"),
        (["run", "recipe.toml", "--out", KEYS[15]], "--out"),
        (["run", "password=hunter2.toml"], "password"),
        (["run", KEYS[0]], "argument 2"),
        (["run", "-o", f"{KEYS[0]}=hunter2"], "argument 3"),
    ],
)
def test_the_command_line_is_refused_and_never_shown(
    arguments: list[str], where: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_TRACEBACK", "1")
    for more in ([], ["--json"]):
        assert cli.run([*arguments, *more]) == 2
        shown = capsys.readouterr()
        assert f"{where}: looks like a secret" in shown.err
        assert "hunter2" not in shown.out + shown.err
        assert KEYS[0] not in shown.out + shown.err
    assert not Path("runs").exists()


def test_a_script_may_have_secrets_which_run_json_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--epochs", "3", "--hub-token", "hunter2", "--api-key=hunter2", KEYS[0], "-o", "reward.pat=hunter2"]
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    with RunDir(tmp_path, recipe="", digest="", resume=False, overwrite=False, force=False):
        pass
    argv = json.loads((tmp_path / "run.json").read_text())["argv"]
    assert argv == ["--epochs", "3", "--hub-token", "...", "...", "...", "-o", "..."]


def test_ordinary_command_lines_pass() -> None:
    given = ["run", "recipe.toml", "-o", "sampling.max_tokens=5", "-o", "policy.model=hf_models/x", "--json"]
    given += ["--columns", "secret_word=prompt", "-o", "preferences.judges=[{key_env = 'OPENAI_API_KEY'}]", "-n", "4"]
    assert secret_arguments(given) == {}
