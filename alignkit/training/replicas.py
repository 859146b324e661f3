"""Where the weights of a training are: whole in every process, which accelerate's DDP keeps the same.

`alignkit.training.shards` has the same methods for weights that are split.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from alignkit.training import checkpoint as checkpoints
from alignkit.training import split
from alignkit.training.adam import make_adam
from alignkit.training.processes import in_first

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from alignkit.companions import Metrics
    from alignkit.interfaces import Optimizer

    Pass = tuple[float, Callable[[], tuple[torch.Tensor, Metrics]]]
    Parts = Callable[[], tuple[dict[str, Any], Mapping[str, Any]]]


class Replicas:
    """The modules of an algorithm, wrapped, and their AdamW."""

    retries = True
    """Whether a process may repeat a step by itself, when memory runs out."""

    def __init__(self, optimizer: Optimizer[Any]) -> None:
        modules = optimizer.modules()
        self.device = next(parameter for module in modules.values() for parameter in module.parameters()).device
        self.accelerator = Accelerator(cpu=self.device.type == "cpu")
        self.modules, self.adam = self._wrapped(modules, optimizer)
        optimizer.bind(self.modules)
        for module in self.modules.values():
            module.train()

    def _wrapped(
        self, modules: Mapping[str, torch.nn.Module], optimizer: Optimizer[Any]
    ) -> tuple[dict[str, torch.nn.Module], Any]:
        *wrapped, adam = self.accelerator.prepare(*modules.values(), make_adam(optimizer, self.device))
        return dict(zip(modules, wrapped, strict=True)), adam

    @property
    def bare(self) -> dict[str, torch.nn.Module]:
        """The modules as they were before wrapping."""
        return {name: self.accelerator.unwrap_model(module) for name, module in self.modules.items()}

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        return [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]

    def whole(self) -> AbstractContextManager[Any]:
        """Inside, the modules can be sampled and scored as if this were the only process."""
        return nullcontext()

    def equally_many(self, passes: list[Pass]) -> list[Pass]:
        """The passes of a step, of which no process may have more than another where each pass is a common one."""
        return passes

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """For each pass of a step: gradients are added up over the processes in the last one."""
        stack = ExitStack()
        for module in self.modules.values() if not last else ():
            stack.enter_context(self.accelerator.no_sync(module))
        return stack

    def clip(self, max_norm: float) -> torch.Tensor:
        """Scales the gradients down to a norm; returns the norm before."""
        return torch.as_tensor(self.accelerator.clip_grad_norm_(self.trained, max_norm))

    def are_finite(self) -> bool:
        """Whether all trained weights are."""
        return bool(torch.stack([parameter.isfinite().all() for parameter in self.trained]).all())

    def save(self, folder: Path, step: int, parts: Parts, *, keep: int, with_adam: bool = True) -> None:
        """Writes a checkpoint of the weights, AdamW and `parts()`: more tensors, and the state."""

        def write() -> None:
            tensors: dict[str, Any] = {"modules": checkpoints.modules_to_tensors(self.bare)}
            more, state = parts()
            tensors |= more | ({"adam": self.adam.state_dict()} if with_adam else {})
            checkpoints.save_checkpoint(folder, step, tensors=tensors, state=state, keep=keep)

        in_first(write)

    def settle(self) -> None:
        """Waits until the checkpoint is there; raises in all processes what one of them raised."""

    def load_modules(self, checkpoint: Path) -> None:
        """The weights of a checkpoint, also of one with shards."""
        if split.is_split(checkpoint):
            split.load_modules(checkpoint, self.bare)
        else:
            checkpoints.tensors_to_modules(checkpoints.load_tensors(checkpoint, "modules"), self.bare)

    def load_adam(self, checkpoint: Path) -> dict[str, Any]:
        """AdamW's state in a checkpoint, for this process."""
        if split.is_split(checkpoint):
            return split.load_adam(checkpoint, self.adam)
        state: dict[str, Any] = checkpoints.load_tensors(checkpoint, "adam")
        return state

    def release(self) -> None:
        """After the training: the modules are usable and can be saved."""
