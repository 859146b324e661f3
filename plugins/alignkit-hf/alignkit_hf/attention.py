"""The bridge to transformers' AttentionInterface: a kernel in the keyword arguments computes the attention; without one
the model behaves as with `sdpa`, including soft caps and sinks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alignkit_hf.kernels.attention import AttentionRule, attend, packed_attention

if TYPE_CHECKING:
    from torch import Tensor, nn

    from alignkit_hf.kernels.packed_layout import PackedLayout

NAME = "alignkit"


class Kernel(Protocol):
    """Computes the attention of one forward pass, with tokens laid out as [1, heads, N, D]."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        """[1, heads, N, D_v]."""


class PackedKernel:
    """Attention over packed groups, for training and scoring."""

    def __init__(self, layout: PackedLayout) -> None:
        self.layout = layout

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> Tensor:
        """[1, heads, N, D_v]."""
        return packed_attention(query, key, value, self.layout, rule)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    kernel: Kernel | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Called by transformers in every attention layer: [1, heads, N, D] in, [1, N, heads, D_v] out."""
    rule = AttentionRule(
        scale=scaling,
        window=kwargs.get("sliding_window"),
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
    )
    if kernel is not None:
        return kernel(module.layer_idx, query, key, value, rule).transpose(1, 2), None  # type: ignore[arg-type]
    if rule.is_plain:
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out
    repeats = query.shape[1] // key.shape[1]
    if attention_mask is None and query.shape[2] == 1:
        attention_mask = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool, device=key.device)
    if attention_mask is not None:
        # a padded position whose window is all padding sees nothing, and its NaN would reach the others
        attention_mask = attention_mask | ~attention_mask.any(-1, keepdim=True)
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    return attend(query, key, value, attention_mask, rule).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
