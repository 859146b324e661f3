"""Log-probabilities of target tokens from hidden states, without the [N, V] logits of a whole batch.

The vocabulary head is applied to chunks of positions inside one autograd function. Probabilities are kept for the
backward pass while they fit a memory budget and computed again otherwise; the result is the same. The entropy of the
distribution comes from the same pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_BYTES = 32 * 2**20
# every chunk reads the head's weights and adds to the whole of their gradient, which a GPU waits for in small chunks
GPU_CHUNK_BYTES = 256 * 2**20
KEEP_BYTES = 256 * 2**20


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to its logits after the vocabulary head: `softcap * tanh(scale * z / softcap)`.

    Attributes:
        scale: factor on the raw logits (Cohere's logit_scale, one over Granite's logits_scaling).
        softcap: bound of the logits (Gemma's final_logit_softcapping), None for none.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Transformed logits, any shape."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


IDENTITY = LogitTransform()


@dataclass(frozen=True)
class _Plan:
    """How rows are worked through: dtype of the matrix products, rows a chunk, what is kept and returned."""

    transform: LogitTransform
    temperature: float
    matmul_dtype: torch.dtype
    rows: int
    keep: bool
    entropy: bool

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[r, V] logits of the distribution at the temperature, in the dtype that sums are taken in."""
        logits = (hidden @ weight.t()).to(_sum_dtype(hidden.dtype))
        if bias is not None:
            logits += bias
        logits = self.transform(logits)
        return logits if self.temperature == 1.0 else logits / self.temperature

    def raw_gradient(self, gradient: Tensor, logits: Tensor | None) -> Tensor:
        """[r, V] gradient at the raw logits from the gradient at `logits`."""
        if self.transform.softcap is not None and logits is not None:
            gradient = gradient * (1 - (logits * (self.temperature / self.transform.softcap)).square())
        factor = self.transform.scale / self.temperature
        return gradient if factor == 1.0 else gradient * factor


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, plan: _Plan
    ) -> tuple[Tensor, Tensor]:
        cast = weight.to(plan.matmul_dtype)
        logprobs, log_sums, entropies, kept = [], [], [], []
        for rows, wanted in zip(torch.split(hidden, plan.rows), torch.split(targets, plan.rows), strict=True):
            logits = plan.logits(rows.to(plan.matmul_dtype), cast, bias)
            chosen = logits.gather(1, wanted[:, None])
            peak = logits.amax(1, keepdim=True)
            probs = logits.sub_(peak).exp_()
            total = probs.sum(1, keepdim=True)
            log_sum = peak + total.log()
            logprobs.append((chosen - log_sum).squeeze(1))
            log_sums.append(log_sum)
            if plan.keep or plan.entropy:
                probs.div_(total)
            if plan.entropy:
                entropies.append(torch.special.entr(probs).sum(1))
            if plan.keep:
                kept.append(probs)
        entropy = torch.cat(entropies) if plan.entropy else hidden.new_zeros(0)
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(log_sums), entropy, *kept)
        ctx.plan = plan
        return torch.cat(logprobs), entropy

    @staticmethod
    def backward(
        ctx: Any, logprob_gradient: Tensor, entropy_gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, weight, bias, targets, log_sums, entropy, *kept = ctx.saved_tensors
        plan: _Plan = ctx.plan
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        cast = weight.to(plan.matmul_dtype)
        hidden_gradient = torch.empty_like(hidden) if want_hidden else None
        weight_gradient = torch.zeros_like(weight) if want_weight else None
        bias_gradient = torch.zeros_like(bias) if want_bias and bias is not None else None
        for number, start in enumerate(range(0, hidden.shape[0], plan.rows)):
            span = slice(start, start + plan.rows)
            rows = hidden[span].to(plan.matmul_dtype)
            logits = None if kept else plan.logits(rows, cast, bias)
            probs = kept[number] if logits is None else (logits - log_sums[span]).exp_()
            direct = logprob_gradient[span, None]
            if plan.entropy:
                through_entropy = entropy_gradient[span, None]
                gradient = probs * -(direct + through_entropy * entropy[span, None])
                gradient -= torch.special.xlogy(probs, probs).mul_(through_entropy)
            else:
                gradient = probs * -direct
            gradient.scatter_add_(1, targets[span, None], direct)
            gradient = plan.raw_gradient(gradient, logits)
            if bias_gradient is not None:
                bias_gradient += gradient.sum(0)
            gradient = gradient.to(plan.matmul_dtype)
            if hidden_gradient is not None:
                hidden_gradient[span] = gradient @ cast
            if weight_gradient is not None:
                _add_product(weight_gradient, gradient.t(), rows)
        return hidden_gradient, weight_gradient, bias_gradient, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    transform: LogitTransform = IDENTITY,
    chunk_bytes: int | None = None,
    keep_bytes: int = KEEP_BYTES,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(transform(hidden @ weight.T + bias) / temperature) at the targets, and the entropy when asked for.

    Matrix products follow autocast; softmax, sums and the weight's gradient are float32 or the weight's dtype (float64
    for float64 input). A weight that needs no gradient costs none.

    Args:
        hidden: [R, H]. weight: [V, H]. targets: [R] int64. bias: [V].
        temperature: > 0, the logits are divided by it.
        chunk_bytes: size of the [r, V] logits that are worked on at a time; None for 32 MiB on a CPU, 256 on a GPU.
        keep_bytes: probabilities [R, V] up to this size are kept for the backward pass, larger ones computed again.

    Returns:
        log-probabilities [R] and entropies [R] in nats (None unless asked for).
    """
    if temperature <= 0:
        raise ValueError(f"temperature is above 0, found {temperature}")
    device_type = hidden.device.type
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES if device_type == "cpu" else GPU_CHUNK_BYTES
    matmul_dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device_type):
        matmul_dtype = torch.get_autocast_dtype(device_type)
    row_bytes = weight.shape[0] * _sum_dtype(matmul_dtype).itemsize
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    plan = _Plan(
        transform=transform,
        temperature=temperature,
        matmul_dtype=matmul_dtype,
        rows=max(1, chunk_bytes // row_bytes),
        keep=differentiable and transform.softcap is None and hidden.shape[0] * row_bytes <= keep_bytes,
        entropy=entropy,
    )
    with torch.autocast(device_type, enabled=False):
        logprobs, entropies = _LinearLogprobs.apply(hidden, weight, bias, targets, plan)  # type: ignore[no-untyped-call]
    return logprobs, entropies if entropy else None
