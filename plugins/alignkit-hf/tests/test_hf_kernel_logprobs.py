"""linear_logprobs against log_softmax on the whole logits, in float64."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import pytest
import torch
from alignkit_hf.kernels.logprobs import LogitTransform, linear_logprobs
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from alignkit.testing import ELEMENTARY, assert_near, rounding

if TYPE_CHECKING:
    from torch import Tensor

ROWS, SIZE, VOCABULARY = 23, 8, 37
BUDGETS = {
    "kept": (2**20, 2**20),
    "kept, in chunks": (5 * VOCABULARY * 8, 2**20),
    "recomputed": (5 * VOCABULARY * 8, 0),
}


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
        for shape in ((ROWS, SIZE), (VOCABULARY, SIZE), (VOCABULARY,))
    )
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    return hidden, weight, bias, targets


def in_eighths(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of products of such numbers are exact in any order, so that all round them to bfloat16 alike."""
    return ((8 * x.detach()).round() / 8).to(dtype).requires_grad_()


def by_softmax(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, transform: LogitTransform
) -> tuple[Tensor, Tensor]:
    logits = hidden @ weight.t() + (0 if bias is None else bias)
    logits = transform.scale * logits
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    distribution = (logits / temperature).log_softmax(-1)
    return distribution.gather(1, targets[:, None])[:, 0], -(distribution.exp() * distribution).sum(-1)


@pytest.mark.parametrize("budget", BUDGETS, ids=list(BUDGETS))
@pytest.mark.parametrize(
    ("transform", "temperature"),
    [
        (LogitTransform(), 1.0),
        (LogitTransform(), 0.6),
        (LogitTransform(), 2.0),
        (LogitTransform(scale=2.0), 1.0),
        (LogitTransform(scale=0.3), 0.6),
        (LogitTransform(1.5, 7.0), 1.0),
        (LogitTransform(1.5, 7.0), 0.6),
    ],
)
def test_values_and_gradients_equal_the_softmax(budget: str, temperature: float, transform: LogitTransform) -> None:
    chunk_bytes, keep_bytes = BUDGETS[budget]
    leaves = inputs()
    outputs, gradients = [], []
    for function in ("softmax", "ours"):
        hidden, weight, bias, targets = leaves
        if function == "softmax":
            logprobs, entropy = by_softmax(hidden, weight, bias, targets, temperature, transform)
        else:
            logprobs, maybe_entropy = linear_logprobs(
                hidden, weight, targets, bias=bias, temperature=temperature, entropy=True, transform=transform,
                chunk_bytes=chunk_bytes, keep_bytes=keep_bytes,
            )  # fmt: skip
            assert maybe_entropy is not None
            entropy = maybe_entropy
        loss = (logprobs * torch.linspace(-1, 2, ROWS)).sum() + (entropy * torch.linspace(1, -3, ROWS)).sum()
        outputs.append((logprobs.detach(), entropy.detach()))
        gradients.append(torch.autograd.grad(loss, (hidden, weight, bias)))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("budget", BUDGETS, ids=list(BUDGETS))
def test_gradients_without_entropy_and_bias(budget: str) -> None:
    chunk_bytes, keep_bytes = BUDGETS[budget]
    hidden, weight, _, targets = inputs()
    logprobs, entropy = linear_logprobs(hidden, weight, targets, chunk_bytes=chunk_bytes, keep_bytes=keep_bytes)
    assert entropy is None
    expected, _ = by_softmax(hidden, weight, None, targets, 1.0, LogitTransform())
    weights = torch.linspace(-1, 2, ROWS, dtype=torch.float64)
    got = torch.autograd.grad((weights * logprobs).sum(), (hidden, weight))
    torch.testing.assert_close(got, torch.autograd.grad((weights * expected).sum(), (hidden, weight)))


def test_products_in_bfloat16_have_the_gradient_of_those_in_float32() -> None:
    hidden, weight, _, targets = inputs(torch.float32)
    expected, _ = by_softmax(hidden, weight, None, targets, 1.0, LogitTransform())
    exact = torch.autograd.grad((torch.linspace(-1, 2, ROWS) * expected).sum(), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, entropy = linear_logprobs(hidden, weight, targets, chunk_bytes=5 * VOCABULARY * 4)
    assert entropy is None
    assert logprobs.dtype == torch.float32
    got = torch.autograd.grad((torch.linspace(-1, 2, ROWS) * logprobs).sum(), (hidden, weight))
    for ours, theirs in zip(got, exact, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < rounding(2, dtype=torch.bfloat16)


def test_a_second_backward_gives_the_same_gradient() -> None:
    hidden, weight, _, targets = inputs()
    logprobs, _ = linear_logprobs(hidden, weight, targets)
    first = torch.autograd.grad(logprobs.sum(), (hidden, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(logprobs.sum(), (hidden, weight)), first, rtol=0, atol=0)


def test_a_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, _, targets = inputs()
    frozen = weight.detach()
    logprobs, _ = linear_logprobs(hidden, frozen, targets)
    logprobs.sum().backward()
    expected, _ = by_softmax(
        leaf := hidden.detach().clone().requires_grad_(), frozen, None, targets, 1.0, LogitTransform()
    )
    expected.sum().backward()
    assert frozen.grad is None
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, leaf.grad)


def test_no_tensor_over_the_budget_is_made() -> None:
    """The largest tensor that forward and backward make is counted, with probabilities kept and not."""
    hidden, weight, _, targets = inputs(torch.float32)
    chunk_bytes = 4 * VOCABULARY * 4

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc]
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.elements = max(self.elements, out.numel())
            return out

    with Largest() as largest:
        logprobs, _ = linear_logprobs(hidden, weight, targets, chunk_bytes=chunk_bytes, keep_bytes=0)
        logprobs.sum().backward()
    assert largest.elements == max(4 * VOCABULARY, VOCABULARY * SIZE, ROWS * SIZE) < ROWS * VOCABULARY


class _LiveBytes(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc]
    """The most bytes of storage that tensors made under it held at any time; counted, so the same on any machine."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, out)):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


@pytest.mark.parametrize("trained_head", [True, False])
@pytest.mark.parametrize("entropy", [True, False])
def test_a_tenth_of_the_memory_of_whole_logits(entropy: bool, trained_head: bool) -> None:
    """Counted with fake tensors, whose shapes and lifetimes are those of the CPU's; nothing is computed."""
    peaks = []
    for whole in (True, False):
        with FakeTensorMode(), _LiveBytes() as memory:
            hidden = torch.empty(4096, 64, requires_grad=True)
            weight = torch.empty(152_064, 64, requires_grad=trained_head)
            targets = torch.empty(4096, dtype=torch.long)
            if whole:
                logprobs, entropies = by_softmax(hidden, weight, None, targets, 1.0, LogitTransform())
            else:
                logprobs, entropies = linear_logprobs(hidden, weight, targets, entropy=entropy)  # type: ignore[assignment]
            (logprobs.sum() + (entropies.sum() if entropy else 0)).backward()
        peaks.append(memory.peak)
    logits = 4096 * 152_064 * 4
    assert peaks[0] >= 2 * logits
    assert peaks[1] < logits / 10


def test_bfloat16_at_a_vocabulary_of_152k() -> None:
    """Sums over 152k terms are float32: with hidden states and weights in bfloat16, log-probabilities and gradients
    are those of float64 arithmetic on the same rounded logits."""
    generator = torch.Generator().manual_seed(0)
    hidden = in_eighths(torch.randn(3, 16, generator=generator), torch.bfloat16)
    weight = in_eighths(torch.randn(152_064, 16, generator=generator), torch.bfloat16)
    # sums are made in blocks (Higham, section 4.2), so that no chain of additions is longer than the root of 152k
    terms = ELEMENTARY + 390
    targets = torch.tensor([0, 77_777, 152_063])
    logprobs, entropy = linear_logprobs(hidden, weight, targets, entropy=True, keep_bytes=0)
    rounded = (hidden @ weight.t()).detach().double()
    distribution = rounded.log_softmax(-1)
    assert_near(logprobs, distribution.gather(1, targets[:, None])[:, 0].float(), terms=terms)
    assert entropy is not None
    largest = float(rounded.abs().max())
    assert_near(entropy, torch.special.entr(distribution.exp()).sum(1).float(), terms=terms, scale=largest)
    logprobs.sum().backward()
    at_logits = -distribution.exp()
    at_logits.scatter_add_(1, targets[:, None], torch.ones(3, 1, dtype=torch.float64))
    expected = at_logits @ weight.detach().double()
    assert hidden.grad is not None
    # two roundings to bfloat16: of the probabilities, and of their product with the weights
    assert_near(hidden.grad, expected.bfloat16(), terms=2)


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4, -1e4]], requires_grad=True)
    weight = torch.eye(2, requires_grad=True)
    logprobs, entropy = linear_logprobs(hidden, weight, torch.tensor([1]), entropy=True)
    assert entropy is not None
    (logprobs + entropy).sum().backward()
    assert logprobs.item() == -2e4
    assert entropy.item() == 0.0
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[-1.0, 1.0]]


def test_under_autocast_products_are_bfloat16_and_results_float32() -> None:
    hidden, weight, _, targets = inputs(torch.float32)
    hidden, weight = in_eighths(hidden, torch.float32), in_eighths(weight, torch.float32)
    exact, _ = linear_logprobs(hidden, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = linear_logprobs(hidden, weight, targets)
    assert mixed.dtype == torch.float32
    assert (
        0
        < (mixed - exact).abs().max().item()
        < rounding(2, scale=float(exact.detach().abs().max()), dtype=torch.bfloat16)
    )
    rounded = hidden.detach().bfloat16() @ weight.detach().bfloat16().t()
    expected = rounded.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert_near(mixed.detach(), expected, terms=2 * ELEMENTARY + VOCABULARY)
    mixed.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_a_temperature_of_zero_is_refused() -> None:
    hidden, weight, _, targets = inputs()
    with pytest.raises(ValueError, match="temperature"):
        linear_logprobs(hidden, weight, targets, temperature=0.0)
