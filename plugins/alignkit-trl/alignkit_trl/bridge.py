"""Runs a TRL trainer on a model of the policy `hf`, in the engine's order, and reports its steps under our names.

The trainers are TRL's own, except that the rows come in the engine's order and have the tokens that our own algorithms
train on. So the first loss of both is the same number.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.state import AcceleratorState
from alignkit_hf.policy import HFPolicy
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback

from alignkit import InputError, StoppedByCheck, TrainResult
from alignkit.algorithms import epoch_order
from alignkit.ops import num_processes
from alignkit_trl.fields import config_fields
from alignkit_trl.options import COMMON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from alignkit_hf.modeling import PackedModel
    from torch import nn

    from alignkit import Policy
    from alignkit_trl.options import TRLOptions

    OnStep = Callable[[dict[str, float]], None]

FIGURES = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "logps/chosen": "chosen_logprobs",
    "logps/rejected": "rejected_logprobs",
    "completions/mean_length": "response_length",
    "clip_ratio/region_mean": "clip_fraction",
}
"""TRL's name of a figure -> ours; other figures keep their names."""


class RowOrder(Sampler[int]):
    """The rows of each epoch, in the engine's order of their groups.

    Args:
        sizes: number of rows of each group; the rows of a group are adjacent.
    """

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        self._sizes, self._seed, self._epoch = sizes, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the next epoch, from 0."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        ends = list(accumulate(self._sizes))
        for group in epoch_order(len(ends), seed=self._seed, batch=0, epoch=self._epoch):
            yield from range(ends[group] - self._sizes[group], ends[group])

    def __len__(self) -> int:
        return sum(self._sizes)


class FixedRowOrder(RowOrder):
    """The first epoch's order in every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Changes nothing."""


class Forward(TrainerCallback):
    """Passes on each step's figures; stops if the loss is not finite."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step
        self._response_length = 0.0
        self.last: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        figures = {FIGURES.get(name, name): float(x) for name, x in logs.items() if isinstance(x, int | float)}
        self._response_length = figures.get("response_length", self._response_length)
        if "kl" in figures and self._response_length:
            figures["kl"] *= self._response_length  # TRL's is a mean over tokens, ours over responses
        elif "kl" in figures:
            figures["kl_baseline"] = figures.pop("kl")  # KTO's estimate, from mismatched pairs
        self.last = {"step": float(state.global_step), **figures}
        self._on_step(self.last)
        if not math.isfinite(figures["loss"]):
            raise StoppedByCheck(f"step {state.global_step}: the loss is not finite")


def hf_policy(policy: Policy[Any]) -> HFPolicy:
    """The policy as `HFPolicy`, the only kind that TRL can train.

    Raises:
        InputError: it comes from another plugin.
    """
    if not isinstance(policy, HFPolicy):
        raise InputError("TRL trains transformers models only", where="policy.plugin", fix="use the policy hf")
    return policy


def own_tokenizer(policy: HFPolicy) -> Any:
    """A copy of the tokenizer for TRL to change, with the end token of this policy's responses."""
    tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(policy.encoder.end_id)
    return tokenizer


def common_arguments(
    options: TRLOptions, packed: PackedModel, folder: Path, seed: int, *, rows_per_step: int
) -> dict[str, Any]:
    """Arguments of TRL's config from our options and the model; `args` overrides them."""
    local = max(1, rows_per_step // num_processes())
    per_pass = min(local, int(options.args.get("per_device_train_batch_size", local)))
    if local % per_pass:
        raise InputError(
            f"a step of {local} rows can't be split into passes of {per_pass}",
            where="optimizer.args.per_device_train_batch_size",
            fix="set a divisor of the number of rows",
        )
    on_cpu = packed.device.type == "cpu"
    schedule = "constant_with_warmup" if options.lr_schedule == "constant" else options.lr_schedule
    return {
        **{trl: getattr(options, name) for name, trl in {**COMMON, **options.renamed}.items()},
        "lr_scheduler_type": schedule,
        "output_dir": str(folder / "trl"),
        "seed": seed,
        "use_cpu": on_cpu,
        "bf16": packed.autocast is torch.bfloat16,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": not on_cpu,
        **({"max_length": None} if "max_length" in config_fields(options.trl_config) else {}),
        **options.args,
        "per_device_train_batch_size": per_pass,
        "gradient_accumulation_steps": local // per_pass,
    }


def run_trainer(
    name: str,
    packed: PackedModel,
    arguments: Mapping[str, Any],
    *,
    config: str,
    on_step: OnStep,
    overrides: Mapping[str, Any],
    stop_ids: Sequence[int] = (),
    **more: Any,
) -> TrainResult:
    """Trains a model in place with TRL's trainer `name`; the result counts no tokens.

    Args:
        arguments: of its config class `config`.
        overrides: methods that replace the trainer's own.
        stop_ids: tokens that end a sampled response; empty leaves them to the model.
        more: the trainer's other arguments.

    Raises:
        InputError: TRL refuses the arguments.
        StoppedByCheck: the loss is not finite.
    """
    trl = import_module("trl")
    forward = Forward(on_step)
    start = time.perf_counter()
    with _restored(packed):
        if stop_ids:
            packed.lm.generation_config.eos_token_id = list(stop_ids)
        try:
            settings = getattr(trl, config)(**arguments)
            trainer: Any = type(name, (getattr(trl, name),), dict(overrides))(
                model=packed.model, args=settings, callbacks=[forward], **more
            )
        except (ValueError, TypeError, NotImplementedError) as error:
            fix = "see TRL's documentation of its arguments"
            raise InputError(f"TRL refuses it: {error}", where="optimizer.args", fix=fix) from error
        trainer.remove_callback(PrinterCallback)  # it prints to stdout, which is for results
        _keep_reference(trainer, packed.model)
        trainer.train()
    with contextlib.suppress(OSError):  # not empty if args ask for checkpoints
        Path(arguments["output_dir"]).rmdir()
    return TrainResult(trainer.state.global_step, time.perf_counter() - start, 0, forward.last)


def _keep_reference(trainer: Any, model: nn.Module) -> None:
    """Gives TRL's reference the model's current weights: TRL loads it from the folder the model came from."""
    reference = getattr(trainer, "ref_model", None)
    if reference is not None:
        trainer.accelerator.unwrap_model(reference).load_state_dict(model.state_dict())


@contextlib.contextmanager
def _restored(packed: PackedModel) -> Iterator[None]:
    """Undoes everything that TRL and accelerate change about a model except its weights."""
    owners: list[Any] = [packed.model, packed.lm]
    forwards = [vars(owner).get("forward") for owner in owners]
    config, generation = packed.lm.config.get_text_config(), copy.deepcopy(vars(packed.lm).get("generation_config"))
    pad_token_id = config.pad_token_id
    was_training = packed.training
    try:
        yield
    finally:
        for owner, forward in zip(owners, forwards, strict=True):
            for name in ("forward", "_original_forward"):
                vars(owner).pop(name, None)
            if forward is not None:
                owner.forward = forward
        if "ref" in getattr(packed.model, "peft_config", {}):
            packed.model.delete_adapter("ref")  # type: ignore[operator]
        config.pad_token_id = pad_token_id
        if generation is not None:
            packed.lm.generation_config = generation
        packed.train(was_training)
        AcceleratorState._reset_state()
