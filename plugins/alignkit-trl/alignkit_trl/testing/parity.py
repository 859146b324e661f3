"""Holding an algorithm against TRL's trainer for it: the same weights and rows, every step's loss and gradient.

For tests; needs trl and datasets installed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from alignkit.testing import rounding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from alignkit import GroupBatch, Optimizer

LEARNING_RATE = 5e-4
BETAS = (0.9, 0.999)
EPSILON = 1e-4
"""Of AdamW. With a smaller one, parameters whose gradient is rounding only would move as far as the others."""

TOLERANCE = 1e-5
"""What is promised: equal to five digits."""


@dataclass
class Steps:
    """What happened in each optimisation step: the loss, and the gradient by parameter name before any clipping."""

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    rounding: list[float] = field(default_factory=list)
    """By how much rounding may move an entry of each gradient; of our own steps only."""

    def assert_equal_to(self, theirs: Steps) -> None:
        """Fails where a loss, or any entry of a gradient, differs by more than `TOLERANCE`.

        This is absolute up to 1, and beyond it a share of the largest loss or entry. Where rounding alone may move a
        gradient by more, as it does if the loss squares or exponentiates log-ratios, that is allowed instead.
        """
        assert len(self.losses) == len(theirs.losses) > 0
        bound = TOLERANCE * max(1.0, *map(abs, theirs.losses))
        difference = max(abs(a - b) for a, b in zip(self.losses, theirs.losses, strict=True))
        assert difference <= bound, f"losses differ by {difference:.1e}"
        for step, (gradients, expected) in enumerate(zip(self.gradients, theirs.gradients, strict=True)):
            assert gradients.keys() == expected.keys()
            bound = max(TOLERANCE * max(1.0, _largest(expected)), self.rounding[step])
            for name, gradient in gradients.items():
                error = float((gradient - expected[name]).abs().max())
                assert error <= bound, f"the gradient of {name} differs by {error:.1e} in step {step}"


def parity_steps(optimizer: Optimizer[Any], batch: GroupBatch, *, groups_per_step: int) -> Steps:
    """Steps of AdamW over a batch of encoded records, in their order. Names are those of the model inside."""
    with torch.no_grad():
        prepared = optimizer.prepare(batch)
    starts = range(0, prepared.num_groups, groups_per_step)
    return adam_steps(optimizer, [prepared.select(range(start, start + groups_per_step)) for start in starts])


def adam_steps(optimizer: Optimizer[Any], batches: Sequence[GroupBatch]) -> Steps:
    """A step of AdamW on each prepared batch."""
    steps = Steps()
    parameters = {
        key.removeprefix("model."): parameter
        for module in optimizer.modules().values()
        for key, parameter in module.named_parameters()
    }
    adam = torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, weight_decay=0.0)
    for batch in batches:
        adam.zero_grad()
        with torch.no_grad():
            optimizer.begin_step(batch)
        loss, _ = optimizer.loss(batch)
        loss.backward()
        steps.losses.append(float(loss.detach()))
        steps.gradients.append(_gradients(parameters))
        steps.rounding.append(_moved_by_rounding(optimizer, batch, parameters))
        adam.step()
    return steps


def _moved_by_rounding(optimizer: Optimizer[Any], batch: GroupBatch, parameters: Mapping[str, nn.Parameter]) -> float:
    """The largest change of a gradient's entry where every weight is off by the rounding of the sums that it is in.

    What is computed for a weight is what would be exact for one that is off by so much (backward error: Higham,
    Accuracy and Stability of Numerical Algorithms, sections 1.5 and 3.1). The gradients are left as they were.
    """
    before, kept = _gradients(parameters), [parameter.detach().clone() for parameter in parameters.values()]
    draw = torch.Generator().manual_seed(0)
    size = rounding(max(max(weights.shape) for weights in kept))
    with torch.no_grad():
        for weights in parameters.values():
            weights.grad = None
            weights.mul_(1 + size * (2 * torch.randint(2, weights.shape, generator=draw) - 1))
    optimizer.loss(batch)[0].backward()
    moved = {name: gradient - before[name] for name, gradient in _gradients(parameters).items()}
    with torch.no_grad():
        for (name, weights), own in zip(parameters.items(), kept, strict=True):
            weights.copy_(own)
            weights.grad = before[name]
    return _largest(moved)


def trl_steps(
    trainer: type[Any],
    arguments: type[Any],
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    *,
    tokenizer: Any,
    folder: Path,
    rows_per_step: int,
    rows_per_pass: int | None = None,
    **options: Any,
) -> Steps:
    """Steps of a TRL trainer over rows that are token ids already, in their order, on the CPU in float32.

    Args:
        trainer, arguments: the trainer's class and that of its arguments, which takes `options`.
        rows_per_pass: rows of one forward pass, where gradients are accumulated over several.
    """
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    steps = Steps()
    losses: list[float] = []

    class InOrder(trainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, *given: Any, **named: Any) -> Any:
            loss = super().compute_loss(*given, **named)
            losses.append(float(loss.detach()))
            return loss

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            steps.losses.append(sum(losses) / len(losses))
            losses.clear()
            steps.gradients.append(_gradients(dict(given["model"].named_parameters())))

    per_pass = rows_per_pass or rows_per_step
    common = {
        "output_dir": str(folder), "max_steps": len(rows) // rows_per_step, "per_device_train_batch_size": per_pass,
        "gradient_accumulation_steps": rows_per_step // per_pass, "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0, "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1], "adam_epsilon": EPSILON, "max_grad_norm": 1e9, "bf16": False, "use_cpu": True,
        "gradient_checkpointing": False, "save_strategy": "no", "report_to": [], "disable_tqdm": True,
        "max_length": None,
    }  # fmt: skip
    InOrder(
        model=model,
        args=arguments(**common, **options),
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        processing_class=tokenizer,
        callbacks=[Keep()],
    ).train()
    return steps


def pair_rows(batch: GroupBatch) -> list[dict[str, list[int]]]:
    """`prompt_ids`, `chosen_ids` and `rejected_ids` of every strictly ordered pair, in the groups' order."""
    prompts = [ids.tolist() for ids in torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())]
    responses = iter(torch.split(batch.response_ids, batch.lengths.tolist()))
    rows = []
    for prompt, group in zip(prompts, batch.groups, strict=True):
        own = [next(responses).tolist() for _ in group.responses]
        rows += [
            {"prompt_ids": prompt, "chosen_ids": own[better], "rejected_ids": own[worse]}
            for better, worse in group.preferred_pairs()
        ]
    return rows


def _largest(gradients: Mapping[str, Tensor]) -> float:
    return max(float(gradient.abs().max()) for gradient in gradients.values())


def _gradients(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in parameters.items()}
