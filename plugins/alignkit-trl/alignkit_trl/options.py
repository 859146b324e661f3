"""Options of TRL's trainers: those that alignkit has a word for, and `args` for all the rest. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Interval

from alignkit import InputError, IterationOptions, LearningOptions, NonNegative, Positive, RolloutOptions
from alignkit_trl.fields import check_fields

COMMON = {
    "learning_rate": "learning_rate",
    "lr_schedule": "lr_scheduler_type",
    "weight_decay": "weight_decay",
    "adam_beta2": "adam_beta2",
    "max_grad_norm": "max_grad_norm",
}
"""Option -> field of TRL's config, where the value passes through."""

DERIVED = {
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "num_train_epochs": "n_epochs",
    "max_steps": "n_epochs, or iterations",
    "gradient_accumulation_steps": "minibatch_size, or args.per_device_train_batch_size for the share of one pass",
    "seed": "run.seed",
    "data_seed": "run.seed",
    "use_cpu": "run.device",
    "output_dir": "--out",
    "model_init_kwargs": "the policy's options",
}
"""Field -> the option or table that it follows from."""

ONLINE = {
    "num_generations": "group_size",
    "num_iterations": "n_epochs",
    "generation_batch_size": "batch_size",
    "steps_per_generation": "batch_size",
    "max_completion_length": "sampling.max_tokens",
    "temperature": "sampling.temperature",
    "top_k": "sampling.top_k",
    "top_p": "sampling.top_p",
}
"""The same, of trainers that sample."""


@dataclass(frozen=True, kw_only=True)
class TRLOptions(LearningOptions):
    """TRL's own.

    What TRL's trainers share.
    """

    matters: ClassVar[tuple[str, ...]] = ("learning_rate", "n_epochs", "minibatch_size", "args")
    trl_config: ClassVar[str]
    renamed: ClassVar[Mapping[str, str]] = {}
    derived: ClassVar[Mapping[str, str]] = DERIVED

    args: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of TRL's config class, under TRL's names: `args.label_smoothing = 0.1`."""

    def check(self) -> None:
        """Checks that `args` are fields of TRL's config class, and none that an option of ours sets."""
        super().check()
        ours = {trl: name for name, trl in (*COMMON.items(), *self.renamed.items())}
        check_fields(self.trl_config, self.args, {**self.derived, **ours})


@dataclass(frozen=True, kw_only=True)
class TRLRolloutOptions(TRLOptions, IterationOptions):
    """What TRL's trainers that sample share."""

    matters: ClassVar[tuple[str, ...]] = ("kl_coef", *RolloutOptions.matters, "n_epochs", "clip_range", "args")
    renamed: ClassVar[Mapping[str, str]] = {"kl_coef": "beta", "clip_range": "epsilon"}
    derived: ClassVar[Mapping[str, str]] = {**DERIVED, **ONLINE}

    learning_rate: NonNegative = 1e-6
    """Peak learning rate of AdamW."""
    group_size: Annotated[int, Ge(2)] = 8
    """Responses sampled for each prompt; TRL's num_generations."""
    clip_range: Positive = 0.2
    """Distance of the ratio from 1 up to which it counts; TRL's epsilon."""
    kl_coef: NonNegative = 0.04
    """Weight of the KL to the reference; TRL's beta."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of TRL's config class, under TRL's names: `args.scale_rewards = "none"`."""

    def check(self) -> None:
        """Checks that the minibatches of an iteration are of one size, which TRL demands."""
        super().check()
        if self.batch_size % min(self.minibatch_size, self.batch_size):
            raise InputError(
                f"{self.batch_size} prompts can't be cut into minibatches of {self.minibatch_size}",
                where="minibatch_size",
                fix="a divisor of batch_size",
            )


@dataclass(frozen=True, kw_only=True)
class TRLSFTOptions(TRLOptions):
    """TRL's SFTTrainer: supervised fine-tuning.

    Formula: -log pi(t | x, what stands before t), the mean over all response tokens t of the step
    Paper: Ouyang et al., arXiv:2203.02155, section 3.5.
    Use it when: sft is to be held against TRL's on the same tokens.
    """

    compares_with: ClassVar[str] = "sft"
    trl_config: ClassVar[str] = "SFTConfig"

    learning_rate: NonNegative = 2e-5
    """Peak learning rate of AdamW."""


@dataclass(frozen=True, kw_only=True)
class TRLRewardOptions(TRLOptions):
    """TRL's RewardTrainer: a Bradley-Terry reward model, by `reward.train.plugin = "trl-reward"`.

    Formula: -log sigmoid(s_w - s_l) + center_coef * (s_w + s_l)^2, the mean over all pairs
    Paper: Ouyang et al., arXiv:2203.02155, eq. 1; centring: arXiv:2312.09244.
    Use it when: bradley-terry is to be held against TRL's on the same tokens.
    """

    matters: ClassVar[tuple[str, ...]] = (*TRLOptions.matters, "center_coef")
    compares_with: ClassVar[str] = "bradley-terry"
    trl_config: ClassVar[str] = "RewardConfig"
    renamed: ClassVar[Mapping[str, str]] = {"center_coef": "center_rewards_coefficient"}

    center_coef: NonNegative = 0.0
    """Coefficient of (better + worse)^2, which holds the scores around zero."""


@dataclass(frozen=True, kw_only=True)
class TRLDPOOptions(TRLOptions):
    """TRL's DPOTrainer: direct preference optimisation and what else its loss_type has.

    Formula: -log sigmoid(beta * (r_w - r_l)), with r = log pi(y|x) - log pi_ref(y|x), the mean over all pairs
    Paper: Rafailov et al., arXiv:2305.18290, eq. 7; other losses: TRL's documentation of `args.loss_type`.
    Use it when: dpo, ipo or another of the family is to be held against TRL's on the same tokens.
    """

    matters: ClassVar[tuple[str, ...]] = (*TRLOptions.matters, "beta", "label_smoothing")
    compares_with: ClassVar[str] = "dpo"
    trl_config: ClassVar[str] = "DPOConfig"
    renamed: ClassVar[Mapping[str, str]] = {"beta": "beta", "label_smoothing": "label_smoothing"}

    learning_rate: NonNegative = 1e-6
    """Peak learning rate of AdamW."""
    beta: Positive = 0.1
    """Strength of the pull to the reference."""
    label_smoothing: Annotated[float, Interval(ge=0, lt=0.5)] = 0.0
    """What TRL's `label_smoothing` is for the chosen loss_type."""


@dataclass(frozen=True, kw_only=True)
class TRLKTOOptions(TRLOptions):
    """TRL's KTOTrainer: Kahneman-Tversky optimisation.

    Formula: weight * (1 - sigmoid(beta * (r - z))) for desirable y, weight * (1 - sigmoid(beta * (z - r))) for others,
        with r = log pi(y|x) - log pi_ref(y|x) and z the KL, estimated from mismatched pairs of the same pass
    Paper: Ethayarajh et al., arXiv:2402.01306, eq. 8.
    Use it when: kto is to be held against TRL's on the same tokens. Of a ranking, the best are desirable.
    """

    matters: ClassVar[tuple[str, ...]] = (*TRLOptions.matters, "beta", "desirable_weight", "undesirable_weight")
    compares_with: ClassVar[str] = "kto"
    trl_config: ClassVar[str] = "KTOConfig"
    renamed: ClassVar[Mapping[str, str]] = {
        "beta": "beta",
        "desirable_weight": "desirable_weight",
        "undesirable_weight": "undesirable_weight",
    }

    learning_rate: NonNegative = 1e-6
    """Peak learning rate of AdamW."""
    beta: Positive = 0.1
    """Strength of the pull to the reference."""
    desirable_weight: NonNegative = 1.0
    """Weight of desirable responses."""
    undesirable_weight: NonNegative = 1.0
    """Weight of the others."""


@dataclass(frozen=True, kw_only=True)
class TRLGRPOOptions(TRLRolloutOptions):
    """TRL's GRPOTrainer: group relative policy optimisation and its variants.

    Formula: -min(w * A, clip(w, 1 - clip_range, 1 + clip_range) * A) + kl_coef * (pi_ref / pi - log(pi_ref / pi) - 1),
        with w = pi(t) / pi_old(t) of each token t and A = (r - mean of its group) / std of its group
    Paper: Shao et al. (DeepSeekMath), arXiv:2402.03300, eq. 3; others: TRL's documentation of `args.scale_rewards`.
    Use it when: grpo, dr-grpo, dapo or gspo is to be held against TRL's.
    """

    matters: ClassVar[tuple[str, ...]] = (*TRLRolloutOptions.matters, "loss_type")
    compares_with: ClassVar[str] = "grpo"
    trl_config: ClassVar[str] = "GRPOConfig"
    renamed: ClassVar[Mapping[str, str]] = {**TRLRolloutOptions.renamed, "loss_type": "loss_type"}

    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "grpo"
    """How tokens are averaged. TRL's own default is dapo."""


@dataclass(frozen=True, kw_only=True)
class TRLRLOOOptions(TRLRolloutOptions):
    """TRL's RLOOTrainer: REINFORCE leave-one-out.

    Formula: -min(w * A, clip(w, 1 - clip_range, 1 + clip_range) * A), with w = pi(y|x) / pi_old(y|x),
        A = R - mean of the other R of its group, R = score - kl_coef * log(pi_old(y|x) / pi_ref(y|x))
    Paper: Ahmadian et al., arXiv:2402.14740, section 3.2.
    Use it when: rloo is to be held against TRL's.
    """

    compares_with: ClassVar[str] = "rloo"
    trl_config: ClassVar[str] = "RLOOConfig"

    group_size: Annotated[int, Ge(2)] = 4
    """Responses sampled for each prompt; TRL's num_generations."""
    kl_coef: NonNegative = 0.05
    """Weight of the KL to the reference; TRL's beta."""
