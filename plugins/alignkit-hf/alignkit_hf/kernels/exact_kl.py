"""The exact KL divergence between two next-token distributions from hidden states, without the [R, V] logits of either.

Estimates from sampled tokens (`alignkit.ops.kl`) are cheaper and noisy; this one sums over the vocabulary, in chunks of
positions. Only chunks are kept for the backward pass' time: it computes both distributions again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from alignkit_hf.kernels.logprobs import CHUNK_BYTES, GPU_CHUNK_BYTES, IDENTITY, LogitTransform

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Head:
    """A vocabulary head: weight [V, H], bias [V] and what the model does to its logits."""

    weight: Tensor
    bias: Tensor | None = None
    transform: LogitTransform = IDENTITY

    def log_distribution(self, hidden: Tensor, temperature: float) -> Tensor:
        """[r, V] in float32, or float64 for such input."""
        logits = hidden @ self.weight.to(hidden.dtype).t()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.bias is not None:
            logits = logits + self.bias
        return (self.transform(logits) / temperature).log_softmax(-1)


def linear_kl(
    hidden: Tensor,
    head: Head,
    ref_hidden: Tensor,
    ref_head: Head,
    *,
    temperature: float = 1.0,
    chunk_bytes: int | None = None,
) -> Tensor:
    """KL(policy || reference) [R] in nats, at each position over the whole vocabulary.

    Gradients reach `hidden` and the policy's head as far as they want them; the reference is a constant.

    Args:
        hidden, ref_hidden: [R, H] and [R, H'] hidden states that predict the same tokens.
        temperature: > 0, of both distributions.
        chunk_bytes: size of the logits [r, V] that are worked on at a time; None for 32 MiB on a CPU, 256 on a GPU.

    Raises:
        ValueError: a temperature that is not above 0, or vocabularies of different sizes.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is above 0, found {temperature}")
    if len(head.weight) != len(ref_head.weight):
        raise ValueError(f"vocabularies of {len(head.weight)} and {len(ref_head.weight)} tokens have no KL")
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES if hidden.device.type == "cpu" else GPU_CHUNK_BYTES
    rows = max(1, chunk_bytes // (4 * len(head.weight)))
    kl: Tensor = _LinearKL.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, ref_hidden.detach(), (head.transform, ref_head, temperature, rows)
    )
    return kl


class _LinearKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ref_hidden: Tensor, plan: tuple[Any, ...]
    ) -> Tensor:
        transform, ref_head, temperature, rows = plan
        head = Head(weight, bias, transform)
        parts = []
        for ours, theirs in zip(torch.split(hidden, rows), torch.split(ref_hidden, rows), strict=True):
            policy = head.log_distribution(ours, temperature)
            gap = policy - ref_head.log_distribution(theirs, temperature)
            parts.append((policy.exp_() * gap).sum(-1))
        ctx.save_for_backward(hidden, weight, bias, ref_hidden)
        ctx.plan = plan
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, weight, bias, ref_hidden = ctx.saved_tensors
        transform, ref_head, temperature, rows = ctx.plan
        wanted = ctx.needs_input_grad[:3]
        leaves = [
            x.detach().requires_grad_(need) if x is not None else None
            for x, need in zip((hidden, weight, bias), wanted, strict=True)
        ]
        ours, head_weight, head_bias = leaves
        assert ours is not None
        assert head_weight is not None
        head = Head(head_weight, head_bias, transform)
        for start in range(0, len(hidden), rows):
            span = slice(start, start + rows)
            with torch.no_grad():
                reference = ref_head.log_distribution(ref_hidden[span], temperature)
            with torch.enable_grad():
                policy = head.log_distribution(ours[span], temperature)
                kl = (policy.exp() * (policy - reference)).sum(-1)
                torch.autograd.backward(kl, gradient[span])
        grads = [x.grad if x is not None and need else None for x, need in zip(leaves, wanted, strict=True)]
        return grads[0], grads[1], grads[2], None, None
