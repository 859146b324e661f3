"""Options of the plugin's Optimizers. Defaults follow Huang et al., arXiv:2403.17031, where it gives one; the comments
say where not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignkit.options import Count, Fraction, NonNegative
from alignkit.policy_gradient.options import PolicyGradientOptions


@dataclass(frozen=True, kw_only=True)
class ActorCriticOptions(PolicyGradientOptions):
    """What every algorithm with a critic has."""

    learning_rate: NonNegative = 3e-6
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Course of the learning rate after the warm-up, towards zero over the planned steps."""
    gamma: Fraction = 1.0
    """Discount factor of a token's reward for each token before it, 0 to 1."""
    gae_lambda: Fraction = 0.95
    """Decay of generalised advantage estimation, 0 (trust the critic) to 1 (trust the rewards)."""
    whiten_advantages: bool = True
    """Scale advantages to mean 0 and variance 1 over all tokens of the batch, on all processes."""
    clip_range_value: NonNegative = 0.2
    """The value counts up to this distance from the value before the update, in units of reward; 0 does not clip."""
    vf_coef: NonNegative = 0.1
    """Weight of the value loss."""

    critic: Literal["shared", "policy", "reward"] = "shared"
    """Where values come from: `shared` is a head on the policy's trunk, `policy` a model of its own that starts as a
    copy of the policy, `reward` one that starts as a copy of the reward model."""
    # The paper's critic is a copy of the reward model and needs no other rate; a head that starts at zero does.
    critic_lr_scale: NonNegative = 10.0
    """Factor on the learning rate for the critic: its head if `shared`, all of it otherwise."""

    missing_eos_penalty: NonNegative = 1.0
    """Reward taken from the last token of a response that was cut off at the length limit."""
    bootstrap_truncated: bool = True
    """A response that was cut off has not ended: the critic's value behind the cut stands in for its score, which is
    paid for finished responses only, or for all where none finishes. False takes the limit for the end."""


@dataclass(frozen=True, kw_only=True)
class PPOOptions(ActorCriticOptions):
    """Proximal policy optimisation with a critic, clipped (arXiv:1707.06347).

    Formula: -min(w * A, clip(w, 1 - clip_range, 1 + clip_range) * A) + vf_coef * (V - R)^2 / 2 - ent_coef * H,
        with w = pi(t) / pi_old(t) of each token t, A by GAE(gamma, gae_lambda) and the reward
        -kl_coef * log(pi_old(t) / pi_ref(t)) at every token, plus the score at the last one
    Paper: Schulman et al., arXiv:1707.06347, eq. 7 and 9; for language models Ouyang et al., arXiv:2203.02155;
        details and defaults: Huang et al., arXiv:2403.17031.
    Use it when: there is a reward for fresh responses, and each token shall get its own credit, at the price of a
        critic.
    """

    n_epochs: Count = 4
    """Passes over the rollouts of each iteration."""
