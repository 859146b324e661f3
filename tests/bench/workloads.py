"""What is timed: the sizes of a step, and what each program calls it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

LEARNING_RATE = 1e-4
ROLLOUT_LEARNING_RATE = 1e-6
"""So low that responses stay as long as they are: programs would drift apart in their lengths."""
ADAM_BETA2 = 0.999
Rows = Literal["demonstrations", "rankings", "labelled", "prompts", "fixed_rollouts"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One line of the table.

    Attributes:
        rows: kind of data. groups: prompts in a step. responses: of each prompt.
        optimizer: registered name in alignkit, "" for sampling alone. options: of it, beside the common ones.
        peer: name of the peer's runner in `peer` or `peer_online`. peer_options: of its trainer.
        updates: optimisation steps of alignkit that make one timed step.
        max_new: longest sampled response, in tokens.
        lora: rank of adapters that are trained instead of the model; 0 for none. real: on the pretrained model.
        peer_rows: rows of the peer in a step. peer_rows_per_pass: in one of its passes, where that is less.
        steps_factor: steps that are timed for each one that is asked for, where a step has a single prompt.
        language_passes, scalar_passes: forward passes of a step through a language model and through a scorer; a
            training pass counts as three. peer_extra_passes: of the peer, through a language model, on top.
    """

    name: str
    rows: Rows
    groups: int
    responses: int = 1
    optimizer: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    peer: str
    peer_options: Mapping[str, Any] = field(default_factory=dict)
    updates: int = 1
    max_new: int = 0
    lora: int = 0
    real: bool = False
    peer_rows: int
    peer_rows_per_pass: int = 0
    steps_factor: int = 1
    language_passes: int = 3
    scalar_passes: int = 0
    peer_extra_passes: int = 0

    @property
    def learning_rate(self) -> float:
        """Of AdamW, constant."""
        return ROLLOUT_LEARNING_RATE if self.rows == "prompts" else LEARNING_RATE

    @property
    def has_fixed_responses(self) -> bool:
        """Whether both programs see the same tokens, so that their losses must agree."""
        return self.rows != "prompts"

    def resized(self, *, groups: int, peer_rows_per_pass: int = 0, max_new: int = 0) -> Workload:
        """The workload at another size."""
        factor = self.peer_rows // self.groups
        return replace(
            self,
            groups=groups,
            peer_rows=groups * factor,
            peer_rows_per_pass=min(peer_rows_per_pass, groups * factor),
            max_new=max_new or self.max_new,
        )


def _reward(k: int, groups: int) -> Workload:
    return Workload(
        name=f"reward-k{k}", rows="rankings", groups=groups, responses=k, optimizer="bradley-terry", peer="reward",
        peer_rows=groups * k * (k - 1) // 2, language_passes=0, scalar_passes=3, steps_factor=4 if groups == 1 else 1,
    )  # fmt: skip


def _ppo(name: str, groups: int, responses: int, critic: str) -> Workload:
    """Passes of the policy: sampling, reference and four updates; of the reward model: one; a critic of its own has one
    and four updates, a shared one takes a pass of the policy."""
    shared = critic == "shared"
    return Workload(
        name=name, rows="prompts", groups=groups, responses=responses, optimizer="ppo",
        options={
            "critic": critic, "critic_lr_scale": 1.0, "n_epochs": 4, "missing_eos_penalty": 0.0, "max_tokens": 1024,
        },
        peer="ppo", updates=4, max_new=64, peer_rows=groups * responses, peer_rows_per_pass=8,
        language_passes=1 + 1 + 4 * 3 + shared, scalar_passes=1 if shared else 1 + 1 + 4 * 3,
    )  # fmt: skip


_DPO = Workload(
    name="dpo", rows="rankings", groups=8, responses=2, optimizer="dpo", options={"beta": 0.1}, peer="dpo",
    peer_options={"beta": 0.1}, peer_rows=8, peer_extra_passes=1,
)  # fmt: skip

_GRPO = Workload(
    name="grpo", rows="prompts", groups=4, responses=8, optimizer="grpo", peer="grpo",
    options={"kl_coef": 0.0, "aggregation": "token"},
    peer_options={"beta": 0.0}, max_new=128, peer_rows=32, language_passes=1 + 3,
)  # fmt: skip

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(name="sft", rows="demonstrations", groups=8, optimizer="sft", peer="sft", peer_rows=8),
        _DPO,
        replace(
            _DPO, name="dpo-precomputed", peer_extra_passes=0,
            peer_options={"beta": 0.1, "precompute_ref_log_probs": True},
        ),
        _reward(2, groups=8),
        _reward(4, groups=1),
        _reward(9, groups=1),
        Workload(
            name="kto", rows="labelled", groups=8, responses=2, optimizer="kto", options={"beta": 0.1}, peer="kto",
            peer_options={"beta": 0.1}, peer_rows=16, language_passes=3 + 2, peer_extra_passes=1,
        ),
        _GRPO,
        Workload(
            name="rloo-update", rows="fixed_rollouts", groups=4, responses=8, optimizer="rloo",
            options={"kl_coef": 0.0}, peer="rloo", peer_options={"beta": 0.0}, max_new=128, peer_rows=32,
        ),
        _ppo("ppo", 32, 1, "reward"),
        _ppo("ppo-n4", 8, 4, "reward"),
        _ppo("ppo-n4-shared", 8, 4, "shared"),
        Workload(
            name="sampling", rows="prompts", groups=8, responses=8, peer="sampling", max_new=128, peer_rows=64,
            language_passes=1,
        ),
        replace(_DPO, name="real-dpo", groups=4, peer_rows=4, lora=8, real=True),
        replace(_GRPO, name="real-grpo", groups=2, peer_rows=16, max_new=64, lora=8, real=True),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How a program runs a workload.

    Attributes:
        steps: timed steps, the first of which is the warm-up.
    """

    steps: int = 6
    device: str = "cpu"
    bf16: bool = False
    threads: int = 2
    seed: int = 0
