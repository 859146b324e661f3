"""PTX mixing: adds the likelihood of texts to the loss of an online algorithm, against forgetting.

Ouyang et al., arXiv:2203.02155, eq. 2. Deliberately different: the log-likelihood is a mean over the step's tokens, not
a sum over each text, so that the weight does not depend on the length of the texts.
"""

from __future__ import annotations

import math
import random
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from alignkit.batch import GroupBatch, Totals
from alignkit.companions import Companion, Metrics
from alignkit.errors import InputError
from alignkit.ops.distributed import mean_over_processes, num_processes, process_index

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from alignkit.interfaces import Policy
    from alignkit.records import Group


class PtxText(Companion):
    """Texts to keep likely; each optimisation step uses some, chosen by (seed, step) alone.

    Args:
        groups: prompts, which may be empty, with the responses to keep likely.
        coef: weight of the loss, above 0.
        size: groups per step, over all processes.

    Raises:
        InputError: there are no texts, or some are rankings, labelled or empty.
    """

    name = "ptx"
    loss_figures = ("ptx_loss",)

    def __init__(self, groups: Sequence[Group], policy: Policy[Any], *, coef: float, size: int, seed: int) -> None:
        _check(groups)
        self._policy, self._coef, self._size, self._seed = policy, coef, size, seed
        encoded = policy.encode(groups)
        self._device = encoded.device
        self._texts = encoded.to("cpu")
        self._batch: GroupBatch | None = None

    def begin_step(self, step: int) -> None:
        """Chooses the texts of a step, counted from 0."""
        self._batch = self.batch(step)

    def batch(self, step: int) -> GroupBatch | None:
        """This process's texts of a step, counted from 0, with the step's totals; None if it gets none."""
        mine = choice(self._texts.num_groups, self._size, seed=self._seed, step=step)[
            process_index() :: num_processes()
        ]
        part = self._texts.select(mine).to(self._device) if mine else None
        tokens = torch.tensor(part.num_tokens if part else 0, dtype=torch.float32, device=self._device)
        shared = float(mean_over_processes(tokens))
        return None if part is None else part.replace(totals=Totals(shared, math.nan, math.nan))

    def losses(self, max_tokens: int) -> list[Callable[[], tuple[Tensor, Metrics]]]:
        """The negative log-likelihood of each micro-batch of the step's texts."""
        parts = self._batch.split(max_tokens, divisible=True) if self._batch is not None else []
        return [partial(self._loss, part) for part in parts]

    def _loss(self, part: GroupBatch) -> tuple[Tensor, Metrics]:
        nll = -part.token_mean(self._policy.forward(part).logprobs)
        return self._coef * nll, {"ptx_loss": nll.detach()}


def choice(count: int, size: int, *, seed: int, step: int) -> list[int]:
    """The indices of the `count` texts that a step uses: `size` different ones, or all if there are fewer."""
    return random.Random(f"ptx/{seed}/{step}").sample(range(count), min(size, count))


def _check(groups: Sequence[Group]) -> None:
    fix = "give prompts with the responses to learn, as for [demonstrations]"
    if not groups:
        raise InputError("ptx_coef needs texts", where="ptx", fix=fix)
    if any(group.ranks is not None or group.labels is not None for group in groups):
        raise InputError("rankings and labels contain responses that should not be imitated", where="ptx", fix=fix)
    if any(not response for group in groups for response in group.responses):
        raise InputError("some responses are empty", where="ptx", fix=fix)
