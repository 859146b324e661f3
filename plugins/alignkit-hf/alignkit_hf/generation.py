"""Sampling n responses a prompt: the prompt's keys and values are shared by its responses (as in Hydragen,
arXiv:2402.05099), finished responses are dropped, and log-probabilities come from the sampling pass itself.

Works on any model that the packed layout serves, through the same attention interface. Others go through
transformers' own generate, with the same choice of tokens (`alignkit_hf.fallback`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from alignkit.ops.attention import (
    AttentionRule,
    PackedLayout,
    packed_attention,
    padded_index,
    score_weights,
    working_dtype,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from alignkit_hf.modeling import PackedModel
    from alignkit_hf.sampling import TokenChooser

COMPACT_BELOW = 0.875
"""Finished responses are dropped from the batch when the share of live ones falls to this."""


@dataclass(frozen=True)
class Sampled:
    """What was sampled for a number of responses in order.

    Attributes:
        ids: the tokens of each, with the stop token where it finished.
        logprobs: [R] of all tokens, float32 on the CPU.
        finished: whether a stop token ended it.
    """

    ids: list[list[int]]
    logprobs: Tensor
    finished: list[bool]

    @classmethod
    def collect(cls, tokens: Tensor, logprobs: Tensor, lengths: Tensor, finished: Tensor) -> Sampled:
        """From buffers [steps, S] and the lengths and ends [S] of the responses."""
        kept = torch.arange(tokens.shape[0], device=tokens.device)[None] < lengths[:, None]
        flat = torch.split(tokens.t()[kept].cpu(), lengths.tolist())
        return cls([ids.tolist() for ids in flat], logprobs.t()[kept].float().cpu(), finished.tolist())

    @classmethod
    def concat(cls, parts: Sequence[Sampled]) -> Sampled:
        """The responses of all parts in order."""
        return cls(
            [ids for part in parts for ids in part.ids],
            torch.cat([part.logprobs for part in parts]),
            [end for part in parts for end in part.finished],
        )


class _PromptPass:
    """The attention of the prompts; keeps each layer's keys and values."""

    def __init__(self, layout: PackedLayout) -> None:
        self.layout = layout
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        self.kept[layer] = (key[0].to(working_dtype(value)), value[0].to(working_dtype(value)))
        return packed_attention(query, key, value, self.layout, rule)


class _ResponsePass:
    """The attention of one new token of each live response to its prompt and its own earlier tokens.

    Prompts: keys [G, heads, P, D] once for all their responses. Responses: [B, heads, steps, D].
    """

    def __init__(self, prompts: _PromptPass, n: int, steps: int) -> None:
        layout = prompts.layout
        device = layout.input_ids.device
        self.prompt_lengths = torch.tensor(layout.lengths, device=device)
        gather, _ = padded_index(self.prompt_lengths)
        self.offsets = torch.arange(gather.shape[1], device=device)
        self.step = 0
        self.prompt: dict[int, tuple[Tensor, Tensor]] = {}
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        rows = len(layout.lengths) * n
        for layer, (key, value) in prompts.kept.items():
            self.prompt[layer] = tuple(x[:, gather].transpose(0, 1).contiguous() for x in (key, value))  # type: ignore[assignment]
            self.own[layer] = tuple(x.new_empty(rows, x.shape[0], steps, x.shape[2]) for x in (key, value))  # type: ignore[assignment]
        self._arrange(torch.arange(len(layout.lengths), device=device).repeat_interleave(n))

    def _arrange(self, group: Tensor) -> None:
        """Slots [groups, most responses of one] so that a prompt's keys are read once for all of its responses."""
        self.group = group
        counts = torch.unique_consecutive(group, return_counts=True)[1]
        width = int(counts.max())
        rows = torch.arange(len(group), device=group.device)
        number = torch.repeat_interleave(torch.arange(len(counts), device=group.device), counts)
        first = counts.cumsum(0) - counts
        self.groups, self.width = len(counts), width
        self.is_full = len(group) == self.groups * width
        self.slot_of_row = number * width + rows - first[number]
        self.row_of_slot = torch.zeros(self.groups * width, dtype=torch.long, device=group.device)
        self.row_of_slot[self.slot_of_row] = rows
        self._masks: dict[int | None, Tensor | None] = {}

    def keep(self, rows: Tensor) -> None:
        """Goes on with these of the rows."""
        before = torch.unique_consecutive(self.group)
        after = torch.unique_consecutive(self.group[rows])
        if len(after) < len(before):
            chosen = torch.isin(before, after).nonzero()[:, 0]
            self.prompt = {layer: (key[chosen], value[chosen]) for layer, (key, value) in self.prompt.items()}
        for layer, pair in self.own.items():
            smaller = tuple(x.new_empty(len(rows), *x.shape[1:]) for x in pair)
            for new, old in zip(smaller, pair, strict=True):
                new[:, :, : self.step] = old[rows, :, : self.step]
            self.own[layer] = smaller  # type: ignore[assignment]
        self._arrange(self.group[rows])

    def advance(self) -> None:
        """The tokens of this step are stored; the next step follows."""
        self.step += 1
        self._masks.clear()

    @property
    def positions(self) -> Tensor:
        """[B] position of each row's new token."""
        return self.prompt_lengths[self.group] + self.step

    def _mask(self, window: int | None) -> Tensor | None:
        """[B, 1, 1, P + step + 1] which keys each row sees, or None where it is all of them."""
        if window not in self._masks:
            own = torch.arange(self.step + 1, device=self.group.device)
            lengths = self.prompt_lengths[self.group][:, None]
            seen = torch.cat(
                (self.offsets < lengths, torch.ones_like(own, dtype=torch.bool).expand(len(lengths), -1)), 1
            )
            if window is not None:
                position = torch.cat((self.offsets.expand(len(lengths), -1), lengths + own), 1)
                seen &= position > lengths + self.step - window
            self._masks[window] = None if bool(seen.all()) else seen[:, None, None]
        return self._masks[window]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        """[1, heads, B, D_v] for one token of each of the B rows."""
        with torch.autocast(value.device.type, enabled=False):
            return self._attend(layer, query.to(working_dtype(value)), key, value, rule).to(value.dtype)

    def _attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        rows, key_heads, head_size = query.shape[2], key.shape[1], query.shape[3]
        own_key, own_value = self.own[layer]
        prompt_key, prompt_value = self.prompt[layer]
        own_key[:, :, self.step] = key[0].transpose(0, 1)
        own_value[:, :, self.step] = value[0].transpose(0, 1)
        end = self.step + 1
        # [B, key heads, queries that share a key head, D]
        query = query[0].transpose(0, 1).reshape(rows, key_heads, -1, head_size)
        to_prompt = self._to_rows(self._to_slots(query) @ prompt_key.transpose(2, 3), query.shape[2])
        scores = torch.cat((to_prompt, query @ own_key[:, :, :end].transpose(2, 3)), 3)
        weights = self._weights(scores, rule, head_size).to(own_value.dtype)
        prefix = prompt_key.shape[2]
        out = self._to_rows(self._to_slots(weights[..., :prefix]) @ prompt_value, query.shape[2])
        out = out + weights[..., prefix:] @ own_value[:, :, :end]
        return out.reshape(rows, -1, out.shape[3]).transpose(0, 1)[None]

    def _weights(self, scores: Tensor, rule: AttentionRule, head_size: int) -> Tensor:
        mask = self._mask(rule.window)
        if rule.sinks is None:
            return score_weights(scores, mask, rule, head_size)
        heads = scores.flatten(1, 2)[:, :, None]
        return score_weights(heads, mask, rule, head_size).view_as(scores)

    def _to_slots(self, x: Tensor) -> Tensor:
        """[B, key heads, r, D] -> [groups, key heads, width * r, D]"""
        if not self.is_full:
            x = x.index_select(0, self.row_of_slot)
        x = (
            x.view(self.groups, self.width, *x.shape[1:])
            if x.is_contiguous()
            else x.reshape(self.groups, self.width, *x.shape[1:])
        )
        return x.transpose(1, 2).reshape(self.groups, x.shape[2], -1, x.shape[4])

    def _to_rows(self, x: Tensor, shared: int) -> Tensor:
        """[groups, key heads, width * r, D] -> [B, key heads, r, D]"""
        x = x.view(self.groups, x.shape[1], self.width, shared, x.shape[3]).transpose(1, 2)
        x = x.reshape(-1, *x.shape[2:])
        return x if self.is_full else x.index_select(0, self.slot_of_row)


def sample(
    model: PackedModel, prompts: Sequence[Sequence[int]], n: int, steps: int, chooser: TokenChooser, first_row: int
) -> Sampled:
    """Samples `n` responses of at most `steps` tokens for each prompt.

    Args:
        chooser: decides the tokens; this call's responses are its rows from `first_row` on.
    """
    with torch.no_grad(), model.computing():
        layout = PackedLayout.of_prompts(prompts, model.device)
        prompt_pass = _PromptPass(layout)
        hidden = model.run_kernel(layout.input_ids, layout.position_ids, prompt_pass)
        ends = torch.tensor(layout.lengths, device=model.device).cumsum(0) - 1
        logits = model.logits(hidden.index_select(0, ends)).repeat_interleave(n, 0)
        responses = _ResponsePass(prompt_pass, n, steps)
        return _decode(model, responses, logits, steps, chooser, first_row)


def _decode(
    model: PackedModel, responses: _ResponsePass, logits: Tensor, steps: int, chooser: TokenChooser, first_row: int
) -> Sampled:
    device, count = logits.device, len(logits)
    tokens = torch.zeros(steps, count, dtype=torch.long, device=device)
    logprobs = torch.zeros(steps, count, device=device)
    lengths = torch.full((count,), steps, device=device)
    finished = torch.zeros(count, dtype=torch.bool, device=device)
    row = torch.arange(count, device=device)
    for step in range(steps):
        chosen, logprob = chooser(logits, row + first_row, step)
        tokens[step, row], logprobs[step, row] = chosen, logprob
        ended = chooser.ends(chosen) & ~finished[row]
        lengths[row[ended]] = step + 1
        finished[row[ended]] = True
        live = ~finished[row]
        alive = int(live.sum())
        if alive == 0 or step + 1 == steps:
            break
        if alive <= COMPACT_BELOW * len(row):
            keep = live.nonzero()[:, 0]
            row, chosen = row[keep], chosen[keep]
            responses.keep(keep)
        hidden = model.run_kernel(chosen, responses.positions, responses)
        responses.advance()
        logits = model.logits(hidden)
    return Sampled.collect(tokens, logprobs, lengths, finished)
