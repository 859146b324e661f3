"""What a training has spent, and when its budget ends it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from alignkit.companions import Companion
from alignkit.errors import InputError
from alignkit.ops.distributed import num_processes, sum_over_processes
from alignkit.ops.flops import counted_flops

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignkit.batch import GroupBatch
    from alignkit.interfaces import Optimizer


class Spending(Companion):
    """Counts what all processes spend, alike in each; the engine tells it what they learn from.

    Attributes:
        spent: `prompts`, `response_tokens`, `seconds` and `flops`.

    Raises:
        InputError: FLOPs are limited, and the policy doesn't count them.
    """

    name = "spending"

    def __init__(self, optimizer: Optimizer[Any]) -> None:
        self._limits = optimizer.config.budget
        if "flops" in self._limits and not optimizer.policy.counts_flops:
            what = f"{type(optimizer.policy).__name__} doesn't count its FLOPs"
            raise InputError(what, where="optimizer.budget.flops", fix="set budget.seconds or budget.response_tokens")
        self.spent = {"prompts": 0, "response_tokens": 0, "seconds": 0.0, "flops": 0.0}
        self._sampled = [0, 0]
        self.begin()

    def begin(self) -> None:
        """Counts seconds and FLOPs from now on."""
        self._last = time.perf_counter(), counted_flops()

    def observe(self, batch: GroupBatch, step: int) -> Mapping[str, float]:
        """Rollouts, which count as spent once they are `learned`."""
        own = torch.tensor([batch.num_groups, batch.num_tokens], device=batch.device)
        self._sampled = sum_over_processes(own).tolist()
        return {}

    def learned(self) -> None:
        """The rollouts are learned from."""
        self.add(*self._sampled)
        self._sampled = [0, 0]

    def add(self, prompts: int, response_tokens: int) -> None:
        """Adds what is learned from."""
        self.spent["prompts"] += prompts
        self.spent["response_tokens"] += response_tokens
        ended = [
            f"{limit:g} {unit.replace('_', ' ')}" for unit, limit in self._limits.items() if self.spent[unit] >= limit
        ]
        self.reason = f"{' and '.join(ended)} are spent" if ended else ""

    def update(self, device: torch.device) -> None:
        """Adds the seconds and FLOPs since the last update. All processes call it together."""
        now = time.perf_counter(), counted_flops()
        own = [after - before for after, before in zip(now, self._last, strict=True)]
        self._last = now
        seconds, flops = sum_over_processes(torch.tensor(own, dtype=torch.float64, device=device)).tolist()
        self.spent["seconds"] += seconds / num_processes()
        self.spent["flops"] += flops
        self.add(0, 0)

    @property
    def share(self) -> float:
        """Of the budget, 0 to 1; 0 without one."""
        return min(1.0, max((self.spent[unit] / limit for unit, limit in self._limits.items()), default=0.0))

    def state_dict(self) -> dict[str, Any]:
        return {"spent": self.spent, "sampled": self._sampled, "reason": self.reason}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self.spent, self._sampled, self.reason = dict(state["spent"]), list(state["sampled"]), state["reason"]
