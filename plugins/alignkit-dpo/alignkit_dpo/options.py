"""Options of the plugin's Optimizers. Imports no torch.

In the formulas r(y) is the implicit reward; it changes with `f_divergence`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Interval

from alignkit import Config, Fraction, InputError, NonNegative, Positive, PtxOptions, RolloutOptions
from alignkit.algorithms import FDivergence, HeldOptions, OfflineOptions, PreferenceOptions

FlipProbability = Annotated[float, Interval(ge=0, lt=0.5)]


@dataclass(frozen=True, kw_only=True)
class DivergenceOptions(PreferenceOptions):
    """Divergence from the reference.

    Options of algorithms whose implicit reward may come from a divergence other than the reverse KL.
    """

    f_divergence: FDivergence = "reverse-kl"
    """Penalised divergence from the reference (arXiv:2309.16240): `reverse-kl`, as in DPO, seeks modes; `forward-kl`
    covers the reference; `js` and `alpha` lie between them. The reward is beta * f'(pi / pi_ref)."""
    f_alpha: Annotated[float, Interval(gt=0, lt=1)] = 0.5
    """Parameter of `alpha`: towards 0 it becomes the reverse KL, towards 1 the forward KL."""

    @property
    def divergence(self) -> tuple[FDivergence, float]:
        return self.f_divergence, self.f_alpha

    def check(self) -> None:
        super().check()
        self.counts_only_with("f_divergence = 'alpha'", self.f_divergence == "alpha", "f_alpha")


@dataclass(frozen=True, kw_only=True)
class LabelNoiseOptions(Config):
    """Flipped preferences."""

    label_smoothing: FlipProbability = 0.0
    """Probability that a preference is recorded the wrong way round (conservative DPO)."""


@dataclass(frozen=True, kw_only=True)
class DPOOptions(LabelNoiseOptions, DivergenceOptions):
    """Direct preference optimisation (arXiv:2305.18290).

    Formula: -log sigmoid(r(y_w) - r(y_l)), with r(y) = beta * log(pi(y|x) / pi_ref(y|x))
    Paper: Rafailov et al., arXiv:2305.18290, eq. 7.
    Use it when: you have pairs or rankings and want a stable loss without sampling. The first one to try.
    """

    matters: ClassVar[tuple[str, ...]] = (*PreferenceOptions.matters, "label_smoothing", "f_divergence")


@dataclass(frozen=True, kw_only=True)
class OnlineDPOOptions(DPOOptions, PtxOptions, HeldOptions):
    """DPO on pairs of rollouts that the reward source ranks (arXiv:2402.04792).

    Formula: -log sigmoid(r(y_w) - r(y_l)), with r(y) = beta * log(pi(y|x) / pi_ref(y|x)), y_w and y_l sampled from pi
        and ranked by their scores
    Paper: Guo et al., arXiv:2402.04792, algorithm 1.
    Use it when: you have a reward or a judge, and DPO on recorded pairs stalls because the policy no longer writes such
        responses. Simpler and more stable than a policy gradient, but it only learns who wins.
    """

    matters: ClassVar[tuple[str, ...]] = (
        "beta",
        *RolloutOptions.matters,
        "n_epochs",
        "pairs",
        "missing_eos_penalty",
        "kl_controller",
    )

    group_size: Annotated[int, Ge(2)] = 2
    """Responses sampled for each prompt."""
    pairs: Literal["best-worst", "all"] = "best-worst"
    """Pairs to compare per prompt: the highest against the lowest score, or all pairs with different scores. Prompts
    whose responses all score the same are dropped."""
    missing_eos_penalty: NonNegative = 0.0
    """Subtracted, before ranking, from the score of a response that was cut off at the length limit."""

    @property
    def kl_weight(self) -> float:
        return self.beta

    def check(self) -> None:
        super().check()
        self.counts_only_with("group_size above 2", self.group_size > 2, "pairs")
        if self.kl_controller == "linear" and not self.kl_coef_end:
            raise InputError("beta must stay above 0", where="kl_coef_end", fix="set kl_coef_end above 0")


@dataclass(frozen=True, kw_only=True)
class RobustDPOOptions(LabelNoiseOptions, DivergenceOptions):
    """Robust DPO: DPO whose loss is unbiased under flipped preferences (arXiv:2403.00409).

    Formula: (-(1 - e) * log sigmoid(r(y_w) - r(y_l)) + e * log sigmoid(r(y_l) - r(y_w))) / (1 - 2 * e),
        with e = label_smoothing and r(y) = beta * log(pi(y|x) / pi_ref(y|x))
    Paper: Ray Chowdhury et al., arXiv:2403.00409, section 3.
    Use it when: a known share of the preferences is wrong, as with crowd workers or a weak judge.
    """

    matters: ClassVar[tuple[str, ...]] = (*PreferenceOptions.matters, "label_smoothing")

    label_smoothing: FlipProbability = 0.1
    """Probability that a preference is recorded the wrong way round."""


@dataclass(frozen=True, kw_only=True)
class IPOOptions(DivergenceOptions):
    """Identity preference optimisation (arXiv:2310.12036).

    Formula: (d_w - d_l - 1 / (2 * beta))^2, with d = (log pi(y|x) - log pi_ref(y|x)) / |y|
    Paper: Azar et al., arXiv:2310.12036, eq. 17; the mean over tokens as in the authors' experiments.
    Use it when: preferences are nearly certain or few, where DPO drives the gap to infinity and overfits.
    """

    beta: Positive = 0.1
    """Strength of the pull to the reference: chosen leads rejected by 1 / (2 beta) nats per token at the optimum."""


@dataclass(frozen=True, kw_only=True)
class SPPOOptions(PreferenceOptions):
    """Self-play preference optimisation with certain wins (arXiv:2405.00675).

    Formula: (d_w - 1 / (2 * beta))^2 + (d_l + 1 / (2 * beta))^2, with d = log(pi(y|x) / pi_ref(y|x))
    Paper: Wu et al., arXiv:2405.00675, eq. 4.7, with the probabilities 1 and 0 of winning; beta is their 1 / eta.
    Use it when: the chosen response's own probability must rise, not only its lead.
    """

    beta: Positive = 0.001
    """Strength of the pull to the reference: each response moves 1 / (2 beta) nats up or down."""


@dataclass(frozen=True, kw_only=True)
class SLiCOptions(DivergenceOptions):
    """Sequence likelihood calibration: a hinge loss (arXiv:2305.10425).

    Formula: max(0, 1 - (r(y_w) - r(y_l))), with r(y) = beta * log(pi(y|x) / pi_ref(y|x))
    Paper: Zhao et al., arXiv:2305.10425, section 2.2; on ratios to the reference Liu et al., arXiv:2309.06657.
    Use it when: pairs that the policy already separates by a margin should not move it any further.
    """

    matters: ClassVar[tuple[str, ...]] = (*PreferenceOptions.matters, "normalized")

    normalized: bool = True
    """Compare ratios to the reference. False: compare plain log-probabilities as in the first paper, with `sft_weight`
    as its regulariser and no reference in memory."""

    def check(self) -> None:
        super().check()
        self.counts_only_with("normalized = true", self.normalized, "f_divergence")


@dataclass(frozen=True, kw_only=True)
class DPOPOptions(PreferenceOptions):
    """DPO-positive (Smaug): DPO that does not let the chosen response lose probability (arXiv:2402.13228).

    Formula: -log sigmoid(r(y_w) - r(y_l) - penalty * max(0, -r(y_w))), with r(y) = beta * log(pi(y|x) / pi_ref(y|x))
    Paper: Pal et al., arXiv:2402.13228, section 3.
    Use it when: chosen and rejected differ in few tokens (mathematics, edits), where DPO lowers both.
    """

    matters: ClassVar[tuple[str, ...]] = (*PreferenceOptions.matters, "penalty")

    penalty: NonNegative = 50.0
    """Weight of the reward that the chosen response lost against the reference."""


@dataclass(frozen=True, kw_only=True)
class RDPOOptions(DivergenceOptions):
    """R-DPO: DPO that takes length out of the reward (arXiv:2403.19159).

    Formula: -log sigmoid(r(y_w) - r(y_l) + length_weight * (|y_w| - |y_l|)),
        with r(y) = beta * log(pi(y|x) / pi_ref(y|x))
    Paper: Park et al., arXiv:2403.19159, section 3.
    Use it when: the longer response is usually the chosen one, and DPO makes the policy verbose.
    """

    matters: ClassVar[tuple[str, ...]] = (*PreferenceOptions.matters, "length_weight")

    length_weight: float = 0.01
    """Reward that annotators are assumed to give per token, and that the policy should not earn."""


@dataclass(frozen=True, kw_only=True)
class BetaDPOOptions(DivergenceOptions):
    """DPO with a dynamic beta: higher when a step's pairs are clearer than usual (arXiv:2407.08639).

    Formula: -log sigmoid(b / beta * (r(y_w) - r(y_l))), with b = beta * (1 + beta_gain * (m - M)), m the step's mean of
        r(y_w) - r(y_l), M its running mean, and r(y) = beta * log(pi(y|x) / pi_ref(y|x))
    Paper: Wu et al., arXiv:2407.08639, section 4, without the filtering of outliers.
    Use it when: the quality of the pairs varies so much that no single beta fits. It costs a pass without gradient.
    """

    matters: ClassVar[tuple[str, ...]] = (*PreferenceOptions.matters, "beta_gain", "momentum")

    beta_gain: NonNegative = 0.6
    """Share by which beta rises per unit of reward that the step's mean lead is above its running mean."""
    momentum: Fraction = 0.9
    """Share of the running mean that each step keeps; it starts at 0."""

    def check(self) -> None:
        super().check()
        self.counts_only_with("beta_gain above 0", self.beta_gain > 0, "momentum")


@dataclass(frozen=True, kw_only=True)
class APOZeroOptions(PreferenceOptions):
    """Anchored preference optimisation, zero: chosen up, rejected down (arXiv:2408.06266).

    Formula: 1 - sigmoid(r(y_w)) + sigmoid(r(y_l)), with r(y) = beta * log(pi(y|x) / pi_ref(y|x))
    Paper: D'Oosterlinck et al., arXiv:2408.06266, eq. 7.
    Use it when: the chosen responses are better than the policy's own.
    """


@dataclass(frozen=True, kw_only=True)
class APODownOptions(PreferenceOptions):
    """Anchored preference optimisation, down: both down, rejected further (arXiv:2408.06266).

    Formula: sigmoid(r(y_w)) + 1 - sigmoid(r(y_w) - r(y_l)), with r(y) = beta * log(pi(y|x) / pi_ref(y|x))
    Paper: D'Oosterlinck et al., arXiv:2408.06266, eq. 8.
    Use it when: the policy's own responses are better than the chosen ones.
    """


@dataclass(frozen=True, kw_only=True)
class EXOOptions(DivergenceOptions):
    """Efficient exact optimisation: the reverse KL over a whole ranking (arXiv:2402.00856).

    Formula: sum over the K responses of q_i * log(q_i / p_i), with q = softmax of r over them, p giving
        1 - label_smoothing to the best and label_smoothing to the rest in equal parts, and
        r(y) = beta * log(pi(y|x) / pi_ref(y|x))
    Paper: Ji et al., arXiv:2402.00856, eq. 16, which is K = 2.
    Use it when: the policy should concentrate on the best response instead of covering all good ones, as DPO does.
    """

    matters: ClassVar[tuple[str, ...]] = (*PreferenceOptions.matters, "label_smoothing")

    label_smoothing: Annotated[float, Interval(gt=0, lt=0.5)] = 0.001
    """Probability that another response is the best."""


@dataclass(frozen=True, kw_only=True)
class NCAOptions(PreferenceOptions):
    """Noise contrastive alignment over a whole ranking (arXiv:2402.05369).

    Formula: -log sigmoid(r(y_w)) - mean over the K responses of log sigmoid(-r(y)), with y_w the best of them and
        r(y) = beta * log(pi(y|x) / pi_ref(y|x))
    Paper: Chen et al., arXiv:2402.05369, section 4, where the best response is certain.
    Use it when: DPO lowers the chosen response's probability; here the reward itself counts, not its lead.
    """

    beta: Positive = 0.01
    """Strength of the pull to the reference: the best response's reward approaches log(K)."""


@dataclass(frozen=True, kw_only=True)
class ListDPOOptions(DivergenceOptions):
    """DPO on whole rankings: Plackett-Luce in place of Bradley-Terry (arXiv:2305.18290, appendix A.3).

    Formula: -sum over the places k of log(exp(r(y_k)) / sum over j >= k of exp(r(y_j))), with y_1 the best of K and
        r(y) = beta * log(pi(y|x) / pi_ref(y|x))
    Paper: Rafailov et al., arXiv:2305.18290, appendix A.3; ties by Efron's approximation.
    Use it when: you have rankings of more than two responses. On pairs it equals DPO.
    """


@dataclass(frozen=True, kw_only=True)
class CPOOptions(PreferenceOptions):
    """Contrastive preference optimisation, without a reference (arXiv:2401.08417).

    Formula: -log sigmoid(beta * (log pi(y_w|x) - log pi(y_l|x))) - sft_weight * log pi(y_w|x) / |y_w|
    Paper: Xu et al., arXiv:2401.08417, section 3; the likelihood is a mean over tokens, as in the authors' code.
    Use it when: memory is short, and the chosen responses are good enough to imitate.
    """

    beta: Positive = 0.1
    """Scale of the compared log-probabilities."""
    sft_weight: NonNegative = 1.0


@dataclass(frozen=True, kw_only=True)
class SimPOOptions(PreferenceOptions):
    """Simple preference optimisation: log-probability per token, without a reference (arXiv:2405.14734).

    Formula: -log sigmoid(beta * (log pi(y_w|x) / |y_w| - log pi(y_l|x) / |y_l|) - margin)
    Paper: Meng et al., arXiv:2405.14734, section 2; margin is their gamma.
    Use it when: memory is short, or DPO makes responses longer. The learning rate must be small: nothing holds the
        policy back.
    """

    matters: ClassVar[tuple[str, ...]] = (*PreferenceOptions.matters, "margin")

    beta: Positive = 2.0
    """Scale of the compared mean log-probabilities."""
    margin: float = 1.0
    """Reward by which the chosen response should lead."""


@dataclass(frozen=True, kw_only=True)
class ORPOOptions(PreferenceOptions):
    """Odds ratio preference optimisation: SFT and preferences in one stage, without a reference (arXiv:2403.07691).

    Formula: -sft_weight * log pi(y_w|x) / |y_w| - beta * log sigmoid(log odds(y_w) - log odds(y_l)),
        with odds(y) = p / (1 - p), p = exp(log pi(y|x) / |y|)
    Paper: Hong et al., arXiv:2403.07691, eq. 4 and 7; beta is their lambda, the likelihood is of the response alone.
    Use it when: you start from a base model, with pairs whose chosen responses are worth imitating.
    """

    learning_rate: NonNegative = 8e-6
    beta: Positive = 0.1
    """Weight of the odds ratio, next to the likelihood."""
    sft_weight: NonNegative = 1.0


@dataclass(frozen=True, kw_only=True)
class KTOOptions(OfflineOptions):
    """Kahneman-Tversky optimisation: responses labelled desirable or not, one by one (arXiv:2402.01306).

    Formula: desirable_weight * (1 - sigmoid(r(y) - z)) where y is desirable, else
        undesirable_weight * (1 - sigmoid(z - r(y))), with z = beta * max(0, mean of log(pi(y'|x) / pi_ref(y'|x))),
        y' the response to another prompt of the same step, and r(y) = beta * log(pi(y|x) / pi_ref(y|x))
    Paper: Ethayarajh et al., arXiv:2402.01306, eq. 7 and 8.
    Use it when: you have thumbs up and down instead of pairs, or one kind is much rarer. Rankings work too: a response
        that beats more than beat it is desirable.
    """

    matters: ClassVar[tuple[str, ...]] = (*OfflineOptions.matters, "desirable_weight", "undesirable_weight")

    desirable_weight: NonNegative = 1.0
    """Weight of desirable responses. If the counts differ, the paper wants desirable_weight * desirable between 1 and
    4/3 times undesirable_weight * undesirable."""
    undesirable_weight: NonNegative = 1.0
    """Weight of undesirable responses."""
