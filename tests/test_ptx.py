"""PTX mixing: the gradient is that of the algorithm plus the weighted gradient of the texts, however it is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_grpo.members import RLOO
from alignkit_ppo.options import TRPOOptions
from test_processes import launch

from alignkit.checking import option_names
from alignkit.components import Context
from alignkit.errors import InputError
from alignkit.records import Group, Prompt
from alignkit.testing import TinyPolicy, adam_rounding, assert_near, near, terms_of_network
from alignkit.testing.runs import assert_goes_on_bit_for_bit, online_run
from alignkit.training.ptx import PtxText, choice

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.batch import GroupBatch

TEXTS = [
    Group(Prompt(text="say hello"), ("hello there",)),
    Group(Prompt(text="x"), ("yes", "no way")),
    Group(Prompt(text=""), ("a plain text that follows nothing",)),
    Group(Prompt(text="count"), ("one",)),
]
TOKENS = 12 + 4 + 7 + 34 + 4
"""Letters of all texts, each with its stop token."""
TERMS = terms_of_network(TinyPolicy().modules(), TOKENS)


def gradient(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


class Watched(RLOO):
    """Keeps the gradient of the first step."""

    gradients: list[torch.Tensor]

    def take_step(self, batch: GroupBatch) -> dict[str, float]:
        self.gradients = [*getattr(self, "gradients", []), gradient(self.policy.modules()["policy"])]
        return {}


def first_gradient(folder: Path, **options: Any) -> tuple[torch.Tensor, dict[str, float]]:
    options = {"iterations": 1, "minibatch_size": 4, "max_grad_norm": 1e9, "max_tokens": 10_000, **options}
    algorithm, log = online_run(Watched, folder, texts=TEXTS, **options)
    return algorithm.gradients[0], dict(log[0])


def gradient_of_texts() -> tuple[torch.Tensor, float]:
    """By hand: one text at a time, the sum of all tokens' negative log-likelihoods over their number."""
    policy, total = TinyPolicy(context=Context(seed=1)), torch.zeros(())
    for group in TEXTS:
        for response in group.responses:
            total = total - policy.forward(policy.encode([Group(group.prompt, (response,))])).logprobs.sum()
    loss = total / TOKENS
    loss.backward()
    return gradient(policy.modules()["policy"]), float(loss.detach())


def test_the_gradient_is_that_of_the_rollouts_plus_the_weighted_one_of_the_texts(tmp_path: Path) -> None:
    alone, without = first_gradient(tmp_path / "alone")
    mixed, log = first_gradient(tmp_path / "mixed", ptx_coef=0.7)
    expected, loss = gradient_of_texts()
    assert_near(mixed - alone, 0.7 * expected, terms=TERMS, scale=float(mixed.abs().max()))
    assert float(expected.abs().max()) > 1e-2
    assert log["ptx_loss"] == near(loss, terms=TERMS)
    assert log["loss"] == near(without["loss"] + 0.7 * loss, terms=TERMS)
    assert "ptx_loss" not in without


def test_any_micro_batch_size_gives_the_same_gradient(tmp_path: Path) -> None:
    whole, log = first_gradient(tmp_path / "whole", ptx_coef=2.0)
    pieces, log_of_pieces = first_gradient(tmp_path / "pieces", ptx_coef=2.0, max_tokens=1)
    assert_near(pieces, whole, terms=TERMS)
    assert log_of_pieces["ptx_loss"] == near(log["ptx_loss"], terms=TERMS)


def test_a_step_takes_its_texts_by_seed_and_step_alone() -> None:
    chosen = [choice(10, 4, seed=3, step=step) for step in range(50)]
    assert chosen == [choice(10, 4, seed=3, step=step) for step in range(50)]
    assert all(len(set(texts)) == 4 for texts in chosen)
    assert {text for texts in chosen for text in texts} == set(range(10))
    assert len({tuple(texts) for texts in chosen}) > 45
    assert choice(10, 4, seed=4, step=0) != chosen[0]
    assert sorted(choice(3, 8, seed=0, step=0)) == [0, 1, 2]


def test_the_batch_is_of_the_chosen_texts() -> None:
    policy = TinyPolicy()
    texts = PtxText(TEXTS, policy, coef=1.0, size=2, seed=5)
    for step in range(4):
        batch = texts.batch(step)
        assert batch is not None and batch.totals is not None
        assert list(batch.groups) == [TEXTS[index] for index in choice(4, 2, seed=5, step=step)]
        assert batch.totals.tokens == batch.num_tokens == sum(len(r) + 1 for g in batch.groups for r in g.responses)


@pytest.mark.parametrize("coef", [0.0, 1.0])
def test_texts_are_not_forgotten(tmp_path: Path, coef: float) -> None:
    _, log = online_run(RLOO, tmp_path, texts=TEXTS, ptx_coef=coef, iterations=12, kl_coef=0.0)
    assert log[-1]["reward"] > log[0]["reward"] + 0.05
    assert "ptx_loss" not in log[0] if coef == 0 else log[-1]["ptx_loss"] < log[0]["ptx_loss"] - 0.4


def test_goes_on_bit_for_bit(tmp_path: Path) -> None:
    assert_goes_on_bit_for_bit(RLOO, tmp_path, texts=TEXTS, ptx_coef=0.5, ptx_batch_size=2)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "needs texts"),
        ([*TEXTS, Group(Prompt(text="p"), ("good", "bad"), ranks=(0, 1))], "rankings and labels"),
        ([Group(Prompt(text="p"), ("good",), labels=(True,))], "rankings and labels"),
        ([Group(Prompt(text="p"), ("",))], "some responses are empty"),
    ],
)
def test_what_is_not_to_be_imitated_is_refused(tmp_path: Path, texts: list[Group], said: str) -> None:
    with pytest.raises(InputError, match=said):
        online_run(RLOO, tmp_path, texts=texts, ptx_coef=0.5)


def test_trpo_has_no_room_for_another_objective() -> None:
    assert "ptx_coef" not in option_names(TRPOOptions)


TRAIN = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from alignkit_grpo.members import RLOO
from test_ptx import TEXTS
torch.set_default_dtype(torch.float64)
from alignkit.ops.distributed import process_index, start_processes
from alignkit.options import StopOptions
from alignkit.testing.runs import online_run, weights

start_processes()
folder = Path({folder!r})
algorithm, log = online_run(
    RLOO, folder, texts=TEXTS, ptx_coef=2.0, ptx_batch_size=3, iterations=3, minibatch_size=4, warmup=0.0
)
stop = StopOptions(plateau=1, plateau_delta=0.01)
_, stopped = online_run(RLOO, folder / "stop", iterations=9, minibatch_size=4, learning_rate=1e-9, stop=stop)
rewards = [record["reward"] for record in stopped]
torch.save((weights(algorithm), [record["ptx_loss"] for record in log], rewards), folder / f"{{process_index()}}.pt")
"""


@pytest.mark.slow
def test_two_processes_share_the_texts_and_stop_alike(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Three texts a step on two processes, two and one; the rewards that the rule looks at are of both."""
    results = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        launch(TRAIN.format(tests=str(request.path.parent), folder=str(folder)), processes)
        results[processes] = [torch.load(folder / f"{rank}.pt") for rank in range(processes)]
    alone, losses, rewards = results[1][0]
    assert 0 < len(rewards) < 9
    for shared, shared_losses, shared_rewards in results[2]:
        assert shared_rewards == near(rewards, terms=100)
        assert shared_losses == near(losses, terms=TERMS)
        bound = adam_rounding(TERMS, steps=len(losses), learning_rate=0.02)
        assert torch.allclose(shared, alone, rtol=0, atol=bound)
