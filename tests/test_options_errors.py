"""Errors say what, where and how to fix it; the shared kinds of option have the ranges that their names promise."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_trl.fields import config_fields
from pydantic import TypeAdapter, ValidationError

from alignkit import errors, options
from alignkit.algorithms import RatioOptions
from alignkit.checking import OptionsError
from alignkit.errors import InputError, blamed, closest
from alignkit.plugins import read_component, registry
from alignkit.recipe.tables import CandidateOptions, RunOptions

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "no such file"),
        ({"where": "data.jsonl:3"}, "data.jsonl:3: no such file"),
        ({"fix": "check the path"}, "no such file\n  fix: check the path"),
        ({"where": "path", "fix": "check it"}, "path: no such file\n  fix: check it"),
    ],
)
def test_an_input_error_is_one_message(arguments: dict[str, str], text: str) -> None:
    error = InputError("no such file", **arguments)
    assert str(error) == text
    assert (error.what, error.where, error.fix) == (
        "no such file",
        arguments.get("where", ""),
        arguments.get("fix", ""),
    )


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.AlignkitError, 1),
        (errors.InputError, 2),
        (errors.StoppedByCheck, 3),
        (errors.PluginError, 1),
        (errors.CheckpointError, 1),
    ],
)
def test_exit_codes(kind: type[errors.AlignkitError], code: int) -> None:
    error = kind("text")
    assert isinstance(error, errors.AlignkitError)
    assert (error.exit_code, str(error)) == (code, "text")


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("kl_coeff", ["kl_coef", "clip_range"], "did you mean 'kl_coef'?"),
        ("dop", ["ppo", "dpo"], "did you mean 'dpo'?"),
        ("zzz", ["ppo", "dpo"], "choose one of: dpo, ppo"),
        ("zzz", [], "none is available"),
    ],
)
def test_the_closest_name(name: str, known: list[str], hint: str) -> None:
    assert closest(name, known) == hint
    assert closest(name, iter(known)) == hint


@pytest.mark.parametrize(
    ("kind", "accepted", "refused"),
    [
        (options.NonNegative, [0, 1e-9, 3], [-1e-9, -1]),
        (options.Positive, [1e-9, 3], [0, -1]),
        (options.Fraction, [0, 0.5, 1], [-0.01, 1.01]),
        (options.Count, [1, 7], [0, -1, 1.5]),
        (options.Natural, [0, 7], [-1, 0.5]),
    ],
)
def test_ranges(kind: Any, accepted: list[float], refused: list[float]) -> None:
    adapter = TypeAdapter(kind)
    assert [adapter.validate_python(value) for value in accepted] == accepted
    for value in refused:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (options.TrainingOptions, {"learning_rate": -1e-5}),
        (options.TrainingOptions, {"lr_schedule": "linaer"}),
        (options.TrainingOptions, {"warmup": 1.5}),
        (options.TrainingOptions, {"max_grad_norm": 0}),
        (options.TrainingOptions, {"n_epochs": 0}),
        (options.TrainingOptions, {"minibatch_size": 0}),
        (options.TrainingOptions, {"max_tokens": 0}),
        (options.RolloutOptions, {"group_size": 0}),
        (options.AlarmOptions, {"max_kl": -1}),
        (options.Sampling, {"temperature": -0.1}),
        (options.Sampling, {"top_p": 0}),
        (options.Sampling, {"top_p": 1.1}),
        (options.Sampling, {"max_tokens": 0}),
        (options.Sampling, {"temperature": float("inf")}),
        (options.TrainingOptions, {"max_grad_norm": float("nan")}),
        (options.TrainingOptions, {"adam_beta2": 1.0}),
        (RatioOptions, {"clip_range": float("inf")}),
        (CandidateOptions, {"near_duplicate": float("-inf")}),
    ],
)
def test_options_out_of_range_are_refused(kind: type[options.Config], bad: dict[str, Any]) -> None:
    [(name, value)] = bad.items()
    with pytest.raises(OptionsError, match=f"{kind.__name__} {name}: must be .*, found {value!r}") as error:
        kind(**bad)
    assert [problem.key for problem in error.value.problems] == [(name,)]
    assert error.value.exit_code == 2


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(OptionsError) as error:
        options.RolloutOptions(n_epochs=0, learning_rate=-1, group_size="many")  # type: ignore[arg-type]
    assert str(error.value).splitlines() == [
        "3 things are wrong:",
        "RolloutOptions learning_rate: must be at least 0, found -1",
        "RolloutOptions n_epochs: must be at least 1, found 0",
        "RolloutOptions group_size: must be a valid integer, unable to parse string as an integer, found 'many'",
    ]


def test_options_made_in_python_hold_what_was_meant() -> None:
    made = options.EarlyStopOptions(stop={"plateau": 3})  # type: ignore[arg-type]
    assert made.stop == options.StopOptions(plateau=3)
    assert options.Sampling(stop=["a"]).stop == ("a",)  # type: ignore[arg-type]
    with pytest.raises(OptionsError, match=r"EarlyStopOptions stop\.plataeu: no such option"):
        options.EarlyStopOptions(stop={"plataeu": 3})  # type: ignore[arg-type]
    with pytest.raises(OptionsError, match="StopOptions plateau_delta: has no effect without plateau above 0"):
        options.StopOptions(plateau_delta=0.1)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr("alignkit.recipe.tables.has_nvidia_driver", lambda: False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(OptionsError, match=f"RunOptions device: this machine has no {device}\n  fix: use auto or cpu"):
        RunOptions(device=device)


class NeedsPackage(options.Config):
    """Imports a package that nobody has."""

    def check(self) -> None:
        import no_such_package.inside  # type: ignore[import-not-found]  # noqa: F401


def test_a_package_that_is_missing_is_named_with_code_2() -> None:
    text = "needs the package 'no_such_package', which is not installed\n  fix: pip install no_such_package"
    with pytest.raises(InputError, match=f"NeedsPackage: {text}"):
        NeedsPackage()
    with pytest.raises(InputError, match=f"role x: {text}"), blamed("role x"):
        NeedsPackage.check(options.Config())  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"backend: {text}"):
        options.require_package("no_such_package", where="backend")
    options.require_package("json", where="backend")


@pytest.mark.parametrize(
    ("package", "role", "spec"),
    [
        ("openai", "preferences", {"plugin": "judge", "model": "m", "base_url": "http://127.0.0.1:1/v1"}),
        ("pyarrow", "preferences", {"plugin": "dataset", "path": "rows.parquet"}),
        ("trl", "optimizer", {"plugin": "trl-dpo"}),
    ],
)
def test_a_plugin_whose_package_is_missing_is_refused_by_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, role: str, spec: dict[str, Any]
) -> None:
    """As where it is not installed: it can be neither found nor imported."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    monkeypatch.setattr("alignkit_trl.fields.find_spec", importlib.util.find_spec)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    config_fields.cache_clear()
    with pytest.raises(InputError, match=f"needs the package '{package}', which is not installed") as refused:
        _, problems = read_component(registry(), role, spec)
        raise OptionsError("options", problems)
    assert f"pip install {package}" in str(refused.value)
    config_fields.cache_clear()


def test_a_model_is_a_folder_or_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo" / "judge").mkdir(parents=True)
    known = [
        "demo/judge",
        "demo",
        str(tmp_path),
        "owner/name",
        "owner/jugde",
        "demo/jugde",
        "./judge",
        "/nowhere/judge",
    ]
    assert [options.may_be_model(name) for name in known] == [True] * 5 + [False] * 3


def test_options_are_frozen_and_keyword_only() -> None:
    with pytest.raises(FrozenInstanceError):
        options.Sampling().top_k = 3  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        options.Sampling(3)  # type: ignore[misc]


def test_options_hold_no_components_unless_they_say_so() -> None:
    assert tuple(options.specs_of(options.TrainingOptions())) == ()
    spec = {"plugin": "length"}
    held = options.EarlyStopOptions(stop=options.StopOptions(gold=spec))
    assert list(options.specs_of(held)) == [("stop.gold", "reward", spec)]
