"""TRL's GRPOTrainer and RLOOTrainer: they do their own sampling, and any reward source scores the samples.

Prompts have the same tokens as in our own sampler. TRL's own order decides which prompts share an iteration.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from alignkit import Feed, ForeignTrainer, Group, InputError
from alignkit.algorithms import check_abstentions, checked_scores
from alignkit_trl.bridge import common_arguments, hf_policy, own_tokenizer, run_trainer
from alignkit_trl.options import TRLGRPOOptions, TRLRLOOOptions, TRLRolloutOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from alignkit import Prompt, RewardSource, Sampling, TrainResult
    from alignkit_trl.bridge import OnStep

OptionsT = TypeVar("OptionsT", bound=TRLRolloutOptions)
INDEX = "prompt_index"


class OnlineTrainer(ForeignTrainer[OptionsT]):
    """Base: a subclass defines the trainer."""

    consumes = Feed.ROLLOUTS
    uses_reference = True
    trainer: ClassVar[str]

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.hf = hf_policy(self.policy)
        if self.reward is None:
            raise InputError("this algorithm needs a reward", where="reward", fix="add --reward NAME")
        self.source = self.reward

    def run(
        self, groups: Sequence[Group], *, sampling: Sampling, folder: Path, seed: int, on_step: OnStep
    ) -> TrainResult:
        from datasets import Dataset

        options = self.config
        prompts = [group.prompt for group in groups]
        texts = [self.hf.encoder.render(prompt) for prompt in prompts]
        ids = dict(zip(texts, self.hf.encoder.prompts_with_room(prompts, sampling.max_tokens), strict=True))
        rows = [{"prompt": text, INDEX: index} for index, text in enumerate(texts)]
        rows *= math.ceil(options.batch_size / len(rows))  # TRL drops an iteration that prompts don't fill
        reward = RewardFunction(self.source, prompts, options.max_abstained, self.hf.encoder.chat.content)
        minibatch = min(options.minibatch_size, options.batch_size)
        steps = options.iterations * options.n_epochs * (options.batch_size // minibatch)
        arguments = common_arguments(options, self.hf.raw, folder, seed, rows_per_step=minibatch * options.group_size)
        arguments |= {
            "max_steps": steps,
            "warmup_steps": round(options.warmup * steps),
            "num_generations": options.group_size,
            "num_iterations": options.n_epochs,
            "generation_batch_size": options.batch_size * options.group_size,
            "max_completion_length": sampling.max_tokens,
            "temperature": sampling.temperature,
        }
        result = run_trainer(
            self.trainer,
            self.hf.raw,
            arguments,
            config=options.trl_config,
            on_step=on_step,
            overrides={"_tokenize_prompts": lambda _, asked: ([ids[text] for text in asked], None, {})},
            stop_ids=self.hf.encoder.stop_ids,
            train_dataset=Dataset.from_list(rows),
            processing_class=own_tokenizer(self.hf),
            reward_funcs=reward,
        )
        return replace(result, tokens=reward.tokens * options.n_epochs)


class RewardFunction:
    """A reward source with the signature of TRL's reward functions.

    Args:
        max_abstained: share of a call's responses that the source may abstain on.
        content: what a response says, from its prompt and the text that TRL decoded.

    Attributes:
        tokens: number of tokens in all scored responses.
    """

    def __init__(
        self,
        source: RewardSource[Any],
        prompts: Sequence[Prompt],
        max_abstained: float = 1.0,
        content: Callable[[Prompt, str], str] = lambda _, text: text,
    ) -> None:
        self._source, self._prompts, self._max_abstained, self._content = source, prompts, max_abstained, content
        self.tokens = 0
        self.__name__ = type(source).__name__

    def __call__(
        self, *, completions: Sequence[str], completion_ids: Sequence[Sequence[int]], **columns: Any
    ) -> list[float | None]:
        """One score per completion; adjacent responses to one prompt are scored as one group."""
        self.tokens += sum(map(len, completion_ids))
        rows = zip(columns[INDEX], completions, strict=True)
        groups = [
            Group(self._prompts[index], tuple(self._content(self._prompts[index], text) for _, text in own))
            for index, own in groupby(rows, key=lambda row: row[0])
        ]
        flat = [score for scores in checked_scores(self._source, groups) for score in scores]
        check_abstentions(flat.count(None) / max(1, len(flat)), self._max_abstained)
        return flat


class TRLGRPO(OnlineTrainer[TRLGRPOOptions]):
    """Group relative policy optimisation."""

    trainer = "GRPOTrainer"


class TRLRLOO(OnlineTrainer[TRLRLOOOptions]):
    """REINFORCE leave-one-out."""

    trainer = "RLOOTrainer"
