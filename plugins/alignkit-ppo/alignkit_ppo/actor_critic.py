"""The base of algorithms with a critic: generalised advantage estimation and the value loss.

Deliberately different: a cut-off response is not a terminal state. It gets the critic's value after the cut instead of
its score (Pardo et al., arXiv:1712.00378); both together would count the end twice and reward being cut off. A critic
with its own trunk gives that value exactly. A head on the policy's trunk is read only where a token is predicted, so
the value before the last token stands in for it.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch

from alignkit import Held, InputError
from alignkit.algorithms import PolicyGradient, each_piece, known, require_values, scorer_outputs
from alignkit.ops import clipped_value_loss, explained_variance, gae, sum_over_processes, whiten
from alignkit_ppo.options import ActorCriticOptions, SharedCriticOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from alignkit import Config, GroupBatch, Metrics, Scorer

CRITIC, VALUE_HEAD = "critic", "value_head"
FEW_FINISHED = 0.1
OptionsT = TypeVar("OptionsT", bound=ActorCriticOptions)
log = logging.getLogger(__name__)


class ActorCritic(PolicyGradient[OptionsT]):
    """Policy gradient with a critic.

    Attributes:
        critic: the critic with its own trunk; None if the value head is on the policy's trunk.
        batches: number of prepared batches.
    """

    needs_values = True

    Config: ClassVar[type[Config]] = ActorCriticOptions

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.critic = self._start_critic()
        self.batches = 0
        self._warned = False

    @classmethod
    def holds(cls, config: OptionsT) -> tuple[Held, ...]:
        policy, *others = super().holds(config)
        if config.critic != "shared":
            critic = Held(name=CRITIC, trained=True, scores=True, of_reward=config.critic == "reward")
            return (policy, critic, *others)
        layers = config.critic_layers if isinstance(config, SharedCriticOptions) else 0
        return (replace(policy, value_layers=layers), *others)

    def _start_critic(self) -> Scorer | None:
        policy, options = require_values(self.policy), self.config
        if options.critic == "shared":
            if isinstance(options, SharedCriticOptions) and options.critic_layers:
                policy.add_value_branch(options.critic_layers)
            else:
                policy.add_value_head()
            return None
        if options.critic == "policy":
            return policy.scorer()
        critic = None if self.reward is None else self.reward.start_critic()
        if critic is None:
            raise InputError(
                "this reward has no model for a critic to start from",
                where="optimizer.critic",
                fix="set it to 'shared' or 'policy', or use a trained reward model",
            )
        return critic

    @property
    def warms_up(self) -> bool:
        """Whether only the critic learns from the last prepared batch."""
        return 0 < self.batches <= self.config.critic_warmup

    def prepare(self, batch: GroupBatch) -> GroupBatch:
        prepared = super().prepare(batch)
        self.batches += 1
        if self.warms_up:
            self._last_kl = []  # the policy does not move, so the KL must not reach the controller
        return prepared

    def with_logprobs(self, batch: GroupBatch) -> GroupBatch:
        """A head on the policy's trunk needs a policy pass, which also gives the log-probabilities."""
        return batch if self.critic is None else super().with_logprobs(batch)

    def with_advantages(self, batch: GroupBatch) -> GroupBatch:
        """The batch with values, token_rewards, advantages and returns, all [R]."""
        options = self.config
        ended = self._ended(batch)
        batch, behind = self._with_values(batch)
        token_rewards = self.token_rewards(batch, self.shaped_scores(batch).masked_fill(~ended, 0.0))
        advantages, returns = gae(
            token_rewards,
            known(batch, "values"),
            batch.lengths,
            behind.masked_fill(ended, 0.0),
            gamma=options.gamma,
            gae_lambda=options.gae_lambda,
        )
        if options.whiten_advantages:
            advantages = whiten(advantages)
        batch = batch.replace(token_rewards=token_rewards, advantages=advantages, returns=returns)
        self.observe(batch, explained_variance=explained_variance(known(batch, "values"), returns))
        return batch

    def _ended(self, batch: GroupBatch) -> Tensor:
        """[S] whether a response has ended, so that it gets its score.

        If no response of the batch finishes, all count as ended: the critic has nothing to learn the value after the
        cut from, and a model that never stops would learn nothing.
        """
        counts = torch.stack([batch.finished.sum(), torch.tensor(batch.num_responses, device=batch.device)])
        finished, responses = sum_over_processes(counts).tolist()
        if not self.config.bootstrap_truncated or finished == 0:
            return torch.ones_like(batch.finished)
        if finished < FEW_FINISHED * responses and not self._warned:
            self._warned = True
            log.warning(
                "only %d of %d responses finished, and only their scores count: raise sampling.max_tokens, or set "
                "optimizer.bootstrap_truncated = false",
                finished,
                responses,
            )
        return batch.finished

    def _with_values(self, batch: GroupBatch) -> tuple[GroupBatch, Tensor]:
        """The batch with values, and the values [S] after the last tokens; a shared head takes the last ones instead.

        A shared head needs a pass of its own, whose log-probabilities replace the sampler's: they differ by rounding,
        and the ratio must start at exactly 1.
        """
        if self.critic is not None:
            critic = scorer_outputs(self.critic, batch, self.max_tokens)
            return batch.replace(values=critic.values.float()), critic.scores.float()
        policy = require_values(self.policy)
        outputs = each_piece(lambda piece: policy.forward(piece, values=True), batch, self.max_tokens)
        logprobs = torch.cat([output.logprobs for output in outputs])
        values = torch.cat([known(output, "values") for output in outputs]).float()
        return batch.replace(logprobs=logprobs, values=values), values[batch.last_token]

    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        output = self.forward(batch, **({"values": True} if self.critic is None else {}))
        values = known(output, "values") if self.critic is None else self.critic.forward(batch).values
        loss, metrics = self.policy_loss(batch, output)
        loss = 0.0 * loss if self.warms_up else loss
        value_loss = batch.token_mean(
            clipped_value_loss(values, known(batch, "values"), known(batch, "returns"), self.config.clip_range_value)
        )
        return loss + self.config.vf_coef * value_loss, {**metrics, "value_loss": value_loss.detach()}

    def take_step(self, batch: GroupBatch) -> dict[str, float]:
        """While the critic warms up, only the value head of the policy keeps its gradient."""
        if self.warms_up:
            for module in self.policy.modules().values():
                for name, parameter in module.named_parameters():
                    if VALUE_HEAD not in name.split("."):
                        parameter.grad = None
        return super().take_step(batch)

    def modules(self) -> dict[str, nn.Module]:
        own = {} if self.critic is None else self.critic.modules()
        return {**self.policy.modules(), **{f"{CRITIC}.{name}": module for name, module in own.items()}}

    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        self.policy.bind({name: modules[name] for name in self.policy.modules()})
        if self.critic is not None:
            self.critic.bind({name: modules[f"{CRITIC}.{name}"] for name in self.critic.modules()})

    def learning_rate_scales(self) -> Mapping[str, float]:
        return {f"policy.{VALUE_HEAD}" if self.critic is None else CRITIC: self.config.critic_lr_scale}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "batches": self.batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.batches = state["batches"]
