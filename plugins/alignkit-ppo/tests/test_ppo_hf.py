"""Two iterations of PPO by hand on a tiny Llama, with each kind of critic, fully fine-tuned and through LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_ppo.options import PPOOptions
from alignkit_ppo.ppo import PPO

from alignkit.components import Context
from alignkit.errors import InputError
from alignkit.interfaces import RewardSource, Scorer
from alignkit.options import Sampling
from alignkit.records import Prompt
from alignkit.testing import rounding, terms_of_network
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignkit.batch import GroupBatch
    from alignkit.records import Group

hf = pytest.importorskip("alignkit_hf.policy")
options = pytest.importorskip("alignkit_hf.options")

PROMPTS = [Prompt(text="say a"), Prompt(text="b"), Prompt(text="tell me about the sea")]


class LetterReward(RewardSource[Any]):
    """Counts lower-case letters; its critic is a sequence classifier in a folder, with a head that is not zero."""

    def __init__(self, folder: Path, policy: Any) -> None:
        super().__init__()
        self.folder = folder
        scorer = policy.scorer()
        head = scorer.modules()["scorer"].get_submodule("model.score")
        head.weight.data += 0.1 * torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(0))
        scorer.save(folder)

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        return [[float(sum(map(str.islower, response))) for response in group.responses] for group in groups]

    def start_critic(self) -> Scorer:
        return hf.HFPolicy.load_scorer(self.folder, Context(device="cpu"))


def rollouts(ppo: PPO, seed: int) -> GroupBatch:
    batch = ppo.policy.generate(PROMPTS, n=4, sampling=Sampling(max_tokens=8, temperature=0.7), seed=seed)
    assert ppo.reward is not None
    scores = [score for row in ppo.reward.score(batch.groups) for score in row]
    return batch.replace(rewards=torch.tensor(scores))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("critic", ["shared", "policy", "reward"])
def test_an_iteration_moves_policy_and_critic(tmp_path: Path, critic: str, rank: int) -> None:
    config = options.HFOptions(model=str(write_tiny_llama(tmp_path / "llama")), lora=options.LoraOptions(r=rank))
    policy = hf.HFPolicy(config, Context(device="cpu"))
    reward = LetterReward(tmp_path / "reward", policy)
    ppo = PPO(PPOOptions(critic=critic, missing_eos_penalty=0.0), policy=policy, reward=reward)  # type: ignore[arg-type]
    parameters = {
        f"{name}.{key}": parameter
        for name, module in ppo.modules().items()
        for key, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    prefix = next(iter(ppo.learning_rate_scales()))
    of_critic = [name for name in parameters if name.startswith(prefix)]
    assert 0 < len(of_critic) < len(parameters)
    adam = torch.optim.AdamW(parameters.values(), lr=1e-2)

    first = ppo.prepare(rollouts(ppo, seed=0))
    # of log-probabilities of up to 8 tokens
    bound = rounding(terms_of_network(ppo.modules(), tokens=100), scale=float(first.logprobs.abs().max()))  # type: ignore[union-attr]
    assert abs(ppo.batch_metrics["kl"]) < 8 * bound
    loss, metrics = ppo.loss(first)
    assert float(metrics["ratio_deviation"]) < bound
    loss.backward()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    adam.step()
    moved = {name for name, parameter in parameters.items() if not torch.equal(parameter, before[name])}
    assert moved & set(of_critic)
    assert moved - set(of_critic)

    _, metrics = ppo.loss(first)
    assert float(metrics["ratio_deviation"]) > 1e-3
    second = ppo.prepare(rollouts(ppo, seed=1))
    assert abs(ppo.batch_metrics["kl"]) > 1e-3
    assert not torch.equal(second.ref_logprobs, second.logprobs)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("rank", [0, 4])
def test_a_critic_with_last_layers_of_its_own_warms_up_and_then_both_move(tmp_path: Path, rank: int) -> None:
    config = options.HFOptions(model=str(write_tiny_llama(tmp_path / "llama")), lora=options.LoraOptions(r=rank))
    policy = hf.HFPolicy(config, Context(device="cpu"))
    given = PPOOptions(critic_layers=1, critic_warmup=1, missing_eos_penalty=0.0)
    ppo = PPO(given, policy=policy, reward=LetterReward(tmp_path / "reward", policy))
    parameters = {name: p for name, p in policy.modules()["policy"].named_parameters() if p.requires_grad}
    copies = {name for name in parameters if name.startswith("value_head.")}
    assert {name for name in copies if ".layers.0." in name}
    adam = torch.optim.AdamW(parameters.values(), lr=1e-2)
    for seed in (0, 1):
        batch = ppo.prepare(rollouts(ppo, seed=seed))
        for _ in range(2):
            adam.zero_grad()
            before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            ppo.loss(batch)[0].backward()
            ppo.take_step(batch)
            adam.step()
        moved = {name for name, parameter in parameters.items() if not torch.equal(parameter, before[name])}
        assert {name for name in moved & copies if ".layers.0." in name}
        assert bool(moved - copies) is (seed == 1)


def test_layers_of_a_critic_that_shares_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="critic_layers: has no effect without critic = 'shared'"):
        PPOOptions(critic="policy", critic_layers=1).check()
