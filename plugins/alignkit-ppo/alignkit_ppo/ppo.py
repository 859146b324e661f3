"""Proximal policy optimisation, Schulman et al., arXiv:1707.06347, for language models as in Ouyang et al.,
arXiv:2203.02155: the score is paid at the last token, the KL to the reference at every token.

Deliberately different: a cut-off response is not a terminal state. Its score is not paid and the value behind the cut
is bootstrapped instead (Pardo et al., arXiv:1712.00378); paying both would count the end twice and reward being cut
off. A critic with its own trunk gives the value behind the last token exactly. A head on the policy's trunk is read
only where a token is predicted, so there the value before the last token stands in for it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch

from alignkit.errors import InputError
from alignkit.interfaces import Feed, Metrics, Optimizer
from alignkit.ops.advantages import RunningMoments, explained_variance, gae, moments, whiten
from alignkit.ops.batched import pieces_in_order, policy_logprobs, scorer_outputs
from alignkit.ops.distributed import sum_over_processes
from alignkit.ops.kl import AdaptiveKL, FixedKL, kl_estimate
from alignkit.ops.surrogates import clipped_policy_loss, clipped_value_loss
from alignkit_ppo.options import PPOOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from alignkit.batch import GroupBatch
    from alignkit.interfaces import Context, Policy, RewardSource, Scorer
    from alignkit.options import Config

CRITIC = "critic"
FEW_FINISHED = 0.1
Known = TypeVar("Known")
log = logging.getLogger(__name__)


class PPO(Optimizer[PPOOptions]):
    """Clipped policy gradient with a critic.

    Attributes:
        critic: the critic with its own trunk, or None where the value head sits on the policy's trunk.
    """

    Config: ClassVar[type[Config]] = PPOOptions
    consumes = Feed.ROLLOUTS
    uses_reference = True
    couples_responses = False

    def __init__(
        self,
        config: PPOOptions | None = None,
        context: Context | None = None,
        *,
        policy: Policy[Any],
        reward: RewardSource[Any] | None = None,
    ) -> None:
        super().__init__(config, context, policy=policy, reward=reward)
        options = self.config
        self.critic = self._start_critic()
        self.kl_controller = (
            AdaptiveKL(options.kl_coef, options.kl_target, options.kl_horizon)
            if options.kl_controller == "adaptive"
            else FixedKL(options.kl_coef)
        )
        self.reward_moments = RunningMoments()
        self._warned = False

    def _start_critic(self) -> Scorer | None:
        if self.config.critic == "shared":
            self.policy.add_value_head()
            return None
        if self.config.critic == "policy":
            return self.policy.scorer()
        critic = None if self.reward is None else self.reward.start_critic()
        if critic is None:
            raise InputError(
                "this reward has no model for a critic to start from",
                where="optimizer.critic",
                fix="set it to 'shared' or 'policy', or use a trained reward model",
            )
        return critic

    @torch.no_grad()
    def prepare(self, batch: GroupBatch) -> GroupBatch:
        """Adds logprobs, ref_logprobs, values, token_rewards, advantages and returns, all [R].

        Raises:
            ValueError: the batch has no rewards.
        """
        options = self.config
        ended = self._ended(batch)
        batch = batch.replace(ref_logprobs=policy_logprobs(_known(self.reference), batch, options.max_tokens))
        batch, behind = self._with_values(batch)
        token_rewards = self._token_rewards(batch, ended)
        advantages, returns = gae(
            token_rewards,
            _known(batch.values),
            batch.lengths,
            behind.masked_fill(ended, 0.0),
            gamma=options.gamma,
            gae_lambda=options.gae_lambda,
        )
        if options.whiten_advantages:
            advantages = whiten(advantages)
        batch = batch.replace(token_rewards=token_rewards, advantages=advantages, returns=returns)
        self._observe(batch)
        return batch

    def _ended(self, batch: GroupBatch) -> Tensor:
        """[S] where a response has ended and its score is paid.

        Where nothing of a batch finishes, there is nothing to learn the value behind the cut from, and the limit is the
        end: without this, a model that never stops would learn nothing.
        """
        counts = torch.stack([batch.finished.sum(), torch.tensor(batch.num_responses, device=batch.device)])
        finished, responses = sum_over_processes(counts).tolist()
        if not self.config.bootstrap_truncated or finished == 0:
            return torch.ones_like(batch.finished)
        if finished < FEW_FINISHED * responses and not self._warned:
            self._warned = True
            log.warning(
                "only %d of %d responses finished, and only their scores are paid: raise sampling.max_tokens, or say "
                "optimizer.bootstrap_truncated = false",
                finished,
                responses,
            )
        return batch.finished

    def _with_values(self, batch: GroupBatch) -> tuple[GroupBatch, Tensor]:
        """The batch with logprobs and values, and the values [S] behind the last tokens, exact or the last ones.

        A head on the policy's trunk needs a pass of the policy. Its log-probabilities then replace those of the
        sampler, which differ by rounding: the ratio starts at exactly 1.
        """
        budget = self.config.max_tokens
        if self.critic is None:
            outputs = [self.policy.forward(piece, values=True) for piece in pieces_in_order(batch, budget)]
            logprobs = torch.cat([output.logprobs for output in outputs])
            values = torch.cat([_known(output.values) for output in outputs]).float()
            behind = values[batch.last_token]
        else:
            critic = scorer_outputs(self.critic, batch, budget)
            logprobs = policy_logprobs(self.policy, batch, budget) if batch.logprobs is None else batch.logprobs
            values, behind = critic.values.float(), critic.scores.float()
        return batch.replace(logprobs=logprobs, values=values), behind

    def _token_rewards(self, batch: GroupBatch, ended: Tensor) -> Tensor:
        """[R] the KL penalty at every token, and the score at the last one."""
        options = self.config
        scores = _known(batch.rewards).float()
        if options.normalize_rewards:
            self.reward_moments.update(scores)
            scores = self.reward_moments.normalize(scores)
        if options.reward_clip:
            scores = scores.clamp(-options.reward_clip, options.reward_clip)
        scores = scores.masked_fill(~ended, 0.0) - options.missing_eos_penalty * ~batch.finished
        kl = kl_estimate(_known(batch.logprobs), _known(batch.ref_logprobs), options.kl_estimator)
        return (-self.kl_controller.coef * kl).index_add(0, batch.last_token, scores)

    def _observe(self, batch: GroupBatch) -> None:
        """Sets the figures of a batch and then moves the KL coefficient: a batch never changes its own."""
        rewards, logprobs = _known(batch.rewards).float(), _known(batch.logprobs)
        kl, finished = (logprobs - _known(batch.ref_logprobs)).sum(), batch.finished.float().sum()
        counts = logprobs.new_tensor([batch.num_tokens, batch.num_responses])
        sums = sum_over_processes(torch.cat([torch.stack([kl, logprobs.sum(), finished]), counts]))
        kl_sum, logprob_sum, num_finished, tokens, responses = sums.tolist()
        mean, variance, _ = moments(rewards)
        self.batch_metrics = {
            "reward": float(mean),
            "reward_std": float(variance.sqrt()),
            "kl": kl_sum / responses,
            "kl_coef": self.kl_controller.coef,
            "entropy": -logprob_sum / tokens,
            "explained_variance": explained_variance(_known(batch.values), _known(batch.returns)),
            "response_length": tokens / responses,
            "finished": num_finished / responses,
        }
        self.kl_controller.update(kl_sum / responses, responses)

    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        options, shared = self.config, self.critic is None
        output = self.policy.forward(batch, entropy=options.ent_coef > 0, values=shared)
        values = _known(output.values) if self.critic is None else self.critic.forward(batch).values
        old_logprobs = _known(batch.logprobs)
        log_ratio = output.logprobs - old_logprobs
        policy_loss = batch.token_mean(clipped_policy_loss(log_ratio, _known(batch.advantages), options.clip_range))
        value_loss = batch.token_mean(
            clipped_value_loss(values, _known(batch.values), _known(batch.returns), options.clip_range_value)
        )
        loss = policy_loss + options.vf_coef * value_loss
        if options.ent_coef:
            loss = loss - options.ent_coef * batch.token_mean(_known(output.entropy))
        deviation = (log_ratio.detach().exp() - 1).abs()
        return loss, {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "approx_kl": batch.token_mean(kl_estimate(old_logprobs, output.logprobs.detach(), "k3")),
            "clip_fraction": batch.token_mean((deviation > options.clip_range).float()),
            "ratio_deviation": batch.token_mean(deviation),
        }

    def keep_going(self, metrics: Mapping[str, float]) -> bool:
        return not self.config.stop_kl or metrics["approx_kl"] <= self.config.stop_kl

    def modules(self) -> dict[str, nn.Module]:
        own = {} if self.critic is None else self.critic.modules()
        return {**self.policy.modules(), **{f"{CRITIC}.{name}": module for name, module in own.items()}}

    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        self.policy.bind({name: modules[name] for name in self.policy.modules()})
        if self.critic is not None:
            self.critic.bind({name: modules[f"{CRITIC}.{name}"] for name in self.critic.modules()})

    def learning_rate_scales(self) -> Mapping[str, float]:
        return {"policy.value_head" if self.critic is None else CRITIC: self.config.critic_lr_scale}

    def state_dict(self) -> dict[str, Any]:
        return {"kl_controller": self.kl_controller.state_dict(), "rewards": self.reward_moments.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kl_controller.load_state_dict(state["kl_controller"])
        self.reward_moments.load_state_dict(state["rewards"])


def _known(field: Known | None) -> Known:
    if field is None:
        raise ValueError("a field that PPO needs is missing: a batch is scored, then goes through prepare, then loss")
    return field
