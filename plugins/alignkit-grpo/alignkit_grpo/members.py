"""The algorithms without a critic: one base, with the defaults of their options (`alignkit_grpo.options`).

What is deliberately different of each stands in its docstring.
"""

from __future__ import annotations

from alignkit.algorithms import ClippedPolicyGradient
from alignkit_grpo.critic_free import CriticFree
from alignkit_grpo.options import (
    DAPOOptions,
    DrGRPOOptions,
    GRPOOptions,
    GSPOOptions,
    REINFORCEOptions,
    REINFORCEPlusPlusOptions,
    ReMaxOptions,
    RLOOOptions,
)


class GRPO(CriticFree[GRPOOptions], ClippedPolicyGradient[GRPOOptions]):
    """Group relative policy optimisation, Shao et al. (DeepSeekMath), arXiv:2402.03300, equations 3 and 4.

    Different from the paper: the standard deviation of a group has the divisor n - 1, as in TRL, and the KL is weighed
    by the probability ratio, without which its gradient is that of another divergence (DeepSeek-AI, arXiv:2512.02556,
    section 3.1); `kl_importance = false` is the paper's.
    """


class DrGRPO(CriticFree[DrGRPOOptions], ClippedPolicyGradient[DrGRPOOptions]):
    """GRPO done right, Liu et al., arXiv:2503.20783, section 3.2.

    The divisor of each response's sum is a constant, `loss_length`: by default the longest response that can be
    sampled, as in TRL. So neither a response's length nor its group's spread of rewards changes its weight.
    """


class DAPO(CriticFree[DAPOOptions], ClippedPolicyGradient[DAPOOptions]):
    """Decoupled clip and dynamic sampling policy optimisation, Yu et al., arXiv:2503.14476.

    Different from the paper: groups of equal rewards are left out of a batch that is not filled up again, so
    `optimizer.batch_size` says how many prompts are sampled and the number of steps of an iteration varies; the figure
    `kept` is the share of responses that is left. The paper samples on until the batch is full. Responses near the
    length limit are penalised over the last fifth of it, which is the paper's 4096 of 20480 tokens.
    """


class GSPO(CriticFree[GSPOOptions], ClippedPolicyGradient[GSPOOptions]):
    """Group sequence policy optimisation, Zheng et al., arXiv:2507.18071: the clipped ratio is that of a response.

    The ratio is the geometric mean over the tokens of a response, so its clip range is far narrower than a token's.
    """


class RLOO(CriticFree[RLOOOptions], ClippedPolicyGradient[RLOOOptions]):
    """REINFORCE leave-one-out, Ahmadian et al., arXiv:2402.14740, section 3.2; the estimator is that of Kool et al.
    2019.

    A response is one action: its ratio is that of the whole response, and its KL, summed over the tokens, is taken from
    its reward. Different from the paper: the ratio is clipped, as in TRL, so that rollouts can be used for more than
    one step.
    """


class REINFORCE(CriticFree[REINFORCEOptions]):
    """REINFORCE, Williams 1992 (Machine Learning 8, 229-256), with the moving-average baseline of Ahmadian et al.,
    arXiv:2402.14740, equation 5.

    The average is over the rewards of earlier batches, so that the baseline doesn't depend on the response that it is
    held against. The first batch, which has none before it, takes its own mean.
    """


class REINFORCEPlusPlus(CriticFree[REINFORCEPlusPlusOptions], ClippedPolicyGradient[REINFORCEPlusPlusOptions]):
    """REINFORCE++, Hu et al., arXiv:2501.03262: the clip of PPO, a KL penalty in each token's reward, and advantages
    that are normalised over the whole batch instead of a critic or a group."""


class ReMax(CriticFree[ReMaxOptions]):
    """ReMax, Li et al., arXiv:2310.10505: the reward of the greedy response to a prompt is the baseline of the sampled
    one.

    The greedy response is sampled and scored once a batch, in `prepare`. It has the same length limit and the same
    penalties; the KL of the sampled response is not held against it, as in the authors' code.
    """
