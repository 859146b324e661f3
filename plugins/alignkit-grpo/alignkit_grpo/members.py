"""The algorithms without a critic: one base with different default options (`alignkit_grpo.options`).

Each docstring says what deliberately differs from the paper.
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

    Different from the paper: the standard deviation of a group has the divisor n - 1, as in TRL, and the KL is weighted
    by the probability ratio, because otherwise its gradient belongs to another divergence (DeepSeek-AI,
    arXiv:2512.02556, section 3.1). `kl_importance = false` gives the paper's.
    """


class DrGRPO(CriticFree[DrGRPOOptions], ClippedPolicyGradient[DrGRPOOptions]):
    """GRPO done right, Liu et al., arXiv:2503.20783, section 3.2.

    The divisor of each response's sum is a constant, `loss_length`: by default the longest response that can be
    sampled, as in TRL. So neither a response's length nor the spread of its group's rewards changes its weight.
    """


class DAPO(CriticFree[DAPOOptions], ClippedPolicyGradient[DAPOOptions]):
    """Decoupled clip and dynamic sampling policy optimisation, Yu et al., arXiv:2503.14476.

    Different from the paper: groups with equal rewards are dropped and not replaced, where the paper samples until the
    batch is full. So `optimizer.batch_size` counts sampled prompts, the number of steps per iteration varies, and the
    metric `kept` is the share of responses that remain. Responses in the last fifth of the length limit are penalised:
    the paper's 4096 of 20480 tokens.
    """


class GSPO(CriticFree[GSPOOptions], ClippedPolicyGradient[GSPOOptions]):
    """Group sequence policy optimisation, Zheng et al., arXiv:2507.18071: the clipped ratio is per response.

    The ratio is the geometric mean over a response's tokens, so its clip range is far narrower than for tokens.
    """


class RLOO(CriticFree[RLOOOptions], ClippedPolicyGradient[RLOOOptions]):
    """REINFORCE leave-one-out, Ahmadian et al., arXiv:2402.14740, section 3.2; estimator: Kool et al. 2019.

    A response is one action: the ratio is of the whole response, and the KL, summed over its tokens, is subtracted from
    its reward. Different from the paper: the ratio is clipped, as in TRL, so that rollouts serve several steps.
    """


class REINFORCE(CriticFree[REINFORCEOptions]):
    """REINFORCE, Williams 1992 (Machine Learning 8, 229-256), with the moving-average baseline of Ahmadian et al.,
    arXiv:2402.14740, equation 5.

    The average is over the rewards of earlier batches, so that a response does not affect its own baseline. The first
    batch takes its own mean.
    """


class REINFORCEPlusPlus(CriticFree[REINFORCEPlusPlusOptions], ClippedPolicyGradient[REINFORCEPlusPlusOptions]):
    """REINFORCE++, Hu et al., arXiv:2501.03262: PPO's clip, a KL penalty in each token's reward, and advantages
    normalised over the whole batch instead of a critic or a group."""


class ReMax(CriticFree[ReMaxOptions]):
    """ReMax, Li et al., arXiv:2310.10505: the baseline is the reward of the greedy response to the same prompt.

    `prepare` samples and scores it once per batch, with the same length limit and penalties; the policy samples it
    itself, whatever `--sampler` says. The baseline has no KL, as in the authors' code.
    """
