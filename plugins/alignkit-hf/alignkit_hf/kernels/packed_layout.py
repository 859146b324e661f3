"""Where the tokens of packed groups stand: prompt once, then its responses, on one axis without padding.

A prompt token sees the prompt up to itself; a response token sees its whole prompt and its own response up to itself.
Positions continue from the prompt for each response, so the result is that of each sequence on its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from alignkit import GroupBatch


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """Where the N tokens of G groups and their S responses stand.

    Attributes:
        input_ids, position_ids: [N] int64.
        group: [N] int64, the group of each token. segment: [N] int64, prompts and responses numbered in order.
        in_prompt: [N] bool.
        predict_index: [R] position that predicts each response token: the prompt's last token for the first one.
        last_index: [S] position of each response's last token.
        lengths: tokens of each segment, in order. responses: how many responses each group has.
    """

    input_ids: Tensor
    position_ids: Tensor
    group: Tensor
    segment: Tensor
    in_prompt: Tensor
    predict_index: Tensor
    last_index: Tensor
    lengths: tuple[int, ...]
    responses: tuple[int, ...]
    cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, batch: GroupBatch) -> PackedLayout:
        """The layout of a batch. Raises ValueError where a prompt is empty: nothing would predict its responses."""
        prompts = (batch.prompt_ids, batch.prompt_lengths)
        return cls._lay_out(*prompts, batch.response_ids, batch.lengths, batch.group_index)

    @classmethod
    def of_prompts(cls, prompts: Sequence[Sequence[int]], device: torch.device) -> PackedLayout:
        """The layout of prompts that have no responses yet."""
        ids = torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.long, device=device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.long, device=device)
        return cls._lay_out(ids, lengths, ids[:0], ids[:0], ids[:0])

    @classmethod
    def _lay_out(
        cls, prompt_ids: Tensor, prompt_lengths: Tensor, response_ids: Tensor, lengths: Tensor, group_index: Tensor
    ) -> PackedLayout:
        device = prompt_ids.device
        groups = torch.arange(len(prompt_lengths), device=device)
        sizes = torch.bincount(group_index, minlength=len(groups))
        prompt_segment = groups + sizes.cumsum(0) - sizes
        response_segment = torch.arange(len(lengths), device=device) + group_index + 1
        segments = torch.empty(len(groups) + len(lengths), dtype=torch.long, device=device)
        segments[prompt_segment], segments[response_segment] = prompt_lengths, lengths
        is_prompt = torch.zeros(len(segments), dtype=torch.bool, device=device)
        is_prompt[prompt_segment] = True
        segment_group = torch.empty_like(segments)
        segment_group[prompt_segment], segment_group[response_segment] = groups, group_index
        first_position = torch.where(is_prompt, 0, prompt_lengths[segment_group])
        sizes_list = segments.tolist()
        if min(sizes_list) < 1:
            raise ValueError("a prompt or response has no tokens")
        ends = segments.cumsum(0)
        segment = torch.repeat_interleave(segments, output_size=sum(sizes_list))
        in_prompt = is_prompt[segment]
        index = torch.arange(len(segment), device=device)
        input_ids = torch.empty_like(segment)
        input_ids[in_prompt], input_ids[~in_prompt] = prompt_ids, response_ids
        predict_index = (~in_prompt).nonzero()[:, 0] - 1
        predict_index[lengths.cumsum(0) - lengths] = ends[prompt_segment][group_index] - 1
        return cls(
            input_ids=input_ids,
            position_ids=index - (ends - segments)[segment] + first_position[segment],
            group=segment_group[segment],
            segment=segment,
            in_prompt=in_prompt,
            predict_index=predict_index,
            last_index=ends[response_segment] - 1,
            lengths=tuple(sizes_list),
            responses=tuple(sizes.tolist()),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens, N."""
        return int(self.input_ids.shape[0])

    def group_lengths(self) -> list[int]:
        """Tokens of each group, the prompt and all responses."""
        lengths, start = [], 0
        for count in self.responses:
            lengths.append(sum(self.lengths[start : start + count + 1]))
            start += count + 1
        return lengths

    def visible(self, query: Tensor, key: Tensor, window: int | None) -> Tensor:
        """Whether the token at `query` may attend to the token at `key` (indices that broadcast)."""
        distance = self.position_ids[query] - self.position_ids[key]
        same = self.segment[query] == self.segment[key]
        prefix = (self.group[query] == self.group[key]) & self.in_prompt[key]
        seen = (same | prefix) & (distance >= 0)
        return seen if window is None else seen & (distance < window)

    def remember(self, key: Any, make: Any) -> Any:
        """A value that all layers share, made by the first one that needs it."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]
