"""alignkit on a workload: the policy `hf`, the registered optimizer, the engine's own loop."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from alignkit_hf import probe
from alignkit_hf.options import LoraOptions
from transformers import AutoModelForCausalLM

from alignkit.algorithms.passes import policy_logprobs
from alignkit.components import Context
from alignkit.options import Sampling
from alignkit.plugins import registry
from alignkit.training.engine import train
from alignkit.training.feeds import BatchFeed, OfflineFeed, RolloutFeed, epoch_order, prompt_order
from alignkit.training.scores import score_batch
from tests.bench.real import draw_adapter
from tests.bench.workloads import ADAM_BETA2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from alignkit.batch import GroupBatch
    from alignkit.interfaces import Optimizer, Policy, RewardSource, Scorer
    from alignkit.records import Group, Prompt
    from tests.bench.clock import Clock
    from tests.bench.material import Material
    from tests.bench.workloads import Settings, Workload

NEVER = 10**9


class FixedFeed(BatchFeed):
    """Responses that are at hand, as if they had been sampled: a batch of them for each iteration."""

    repeatable = False

    def __init__(
        self,
        groups: Sequence[Group],
        policy: Policy[Any],
        reward: RewardSource[Any],
        groups_per_batch: int,
        clock: Clock,
    ) -> None:
        self._groups, self._policy, self._reward, self._clock = groups, policy, reward, clock
        self.groups_per_batch = groups_per_batch
        self.num_batches = len(groups) // groups_per_batch
        self.figures: dict[str, float] = {}

    def batch(self, index: int) -> GroupBatch:
        """The batch `index`, scored, with log-probabilities for which the clock stands still: a sampler gives them."""
        start = index * self.groups_per_batch
        batch = self._policy.encode(self._groups[start : start + self.groups_per_batch])
        with self._clock.excluded():
            batch = batch.replace(logprobs=policy_logprobs(self._policy, batch, batch.num_tokens))
        return score_batch(batch, self._reward)


def prepare(workload: Workload, material: Material, settings: Settings, clock: Clock) -> Callable[[], None]:
    """The workload made ready: what is returned runs its steps on the clock."""
    return _Ours(workload, material, settings, clock).run


class _Ours:
    """A workload's components.

    Raises:
        InputError: no plugin has the optimizer.
    """

    def __init__(self, workload: Workload, material: Material, settings: Settings, clock: Clock) -> None:
        self.workload, self.material, self.settings, self.clock = workload, material, settings, clock
        self.context = Context(seed=settings.seed, device=settings.device)
        with clock.timing_of(probe, "find_path"):
            self.policy = self._load_policy()
        self.sampling = Sampling(max_tokens=workload.max_new or 1)
        self.optimizer: Optimizer[Any] | None = None
        if workload.optimizer:
            self.reward = self._reward()
            self.optimizer = self._load_optimizer()
            self.feed = self._feed(self.optimizer)

    def run(self) -> None:
        """Runs all steps on the clock."""
        clock = self.clock
        if self.optimizer is None:
            self._sample()
            return
        updates = 0

        def on_step(record: dict[str, float]) -> None:
            nonlocal updates
            updates += 1
            if updates % self.workload.updates == 0:
                clock.norms.append(record["grad_norm"])
                clock.stop(record["loss"], self._sampled_tokens(record))
                if len(clock.seconds) < self.settings.steps:
                    clock.start()

        with tempfile.TemporaryDirectory() as folder:
            clock.start()
            train(self.optimizer, self.feed, folder=Path(folder), seed=self.settings.seed, on_step=on_step)

    def _sampled_tokens(self, record: dict[str, float]) -> int | None:
        if not self.workload.max_new:
            return None
        return round(record["response_length"] * self.workload.groups * self.workload.responses)

    def _sample(self) -> None:
        prompts = self.material.prompts(self.workload.groups)
        for step in range(self.settings.steps):
            self.clock.start()
            batch = self.policy.generate(prompts, n=self.workload.responses, sampling=self.sampling, seed=step)
            self.clock.stop(tokens=batch.num_tokens)
        self.clock.logprob_diff = logprob_difference(batch, self.material.lm)

    def _load_policy(self) -> Policy[Any]:
        """The policy `hf`, whose new scorers are the saved reward model, so that both programs start from its head."""
        policy_class, folder, context = registry().load("policy", "hf"), Path(self.material.rm), self.context

        class WithSavedScorer(policy_class):  # type: ignore[misc, valid-type]
            def scorer(self) -> Scorer:
                return policy_class.load_scorer(folder, context)  # type: ignore[attr-defined, no-any-return]

        dtype = "bfloat16" if self.settings.bf16 else "float32"
        stops = self.material.stop_ids
        options = policy_class.Config(  # type: ignore[call-arg]
            model=self.material.lm, max_length=self.material.max_length, dtype=dtype, stop_token_ids=stops,
            end_token_id=stops[0], lora=LoraOptions(r=self.workload.lora),
        )  # fmt: skip
        policy = WithSavedScorer(options, self.context)
        draw_adapter(policy.raw)
        return policy  # type: ignore[no-any-return]

    def _reward(self) -> RewardSource[Any] | None:
        if self.workload.peer == "ppo":
            source = registry().load("reward", "model")
            return source(source.Config(model=self.material.rm, normalise=False), self.context)  # type: ignore
        if self.workload.rows in ("prompts", "fixed_rollouts"):
            source = registry().load("reward", "function")
            return source(source.Config(function="tests.bench.rewards:closeness"), self.context)  # type: ignore
        return None

    def _load_optimizer(self) -> Optimizer[Any]:
        workload = self.workload
        common: dict[str, Any] = {
            "learning_rate": workload.learning_rate,
            "adam_beta2": ADAM_BETA2,
            "lr_schedule": "constant",
            "warmup": 0.0,
            "minibatch_size": workload.groups,
            "save_every": NEVER,
        }
        if workload.rows in ("prompts", "fixed_rollouts"):
            common |= {
                "iterations": self.settings.steps,
                "batch_size": workload.groups,
                "group_size": workload.responses,
            }
        algorithm = registry().load("optimizer", workload.optimizer)
        config = algorithm.Config(**common, **workload.options)
        return algorithm(config, self.context, policy=self.policy, reward=self.reward)  # type: ignore

    def _feed(self, optimizer: Optimizer[Any]) -> BatchFeed:
        if self.workload.rows == "prompts":
            assert self.reward is not None
            prompts = self.material.prompts(self.workload.groups * self.settings.steps)
            return RolloutFeed(
                prompts, self.policy, self.reward,
                sampling=self.sampling, options=optimizer.config, seed=self.settings.seed,
            )  # fmt: skip
        groups = rows(self.workload, self.material, self.settings.steps)
        if self.workload.rows == "fixed_rollouts":
            assert self.reward is not None
            return FixedFeed(groups, self.policy, self.reward, self.workload.groups, self.clock)
        return OfflineFeed(groups, self.policy)


def rows(workload: Workload, material: Material, steps: int) -> list[Group]:
    """The groups of a run, in the order of the data."""
    count = workload.groups * steps
    if workload.rows == "demonstrations":
        return material.demonstrations(count)
    if workload.rows == "rankings":
        return material.rankings(count, workload.responses)
    if workload.rows == "labelled":
        return material.labelled(count)
    return material.fixed_rollouts(count, workload.responses)


def in_training_order(workload: Workload, material: Material, settings: Settings) -> list[Group]:
    """The groups of a run in the order in which alignkit's engine takes them."""
    groups = rows(workload, material, settings.steps)
    if workload.rows == "fixed_rollouts":
        return groups
    return [groups[number] for number in epoch_order(len(groups), seed=settings.seed, batch=0, epoch=0)]


def prompts_in_order(workload: Workload, material: Material, settings: Settings) -> list[Prompt]:
    """The prompts of a run in the order in which alignkit's feed takes them."""
    prompts = material.prompts(workload.groups * settings.steps)
    if workload.rows == "fixed_rollouts":
        return prompts
    return [prompts[number] for number in prompt_order(len(prompts), seed=settings.seed, round_number=0)]


@torch.no_grad()
def logprob_difference(batch: GroupBatch, folder: str, rows: int = 8) -> float:
    """The largest difference of sampled log-probabilities to plain forward passes of transformers, over a few rows."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = torch.split(batch.prompt_ids.cpu(), batch.prompt_lengths.tolist())
    responses = torch.split(batch.response_ids.cpu(), batch.lengths.tolist())
    assert batch.logprobs is not None
    sampled = torch.split(batch.logprobs.cpu(), batch.lengths.tolist())
    largest = 0.0
    for row in range(0, len(responses), max(1, len(responses) // rows)):
        prompt, response = prompts[int(batch.group_index[row])], responses[row]
        logits = model(torch.cat((prompt, response))[None]).logits[0, len(prompt) - 1 : -1]
        plain = logits.log_softmax(-1).gather(1, response[:, None]).squeeze(1)
        largest = max(largest, float((plain - sampled[row]).abs().max()))
    return largest
