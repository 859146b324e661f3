"""What TRL is told is checked against the fields of its config classes before anything heavy is imported."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_trl import options
from alignkit_trl.fields import config_fields
from alignkit_trl.options import TRLDPOOptions, TRLGRPOOptions, TRLOptions, TRLRolloutOptions, TRLSFTOptions

from alignkit.errors import InputError
from alignkit.options import StopOptions
from alignkit.plugins import read_options, registry
from alignkit.recipe.reading import resolve
from alignkit.recipe.recipe import load_recipe

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("trl")
CLASSES: list[Any] = [
    found
    for found in vars(options).values()
    if isinstance(found, type) and issubclass(found, TRLOptions | TRLRolloutOptions) and hasattr(found, "trl_config")
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", CLASSES)
def test_the_fields_are_those_of_trls_class(config: Any) -> None:
    import trl

    real = {field.name for field in dataclasses.fields(getattr(trl, config.trl_config)) if field.init}
    assert real <= config_fields(config.trl_config).keys()
    assert {*config.renamed.values(), *options.COMMON.values()} <= real
    assert options.DERIVED.keys() - {"warmup_ratio"} <= real
    assert issubclass(config, TRLOptions) or options.ONLINE.keys() <= real
    assert config.renamed.keys() <= {field.name for field in dataclasses.fields(config)}


@pytest.mark.parametrize(
    ("config", "args", "message"),
    [
        (TRLDPOOptions, {"label_smothing": 0.1}, r"args.label_smothing: DPOConfig has no .*mean 'label_smoothing'"),
        (TRLDPOOptions, {"beta": 0.1}, r"args.beta: can't be set here\n  fix: set beta"),
        (TRLDPOOptions, {"num_train_epochs": 2}, r"args.num_train_epochs: .*set n_epochs"),
        (TRLDPOOptions, {"precompute_ref_log_probs": "yes"}, r"must be bool, found 'yes'"),
        (TRLDPOOptions, {"discopop_tau": True}, r"must be float, found True"),
        (TRLDPOOptions, {"max_length": 1.5}, r"must be int \| None, found 1.5"),
        (TRLSFTOptions, {"num_generations": 2}, r"SFTConfig has no such field"),
        (TRLGRPOOptions, {"num_generations": 2}, r"set group_size"),
        (TRLGRPOOptions, {"temperature": 0.7}, r"set sampling.temperature"),
        (TRLGRPOOptions, {"epsilon": 0.1}, r"set clip_range"),
    ],
)  # fmt: skip
def test_what_is_refused(config: Any, args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        config(args=args).check()


def test_what_is_accepted() -> None:
    TRLDPOOptions(args={"loss_type": ["ipo"], "max_length": None, "discopop_tau": 1, "adam_epsilon": 1e-6}).check()
    TRLGRPOOptions(args={"scale_rewards": "none", "epsilon_high": 0.3}, batch_size=12, minibatch_size=4).check()
    TRLGRPOOptions(batch_size=4, minibatch_size=16).check()


def test_minibatches_of_rollouts_are_of_one_size() -> None:
    with pytest.raises(InputError, match="minibatch_size"):
        TRLGRPOOptions(batch_size=32, minibatch_size=10).check()


@pytest.mark.parametrize("given", [{"ptx_coef": 0.1}, {"stop": StopOptions(plateau=3)}, {"max_kl": 6.0}])
def test_what_only_our_loop_does_is_refused(given: dict[str, Any]) -> None:
    _, problems = read_options(registry(), TRLGRPOOptions, given)
    assert [(problem.key, problem.what) for problem in problems] == [(tuple(given), "no such option")]


def test_a_recipe_is_refused_with_the_closest_name() -> None:
    recipe = load_recipe(
        None, flags={"optimizer": "trl-dpo"}, overrides=["policy.model=gone", "optimizer.args.loss_tipe=ipo"]
    )
    with pytest.raises(InputError, match=r"(?s)optimizer.args.loss_tipe.*did you mean 'loss_type'"):
        resolve(recipe, registry())


def test_what_a_recipe_says_for_ours_counts_for_trls(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[optimizer.for.dpo]\nbeta = 0.2\nminibatch_size = 4\nno_option_of_trl = 1\n")
    chosen = load_recipe(recipe, flags={"optimizer": "trl-dpo"}, overrides=["optimizer.minibatch_size=8"])
    config = resolve(chosen, registry()).config("optimizer")
    assert (config.beta, config.minibatch_size) == (0.2, 8)
    other = resolve(load_recipe(recipe, flags={"optimizer": "trl-kto"}, overrides=[]), registry()).config("optimizer")
    assert (other.beta, other.minibatch_size) == (0.1, 16)


def test_checking_imports_neither_torch_nor_trl() -> None:
    program = (
        "import sys; from alignkit_trl.options import TRLDPOOptions; TRLDPOOptions(args={'max_length': 9}).check();"
        "from alignkit.plugins import registry; registry();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'trl', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
