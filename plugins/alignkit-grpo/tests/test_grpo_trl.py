"""Losses and gradients of 5 steps on the same rollouts equal those of TRL's trainers, in float32.

The steps are large enough for ratios to leave the clip range. TRL makes its own advantages and log-probabilities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from alignkit_grpo.members import DAPO, GRPO, GSPO, RLOO, DrGRPO
from alignkit_trl.testing.rollouts import assert_steps_equal

from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit import Policy

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model"))


def policy_of(folder: Path) -> Policy[Any]:
    hf = pytest.importorskip("alignkit_hf.policy")
    from alignkit_hf.options import HFOptions

    policy: Policy[Any] = hf.HFPolicy(HFOptions(model=str(folder)))
    return policy


def assert_equal(
    component: type[Any], ours: dict[str, Any], theirs: dict[str, Any], folder: Path, tmp_path: Path, peer: str = "GRPO"
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert_steps_equal(
        component(component.Config(**ours), policy=policy_of(folder)),
        getattr(trl, f"{peer}Trainer"),
        getattr(trl, f"{peer}Config"),
        AutoModelForCausalLM.from_pretrained(folder, attention_dropout=0.0),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        folder=tmp_path,
        **theirs,
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"beta": 0.04}),
        ({"kl_coef": 0.0, "clip_range_high": 0.28, "dual_clip": 1.5}, {"epsilon_high": 0.28, "delta": 1.5}),
        ({"kl_coef": 0.3, "kl_importance": False}, {"beta": 0.3, "use_bias_correction_kl": False}),
        ({"kl_coef": 0.0, "off_policy_kl": 0.02}, {"off_policy_mask_threshold": 0.02}),
        ({"kl_coef": 0.0, "normalize_advantages": "batch"}, {"scale_rewards": "batch"}),
        ({"kl_coef": 0.0, "aggregation": "token", "ent_coef": 0.1}, {"loss_type": "bnpo", "entropy_coef": 0.1}),
        (
            {"kl_coef": 0.0, "surrogate": "truncated", "clip_range_high": 0.1, "aggregation": "token"},
            {"loss_type": "cispo", "epsilon_high": 1.1},
        ),
    ],
)
def test_grpo(ours: dict[str, Any], theirs: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    assert_equal(GRPO, ours, {"loss_type": "grpo", **theirs}, folder, tmp_path)


def test_dr_grpo(folder: Path, tmp_path: Path) -> None:
    assert_equal(DrGRPO, {}, {"loss_type": "dr_grpo", "scale_rewards": "none"}, folder, tmp_path)


@pytest.mark.parametrize(("truncated", "masked"), [("keep", False), ("drop", True)])
def test_dapo(truncated: str, masked: bool, folder: Path, tmp_path: Path) -> None:
    # TRL keeps groups of equal rewards and has no overlong penalty of its own.
    ours = {"truncated": truncated, "dynamic_sampling": False, "overlong_penalty": 0.0}
    theirs = {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": masked}
    assert_equal(DAPO, ours, theirs, folder, tmp_path)


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_gspo(kl_coef: float, folder: Path, tmp_path: Path) -> None:
    ours = {"kl_coef": kl_coef, "clip_range": 0.02, "clip_range_high": 0.03}
    ours |= {"kl_estimator": "k3"} if kl_coef else {}
    theirs = {"beta": kl_coef, "epsilon": 0.02, "epsilon_high": 0.03, "use_bias_correction_kl": False}
    level = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
    assert_equal(GSPO, ours, {**level, **theirs}, folder, tmp_path)


@pytest.mark.parametrize("kl_coef", [0.0, 0.05])
def test_rloo(kl_coef: float, folder: Path, tmp_path: Path) -> None:
    assert_equal(RLOO, {"kl_coef": kl_coef}, {"beta": kl_coef}, folder, tmp_path, peer="RLOO")
