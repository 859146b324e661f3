"""Losses and gradients of 5 steps equal those of TRL's DPOTrainer, on the same weights and rows, in float32."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from alignkit_dpo.dpo import DPO
from alignkit_dpo.ipo import IPO
from alignkit_dpo.options import DPOOptions, IPOOptions

from alignkit import Group, Prompt
from alignkit.testing.tiny_hf import write_tiny_llama
from alignkit.testing.trl_parity import pair_rows, parity_steps, trl_steps

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit import Optimizer, Policy

pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model"))


def rankings(k: int, count: int) -> list[Group]:
    draw = random.Random(k)

    def text(longest: int) -> str:
        return "".join(draw.choice("abcdefgh .") for _ in range(draw.randint(1, longest)))

    return [
        Group(Prompt(text=text(20)), tuple(text(15) for _ in range(k)), ranks=tuple(draw.sample(range(k), k)))
        for _ in range(count)
    ]


def policy_of(folder: Path) -> Policy[Any]:
    hf = pytest.importorskip("alignkit_hf.policy")
    from alignkit_hf.options import HFOptions

    policy: Policy[Any] = hf.HFPolicy(HFOptions(model=str(folder)))
    return policy


def assert_equal_to_trl(optimizer: Optimizer[Any], folder: Path, tmp_path: Path, *, k: int = 2, **trl: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    groups_per_step = 4
    batch = optimizer.policy.encode(rankings(k, count=5 * groups_per_step))
    theirs = trl_steps(
        DPOTrainer,
        DPOConfig,
        AutoModelForCausalLM.from_pretrained(folder, attention_dropout=0.0),
        pair_rows(batch),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        folder=tmp_path,
        rows_per_step=groups_per_step * k * (k - 1) // 2,
        **trl,
    )
    assert len(theirs.losses) == 5
    assert theirs.losses[0] != pytest.approx(theirs.losses[-1], abs=1e-2)
    parity_steps(optimizer, batch, groups_per_step=groups_per_step).assert_equal_to(theirs, tolerance=TOLERANCE)


def test_dpo(folder: Path, tmp_path: Path) -> None:
    optimizer = DPO(DPOOptions(beta=0.3), policy=policy_of(folder))
    assert_equal_to_trl(optimizer, folder, tmp_path, loss_type=["sigmoid"], beta=0.3)


def test_dpo_on_all_pairs_of_rankings(folder: Path, tmp_path: Path) -> None:
    optimizer = DPO(DPOOptions(beta=0.3), policy=policy_of(folder))
    assert_equal_to_trl(optimizer, folder, tmp_path, k=4, loss_type=["sigmoid"], beta=0.3)


def test_dpo_with_label_smoothing(folder: Path, tmp_path: Path) -> None:
    # TRL's `sigmoid` has no smoothing any more; its `aot_unpaired` on one pair a pass is the smoothed logistic loss.
    optimizer = DPO(DPOOptions(beta=0.3, label_smoothing=0.2), policy=policy_of(folder))
    assert_equal_to_trl(
        optimizer, folder, tmp_path, loss_type=["aot_unpaired"], beta=0.3, label_smoothing=0.2, rows_per_pass=1
    )


def test_ipo(folder: Path, tmp_path: Path) -> None:
    optimizer = IPO(IPOOptions(beta=0.5), policy=policy_of(folder))
    assert_equal_to_trl(optimizer, folder, tmp_path, loss_type=["ipo"], beta=0.5)
