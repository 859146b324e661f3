"""Options of the plugin's Optimizers. An algorithm is a choice of defaults; an option is documented where it is first
defined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from alignkit import Config, Count, Fraction, InputError, NonNegative, Positive, PtxOptions
from alignkit.algorithms import ClippedOptions, OnePassOptions, PolicyGradientOptions
from alignkit.ops import Aggregation, KLEstimator, KLPlace, RatioLevel

Baseline = Literal["none", "running", "group", "leave-one-out", "greedy"]
Credit = Literal["response", "token"]
Normalization = Literal["none", "group", "batch", "tokens"]


@dataclass(frozen=True, kw_only=True)
class AdvantageOptions(Config):
    """Advantages."""

    baseline: Baseline = "group"
    """Baseline of a response's reward: `none`; `running`, the mean of all rewards of earlier batches; `group`, the mean
    of its group; `leave-one-out`, the mean of the others in its group; `greedy`, the reward of the likeliest response
    to its prompt."""
    normalize_advantages: Normalization = "none"
    """Divide advantages by the standard deviation of the rewards in the `group` or `batch`, or scale the advantages of
    all `tokens` of the batch to mean 0 and variance 1."""
    credit: Credit = "response"
    """Credit of a token: the reward of its whole `response`; or with `token` only the rewards from it on, without the
    KL of earlier tokens, and the baseline comes from the scores alone."""


@dataclass(frozen=True, kw_only=True)
class ResponseOptions(Config):
    """Responses to train on."""

    truncated: Literal["keep", "drop"] = "keep"
    """Keep or drop responses that were cut off at the length limit. They count in baselines either way."""
    overlong_penalty: NonNegative = 0.0
    """Reward subtracted from a response at the length limit, and proportionally less near it."""
    overlong_share: Fraction = 0.2
    """Last share of the length limit, over which overlong_penalty rises from 0."""
    dynamic_sampling: bool = False
    """Drop groups whose rewards are all equal: they teach nothing. Raise batch_size to make up for them."""

    def check(self) -> None:
        super().check()
        self.counts_only_with("overlong_penalty above 0", self.overlong_penalty > 0, "overlong_share")


@dataclass(frozen=True, kw_only=True)
class CriticFreeOptions(AdvantageOptions, ResponseOptions, PtxOptions, PolicyGradientOptions):
    """Options of every algorithm without a critic."""

    group_size: Count = 8
    """Responses sampled for each prompt."""

    def check(self) -> None:
        super().check()
        compares = self.baseline in ("group", "leave-one-out") or self.normalize_advantages == "group"
        if self.group_size == 1 and (compares or self.dynamic_sampling):
            raise InputError(
                "a group of one response has nothing to compare with",
                where="group_size",
                fix="set it to at least 2, or choose another baseline without dynamic_sampling or group normalisation",
            )
        kl_in_reward = self.penalizes_kl and self.kl_place == "reward"
        self.counts_only_with(
            "kl_coef above 0 and kl_place = 'reward', or missing_eos_penalty",
            kl_in_reward or self.missing_eos_penalty > 0,
            "credit",
        )


@dataclass(frozen=True, kw_only=True)
class GRPOOptions(CriticFreeOptions, ClippedOptions):
    """Group relative policy optimisation (arXiv:2402.03300).

    Formula: mean over responses of the mean over tokens of -min(w * A, clip(w, 1 - clip_range, 1 + clip_range) * A)
        + kl_coef * w * (pi_ref / pi - log(pi_ref / pi) - 1), with w = pi(t) / pi_old(t) of each token t and
        A = (r - mean of its group) / std of its group
    Paper: Shao et al. (DeepSeekMath), arXiv:2402.03300, eq. 3 and 4; the weight w of the KL: DeepSeek-AI,
        arXiv:2512.02556, section 3.1.
    Use it when: rules or a model score several responses per prompt, and a critic is too expensive. The usual first
        choice for verifiable rewards.
    """

    matters: ClassVar[tuple[str, ...]] = (*ClippedOptions.matters, "normalize_advantages", "aggregation")

    normalize_advantages: Normalization = "group"
    aggregation: Aggregation = "response"
    kl_coef: NonNegative = 0.04
    kl_place: KLPlace = "loss"
    kl_estimator: KLEstimator = "k3"
    kl_importance: bool = True


@dataclass(frozen=True, kw_only=True)
class RLOOOptions(CriticFreeOptions, ClippedOptions):
    """REINFORCE leave-one-out (arXiv:2402.14740).

    Formula: -min(w * A, clip(w, 1 - clip_range, 1 + clip_range) * A), with w = pi(y|x) / pi_old(y|x) of the whole
        response, A = R - mean of the other R of its group, R = score - kl_coef * log(pi_old(y|x) / pi_ref(y|x))
    Paper: Ahmadian et al., arXiv:2402.14740, section 3.2; the clip of the ratio is TRL's, for more than one step.
    Use it when: rewards come from a preference model, and you want an unbiased gradient without a critic.
    """

    group_size: Count = 4
    baseline: Baseline = "leave-one-out"
    ratio_level: RatioLevel = "sequence"
    aggregation: Aggregation = "response"


@dataclass(frozen=True, kw_only=True)
class REINFORCEOptions(OnePassOptions, CriticFreeOptions):
    """REINFORCE with a baseline (Williams 1992; arXiv:2402.14740).

    Formula: -(R - b) * log pi(y|x), with R = score - kl_coef * log(pi_old(y|x) / pi_ref(y|x)) and b the mean of all R
        of earlier batches
    Paper: Williams 1992, Machine Learning 8, 229-256; for language models Ahmadian et al., arXiv:2402.14740, eq. 5.
    Use it when: you want the simplest unbiased policy gradient, with one response per prompt, or a baseline.
    """

    matters: ClassVar[tuple[str, ...]] = (*PolicyGradientOptions.matters, "baseline")

    group_size: Count = 1
    baseline: Baseline = "running"
    aggregation: Aggregation = "sum"


@dataclass(frozen=True, kw_only=True)
class DrGRPOOptions(CriticFreeOptions, ClippedOptions):
    """GRPO done right: without its biases of length and difficulty (arXiv:2503.20783).

    Formula: mean over responses of the sum over tokens of -min(w * A, clip(w, 1 - clip_range, 1 + clip_range) * A)
        / longest response, with w = pi(t) / pi_old(t) of each token t and A = r - mean of its group
    Paper: Liu et al., arXiv:2503.20783, section 3.2.
    Use it when: GRPO's responses grow longer but not better, or prompts differ much in difficulty.
    """

    matters: ClassVar[tuple[str, ...]] = (*ClippedOptions.matters, "loss_length")

    aggregation: Aggregation = "sum"
    loss_length: NonNegative = 0.0
    kl_coef: NonNegative = 0.0
    kl_place: KLPlace = "loss"


@dataclass(frozen=True, kw_only=True)
class DAPOOptions(CriticFreeOptions, ClippedOptions):
    """Decoupled clip and dynamic sampling (arXiv:2503.14476).

    Formula: mean over tokens of -min(w * A, clip(w, 1 - clip_range, 1 + clip_range_high) * A), with
        w = pi(t) / pi_old(t) of each token t, A = (r - mean of its group) / std of its group, r less the penalty of
        long responses; groups of equal rewards are dropped
    Paper: Yu et al., arXiv:2503.14476, eq. 8 to 13.
    Use it when: rewards are right or wrong and responses long, so that many groups teach nothing and entropy falls.
    """

    matters: ClassVar[tuple[str, ...]] = (
        *ClippedOptions.matters,
        "clip_range_high",
        "overlong_penalty",
        "dynamic_sampling",
    )

    clip_range_high: NonNegative = 0.28
    normalize_advantages: Normalization = "group"
    overlong_penalty: NonNegative = 1.0
    dynamic_sampling: bool = True
    kl_coef: NonNegative = 0.0
    kl_place: KLPlace = "loss"


@dataclass(frozen=True, kw_only=True)
class GSPOOptions(CriticFreeOptions, ClippedOptions):
    """Group sequence policy optimisation (arXiv:2507.18071).

    Formula: mean over responses of -min(w * A, clip(w, 1 - clip_range, 1 + clip_range_high) * A), with
        w = (pi(y|x) / pi_old(y|x))^(1 / |y|) and A = (r - mean of its group) / std of its group
    Paper: Zheng et al., arXiv:2507.18071, eq. 5 to 7.
    Use it when: GRPO is unstable over many steps per batch, as with mixtures of experts or long responses.
    """

    matters: ClassVar[tuple[str, ...]] = (*ClippedOptions.matters, "clip_range_high")

    ratio_level: RatioLevel = "sequence-mean"
    clip_range: Positive = 3e-4
    clip_range_high: NonNegative = 4e-4
    normalize_advantages: Normalization = "group"
    aggregation: Aggregation = "response"
    kl_coef: NonNegative = 0.0
    kl_place: KLPlace = "loss"


@dataclass(frozen=True, kw_only=True)
class REINFORCEPlusPlusOptions(CriticFreeOptions, ClippedOptions):
    """REINFORCE with PPO's clip and advantages normalised over the batch (arXiv:2501.03262).

    Formula: mean over tokens of -min(w * A, clip(w, 1 - clip_range, 1 + clip_range) * A), with w = pi(t) / pi_old(t) of
        each token t and A = score - kl_coef * sum from t on of log(pi_old / pi_ref), scaled to mean 0 and variance 1
        over all tokens of the batch
    Paper: Hu et al., arXiv:2501.03262, eq. 6 to 8; with baseline = "group" and group_size > 1 it is the
        paper's REINFORCE++-baseline, except for the place of the KL.
    Use it when: there is one response per prompt, and neither a critic nor a group to compare with.
    """

    matters: ClassVar[tuple[str, ...]] = (*ClippedOptions.matters, "baseline")

    group_size: Count = 1
    baseline: Baseline = "none"
    credit: Credit = "token"
    normalize_advantages: Normalization = "tokens"
    kl_coef: NonNegative = 0.01


@dataclass(frozen=True, kw_only=True)
class ReMaxOptions(OnePassOptions, CriticFreeOptions):
    """REINFORCE against the reward of the likeliest response (arXiv:2310.10505).

    Formula: -sum over tokens of log pi(t) * (r - r_greedy - kl_coef * sum from t on of log(pi_old / pi_ref))
    Paper: Li et al., arXiv:2310.10505, eq. 4 and algorithm 1.
    Use it when: rewards differ much between prompts, with one response per prompt; the greedy one costs a second.
    """

    group_size: Count = 1
    baseline: Baseline = "greedy"
    credit: Credit = "token"
    aggregation: Aggregation = "sum"


@dataclass(frozen=True, kw_only=True)
class RAFTOptions(PtxOptions, PolicyGradientOptions):
    """Reward-ranked fine-tuning: the likelihood of the best of n rollouts (arXiv:2304.06767).

    Formula: mean over tokens of -log pi(t), over the winners: in each group the `winners` highest
        score - kl_coef * log(pi_old(y|x) / pi_ref(y|x)), with a score of at least the threshold
    Paper: Dong et al., arXiv:2304.06767, algorithm 1; with a threshold alone it is rejection sampling fine-tuning,
        Yuan et al., arXiv:2308.01825.
    Use it when: supervised fine-tuning is stable and a policy gradient is not, or as a strong baseline. With winners =
        group_size and a threshold it imitates all right answers of a verifiable task.
    """

    matters: ClassVar[tuple[str, ...]] = (*PolicyGradientOptions.matters, "n_epochs", "winners", "threshold")

    group_size: Annotated[int, Ge(2)] = 8
    """Responses sampled for each prompt."""
    winners: Count = 1
    """Responses per group to train on; among equal rewards the ones sampled first."""
    threshold: float | None = None
    """Lowest score to train on, as the reward source gives it. Without it, all winners count."""
    kl_coef: NonNegative = 0.0

    def check(self) -> None:
        super().check()
        if self.winners > self.group_size:
            raise InputError(
                f"a group has only {self.group_size} responses", where="winners", fix="set it to at most group_size"
            )
        if self.winners == self.group_size and self.threshold is None:
            raise InputError(
                "every response would win, whatever its reward",
                where="winners",
                fix="set it below group_size, or set a threshold",
            )
        ranked_by_more = self.penalizes_kl or self.missing_eos_penalty > 0 or self.reward_clip > 0
        self.counts_only_with(
            "kl_coef, missing_eos_penalty or reward_clip above 0", ranked_by_more, "normalize_rewards"
        )
