"""The token batch: groups of one prompt and its responses, flat and without padding.

Shapes: G groups, S responses, P prompt tokens and R response tokens in all. Responses are in the order of their groups,
tokens in the order of their responses. There is no padding, so there is no mask to forget.

The `*_mean` methods divide by the totals of the whole optimisation step, over all micro-batches and processes. A loss
written with them has the same gradient whatever the size or number of micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from alignkit.records import Group

_GROUP_FIELDS = ("prompt_lengths",)
_RESPONSE_FIELDS = ("lengths", "finished", "ranks", "labels", "rewards")
_TOKEN_FIELDS = (
    "response_ids", "logprobs", "sampler_logprobs", "ref_logprobs", "values", "advantages", "returns", "token_rewards",
)  # fmt: skip


@dataclass(frozen=True)
class Totals:
    """Tokens, responses and groups of the whole optimisation step: the divisors of the means."""

    tokens: float
    responses: float
    groups: float


@dataclass(frozen=True, kw_only=True)
class GroupBatch:
    """Tokens of G groups, and what is known about each token [R], response [S] and group [G].

    Attributes:
        prompt_ids: [P] int64. prompt_lengths: [G] int64.
        response_ids: [R] int64, each response with its stop token. lengths: [S] int64, all >= 1.
        group_index: [S] int64, the group of each response, ascending.
        finished: [S] bool, False if the length limit cut the response off.
        ranks: [S] int64, 0 is best, ties share a rank. labels: [S] bool. rewards: [S] float.
        logprobs, ref_logprobs: [R], under the sampling policy (or the policy at `prepare`) and the reference.
        sampler_logprobs: [R], as another engine than the policy computed them while it sampled.
        values, advantages, returns, token_rewards: [R].
        groups: the G text records. totals: the divisors of the means; if None, the batch's own counts.
        temperature: of the log-probabilities.
        response_limit: maximum tokens of a sampled response; 0 if unknown.
        version: of the weights that sampled the responses, as `Sampler.sync` was told it.
    """

    prompt_ids: Tensor
    prompt_lengths: Tensor
    response_ids: Tensor
    lengths: Tensor
    group_index: Tensor
    finished: Tensor
    groups: tuple[Group, ...]
    ranks: Tensor | None = None
    labels: Tensor | None = None
    rewards: Tensor | None = None
    logprobs: Tensor | None = None
    sampler_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    token_rewards: Tensor | None = None
    totals: Totals | None = None
    temperature: float = 1.0
    response_limit: int = 0
    version: int = 0

    @classmethod
    def from_ids(
        cls,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[Sequence[int]]],
        groups: Sequence[Group],
        *,
        finished: Sequence[bool] | None = None,
        device: torch.device | str = "cpu",
        temperature: float = 1.0,
    ) -> GroupBatch:
        """The batch of G prompts and their responses as token ids; ranks and labels come from the groups.

        Raises:
            ValueError: a response has no tokens, or the numbers of prompts, responses, groups or flags don't match.
        """
        flat = [ids for rows in responses for ids in rows]
        if len(prompts) != len(groups) or [len(rows) for rows in responses] != [len(g.responses) for g in groups]:
            raise ValueError("prompts and responses don't match the groups: one prompt per group, one row per response")
        if finished is not None and len(finished) != len(flat):
            raise ValueError(f"{len(finished)} finished flags for {len(flat)} responses")
        if any(not ids for ids in flat):
            raise ValueError("a response has no tokens: it needs at least its stop token")
        integers = partial(torch.tensor, dtype=torch.long, device=device)
        flags = partial(torch.tensor, dtype=torch.bool, device=device)

        def joined(rows: list[Any]) -> list[Any] | None:
            return None if any(row is None for row in rows) else [value for row in rows for value in row]

        ranks, labels = joined([group.ranks for group in groups]), joined([group.labels for group in groups])
        return cls(
            prompt_ids=integers([token for ids in prompts for token in ids]),
            prompt_lengths=integers([len(ids) for ids in prompts]),
            response_ids=integers([token for ids in flat for token in ids]),
            lengths=integers([len(ids) for ids in flat]),
            group_index=integers([g for g, rows in enumerate(responses) for _ in rows]),
            finished=flags([True] * len(flat) if finished is None else list(finished)),
            groups=tuple(groups),
            ranks=None if ranks is None else integers(ranks),
            labels=None if labels is None else flags(labels),
            temperature=temperature,
        )

    @property
    def num_groups(self) -> int:
        return len(self.groups)

    @property
    def num_responses(self) -> int:
        return int(self.lengths.shape[0])

    @property
    def num_tokens(self) -> int:
        """Response tokens, R."""
        return int(self.response_ids.shape[0])

    @property
    def device(self) -> torch.device:
        return self.response_ids.device

    @property
    def response_index(self) -> Tensor:
        """[R] index of each token's response."""
        return torch.repeat_interleave(
            torch.arange(self.num_responses, device=self.device), self.lengths, output_size=self.num_tokens
        )

    @property
    def group_weights(self) -> Tensor:
        """[G] weight of each group's ranking: its `meta.weight`, default 1."""
        return torch.tensor([group.weight for group in self.groups], dtype=torch.float32, device=self.device)

    @property
    def last_token(self) -> Tensor:
        """[S] index on the token axis of each response's last token."""
        return self.lengths.cumsum(0) - 1

    @property
    def first_token(self) -> Tensor:
        """[S] index on the token axis of each response's first token."""
        return self.lengths.cumsum(0) - self.lengths

    @property
    def group_sizes(self) -> Tensor:
        """[G] responses of each group."""
        return torch.bincount(self.group_index, minlength=self.num_groups)

    @property
    def _first_response(self) -> Tensor:
        """[G] index of each group's first response."""
        return self.group_sizes.cumsum(0) - self.group_sizes

    @property
    def costs(self) -> list[int]:
        """Tokens of each group, the prompt once."""
        costs: list[int] = (self.prompt_lengths + self.sum_by_group(self.lengths)).tolist()
        return costs

    def replace(self, **changes: Any) -> GroupBatch:
        """A copy with changed fields."""
        return replace(self, **changes)

    def to(self, device: torch.device | str) -> GroupBatch:
        """The batch on another device."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return self.replace(**moved)

    def sum_by_response(self, x: Tensor) -> Tensor:
        """[R] -> [S]: the sum over each response's tokens."""
        zeros = torch.zeros(self.num_responses, dtype=x.dtype, device=x.device)
        return zeros.index_add(0, self.response_index, x)

    def sum_by_group(self, x: Tensor) -> Tensor:
        """[S] -> [G]: the sum over each group's responses."""
        zeros = torch.zeros(self.num_groups, dtype=x.dtype, device=x.device)
        return zeros.index_add(0, self.group_index, x)

    def counts(self) -> Totals:
        """This batch's own totals."""
        return Totals(float(self.num_tokens), float(self.num_responses), float(self.num_groups))

    def token_mean(self, x: Tensor) -> Tensor:
        """[R] -> scalar: the sum over this micro-batch divided by the tokens of the whole step."""
        return x.sum() / (self.totals or self.counts()).tokens

    def response_mean(self, x: Tensor) -> Tensor:
        """[S] -> scalar: the sum over this micro-batch divided by the responses of the whole step."""
        return x.sum() / (self.totals or self.counts()).responses

    def group_mean(self, x: Tensor) -> Tensor:
        """[G] -> scalar: the sum over this micro-batch divided by the groups of the whole step."""
        return x.sum() / (self.totals or self.counts()).groups

    def select(self, chosen: Sequence[int]) -> GroupBatch:
        """The batch of these groups, in this order. Totals are dropped."""
        groups = torch.as_tensor(list(chosen), dtype=torch.long, device=self.device)
        sizes = self.group_sizes[groups]
        return self._take(groups, _ranges(self._first_response[groups], sizes), new_sizes=sizes)

    def select_responses(self, keep: Tensor) -> GroupBatch:
        """The batch without responses where `keep` [S] is False, and without groups that become empty."""
        kept_sizes = self.sum_by_group(keep.long())
        groups = kept_sizes.nonzero()[:, 0]
        return self._take(groups, keep.nonzero()[:, 0], new_sizes=kept_sizes[groups])

    def _take(self, groups: Tensor, responses: Tensor, *, new_sizes: Tensor) -> GroupBatch:
        tokens = _ranges(self.first_token[responses], self.lengths[responses])
        prompt_starts = self.prompt_lengths.cumsum(0) - self.prompt_lengths
        taken: dict[str, Any] = {}
        for names, index in ((_GROUP_FIELDS, groups), (_RESPONSE_FIELDS, responses), (_TOKEN_FIELDS, tokens)):
            for name in names:
                if (value := getattr(self, name)) is not None:
                    taken[name] = value[index]
        positions = responses - self._first_response[self.group_index[responses]]
        kept = torch.split(positions, new_sizes.tolist())
        return self.replace(
            **taken,
            prompt_ids=self.prompt_ids[_ranges(prompt_starts[groups], self.prompt_lengths[groups])],
            group_index=torch.repeat_interleave(torch.arange(len(groups), device=self.device), new_sizes),
            groups=tuple(self.groups[g].choose(k.tolist()) for g, k in zip(groups.tolist(), kept, strict=True)),
            totals=None,
        )

    def pieces(self, max_tokens: int) -> Iterator[GroupBatch]:
        """Batches of consecutive groups, at most `max_tokens` tokens each; a group over the budget is alone."""
        return map(self.select, _packed(range(self.num_groups), self.costs, max_tokens))

    def split(self, max_tokens: int, *, divisible: bool = False) -> list[GroupBatch]:
        """Micro-batches of at most `max_tokens` tokens (prompts once), longest groups first.

        A group over the budget is alone; with `divisible`, its responses are spread over several micro-batches, each
        with the prompt. The parts keep this batch's totals.
        """
        totals = self.totals or self.counts()
        parts: list[GroupBatch] = []
        for piece in self._divide(max_tokens) if divisible else [self]:
            costs = piece.costs
            order = sorted(range(piece.num_groups), key=lambda group: -costs[group])
            parts += [piece.select(chosen) for chosen in _packed(order, costs, max_tokens) if chosen]
        return [part.replace(totals=totals) for part in parts]

    def _divide(self, max_tokens: int) -> list[GroupBatch]:
        """Batches in which no group exceeds the budget, unless a single response does."""
        prompt, length, group = (x.tolist() for x in (self.prompt_lengths, self.lengths, self.group_index))
        layer: list[int] = []
        used, depth = 0, 0
        for s in range(self.num_responses):
            if s == 0 or group[s] != group[s - 1]:
                used, depth = prompt[group[s]], 0
            elif used + length[s] > max_tokens:
                used, depth = prompt[group[s]], depth + 1
            used += length[s]
            layer.append(depth)
        layers = torch.tensor(layer, device=self.device)
        return [self.select_responses(layers == d) for d in range(max(layer, default=-1) + 1)]

    @classmethod
    def concat(cls, batches: Sequence[GroupBatch]) -> GroupBatch:
        """Joins batches; a field that one of them lacks is dropped.

        Raises:
            ValueError: they have different temperatures.
        """
        if len({batch.temperature for batch in batches}) > 1:
            raise ValueError("can't join batches with different temperatures")
        first, offset, index = batches[0], 0, []
        for batch in batches:
            index.append(batch.group_index + offset)
            offset += batch.num_groups
        joined: dict[str, Any] = {"group_index": torch.cat(index)}
        for name in ("prompt_ids", *_GROUP_FIELDS, *_RESPONSE_FIELDS, *_TOKEN_FIELDS):
            values = [getattr(batch, name) for batch in batches]
            joined[name] = None if any(value is None for value in values) else torch.cat(values)
        return first.replace(**joined, groups=tuple(g for batch in batches for g in batch.groups), totals=None)


def _ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """Concatenated ranges [start, start + length) as one index."""
    ends = lengths.cumsum(0)
    offsets = torch.repeat_interleave(starts - (ends - lengths), lengths)
    return offsets + torch.arange(offsets.shape[0], device=starts.device)


def _packed(groups: Iterable[int], costs: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """The groups in runs that cost at most `max_tokens`, or hold a single group; one empty run if there are none."""
    run: list[int] = []
    used = 0
    for group in groups:
        if run and used + costs[group] > max_tokens:
            yield run
            run, used = [], 0
        run.append(group)
        used += costs[group]
    yield run
