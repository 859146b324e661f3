"""Losses and gradients of 5 steps equal those of TRL's trainers, on the same weights and rows, in float32.

One row a pass (`rows_per_pass`) where TRL takes a mean over the tokens of a pass: ours is one of a response, then of
the step, which is the same there.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_dpo.apo import APODown, APOZero
from alignkit_dpo.dpo import DPO, RobustDPO
from alignkit_dpo.ipo import IPO, SPPO
from alignkit_dpo.kto import KTO
from alignkit_dpo.reference_free import CPO, ORPO, SimPO
from alignkit_dpo.slic import SLiC
from alignkit_dpo.whole_rankings import EXO, NCA, ListDPO
from alignkit_trl.testing.parity import pair_rows
from offline_trl import assert_equal_to_trl, optimizer_of, random_text, rankings, text_rows

from alignkit import Group, Prompt

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit import GroupBatch

trl = pytest.importorskip("trl")
pytest.importorskip("alignkit_hf")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("member", "ours", "theirs"),
    [
        (DPO, {"beta": 0.3}, {"loss_type": ["sigmoid"]}),
        # TRL's `sigmoid` has no smoothing any more; its `aot_unpaired` on one pair a pass is the smoothed loss.
        (
            DPO,
            {"beta": 0.3, "label_smoothing": 0.2},
            {"loss_type": ["aot_unpaired"], "label_smoothing": 0.2, "rows_per_pass": 1},
        ),
        (
            DPO,
            {"beta": 0.3, "sft_weight": 0.7},
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7], "rows_per_pass": 1},
        ),
        (DPO, {"beta": 0.3, "f_divergence": "js"}, {"loss_type": ["sigmoid"], "f_divergence_type": "js_divergence"}),
        (
            DPO,
            {"beta": 0.3, "f_divergence": "alpha", "f_alpha": 0.3},
            {"loss_type": ["sigmoid"], "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
        ),
        (RobustDPO, {"beta": 0.3, "label_smoothing": 0.2}, {"loss_type": ["robust"], "label_smoothing": 0.2}),
        (IPO, {"beta": 0.5}, {"loss_type": ["ipo"]}),
        (IPO, {"beta": 0.5, "f_divergence": "js"}, {"loss_type": ["ipo"], "f_divergence_type": "js_divergence"}),
        (SLiC, {"beta": 0.3}, {"loss_type": ["hinge"]}),
        (APOZero, {"beta": 0.3}, {"loss_type": ["apo_zero"]}),
        (APODown, {"beta": 0.3}, {"loss_type": ["apo_down"]}),
        (EXO, {"beta": 0.3, "label_smoothing": 0.1}, {"loss_type": ["exo_pair"], "label_smoothing": 0.1}),
        (NCA, {"beta": 0.3}, {"loss_type": ["nca_pair"]}),
        (ListDPO, {"beta": 0.3}, {"loss_type": ["sigmoid"]}),
    ],
)
def test_pairs(member: type[Any], ours: dict[str, Any], theirs: dict[str, Any], llama: Path, tmp_path: Path) -> None:
    optimizer = optimizer_of(member, llama, ours)
    trainer = (trl.DPOTrainer, trl.DPOConfig)
    options = {"beta": ours["beta"], **theirs}
    assert_equal_to_trl(optimizer, *trainer, rankings(2), pair_rows, llama=llama, folder=tmp_path, **options)


@pytest.mark.parametrize(
    ("member", "ours", "theirs", "longest"),
    [
        (
            DPO,
            {"beta": 0.3, "f_divergence": "forward-kl"},
            {"loss_type": ["sigmoid"], "f_divergence_type": "forward_kl"},
            3,
        ),
        (SPPO, {"beta": 2.0}, {"loss_type": ["sppo_hard"]}, 1),
    ],
)
def test_short_pairs(
    member: type[Any], ours: dict[str, Any], theirs: dict[str, Any], longest: int, llama: Path, tmp_path: Path
) -> None:
    # Losses without a bound: on long responses the rounding of float32 alone is over the tolerance.
    optimizer = optimizer_of(member, llama, ours)
    trainer = (trl.DPOTrainer, trl.DPOConfig)
    options = {"beta": ours["beta"], **theirs}
    groups = rankings(2, longest_response=longest)
    assert_equal_to_trl(optimizer, *trainer, groups, pair_rows, llama=llama, folder=tmp_path, **options)


@pytest.mark.parametrize(("member", "loss_type"), [(DPO, "sigmoid"), (SLiC, "hinge"), (APOZero, "apo_zero")])
def test_all_pairs_of_rankings(member: type[Any], loss_type: str, llama: Path, tmp_path: Path) -> None:
    optimizer = optimizer_of(member, llama, {"beta": 0.3})
    trainer = (trl.DPOTrainer, trl.DPOConfig)
    options = {"beta": 0.3, "loss_type": [loss_type]}
    assert_equal_to_trl(optimizer, *trainer, rankings(4), pair_rows, llama=llama, folder=tmp_path, **options)


@pytest.mark.parametrize(
    ("member", "ours", "theirs"),
    [
        (CPO, {"beta": 0.3, "sft_weight": 0.7}, {"cpo_alpha": 0.7}),
        (SimPO, {"beta": 1.5, "margin": 0.6}, {"cpo_alpha": 0.0, "loss_type": "simpo", "simpo_gamma": 0.6}),
        (SimPO, {"beta": 1.5, "sft_weight": 0.2}, {"cpo_alpha": 0.2, "loss_type": "simpo", "simpo_gamma": 1.0}),
        (
            SLiC,
            {"beta": 0.3, "normalized": False, "sft_weight": 0.5},
            {"loss_type": "hinge", "cpo_alpha": 0.5},
        ),
    ],
)
def test_without_a_reference(
    member: type[Any], ours: dict[str, Any], theirs: dict[str, Any], llama: Path, tmp_path: Path
) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    optimizer = optimizer_of(member, llama, ours)
    options = {"beta": ours["beta"], "rows_per_pass": 1, **theirs}
    assert_equal_to_trl(
        optimizer, CPOTrainer, CPOConfig, rankings(2), text_rows, llama=llama, folder=tmp_path, **options
    )


def test_orpo(llama: Path, tmp_path: Path) -> None:
    # TRL's likelihood counts the prompt's tokens too, all but the first: prompts of one token make it ours.
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    optimizer = optimizer_of(ORPO, llama, {"beta": 0.4})
    groups = rankings(2, longest_prompt=1)
    options = {"beta": 0.4, "rows_per_pass": 1}
    assert_equal_to_trl(optimizer, ORPOTrainer, ORPOConfig, groups, text_rows, llama=llama, folder=tmp_path, **options)


def labelled(count: int) -> list[Group]:
    """Single responses for `count` steps; in each step the longest prompt has the longest response."""
    draw = random.Random(count)
    groups = []
    for _ in range(count):
        texts = [(random_text(draw, 20), random_text(draw, 15)) for _ in range(3)] + [("p" * 21, "r" * 15)]
        labels = draw.choice([(True, False, True, True), (False, False, True, False)])
        groups += [
            Group(Prompt(text=prompt), (response,), labels=(label,))
            for (prompt, response), label in zip(texts, labels, strict=True)
        ]
    return groups


def kto_rows(batch: GroupBatch) -> list[dict[str, Any]]:
    prompts = [ids.tolist() for ids in torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())]
    responses = [ids.tolist() for ids in torch.split(batch.response_ids, batch.lengths.tolist())]
    rows = []
    for start in range(0, len(responses), 4):
        step = responses[start : start + 4]
        rows += [
            {"prompt_ids": prompt, "completion_ids": own, "KL_completion_ids": other, "label": group.labels[0]}  # type: ignore[index]
            for prompt, own, other, group in zip(
                prompts[start : start + 4], step, step[-1:] + step[:-1], batch.groups[start : start + 4], strict=True
            )
        ]
    return rows


def test_kto(llama: Path, tmp_path: Path) -> None:
    weights = {"beta": 0.4, "desirable_weight": 1.4, "undesirable_weight": 0.8}
    optimizer = optimizer_of(KTO, llama, weights)
    trainer = (trl.KTOTrainer, trl.KTOConfig)
    assert_equal_to_trl(optimizer, *trainer, labelled(5), kto_rows, llama=llama, folder=tmp_path, **weights)
    assert optimizer.batch_metrics["baseline"] > 0
