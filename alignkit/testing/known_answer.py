"""A problem with a known answer: one prompt, and responses of one token out of four, each with a known reward.

The policy that maximises E[reward] - beta * KL(policy || reference) is the reference times exp(reward / beta), up to a
factor (Rafailov et al., arXiv:2305.18290, eq. 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from alignkit.batch import GroupBatch
from alignkit.components import Context
from alignkit.interfaces import Feed, RewardSource
from alignkit.options import Sampling
from alignkit.records import Group, Prompt
from alignkit.testing.material import backward, trained_parameters
from alignkit.testing.tiny import TinyOptions, TinyPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from alignkit.interfaces import Optimizer, Policy

PROMPT = Prompt(text="abc")
REWARD_OF_TOKEN = {"": 0.3, "a": 1.0, "b": -0.5, "c": 0.0}
"""By response: the stop token alone, or one letter."""


class ScoreOf(RewardSource[Any]):
    """A reward source from a function of the response."""

    def __init__(self, score: Callable[[str], float]) -> None:
        super().__init__()
        self._score = score

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        return [[self._score(response) for response in group.responses] for group in groups]


def policy_of_four_tokens() -> TinyPolicy:
    """A policy over the stop token and a, b, c; every call gives an equal one."""
    return TinyPolicy(TinyOptions(alphabet="abc"), Context(seed=3))


def rollouts(optimizer: Optimizer[Any], *, n: int, max_tokens: int, seed: int) -> GroupBatch:
    """`n` sampled responses to the prompt, scored by the optimizer's reward source."""
    if max_tokens == 1:
        batch = _single_tokens(optimizer.policy, n, seed)
    else:
        batch = optimizer.policy.generate([PROMPT], n=n, sampling=Sampling(max_tokens=max_tokens), seed=seed)
    assert optimizer.reward is not None
    scores = [score for row in optimizer.reward.score(batch.groups) for score in row]
    return batch.replace(rewards=torch.tensor(scores), response_limit=max_tokens)


def _single_tokens(policy: Policy[Any], n: int, seed: int) -> GroupBatch:
    """The same as `generate` with a limit of one token, without its loop over responses."""
    probabilities = token_distribution(policy)
    tokens = torch.multinomial(probabilities, n, replacement=True, generator=torch.Generator().manual_seed(seed))
    group = Group(PROMPT, tuple(list(REWARD_OF_TOKEN)[token] for token in tokens.tolist()))
    batch = _batch(policy, tokens.tolist(), group)
    return batch.replace(logprobs=probabilities.log()[tokens], finished=tokens == 0)


def _batch(policy: Policy[Any], tokens: Sequence[int], group: Group) -> GroupBatch:
    prompt = policy.encode([Group(PROMPT, ("",))]).prompt_ids.tolist()
    return GroupBatch.from_ids([prompt], [[[token] for token in tokens]], [group])


@dataclass(frozen=True)
class KnownAnswer:
    """The problem as a test of one algorithm, with rollouts or rankings:

        algorithm = known_answer.train(Mine, kl_coef=0.5)
        assert known_answer.distance(algorithm.policy, beta=0.5) < 0.02

    Attributes:
        rewards: response -> its reward.
    """

    rewards: Mapping[str, float] = field(default_factory=lambda: dict(REWARD_OF_TOKEN))

    def train(
        self, component: type[Optimizer[Any]], *, steps: int = 120, n: int = 512, rate: float = 0.03, **options: Any
    ) -> Optimizer[Any]:
        """A new algorithm, trained for so many steps on `n` rollouts each, or on `n` pairs that Bradley-Terry ranks by
        these rewards."""
        made: Any = component
        algorithm: Optimizer[Any] = made(
            component.Config(**options), policy=policy_of_four_tokens(), reward=ScoreOf(self.rewards.__getitem__)
        )
        if algorithm.consumes not in (Feed.ROLLOUTS, Feed.RANKINGS):
            raise ValueError(f"this problem has rollouts and rankings, no {algorithm.consumes.value}")
        pairs = self._pairs(algorithm.policy, n) if algorithm.consumes is Feed.RANKINGS else None
        learn(algorithm, iterations=steps, n=n, max_tokens=1, rate=rate, batch=pairs)
        return algorithm

    def distance(self, policy: Policy[Any], *, beta: float) -> float:
        """The total variation distance (0 to 1) of a policy from the best one for this strength of the KL."""
        return distance(token_distribution(policy), optimum(token_distribution(policy_of_four_tokens()), beta))

    def probability(self, policy: Policy[Any], response: str) -> float:
        """The probability that a policy gives a response: `""`, `"a"`, `"b"` or `"c"`."""
        return float(token_distribution(policy)[list(self.rewards).index(response)])

    def _pairs(self, policy: Policy[Any], n: int) -> GroupBatch:
        """Pairs of sampled responses; the better one wins with the probability sigmoid(difference of rewards)."""
        random, texts = torch.Generator().manual_seed(0), list(self.rewards)
        tokens = torch.multinomial(token_distribution(policy), 2 * n, replacement=True, generator=random).view(n, 2)
        rewards = torch.tensor([self.rewards[text] for text in texts])[tokens]
        wins = torch.rand(n, generator=random) < (rewards[:, 0] - rewards[:, 1]).sigmoid()
        prompt = policy.encode([Group(PROMPT, ("",))]).prompt_ids.tolist()
        groups = [
            Group(PROMPT, tuple(texts[token] for token in pair), ranks=(0, 1) if first else (1, 0))
            for pair, first in zip(tokens.tolist(), wins.tolist(), strict=True)
        ]
        return GroupBatch.from_ids([prompt] * n, [[[token] for token in pair] for pair in tokens.tolist()], groups)


def learn(
    optimizer: Optimizer[Any],
    *,
    iterations: int,
    n: int,
    max_tokens: int,
    rate: float,
    batch: GroupBatch | None = None,
) -> list[dict[str, float]]:
    """The engine's loop with one prompt, one minibatch and a learning rate falling to zero; the steps' figures.

    Args:
        batch: learnt from in every iteration, instead of `n` new rollouts.
    """
    adam = torch.optim.Adam(trained_parameters(optimizer.modules()).values(), lr=rate)
    log = []
    for iteration in range(iterations):
        given = batch or rollouts(optimizer, n=n, max_tokens=max_tokens, seed=iteration)
        with torch.no_grad():
            prepared = optimizer.prepare(given)
        prepared = prepared.replace(totals=prepared.counts())
        for group in adam.param_groups:
            group["lr"] = rate * (1 - iteration / iterations)
        for _ in range(optimizer.config.n_epochs):
            adam.zero_grad()
            loss, metrics = optimizer.loss(prepared)
            backward(loss)
            figures = optimizer.take_step(prepared)
            adam.step()
            log.append({**{name: float(value) for name, value in metrics.items()}, **figures})
            if not optimizer.keep_going(log[-1]):
                break
    return log


def token_distribution(policy: Policy[Any]) -> Tensor:
    """[4] the probabilities of the stop token, a, b and c as the first token after the prompt."""
    with torch.no_grad():
        return policy.forward(_batch(policy, range(4), Group(PROMPT, ("",) * 4))).logprobs.exp()


def optimum(reference: Tensor, beta: float) -> Tensor:
    """[4] reference * exp(reward / beta) / Z."""
    weights = [float(p) * math.exp(r / beta) for p, r in zip(reference, REWARD_OF_TOKEN.values(), strict=True)]
    return torch.tensor([weight / sum(weights) for weight in weights])


def distance(one: Tensor, other: Tensor) -> float:
    """The total variation distance of two distributions, 0 to 1."""
    return float(0.5 * (one - other).abs().sum())
