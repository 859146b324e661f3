"""Options of TRL's trainers: those with a name in alignkit, and `args` for the rest. Imports no torch."""

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
"""Option -> field of TRL's config that gets the same value."""

DERIVED = {
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "num_train_epochs": "n_epochs",
    "max_steps": "n_epochs, or iterations",
    "gradient_accumulation_steps": "minibatch_size, or args.per_device_train_batch_size for the rows of one pass",
    "seed": "run.seed",
    "data_seed": "run.seed",
    "use_cpu": "run.device",
    "output_dir": "--out",
    "model_init_kwargs": "the policy's options",
}
"""Field -> the option or table that sets it."""

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
"""The same, for trainers that sample."""


@dataclass(frozen=True, kw_only=True)
class TRLOptions(LearningOptions):
    """TRL's own.

    Options of all TRL trainers.
    """

    matters: ClassVar[tuple[str, ...]] = ("learning_rate", "n_epochs", "minibatch_size", "args")
    trl_config: ClassVar[str]
    renamed: ClassVar[Mapping[str, str]] = {}
    derived: ClassVar[Mapping[str, str]] = DERIVED

    args: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of TRL's config class, under TRL's names: `args.label_smoothing = 0.1`."""

    def check(self) -> None:
        """Checks that `args` are fields of TRL's config class that no option of ours sets."""
        super().check()
        ours = {trl: name for name, trl in (*COMMON.items(), *self.renamed.items())}
        check_fields(self.trl_config, self.args, {**self.derived, **ours})


@dataclass(frozen=True, kw_only=True)
class TRLRolloutOptions(TRLOptions, IterationOptions):
    """Options of TRL's trainers that sample."""

    matters: ClassVar[tuple[str, ...]] = ("kl_coef", *RolloutOptions.matters, "n_epochs", "clip_range", "args")
    renamed: ClassVar[Mapping[str, str]] = {"kl_coef": "beta", "clip_range": "epsilon"}
    derived: ClassVar[Mapping[str, str]] = {**DERIVED, **ONLINE}

    learning_rate: NonNegative = 1e-6
    """Peak learning rate of AdamW."""
    group_size: Annotated[int, Ge(2)] = 8
    """Responses sampled for each prompt; TRL's num_generations."""
    clip_range: Positive = 0.2
    """Clip the ratio to 1 plus and minus this; TRL's epsilon."""
    kl_coef: NonNegative = 0.04
    """Weight of the KL to the reference; TRL's beta."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of TRL's config class, under TRL's names: `args.scale_rewards = "none"`."""

    def check(self) -> None:
        """Checks that the minibatches of an iteration have one size, as TRL requires."""
        super().check()
        if self.batch_size % min(self.minibatch_size, self.batch_size):
            raise InputError(
                f"{self.batch_size} prompts can't be split into minibatches of {self.minibatch_size}",
                where="minibatch_size",
                fix="set a divisor of batch_size",
            )


@dataclass(frozen=True, kw_only=True)
class TRLSFTOptions(TRLOptions):
    """TRL's SFTTrainer: supervised fine-tuning.

    Formula: -log pi(t | x, what stands before t), the mean over all response tokens t of the step
    Paper: Ouyang et al., arXiv:2203.02155, section 3.5.
    Use it when: you want to compare sft with TRL's on the same tokens.
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
    Use it when: you want to compare bradley-terry with TRL's on the same tokens.
    """

    matters: ClassVar[tuple[str, ...]] = (*TRLOptions.matters, "center_coef")
    compares_with: ClassVar[str] = "bradley-terry"
    trl_config: ClassVar[str] = "RewardConfig"
    renamed: ClassVar[Mapping[str, str]] = {"center_coef": "center_rewards_coefficient"}

    center_coef: NonNegative = 0.0
    """Coefficient of (better + worse)^2, which holds the scores around zero."""


@dataclass(frozen=True, kw_only=True)
class TRLDPOOptions(TRLOptions):
    """TRL's DPOTrainer: direct preference optimisation and the other losses of its loss_type.

    Formula: -log sigmoid(beta * (r_w - r_l)), with r = log pi(y|x) - log pi_ref(y|x), the mean over all pairs
    Paper: Rafailov et al., arXiv:2305.18290, eq. 7; other losses: TRL's documentation of `args.loss_type`.
    Use it when: you want to compare dpo, ipo or another of the family with TRL's on the same tokens.
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
    """TRL's `label_smoothing`; its meaning depends on loss_type."""


@dataclass(frozen=True, kw_only=True)
class TRLKTOOptions(TRLOptions):
    """TRL's KTOTrainer: Kahneman-Tversky optimisation.

    Formula: weight * (1 - sigmoid(beta * (r - z))) for desirable y, weight * (1 - sigmoid(beta * (z - r))) for others,
        with r = log pi(y|x) - log pi_ref(y|x) and z the KL, estimated from mismatched pairs of the same pass
    Paper: Ethayarajh et al., arXiv:2402.01306, eq. 8.
    Use it when: you want to compare kto with TRL's on the same tokens. In a ranking, the best are desirable.
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
    Use it when: you want to compare grpo, dr-grpo, dapo or gspo with TRL's.
    """

    matters: ClassVar[tuple[str, ...]] = (*TRLRolloutOptions.matters, "loss_type")
    compares_with: ClassVar[str] = "grpo"
    trl_config: ClassVar[str] = "GRPOConfig"
    renamed: ClassVar[Mapping[str, str]] = {**TRLRolloutOptions.renamed, "loss_type": "loss_type"}

    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "grpo"
    """How the loss is averaged over tokens. TRL's default is dapo."""


@dataclass(frozen=True, kw_only=True)
class TRLRLOOOptions(TRLRolloutOptions):
    """TRL's RLOOTrainer: REINFORCE leave-one-out.

    Formula: -min(w * A, clip(w, 1 - clip_range, 1 + clip_range) * A), with w = pi(y|x) / pi_old(y|x),
        A = R - mean of the other R of its group, R = score - kl_coef * log(pi_old(y|x) / pi_ref(y|x))
    Paper: Ahmadian et al., arXiv:2402.14740, section 3.2.
    Use it when: you want to compare rloo with TRL's.
    """

    compares_with: ClassVar[str] = "rloo"
    trl_config: ClassVar[str] = "RLOOConfig"

    group_size: Annotated[int, Ge(2)] = 4
    """Responses sampled for each prompt; TRL's num_generations."""
    kl_coef: NonNegative = 0.05
    """Weight of the KL to the reference; TRL's beta."""
