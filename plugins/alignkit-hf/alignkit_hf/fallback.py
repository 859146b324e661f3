"""Sampling through transformers' generate, for models that can't run in the packed layout.

We choose the tokens: a logits processor draws from each response's own stream and masks all other tokens, and generate
is set to greedy. Prompts of equal length run together, so that nothing is padded.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from alignkit_hf.generation import Sampled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from alignkit_hf.generation import Budget
    from alignkit_hf.modeling import PackedModel
    from alignkit_hf.sampling import TokenChooser


class _Draw(LogitsProcessor):
    """Replaces scores [B, V] with minus infinity everywhere except at the drawn token."""

    def __init__(self, chooser: TokenChooser, rows: Tensor) -> None:
        self.chooser, self.rows = chooser, rows
        self.tokens: list[Tensor] = []
        self.logprobs: list[Tensor] = []
        self.ends: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token, logprob, ends = self.chooser(scores.float(), self.rows, len(self.tokens))
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.ends.append(ends)
        return torch.full_like(scores, float("-inf")).scatter_(1, token[:, None], 0.0)


class _Ended(StoppingCriteria):
    """Ends the rows that the chooser has ended."""

    def __init__(self, draw: _Draw) -> None:
        self.draw = draw

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return self.draw.ends[-1]


def sample_with_generate(
    model: PackedModel, prompts: Sequence[Sequence[int]], n: int, steps: int, chooser: TokenChooser, budget: Budget
) -> Sampled:
    """As `alignkit_hf.generation.sample`, but one part of the prompts after another."""
    parts, start = [], 0
    while start < len(prompts):
        count = budget.admits([len(ids) + n * steps for ids in prompts[start:]], n)
        parts.append(_sample_part(model, prompts[start : start + count], n, steps, chooser, start * n))
        start += count
    return Sampled.concat(parts)


def _sample_part(
    model: PackedModel, prompts: Sequence[Sequence[int]], n: int, steps: int, chooser: TokenChooser, first_row: int
) -> Sampled:
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    ids: list[list[int]] = [[] for _ in range(len(prompts) * n)]
    logprobs: list[Tensor] = [torch.empty(0)] * len(ids)
    finished = [False] * len(ids)
    for numbers in by_length.values():
        rows = [number * n + index for number in numbers for index in range(n)]
        part = _sample_equal(
            model, [prompts[row // n] for row in rows], steps, chooser, [first_row + row for row in rows]
        )
        split = torch.split(part.logprobs, [len(tokens) for tokens in part.ids])
        for row, tokens, own, end in zip(rows, part.ids, split, part.finished, strict=True):
            ids[row], logprobs[row], finished[row] = tokens, own, end
    return Sampled(ids, torch.cat(logprobs), finished)


@contextlib.contextmanager
def _only(lm: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Without the model's own generation config, which may add a repetition penalty, for example."""
    own = lm.generation_config
    lm.generation_config = config
    try:
        yield
    finally:
        lm.generation_config = own


def _sample_equal(
    model: PackedModel, prompts: Sequence[Sequence[int]], steps: int, chooser: TokenChooser, rows: Sequence[int]
) -> Sampled:
    device = model.device
    draw = _Draw(chooser, torch.tensor(rows, device=device))
    input_ids = torch.tensor([list(ids) for ids in prompts], device=device)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=steps, do_sample=False, eos_token_id=chooser.stop_ids.tolist(), pad_token_id=0, use_cache=True
    )
    with torch.no_grad(), model.computing(), _only(model.lm, config):
        model.lm.generate(  # type: ignore[operator]
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=config,
            logits_processor=LogitsProcessorList([draw]),
            stopping_criteria=StoppingCriteriaList([_Ended(draw)]),
        )
    tokens = torch.stack(draw.tokens)
    ends = torch.stack(draw.ends)
    finished = ends.any(0)
    lengths = torch.where(finished, ends.int().argmax(0) + 1, len(tokens))
    return Sampled.collect(tokens, torch.stack(draw.logprobs), lengths, finished)
