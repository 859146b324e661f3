"""linear_kl against torch's kl_div on the whole logits, in float64."""

from __future__ import annotations

import pytest
import torch
from alignkit_hf.kernels.exact_kl import Head, linear_kl
from alignkit_hf.kernels.logprobs import LogitTransform
from torch.nn.functional import kl_div

from alignkit.testing import rounding

ROWS, SIZE, REF_SIZE, VOCABULARY = 11, 6, 4, 29


def tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("chunk_bytes", [None, 1, 4 * VOCABULARY * 4])
@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(1.5, 2.0)])
def test_values_and_gradients_equal_kl_div(transform: LogitTransform, chunk_bytes: int | None) -> None:
    hidden, weight, bias, ref_hidden, ref_weight = tensors(
        (ROWS, SIZE), (VOCABULARY, SIZE), (VOCABULARY,), (ROWS, REF_SIZE), (VOCABULARY, REF_SIZE)
    )
    policy = (transform(hidden @ weight.t() + bias) / 0.7).log_softmax(-1)
    reference = ((ref_hidden @ ref_weight.t()) / 0.7).log_softmax(-1).detach()
    expected = kl_div(reference, policy, log_target=True, reduction="none").sum(-1)
    got = linear_kl(
        hidden, Head(weight, bias, transform), ref_hidden, Head(ref_weight), temperature=0.7, chunk_bytes=chunk_bytes
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    weights, leaves = torch.linspace(-1, 2, ROWS, dtype=torch.float64), (hidden, weight, bias)
    wanted = torch.autograd.grad((weights * expected).sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad((weights * got).sum(), leaves), wanted, rtol=1e-11, atol=1e-11)


def test_the_reference_and_a_frozen_head_get_no_gradient() -> None:
    hidden, weight, ref_hidden, ref_weight = tensors((ROWS, SIZE), (VOCABULARY, SIZE), (ROWS, SIZE), (VOCABULARY, SIZE))
    frozen = weight.detach()
    linear_kl(hidden, Head(frozen), ref_hidden, Head(ref_weight)).sum().backward()
    assert hidden.grad is not None
    assert float(hidden.grad.abs().max()) > 0
    assert frozen.grad is None
    assert ref_hidden.grad is None
    assert ref_weight.grad is None


def test_the_same_distribution_has_none() -> None:
    hidden, weight = tensors((ROWS, SIZE), (VOCABULARY, SIZE))
    logits = float((hidden @ weight.t()).detach().abs().max())
    bound = rounding(SIZE + VOCABULARY, scale=logits, dtype=torch.float64)
    assert float(linear_kl(hidden, Head(weight), hidden, Head(weight)).detach().abs().max()) <= bound


def test_what_makes_no_sense_is_refused() -> None:
    hidden, weight = tensors((ROWS, SIZE), (VOCABULARY, SIZE))
    with pytest.raises(ValueError, match="temperature"):
        linear_kl(hidden, Head(weight), hidden, Head(weight), temperature=0.0)
    with pytest.raises(ValueError, match="29 and 28"):
        linear_kl(hidden, Head(weight), hidden, Head(weight[:28]))
