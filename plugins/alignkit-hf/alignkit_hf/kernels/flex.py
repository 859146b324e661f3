"""Packed attention by FlexAttention on CUDA (arXiv:2412.05496): blocks that no query of theirs may see are skipped.

Which blocks those are follows from the layout's segments alone, so that no [N, N] mask is ever made.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit_hf.kernels.packed_layout import PackedLayout

logger = logging.getLogger(__name__)

BLOCK = 128
_COMPILED: dict[str, Any] = {}
_FAILED: set[str] = set()


def serves(query: Tensor, value: Tensor) -> bool:
    """Whether the kernel exists for tensors [1, heads, N, D] of this device, precision and head size."""
    size = query.shape[-1]
    on_gpu = query.device.type == "cuda" and query.dtype != torch.float64
    return on_gpu and size == value.shape[-1] and size >= 16 and size & (size - 1) == 0


def block_sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, *, scale: float | None, window: int | None
) -> Tensor | None:
    """[1, heads, N, D] attention of packed groups; None where the kernel can't be compiled on this machine."""
    if _FAILED:
        return None
    mask = layout.remember(("flex", window), lambda: block_mask(layout, window))
    try:
        if "flex" not in _COMPILED:
            from torch.nn.attention.flex_attention import flex_attention

            _COMPILED["flex"] = torch.compile(flex_attention, dynamic=True, fullgraph=True)
        out: Tensor = _COMPILED["flex"](
            query, key, value, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler fails in ways of its own; the padded attention computes the same
        _FAILED.add(type(error).__name__)
        logger.warning("FlexAttention is not available, attention runs padded: %s", str(error).splitlines()[:1])
        return None
    return out


def block_mask(layout: PackedLayout, window: int | None) -> Any:
    """The blocks of keys that each block of queries may see, and the rule inside them."""
    from torch.nn.attention.flex_attention import BlockMask

    tokens = layout.num_tokens
    count = -(-tokens // BLOCK)
    device = layout.input_ids.device
    places = torch.arange(count * BLOCK, device=device).clamp_(max=tokens - 1).view(count, BLOCK)
    segment, group, in_prompt = layout.segment[places], layout.group[places], layout.in_prompt[places]
    same = (segment[:, None, 0] <= segment[None, :, -1]) & (segment[None, :, 0] <= segment[:, None, -1])
    first_prompt = torch.where(in_prompt, group, len(layout.responses)).amin(1)
    last_prompt = torch.where(in_prompt, group, -1).amax(1)
    prefix = (first_prompt[None] <= group[:, -1:]) & (last_prompt[None] >= group[:, :1])
    order = torch.arange(count, device=device)
    seen = (same | prefix) & (order[:, None] >= order)

    def visible(_batch: Tensor, _head: Tensor, query_index: Tensor, key_index: Tensor) -> Tensor:
        return layout.visible(query_index, key_index, window)

    return BlockMask.from_kv_blocks(
        seen.sum(1, dtype=torch.int32)[None, None],
        seen.int().argsort(dim=1, descending=True, stable=True).int()[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(tokens, tokens),
    )
