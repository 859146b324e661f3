"""Tokens and FLOPs of a step, counted from the lengths of its groups: what a layout must compute, no timing.

A product of [m, k] and [k, n] is 2 m k n. A training pass is three times its forward pass. Element-wise work is left
out, and of attention only the visible pairs of a query and a key are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench.shapes import Shape
    from tests.bench.workloads import Workload

Groups = Sequence[tuple[int, Sequence[int]]]
"""Prompt length and response lengths of each group, in tokens."""


@dataclass(frozen=True)
class Work:
    """What one forward pass goes over.

    Attributes:
        tokens: of the trunk. head_tokens: positions of the vocabulary head. pairs: visible queries and keys.
    """

    tokens: int
    head_tokens: int
    pairs: int

    def trunk_flops(self, shape: Shape) -> int:
        """Of the linear modules of the trunk in one forward pass."""
        width = shape.hidden // shape.heads
        attention = 2 * shape.hidden * shape.heads * width + 2 * shape.hidden * shape.key_heads * width
        return 2 * shape.layers * (attention + 3 * shape.hidden * shape.intermediate) * self.tokens

    def head_flops(self, shape: Shape) -> int:
        """Of the vocabulary head in one forward pass."""
        return 2 * shape.hidden * shape.vocabulary * self.head_tokens

    def attention_flops(self, shape: Shape) -> int:
        """Of scores and weighted values in one forward pass."""
        return 4 * shape.layers * shape.hidden * self.pairs

    def forward_flops(self, shape: Shape, *, vocabulary_head: bool = True) -> int:
        """Of one forward pass."""
        head = self.head_flops(shape) if vocabulary_head else 0
        return self.trunk_flops(shape) + head + self.attention_flops(shape)


def packed(groups: Groups) -> Work:
    """Each prompt once, no padding, the head only where a response token is predicted: alignkit's layout."""
    responses = [length for _, lengths in groups for length in lengths]
    pairs = sum(_triangle(prompt) for prompt, _ in groups)
    pairs += sum(prompt * length + _triangle(length) for prompt, lengths in groups for length in lengths)
    return Work(sum(prompt for prompt, _ in groups) + sum(responses), sum(responses), pairs)


def one_by_one(groups: Groups, *, repeats: int = 1) -> Work:
    """A row for each response with its prompt before it, no padding, the head everywhere: a trainer of rows.

    Args:
        repeats: how often each response stands in the rows (K - 1 where a ranking is spelt out as pairs).
    """
    rows = [prompt + length for prompt, lengths in groups for length in lengths]
    return Work(sum(rows) * repeats, sum(rows) * repeats, sum(_triangle(row) for row in rows) * repeats)


def step_flops(workload: Workload, shape: Shape, work: Work, *, peer: bool) -> int:
    """Of all forward and backward passes of a step, in the layout of `work`."""
    language = workload.language_passes + (workload.peer_extra_passes if peer else 0)
    return language * work.forward_flops(shape) + workload.scalar_passes * work.forward_flops(
        shape, vocabulary_head=False
    )


def _triangle(length: int) -> int:
    return length * (length + 1) // 2
