"""A second run, or a resumed one, takes the reference's log-probabilities from disk and ends in the same weights."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import torch
from alignkit_dpo.dpo import DPO
from alignkit_dpo.kto import KTO
from alignkit_dpo.options import DPOOptions, KTOOptions

from alignkit.algorithms import cached
from alignkit.components import Context
from alignkit.errors import StoppedByCheck
from alignkit.records import Group, Prompt
from alignkit.testing import TinyPolicy
from alignkit.training.engine import train
from alignkit.training.feeds import OfflineFeed

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from alignkit.batch import GroupBatch

STEPS = {"learning_rate": 0.01, "minibatch_size": 4, "n_epochs": 2, "save_every": 1}
WORDS = ["red", "green", "blue", "a longer reply.", "no", "yes please"]


def rankings() -> list[Group]:
    draw = random.Random(1)
    return [Group(Prompt(text=draw.choice(WORDS)), tuple(draw.sample(WORDS, 3)), ranks=(0, 1, 1)) for _ in range(10)]


def run(folder: Path, cache: Path | None, *, stop: bool = False, resume: bool = False, kto: bool = False) -> Tensor:
    """The weights that a run ends with."""
    policy, context = TinyPolicy(), Context(cache=cache)
    optimizer = (
        KTO(KTOOptions(**STEPS), context, policy=policy) if kto else DPO(DPOOptions(**STEPS), context, policy=policy)
    )

    def on_step(record: dict[str, float]) -> None:
        if stop and record["step"] == 3:
            raise StoppedByCheck("here")

    train(optimizer, OfflineFeed(rankings(), policy), folder=folder, seed=0, on_step=on_step, resume=resume)
    return torch.cat([p.detach().flatten() for module in policy.modules().values() for p in module.parameters()])


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every pass that the cache could not spare."""
    seen: list[int] = []
    plain = cached.policy_logprobs

    def counting(policy: TinyPolicy, batch: GroupBatch, max_tokens: int) -> Tensor:
        seen.append(batch.num_tokens)
        return plain(policy, batch, max_tokens)

    monkeypatch.setattr(cached, "policy_logprobs", counting)
    return seen


@pytest.mark.parametrize("kto", [False, True])
def test_a_second_run_asks_no_reference(tmp_path: Path, computed: list[int], kto: bool) -> None:
    first = run(tmp_path / "a", tmp_path / "cache", kto=kto)
    assert len(computed) == 1
    second = run(tmp_path / "b", tmp_path / "cache", kto=kto)
    assert len(computed) == 1
    uncached = run(tmp_path / "c", None, kto=kto)
    assert len(computed) == 2
    assert torch.equal(first, second)
    assert torch.equal(first, uncached)


def test_a_resumed_run_asks_no_reference_and_ends_the_same(tmp_path: Path, computed: list[int]) -> None:
    whole = run(tmp_path / "a", None)
    with pytest.raises(StoppedByCheck):
        run(tmp_path / "b", tmp_path / "cache", stop=True)
    before = len(computed)
    assert torch.equal(run(tmp_path / "b", tmp_path / "cache", resume=True), whole)
    assert len(computed) == before
