"""Samples n responses for each prompt: the responses share the prompt's keys and values (as in Hydragen,
arXiv:2402.05099), finished responses are dropped, waiting prompts take their place (continuous admission, as in Orca,
OSDI 2022), and log-probabilities come from the sampling pass itself.

Works on any model that can run in the packed layout, through the same attention interface. Other models use
transformers' own generate, with the same choice of tokens (`alignkit_hf.fallback`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from alignkit_hf.kernels.attention import AttentionRule, packed_attention, padded_index, score_weights, working_dtype
from alignkit_hf.kernels.packed_layout import PackedLayout
from alignkit_hf.prepacked import prepacked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from alignkit_hf.modeling import PackedModel
    from alignkit_hf.sampling import TokenChooser

COMPACT_BELOW = 0.95
"""When the share of live responses falls to this, finished ones are dropped and waiting prompts admitted."""
ROOM = 32
"""Initial room, in tokens, for a response's keys and values. It doubles when it is full, so that memory depends on what
is sampled, not on what is allowed."""


@dataclass(frozen=True)
class Budget:
    """How much is sampled at the same time.

    Attributes:
        tokens: each prompt once, and room for the longest response in every row. rows: responses.
    """

    tokens: int
    rows: int

    def admits(self, costs: Sequence[int], n: int, tokens: int = 0, rows: int = 0) -> int:
        """How many prompts with these costs in tokens, `n` responses each, fit beside the current tokens and rows.

        At least one if there are no rows yet.
        """
        count = 0
        for cost in costs:
            fits = tokens + cost <= self.tokens and rows + n <= self.rows
            if rows and not fits:
                break
            count, tokens, rows = count + 1, tokens + cost, rows + n
        return count


@dataclass(frozen=True)
class Sampled:
    """The sampled responses, in order.

    Attributes:
        ids: the tokens of each, with the stop token if it finished.
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
        """The responses of all parts, in order."""
        return cls(
            [ids for part in parts for ids in part.ids],
            torch.cat([part.logprobs for part in parts]),
            [end for part in parts for end in part.finished],
        )

    def arranged(self, rows: Sequence[int]) -> Sampled:
        """These responses in another order: the first one becomes number `rows[0]`, and so on."""
        order = sorted(range(len(rows)), key=rows.__getitem__)
        logprobs = torch.split(self.logprobs, [len(ids) for ids in self.ids])
        return Sampled(
            [self.ids[row] for row in order],
            torch.cat([logprobs[row] for row in order]),
            [self.finished[row] for row in order],
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

    Prompts: keys [G, heads, P, D] once for all their responses. Responses: [B, heads, room, D]; each row uses `lengths`
    [B], and the rest is zero.
    """

    def __init__(self, prompts: _PromptPass, n: int, steps: int) -> None:
        layout = prompts.layout
        device = layout.input_ids.device
        self.steps = steps
        self.prompt_lengths = torch.tensor(layout.lengths, device=device)
        gather, _ = padded_index(self.prompt_lengths)
        self.prompt: dict[int, tuple[Tensor, Tensor]] = {}
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        rows, self.room = len(layout.lengths) * n, min(ROOM, steps)
        for layer, (key, value) in prompts.kept.items():
            self.prompt[layer] = _both(lambda x: x[:, gather].transpose(0, 1).contiguous(), (key, value))
            self.own[layer] = _both(lambda x: x.new_zeros(rows, x.shape[0], self.room, x.shape[2]), (key, value))
        group = torch.arange(len(layout.lengths), device=device).repeat_interleave(n)
        self._arrange(group, torch.zeros_like(group))

    def _arrange(self, group: Tensor, lengths: Tensor) -> None:
        """Slots [groups, most responses of one], so that a prompt's keys are read once for all its responses."""
        self.group, self.lengths = group, lengths
        self.longest = int(lengths.max())
        self.in_step = bool((lengths == self.longest).all())
        kept, counts = torch.unique_consecutive(group, return_counts=True)
        self.prefix = int(self.prompt_lengths[kept].max())
        width = int(counts.max())
        self.rows = torch.arange(len(group), device=group.device)
        number = torch.repeat_interleave(torch.arange(len(counts), device=group.device), counts)
        first = counts.cumsum(0) - counts
        self.groups, self.width = len(counts), width
        self.is_full = len(group) == self.groups * width
        self.slot_of_row = number * width + self.rows - first[number]
        self.row_of_slot = torch.zeros(self.groups * width, dtype=torch.long, device=group.device)
        self.row_of_slot[self.slot_of_row] = self.rows
        self._masks: dict[int | None, Tensor | None] = {}

    @property
    def tokens(self) -> int:
        """Tokens for which keys and values are held."""
        lengths = self.prompt_lengths[torch.unique_consecutive(self.group)]
        return int(lengths.sum()) + len(self.group) * self.steps

    def keep(self, rows: Tensor) -> None:
        """Keeps only these rows."""
        before = torch.unique_consecutive(self.group)
        after = torch.unique_consecutive(self.group[rows])
        if len(after) < len(before):
            chosen = torch.isin(before, after).nonzero()[:, 0]
            prefix = int(self.prompt_lengths[after].max())
            for layer, pair in self.prompt.items():
                self.prompt[layer] = _both(lambda x: x[chosen, :, :prefix], pair)
        for layer, pair in self.own.items():
            self.own[layer] = _both(lambda x: x.index_select(0, rows), pair)
        self._arrange(self.group[rows], self.lengths[rows])

    def join(self, other: _ResponsePass) -> None:
        """Appends the rows of the other pass."""
        prefix, self.room = max(self.prefix, other.prefix), max(self.room, other.room)
        for layer, pair in self.prompt.items():
            self.prompt[layer] = _joined(_stretched(pair, prefix), _stretched(other.prompt[layer], prefix))
            own = (_stretched(pair, self.room) for pair in (self.own[layer], other.own[layer]))
            self.own[layer] = _joined(*own)
        group = torch.cat((self.group, other.group + len(self.prompt_lengths)))
        self.prompt_lengths = torch.cat((self.prompt_lengths, other.prompt_lengths))
        self._arrange(group, torch.cat((self.lengths, other.lengths)))

    def advance(self) -> None:
        """The tokens of this step are stored; the next step follows."""
        self.lengths = self.lengths + 1
        self.longest += 1
        self._masks.clear()
        if self.longest == self.room:
            self.room = min(2 * self.room, self.steps)
            for layer, pair in self.own.items():
                self.own[layer] = _stretched(pair, self.room)

    @property
    def positions(self) -> Tensor:
        """[B] position of each row's new token."""
        return self.prompt_lengths[self.group] + self.lengths

    def _mask(self, window: int | None) -> Tensor | None:
        """[B, 1, 1, P + longest + 1] which keys each row sees, or None if all rows see all keys."""
        if window not in self._masks:
            own = torch.arange(self.longest + 1, device=self.group.device)
            prompt = torch.arange(self.prefix, device=self.group.device)
            lengths = self.prompt_lengths[self.group][:, None]
            last = self.lengths[:, None]
            seen = torch.cat((prompt < lengths, own <= last), 1)
            if window is not None:
                position = torch.cat((prompt.expand(len(lengths), -1), lengths + own), 1)
                seen &= position > lengths + last - window
            self._masks[window] = None if bool(seen.all()) else seen[:, None, None]
        return self._masks[window]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        """[1, heads, B, D_v] for one token of each of the B rows."""
        kind = value.device.type
        casts = torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if casts else contextlib.nullcontext():
            return self._attend(layer, query.to(working_dtype(value)), key, value, rule).to(value.dtype)

    def _attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        rows, key_heads, head_size = query.shape[2], key.shape[1], query.shape[3]
        own_key, own_value = self.own[layer]
        prompt_key, prompt_value = self.prompt[layer]
        for own, new in ((own_key, key), (own_value, value)):
            if self.in_step:
                own[:, :, self.longest] = new[0].transpose(0, 1)
            else:
                own[self.rows, :, self.lengths] = new[0].transpose(0, 1).to(own.dtype)
        end = self.longest + 1
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


def _both(function: Callable[[Tensor], Tensor], pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return function(pair[0]), function(pair[1])


def _stretched(pair: tuple[Tensor, Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Keys and values [.., D], padded with zeros to this length on the second-to-last axis."""
    return _both(lambda x: pad(x, (0, 0, 0, length - x.shape[2])), pair)


def _joined(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat((first[0], second[0])), torch.cat((first[1], second[1]))


def sample(
    model: PackedModel, prompts: Sequence[Sequence[int]], n: int, steps: int, chooser: TokenChooser, budget: Budget
) -> Sampled:
    """Samples `n` responses of at most `steps` tokens for each prompt.

    Args:
        chooser: chooses the tokens of all responses, in the order of the prompts.
        budget: how much is sampled at the same time; it does not change the result.
    """
    with torch.no_grad(), model.computing(), contextlib.nullcontext() if model.autocast else prepacked(model):
        return _Sampling(model, prompts, n, steps, chooser, budget).run()


class _Sampling:
    """Buffers [steps, S] of sampled tokens, and the waiting prompts."""

    def __init__(
        self,
        model: PackedModel,
        prompts: Sequence[Sequence[int]],
        n: int,
        steps: int,
        chooser: TokenChooser,
        budget: Budget,
    ) -> None:
        self.model, self.n, self.steps, self.chooser, self.budget = model, n, steps, chooser, budget
        self.waiting = list(prompts)
        self.admitted = 0
        count, device = len(prompts) * n, model.device
        self.tokens = torch.zeros(steps, count, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(steps, count, device=device)
        self.lengths = torch.full((count,), steps, device=device)
        self.finished = torch.zeros(count, dtype=torch.bool, device=device)

    def run(self) -> Sampled:
        """All responses."""
        while self.waiting:
            self._run_until_empty(*self._admit(0, 0))
        return Sampled.collect(self.tokens, self.logprobs, self.lengths, self.finished)

    def _admit(self, tokens: int, rows: int) -> tuple[_ResponsePass, Tensor, Tensor]:
        """The pass, rows [B] and first logits [B, V] of the prompts that fit beside `tokens` and `rows`."""
        count = self._admissible(tokens, rows)
        layout = PackedLayout.of_prompts(self.waiting[:count], self.model.device)
        prompt_pass = _PromptPass(layout)
        hidden = self.model.run_kernel(layout.input_ids, layout.position_ids, prompt_pass)
        ends = torch.tensor(layout.lengths, device=self.model.device).cumsum(0) - 1
        logits = self.model.logits(hidden.index_select(0, ends)).repeat_interleave(self.n, 0)
        row = torch.arange(count * self.n, device=self.model.device) + self.admitted
        self.waiting, self.admitted = self.waiting[count:], self.admitted + len(row)
        return _ResponsePass(prompt_pass, self.n, self.steps), row, logits

    def _admissible(self, tokens: int, rows: int) -> int:
        costs = [len(ids) + self.n * self.steps for ids in self.waiting]
        return self.budget.admits(costs, self.n, tokens, rows)

    def _run_until_empty(self, responses: _ResponsePass, row: Tensor, logits: Tensor) -> None:
        while True:
            chosen, live = self._choose(logits, row, responses.longest if responses.in_step else responses.lengths)
            alive = int(live.sum())
            full = responses.longest + 1 == self.steps
            if alive == 0:
                return
            compact = full or alive <= COMPACT_BELOW * len(row)
            if compact:
                keep = live.nonzero()[:, 0]
                row, chosen = row[keep], chosen[keep]
                responses.keep(keep)
            hidden = self.model.run_kernel(chosen, responses.positions, responses)
            responses.advance()
            logits = self.model.logits(hidden)
            if compact and self.waiting and self._admissible(responses.tokens, len(row)):
                added, more, first = self._admit(responses.tokens, len(row))
                responses.join(added)
                row, logits = torch.cat((row, more)), torch.cat((logits, first))

    def _choose(self, logits: Tensor, row: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """Records and returns the tokens [B] of these rows, and which rows continue."""
        chosen, logprob, ends = self.chooser(logits, row, step)
        self.tokens[step, row], self.logprobs[step, row] = chosen, logprob
        ended = ends & ~self.finished[row]
        self.lengths[row[ended]] = (step if isinstance(step, int) else step[ended]) + 1
        self.finished[row[ended]] = True
        last = torch.as_tensor(step, device=row.device) + 1 == self.steps
        return chosen, ~self.finished[row] & ~last
