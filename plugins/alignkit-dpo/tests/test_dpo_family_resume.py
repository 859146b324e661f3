"""The family in the training loop: what is interrupted goes on bit for bit, state and figures of the step included."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_dpo.beta_dpo import BetaDPO
from alignkit_dpo.kto import KTO
from alignkit_dpo.reference_free import ORPO
from alignkit_dpo.whole_rankings import ListDPO

from alignkit import Group, Prompt
from alignkit.testing import TinyPolicy, adam_rounding, near, terms_of_network
from alignkit.training.engine import train
from alignkit.training.feeds import OfflineFeed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

WORDS = ["red", "green", "blue", "a longer reply.", "no", "yes please"]


class KilledError(Exception):
    """The process has gone."""


def records() -> list[Group]:
    """Rankings that are labelled too, nearly all desirable, so that KTO's baseline leaves zero."""
    draw = random.Random(2)
    return [
        Group(
            Prompt(text=f"ask {word}"), tuple(draw.sample(WORDS, 3)), ranks=(0, 1, 2), labels=(True, True, number > 0)
        )
        for number, word in enumerate(WORDS + WORDS[:2])
    ]


def run(
    member: type[Any], folder: Path, *, kill_after: int = 0, resume: bool = False, max_tokens: int = 16384
) -> tuple[Any, list[Mapping[str, float]]]:
    torch.manual_seed(0)
    options = {"learning_rate": 0.01, "minibatch_size": 3, "n_epochs": 3, "save_every": 1, "max_tokens": max_tokens}
    policy = TinyPolicy()
    # AdamW makes whole steps of what rounding leaves of gradients that are zero; in float64 these are harmless.
    policy.modules()["policy"].double()
    optimizer = member(member.Config(**options), policy=policy)
    log: list[Mapping[str, float]] = []

    def on_step(record: Mapping[str, float]) -> None:
        log.append({name: value for name, value in record.items() if "_per_s" not in name})
        if record["step"] == kill_after:
            raise KilledError

    train(optimizer, OfflineFeed(records(), policy), folder=folder, seed=5, on_step=on_step, resume=resume)
    return optimizer, log


def weights(optimizer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for module in optimizer.modules().values() for p in module.parameters()])


@pytest.mark.parametrize("member", [BetaDPO, KTO, ORPO, ListDPO])
def test_goes_on_bit_for_bit(member: type[Any], tmp_path: Path) -> None:
    whole, log = run(member, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(member, tmp_path / "part", kill_after=5)
    resumed, rest = run(member, tmp_path / "part", resume=True)
    assert [record["step"] for record in rest] == [5, 6, 7, 8, 9]
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.state_dict() == whole.state_dict()
    assert rest == log[4:]


@pytest.mark.parametrize(("member", "figure"), [(BetaDPO, "beta"), (KTO, "baseline")])
def test_figures_of_the_step_are_the_same_for_any_micro_batch_size(
    member: type[Any], figure: str, tmp_path: Path
) -> None:
    whole, log = run(member, tmp_path / "whole")
    pieces, log_in_pieces = run(member, tmp_path / "pieces", max_tokens=1)
    terms = terms_of_network(whole.modules(), tokens=200)
    bound = adam_rounding(terms, steps=len(log), learning_rate=0.01)
    assert torch.allclose(weights(whole), weights(pieces), rtol=0, atol=bound)
    figures = [record[figure] for record in log]
    assert [record[figure] for record in log_in_pieces] == near(figures, terms=terms)
    assert max(figures) > min(figures)
    for name in ("loss", "accuracy"):
        assert log[-1][name] == near(log_in_pieces[-1][name], terms=terms)
