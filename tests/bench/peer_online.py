"""TRL's online trainers on a workload: GRPO, RLOO, PPO (the last release that has it is 1.12), and sampling alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, TrainerCallback

from tests.bench.ours import prompts_in_order
from tests.bench.peer import Timed, adapter, arguments, encoded, load_lm, load_rm, reporting
from tests.bench.real import draw_adapter
from tests.bench.rewards import closeness
from tests.bench.shapes import EOS, PAD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.bench.clock import Clock
    from tests.bench.material import Material
    from tests.bench.workloads import Settings, Workload


def grpo(workload: Workload, material: Material, settings: Settings, clock: Clock) -> Callable[[], None]:
    """GRPOTrainer, sampling with transformers' generate."""
    from trl import GRPOConfig, GRPOTrainer

    return _group_trainer(GRPOTrainer, GRPOConfig, workload, material, settings, clock)


def rloo(workload: Workload, material: Material, settings: Settings, clock: Clock) -> Callable[[], None]:
    """RLOOTrainer on responses that are given to it instead of sampled."""
    from trl import RLOOConfig, RLOOTrainer

    batch = encoded(workload, material, settings)
    given = iter([ids.tolist() for ids in torch.split(batch.response_ids, batch.lengths.tolist())])
    return _group_trainer(_given(RLOOTrainer, given), RLOOConfig, workload, material, settings, clock)


def _given(trainer: type[Any], responses: Iterator[list[int]]) -> type[Any]:
    """The trainer, taking responses from an iterator instead of sampling them."""

    class Given(trainer):  # type: ignore[misc]
        def _generate_single_turn(self, prompt_ids: list[Any], *_: Any, **__: Any) -> Any:
            return [next(responses) for _ in prompt_ids]

    return Given


def _group_trainer(
    trainer: type[Any],
    config: type[Any],
    workload: Workload,
    material: Material,
    settings: Settings,
    clock: Clock,
) -> Callable[[], None]:
    from datasets import Dataset

    prompts = prompts_in_order(workload, material, settings)
    callback = Timed(clock)
    args = config(
        num_generations=workload.responses,
        max_completion_length=workload.max_new,
        temperature=1.0,
        shuffle_dataset=False,
        **arguments(workload, settings),
    )
    made = reporting(trainer, callback)(
        model=load_lm(material, settings),
        reward_funcs=closeness,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": prompt.text} for prompt in prompts]),
        processing_class=material.tokenizer(),
        callbacks=[callback],
        **adapter(workload),
    )
    draw_adapter(made.model)
    return made.train  # type: ignore[no-any-return]


class _TimedIterations(TrainerCallback):
    """Puts each iteration of PPOTrainer on the clock: it says when one ends, and not when one begins."""

    def __init__(self, clock: Clock, steps: int) -> None:
        self.clock, self.steps = clock, steps

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.stop()
        if len(self.clock.seconds) < self.steps:
            self.clock.start()


def ppo(workload: Workload, material: Material, settings: Settings, clock: Clock) -> Callable[[], None]:
    """PPOTrainer with reference, reward model and a critic that starts as a copy of it; each prompt stands as often
    in the data as it has responses."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = material.tokenizer()
    tokenizer.padding_side = "left"
    prompts = [tokenizer(prompt.text)["input_ids"] for prompt in prompts_in_order(workload, material, settings)]
    common = arguments(workload, settings)
    del common["max_steps"]
    policy = load_lm(material, settings)
    policy.generation_config.pad_token_id = PAD
    args = PPOConfig(
        total_episodes=workload.peer_rows * settings.steps,
        num_mini_batches=1,
        num_ppo_epochs=workload.updates,
        response_length=workload.max_new,
        local_rollout_forward_batch_size=workload.peer_rows,
        stop_token="eos",
        num_sample_generations=0,
        temperature=1.0,
        missing_eos_penalty=None,
        **common,
    )
    made = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=load_lm(material, settings).eval(),
        reward_model=load_rm(material, settings).eval(),
        value_model=load_rm(material, settings),
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompts for _ in range(workload.responses)]),
        callbacks=[_TimedIterations(clock, settings.steps)],
    )
    return made.train  # type: ignore[no-any-return]


def sampling(workload: Workload, material: Material, settings: Settings, clock: Clock) -> Callable[[], None]:
    """transformers' generate as GRPOTrainer calls it: prompts padded on the left, one row a response."""
    tokenizer = material.tokenizer()
    tokenizer.padding_side = "left"
    texts = [prompt.text for prompt in material.prompts(workload.groups) for _ in range(workload.responses)]
    inputs = tokenizer(texts, padding=True, return_tensors="pt").to(settings.device)
    inputs.pop("token_type_ids", None)
    model = load_lm(material, settings).eval()
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=workload.max_new, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, pad_token_id=PAD,
        eos_token_id=EOS,
    )  # fmt: skip

    def run() -> None:
        for step in range(settings.steps):
            torch.manual_seed(step)
            clock.start()
            with torch.no_grad(), torch.autocast(settings.device, torch.bfloat16, enabled=settings.bf16):
                tokens = model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
            ends = (tokens == EOS).long().argmax(1)
            lengths = torch.where((tokens == EOS).any(1), ends + 1, tokens.shape[1])
            clock.stop(tokens=int(lengths.sum()))

    return run
