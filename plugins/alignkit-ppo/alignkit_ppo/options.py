"""Options of the plugin's Optimizers. Defaults follow Huang et al., arXiv:2403.17031, where it gives one; comments mark
the exceptions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt, Lt

from alignkit import Config, Count, Fraction, Natural, NonNegative, Positive, PtxOptions
from alignkit.algorithms import ClippedOptions, OnePassOptions, PolicyGradientOptions


@dataclass(frozen=True, kw_only=True)
class CriticOptions(Config):
    """Critic."""

    gamma: Fraction = 1.0
    """Discount factor of a later reward, per token, 0 to 1."""
    gae_lambda: Fraction = 0.95
    """Decay of generalised advantage estimation, 0 (trust the critic) to 1 (trust the rewards)."""
    whiten_advantages: bool = True
    """Scale advantages to mean 0 and variance 1 over all tokens of the batch, on all processes."""
    clip_range_value: NonNegative = 0.2
    """Clip the value to this distance from the value before the update, in units of reward; 0: no clipping."""
    vf_coef: NonNegative = 0.1
    """Weight of the value loss."""
    critic: Literal["shared", "policy", "reward"] = "shared"
    """Where values come from: `shared` is a head on the policy's trunk; `policy` is a separate model that starts as a
    copy of the policy and shares its frozen layers (policy.freeze_layers); `reward` is a separate model that starts as
    a copy of the reward model."""
    # The paper's critic is a copy of the reward model and needs no rate of its own; a head that starts at zero does.
    critic_lr_scale: NonNegative = 10.0
    """Factor on the critic's learning rate: on its head if `shared`, on all of it otherwise."""
    critic_warmup: Natural = 0
    """Iterations at the start that train only the critic; the policy stays the same, bit for bit."""
    bootstrap_truncated: bool = True
    """Give a response that was cut off the critic's value after the cut instead of its score, unless no response of the
    batch finishes. False: the length limit is the end, and every response gets its score."""


@dataclass(frozen=True, kw_only=True)
class SharedCriticOptions(CriticOptions):
    """Critic on the policy's trunk."""

    critic_layers: Natural = 0
    """How many last layers (and the last norm) a `shared` critic has of its own, copied from the policy at the start;
    0 shares the whole trunk."""

    def check(self) -> None:
        super().check()
        self.counts_only_with("critic = 'shared'", self.critic == "shared", "critic_layers")


@dataclass(frozen=True, kw_only=True)
class ActorCriticOptions(CriticOptions, PolicyGradientOptions):
    """Options of every algorithm with a critic."""

    matters: ClassVar[tuple[str, ...]] = (*PolicyGradientOptions.matters, "critic", "vf_coef")

    learning_rate: NonNegative = 3e-6
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Schedule of the learning rate after the warm-up: constant, or to zero over the planned steps."""
    missing_eos_penalty: NonNegative = 1.0
    """Reward subtracted at the last token of a response that was cut off at the length limit."""


@dataclass(frozen=True, kw_only=True)
class PPOOptions(SharedCriticOptions, PtxOptions, ActorCriticOptions, ClippedOptions):
    """Proximal policy optimisation with a critic, clipped (arXiv:1707.06347).

    Formula: -min(w * A, clip(w, 1 - clip_range, 1 + clip_range) * A) + vf_coef * (V - R)^2 / 2 - ent_coef * H,
        with w = pi(t) / pi_old(t) of each token t, A by GAE(gamma, gae_lambda) and the reward
        -kl_coef * log(pi_old(t) / pi_ref(t)) at every token, plus the score at the last one
    Paper: Schulman et al., arXiv:1707.06347, eq. 7 and 9; for language models Ouyang et al., arXiv:2203.02155;
        details and defaults: Huang et al., arXiv:2403.17031.
    Use it when: you have a reward for fresh responses and want credit per token, at the price of a critic.
    """

    matters: ClassVar[tuple[str, ...]] = (
        *ActorCriticOptions.matters,
        "n_epochs",
        "clip_range",
        "gae_lambda",
        "bootstrap_truncated",
    )

    n_epochs: Count = 4
    """Passes over the rollouts of each iteration."""


@dataclass(frozen=True, kw_only=True)
class PPOKLOptions(SharedCriticOptions, PtxOptions, ActorCriticOptions):
    """Proximal policy optimisation with an adaptive KL penalty instead of the clip (arXiv:1707.06347).

    Formula: -w * A + penalty_coef * KL(pi_old, pi) + vf_coef * (V - R)^2 / 2, with w = pi(t) / pi_old(t) of each token
        t, A by GAE(gamma, gae_lambda), and penalty_coef doubled after an update whose KL is above 1.5 * penalty_target,
        halved after one below penalty_target / 1.5
    Paper: Schulman et al., arXiv:1707.06347, eq. 8 and section 4.
    Use it when: updates should be bounded in nats instead of clipped at a ratio. PPO's clip is the usual choice.
    """

    matters: ClassVar[tuple[str, ...]] = (
        *ActorCriticOptions.matters,
        "n_epochs",
        "penalty_target",
        "gae_lambda",
        "bootstrap_truncated",
    )

    n_epochs: Count = 4
    """Passes over the rollouts of each iteration. The penalty needs at least two steps per iteration."""
    penalty_coef: Positive = 1.0
    """Weight of the KL from the sampling policy at the start."""
    penalty_target: Positive = 0.01
    """KL of an update that the weight adapts to, in nats per token."""


@dataclass(frozen=True, kw_only=True)
class A2COptions(OnePassOptions, SharedCriticOptions, PtxOptions, ActorCriticOptions):
    """Advantage actor-critic, one pass over each batch (arXiv:1602.01783).

    Formula: -A * log pi(t) + vf_coef * (V - R)^2 / 2 - ent_coef * H of each token t, with A = R - V and R the sum of
        the rewards from t on
    Paper: Mnih et al., arXiv:1602.01783, algorithm S3 and section 4.
    Use it when: you want a critic without ratios and clips, or a baseline for PPO.
    """

    matters: ClassVar[tuple[str, ...]] = (*ActorCriticOptions.matters, "ent_coef", "bootstrap_truncated")

    gae_lambda: Fraction = 1.0
    whiten_advantages: bool = False
    clip_range_value: NonNegative = 0.0
    vf_coef: NonNegative = 0.5
    ent_coef: NonNegative = 0.01


@dataclass(frozen=True, kw_only=True)
class TRPOOptions(ActorCriticOptions):
    """Trust region policy optimisation: natural gradient and line search (arXiv:1502.05477).

    Formula: -w * A, with w = pi(t) / pi_old(t) of each token t and A by GAE(gamma, gae_lambda), by a step along F^-1 g
        (F the Fisher matrix, g the gradient) that keeps KL(pi_old, pi) <= trust_region; the critic by (V - R)^2 / 2
    Paper: Schulman et al., arXiv:1502.05477, eq. 14 and appendix C.
    Use it when: each update's KL must have a hard bound, at about ten times the cost of a gradient step.
    """

    matters: ClassVar[tuple[str, ...]] = (
        *ActorCriticOptions.matters,
        "trust_region",
        "damping",
        "cg_iterations",
        "bootstrap_truncated",
    )

    minibatch_size: Count = 32
    """Groups (a prompt with its responses) per update, over all processes. Best is the whole batch."""
    critic: Literal["policy", "reward"] = "policy"
    """Where values come from: `policy` is a separate model that starts as a copy of the policy, `reward` one that
    starts as a copy of the reward model. A head on the policy's trunk would move the policy out of the trust region."""
    trust_region: Positive = 0.01
    """Largest KL of an update, in nats per token, as estimated on the tokens of its batch."""
    damping: NonNegative = 0.1
    """Added to the diagonal of the Fisher matrix."""
    cg_iterations: Count = 10
    """Conjugate gradient steps; each costs two forward passes and a gradient."""
    line_search_steps: Count = 10
    """Step lengths to try before giving up; then the policy stays the same."""
    line_search_decay: Annotated[float, Gt(0), Lt(1)] = 0.8
    """Length of each step, as a share of the one before."""
