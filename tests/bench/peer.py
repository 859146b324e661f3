"""TRL's offline trainers on a workload: the same weights and the same tokens in the same order."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

import torch
import transformers
from alignkit_hf.options import LoraOptions
from alignkit_trl.testing.parity import pair_rows
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

from tests.bench.ours import in_training_order
from tests.bench.real import draw_adapter
from tests.bench.workloads import ADAM_BETA2

if TYPE_CHECKING:
    from collections.abc import Callable

    from alignkit.batch import GroupBatch
    from tests.bench.clock import Clock
    from tests.bench.material import Material
    from tests.bench.workloads import Settings, Workload

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def quiet() -> None:
    """No progress bars and no advice."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def load_lm(material: Material, settings: Settings) -> Any:
    """The causal LM in float32. Its weights are read now, so that the memory of a step is that above the weights."""
    model = AutoModelForCausalLM.from_pretrained(material.lm, dtype=torch.float32).to(settings.device)
    for parameter in model.parameters():
        parameter.sum()
    return model


def load_rm(material: Material, settings: Settings) -> Any:
    """The reward model in float32."""
    model = AutoModelForSequenceClassification.from_pretrained(material.rm, num_labels=1, dtype=torch.float32)
    return model.to(settings.device)


class Timed(TrainerCallback):
    """Puts each optimisation step on the clock, with the mean of the losses of its passes."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.losses: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.clock.start()

    def on_log(self, *given: Any, logs: dict[str, float], **_: Any) -> None:
        if "grad_norm" in logs:
            self.clock.norms.append(float(logs["grad_norm"]))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.stop(sum(self.losses) / len(self.losses))
        self.losses.clear()


def reporting(trainer: type[Any], callback: Timed) -> type[Any]:
    """The trainer, telling the callback its losses."""

    class Reporting(trainer):  # type: ignore[misc]
        def compute_loss(self, *given: Any, **named: Any) -> Any:
            loss = super().compute_loss(*given, **named)
            callback.losses.append(float(loss.detach()))
            return loss

    return Reporting


def _in_order(trainer: type[Any]) -> type[Any]:
    """The trainer, taking rows that are tokens already in their order."""

    class InOrder(trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *given: Any, **named: Any) -> Any:
            return SequentialSampler(self.train_dataset)

        def _prepare_dataset(self, dataset: Any, *given: Any, **named: Any) -> Any:
            if "input_ids" in dataset.column_names:  # SFTTrainer makes labels of the mask
                return super()._prepare_dataset(dataset, *given, **named)
            return dataset

    return InOrder


def arguments(workload: Workload, settings: Settings) -> dict[str, Any]:
    """What all trainers are told."""
    per_pass = workload.peer_rows_per_pass or workload.peer_rows
    return {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": settings.steps,
        "per_device_train_batch_size": per_pass,
        "gradient_accumulation_steps": workload.peer_rows // per_pass,
        "bf16": settings.bf16,
        "use_cpu": settings.device == "cpu",
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "learning_rate": workload.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "adam_beta2": ADAM_BETA2,
        "max_grad_norm": 1.0,
        "seed": settings.seed,
        **workload.peer_options,
    }


def adapter(workload: Workload) -> dict[str, Any]:
    """What trainers are told of a LoRA adapter: that of alignkit's options."""
    if not workload.lora:
        return {}
    from peft import LoraConfig

    options = LoraOptions(r=workload.lora)
    return {"peft_config": LoraConfig(r=options.r, lora_alpha=options.alpha, target_modules="all-linear")}  # type: ignore[arg-type]


def encoded(workload: Workload, material: Material, settings: Settings) -> GroupBatch:
    """The tokens of a run, in the order of training, as alignkit's policy encodes them."""
    from alignkit_hf.encoding import Encoder

    stops = material.stop_ids
    encoder = Encoder(material.tokenizer(), stop_ids=stops, end_id=stops[0], max_length=material.max_length)
    return encoder.encode(in_training_order(workload, material, settings), "cpu")


def _trainer(
    trainer: type[Any],
    config: type[Any],
    model: Any,
    data: list[dict[str, Any]],
    workload: Workload,
    material: Material,
    settings: Settings,
    clock: Clock,
    **options: Any,
) -> Callable[[], None]:
    from datasets import Dataset

    callback = Timed(clock)
    made = reporting(_in_order(trainer), callback)(
        model=model,
        args=config(max_length=None, **options, **arguments(workload, settings)),
        train_dataset=Dataset.from_list(data),
        processing_class=material.tokenizer(),
        callbacks=[callback],
        **adapter(workload),
    )
    draw_adapter(made.model)
    return made.train  # type: ignore[no-any-return]


def sft(workload: Workload, material: Material, settings: Settings, clock: Clock) -> Callable[[], None]:
    """SFTTrainer, loss on responses only."""
    from trl import SFTConfig, SFTTrainer

    batch = encoded(workload, material, settings)
    prompts = torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())
    responses = torch.split(batch.response_ids, batch.lengths.tolist())
    data = [
        {
            "input_ids": torch.cat((prompt, response)).tolist(),
            "completion_mask": [0] * len(prompt) + [1] * len(response),
        }
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    model = load_lm(material, settings)
    return _trainer(SFTTrainer, SFTConfig, model, data, workload, material, settings, clock, completion_only_loss=True)


def dpo(workload: Workload, material: Material, settings: Settings, clock: Clock) -> Callable[[], None]:
    """DPOTrainer."""
    from trl import DPOConfig, DPOTrainer

    data = pair_rows(encoded(workload, material, settings))
    return _trainer(DPOTrainer, DPOConfig, load_lm(material, settings), data, workload, material, settings, clock)


def reward(workload: Workload, material: Material, settings: Settings, clock: Clock) -> Callable[[], None]:
    """RewardTrainer on all pairs of each ranking."""
    from trl import RewardConfig, RewardTrainer

    data = [
        {"chosen_ids": row["prompt_ids"] + row["chosen_ids"], "rejected_ids": row["prompt_ids"] + row["rejected_ids"]}
        for row in pair_rows(encoded(workload, material, settings))
    ]
    return _trainer(RewardTrainer, RewardConfig, load_rm(material, settings), data, workload, material, settings, clock)


def kto(workload: Workload, material: Material, settings: Settings, clock: Clock) -> Callable[[], None]:
    """KTOTrainer; the KL is estimated on the response of the row before, as the trainer itself arranges it."""
    from trl import KTOConfig, KTOTrainer

    batch = encoded(workload, material, settings)
    prompts = torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())
    responses = torch.split(batch.response_ids, batch.lengths.tolist())
    data: list[dict[str, Any]] = []
    for step in range(0, batch.num_groups, workload.groups):
        part = [
            {
                "prompt_ids": prompts[group].tolist(),
                "completion_ids": responses[2 * group + side].tolist(),
                "label": side == 0,
            }
            for side in (0, 1)
            for group in range(step, step + workload.groups)
        ]
        for row, before in zip(part, [part[-1], *part], strict=False):
            row["KL_completion_ids"] = before["completion_ids"]
        data += part
    return _trainer(KTOTrainer, KTOConfig, load_lm(material, settings), data, workload, material, settings, clock)
