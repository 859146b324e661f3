"""Packed groups: prompt once, then its responses, on one token axis without padding, and attention over them.

A prompt token sees the prompt up to itself; a response token sees its whole prompt and its own response up to itself.
Positions continue from the prompt for each response, so the result is that of each sequence on its own (the shared
prefix of cascade attention, arXiv:2402.05099, here also for training).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from alignkit_hf.kernels import flex

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit_hf.kernels.packed_layout import PackedLayout


CALL_COST = 2_000
"""Query-key pairs whose scores a CPU computes in the time that one more attention call costs."""


@dataclass(frozen=True)
class AttentionRule:
    """What varies between models in one attention layer.

    Attributes:
        scale: factor on the scores, 1 / sqrt(head size) where None.
        window: a token sees this many newest tokens, itself among them; all where None.
        softcap: bound of the scores through tanh, None for none.
        sinks: [heads] scores of a key without value that every token sees, None for none.
    """

    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether fused kernels compute it: neither soft cap nor sinks."""
        return self.softcap is None and self.sinks is None


def packed_attention(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: AttentionRule) -> Tensor:
    """Attention of packed groups, by the way that is fastest for their lengths and device.

    Args:
        query: [1, heads, N, D]. key: [1, key heads, N, D]. value: [1, key heads, N, D_v].

    Returns:
        [1, heads, N, D_v].
    """
    dtype = working_dtype(value)
    with torch.autocast(query.device.type, enabled=False):
        out = _packed(query.to(dtype), key.to(dtype), value.to(dtype), layout, rule)
    return out.to(value.dtype)


def working_dtype(value: Tensor) -> torch.dtype:
    """What attention is computed in: the values' dtype, but float32 on a CPU, whose low-precision attention is slow.

    Queries and keys may come in another one, because rotary embeddings are applied in float32.
    """
    if value.device.type == "cpu" and value.dtype in (torch.bfloat16, torch.float16):
        return torch.float32
    return value.dtype


def _packed(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: AttentionRule) -> Tensor:
    if flex.serves(query, value) and rule.is_plain:
        out = flex.block_sparse_attention(query, key, value, layout, scale=rule.scale, window=rule.window)
        if out is not None:
            return out
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    if _padding_pays(layout, query.device.type):
        return _by_padded_group(query, key, value, layout, rule)
    return _by_segment(query, key, value, layout, rule)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: AttentionRule) -> Tensor:
    """Attention of a block [.., heads, Q, D] over [.., heads, K, D], causal from the start where the mask is None."""
    if rule.is_plain:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=rule.scale
        )
    if mask is None:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril_()
    scores = query @ key.transpose(-1, -2)
    return score_weights(scores, mask, rule, query.shape[-1]).to(value.dtype) @ value


def score_weights(scores: Tensor, mask: Tensor | None, rule: AttentionRule, head_size: int) -> Tensor:
    """Attention weights [.., heads, Q, K] in float32 from raw scores, with the rule's scale, soft cap and sinks."""
    scores = scores.float() * (head_size**-0.5 if rule.scale is None else rule.scale)
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if rule.sinks is None:
        return scores.softmax(-1)
    sinks = rule.sinks.float().view(-1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]


def _by_segment(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: AttentionRule) -> Tensor:
    # split, not slices: the backward of a slice fills a whole-length tensor of zeros for each segment
    parts = zip(*(torch.split(x, list(layout.lengths), dim=2) for x in (query, key, value)), strict=True)
    outputs = []
    for count in layout.responses:
        prompt_query, prompt_key, prompt_value = next(parts)
        prefix = prompt_key.shape[2]
        outputs.append(attend(prompt_query, prompt_key, prompt_value, _mask(layout, prefix, 0, rule.window), rule))
        for _ in range(count):
            own_query, own_key, own_value = next(parts)
            mask = _mask(layout, own_query.shape[2], prefix, rule.window)
            keys, values = torch.cat((prompt_key, own_key), 2), torch.cat((prompt_value, own_value), 2)
            outputs.append(attend(own_query, keys, values, mask, rule))
    return torch.cat(outputs, dim=2)


def _mask(layout: PackedLayout, length: int, prefix: int, window: int | None) -> Tensor | None:
    """[length, prefix + length] mask of a segment after its prefix; None where plain causal attention does."""
    if window is not None and prefix + length <= window:
        window = None
    if prefix == 0 and window is None:
        return None

    def make() -> Tensor:
        mask = torch.ones(length, prefix + length, dtype=torch.bool, device=layout.input_ids.device).tril_(prefix)
        return mask if window is None else mask.triu_(prefix - window + 1)

    mask: Tensor = layout.remember(("segment", length, prefix, window), make)
    return mask


def _padding_pays(layout: PackedLayout, device_type: str) -> bool:
    """Whether one call over all groups, padded to the longest, beats a call for each segment."""
    if device_type != "cpu":
        return True

    def decide() -> bool:
        padded = len(layout.responses) * max(layout.group_lengths()) ** 2
        exact, start = 0, 0
        for count in layout.responses:
            prompt, *own = layout.lengths[start : start + count + 1]
            exact += prompt * prompt + sum(length * (prompt + length) for length in own)
            start += count + 1
        return padded <= exact + CALL_COST * len(layout.lengths)

    return bool(layout.remember("padding pays", decide))


def _by_padded_group(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, rule: AttentionRule) -> Tensor:
    """One call with a row for each group, as long as the longest."""

    index: tuple[Tensor, Tensor] = layout.remember(
        "padded index", lambda: padded_index(torch.tensor(layout.group_lengths(), device=query.device))
    )
    gather, real = index

    def make_mask() -> Tensor:
        seen = layout.visible(gather[:, :, None], gather[:, None, :], rule.window)
        return (seen & real[:, None, :])[:, None]

    def to_rows(x: Tensor) -> Tensor:
        return x[0].index_select(1, gather.flatten()).view(x.shape[1], *gather.shape, -1).transpose(0, 1)

    mask = layout.remember(("padded mask", rule.window), make_mask)
    kept = layout.remember("padded kept", lambda: real.flatten().nonzero()[:, 0])
    out = attend(to_rows(query), to_rows(key), to_rows(value), mask, rule)
    return out.transpose(0, 1).flatten(1, 2).index_select(1, kept)[None]


def padded_index(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Index [rows, longest] into concatenated rows of these lengths, and which of its columns are real.

    The columns past a row's end repeat its last token.
    """
    offsets = torch.arange(int(lengths.max()), device=lengths.device)
    starts = lengths.cumsum(0) - lengths
    return starts[:, None] + torch.minimum(offsets, lengths[:, None] - 1), offsets < lengths[:, None]
