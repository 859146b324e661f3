"""Sampling of models whose rotary scaling switches at a length (`rotary`): each prompt on its own side of the switch.

Sampling can't know how long a response will be: it stays on the prompt's side, and its log-probabilities are those of
the distribution that it drew from.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from alignkit_hf.generation import Sampled
from alignkit_hf.rotary import SWITCH, scalings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from alignkit_hf.modeling import PackedModel
    from alignkit_hf.sampling import TokenChooser

    Draw = Callable[[Sequence[Sequence[int]], Any], Sampled]

NEVER = 2**40


def sample_by_side(
    draw: Draw, model: PackedModel, prompts: Sequence[Sequence[int]], n: int, chooser: TokenChooser
) -> Sampled:
    """What `draw` samples, `n` responses to each prompt; prompts on different sides of a switch are sampled apart."""
    switches = sorted(own[SWITCH] for own in scalings(model.lm))
    if not switches:
        return draw(prompts, chooser)
    side = [sum(len(ids) > switch for switch in switches) for ids in prompts]
    parts, order = [], []
    for number in sorted(set(side)):
        chosen = [prompt for prompt, own in enumerate(side) if own == number]
        rows = [prompt * n + index for prompt in chosen for index in range(n)]
        with _held_below(model.lm, switches[number:]):
            parts.append(draw([prompts[prompt] for prompt in chosen], _RowsOf(chooser, rows, model.device)))
        order += rows
    return parts[0] if len(parts) == 1 else Sampled.concat(parts).arranged(order)


class _RowsOf:
    """A chooser of tokens whose rows are these of another one."""

    def __init__(self, chooser: TokenChooser, rows: Sequence[int], device: torch.device) -> None:
        self._chooser, self._rows = chooser, torch.tensor(rows, device=device)
        self.stop_ids = chooser.stop_ids

    def __call__(self, logits: Tensor, rows: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._chooser(logits, self._rows[rows], step)


@contextlib.contextmanager
def _held_below(lm: PreTrainedModel, switches: Sequence[int]) -> Iterator[None]:
    """Inside, no row passes these switches, however long it gets."""
    held = [own for own in scalings(lm) if own[SWITCH] in switches]
    before = [own[SWITCH] for own in held]
    try:
        for own in held:
            own[SWITCH] = NEVER
        yield
    finally:
        for own, value in zip(held, before, strict=True):
            own[SWITCH] = value
