"""A critic that starts from the reward model values a whole response as it is scored, normalisation and all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from alignkit_ppo.options import PPOOptions
from alignkit_ppo.ppo import PPO

from alignkit.components import Context
from alignkit.options import Sampling
from alignkit.records import Group, Prompt
from alignkit.testing import assert_near, near, terms_of_network
from alignkit.testing.tiny_hf import write_tiny_llama

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.batch import GroupBatch

hf = pytest.importorskip("alignkit_hf.policy")
hf_options = pytest.importorskip("alignkit_hf.options")
reward_model = pytest.importorskip("alignkit_reward.model")
reward_options = pytest.importorskip("alignkit_reward.options")
stored = pytest.importorskip("alignkit_reward.stored")
transformers = pytest.importorskip("transformers")

MEAN, STD = 0.7, 2.5
GROUPS = [Group(Prompt(text="say a"), ("abc", "it is a day")), Group(Prompt(text="b"), ("no",))]


def write_reward_model(folder: Path, policy: Any) -> Path:
    """A head and trunk that differ from the policy's, and scores of mean 0.7 and deviation 2.5 on demonstrations."""
    scorer = policy.scorer()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in scorer.modules()["scorer"].parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    scorer.save(folder)
    stored.StoredReward(mean=MEAN, std=STD).write(folder)
    return folder


def raw_scores(folder: Path, batch: GroupBatch) -> list[torch.Tensor]:
    """By transformers alone: for each response, the label [length + 1] behind the prompt and behind each token."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    prompts = torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())
    found = []
    for group, ids in zip(
        batch.group_index.tolist(), torch.split(batch.response_ids, batch.lengths.tolist()), strict=True
    ):
        hidden = model.model(torch.cat([prompts[group], ids])[None]).last_hidden_state[0]
        found.append((hidden @ model.score.weight[0])[len(prompts[group]) - 1 :].detach())
    return found


@pytest.mark.parametrize("normalise", [True, False])
def test_values_are_the_normalised_scores_at_every_position(tmp_path: Path, normalise: bool) -> None:
    config = hf_options.HFOptions(model=str(write_tiny_llama(tmp_path / "llama")))
    policy = hf.HFPolicy(config, Context(device="cpu"))
    folder = write_reward_model(tmp_path / "reward", policy)
    options = reward_options.ModelOptions(model=str(folder), normalise=normalise)
    reward = reward_model.ModelReward(options, Context(device="cpu"))
    critic = reward.start_critic()
    batch = critic.encode(GROUPS)
    raw = raw_scores(folder, batch)
    expected = [(scores - MEAN) / STD if normalise else scores for scores in raw]
    output = critic.forward(batch)
    terms = terms_of_network(critic.modules(), tokens=batch.num_tokens)
    assert_near(output.scores, torch.stack([scores[-1] for scores in expected]), terms=terms)
    assert_near(output.values, torch.cat([scores[:-1] for scores in expected]), terms=terms)
    scored = [score for row in reward.score(GROUPS) for score in row]
    assert output.scores.tolist() == near(scored, terms=terms)
    assert max(abs(score) for score in scored) > 0.2
    again = [score for row in reward.score(GROUPS) for score in row]
    assert again == scored, "the reward model itself is not rescaled"


def test_ppo_starts_from_them(tmp_path: Path) -> None:
    config = hf_options.HFOptions(model=str(write_tiny_llama(tmp_path / "llama")))
    policy = hf.HFPolicy(config, Context(device="cpu"))
    folder = write_reward_model(tmp_path / "reward", policy)
    reward = reward_model.ModelReward(reward_options.ModelOptions(model=str(folder)), Context(device="cpu"))
    ppo = PPO(PPOOptions(critic="reward", missing_eos_penalty=0.0), policy=policy, reward=reward)
    batch = policy.generate([Prompt(text="say a"), Prompt(text="b")], n=2, sampling=Sampling(max_tokens=6), seed=0)
    prepared = ppo.prepare(batch.replace(rewards=torch.zeros(4)))
    raw = raw_scores(folder, batch)
    assert prepared.values is not None
    assert ppo.critic is not None
    terms = terms_of_network(ppo.critic.modules(), tokens=batch.num_tokens)
    assert_near(prepared.values, torch.cat([(scores[:-1] - MEAN) / STD for scores in raw]), terms=terms)
    head = ppo.critic.modules()["scorer"].get_submodule("model.score")
    assert all(parameter.requires_grad for parameter in head.parameters())
    assert len(list(head.parameters())) == 2
