"""Weights that are split over the processes: torch's `fully_shard` (FSDP2) on every layer, and on each root with the
rest.

Sharded are the weights, gradients and AdamW's moments of all that is trained, and the weights of the frozen reference.
Passes without gradient (sampling, `prepare`, `begin_step`) need whole weights: their number differs from process to
process, and each pass of shards is a common one. So the weights are gathered once for all of them.
"""

from __future__ import annotations

import copy
import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from alignkit.errors import AlignkitError, InputError, describe_error
from alignkit.files import telling_when_full
from alignkit.ops.distributed import from_all_processes, process_index
from alignkit.ops.memory import is_out_of_memory
from alignkit.training import checkpoint as checkpoints
from alignkit.training import split
from alignkit.training.adam import make_adam
from alignkit.training.processes import in_first, shared_failure
from alignkit.training.replicas import Replicas

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from alignkit.companions import Companion
    from alignkit.interfaces import Optimizer
    from alignkit.training.replicas import Parts, Pass

WHERE = "run.shard"
UNSHARDED = 'set run.shard = "none"'
META = torch.device("meta")
ROOM = (
    "whole weights, and what is sampled and computed with them, must fit on each device: let other devices sample "
    "(--sampler vllm), train with LoRA (no copy for the reference), or lower batch_size or sampling.max_tokens"
)


def check_shardable(optimizer: Optimizer[Any], companions: Sequence[Companion]) -> None:
    """Refuses what FSDP2 can't do.

    Raises:
        InputError: weights in 4 bits, 8-bit moments, an algorithm or a companion with updates or losses of its own.
    """
    parameters = [p for module in optimizer.modules().values() for p in module.parameters()]
    if not all(parameter.is_floating_point() for parameter in parameters):
        what = "4-bit weights can't be split: a weight's bytes and the scales that they need are stored apart"
        raise InputError(what, where=WHERE, fix=f'{UNSHARDED}, or policy.quantize = "none"')
    if optimizer.config.adam == "8bit":
        raise InputError("8-bit moments can't be split", where=WHERE, fix=f'{UNSHARDED}, or adam = "32bit"')
    if optimizer.moves_weights:
        name = type(optimizer).__name__
        raise InputError(f"{name} updates weights itself, and needs them whole", where=WHERE, fix=UNSHARDED)
    for companion in companions:
        if companion.loss_figures or companion.tensors():
            raise InputError(f"{companion.name} needs whole weights in every step", where=WHERE, fix=UNSHARDED)


class Shards(Replicas):
    """The modules of an algorithm and of its reference, split, and AdamW on the parts."""

    retries = False
    _saving: Future[None] | None = None

    def _wrapped(self, modules: Mapping[str, nn.Module], optimizer: Optimizer[Any]) -> tuple[dict[str, nn.Module], Any]:
        frozen = {} if optimizer.reference is None else optimizer.reference.modules()
        self._roots = list({id(module): module for module in (*modules.values(), *frozen.values())}.values())
        self._skeletons = [*map(_skeleton, self._roots)]
        for root in self._roots:
            mixed = precision_of(root)
            for layer in layers_of(root):
                fully_shard(layer, mp_policy=mixed)
            fully_shard(root)
            # Else the first layer that runs outside of the root's forward, as in sampling, becomes a root of its own.
            fully_shard.state(root)._lazy_init()  # type: ignore[attr-defined]
        return dict(modules), self.accelerator.prepare(make_adam(optimizer, self.device))

    @property
    def bare(self) -> dict[str, nn.Module]:
        return self.modules

    @contextmanager
    def whole(self) -> Iterator[None]:
        try:
            for part in self._parts():
                part.set_reshard_after_forward(False)
                part.unshard()
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise AlignkitError(f"{describe_error(error)}\n  fix: {ROOM}") from error
        finally:
            for part in self._parts():
                part.set_reshard_after_forward(id(part) not in map(id, self._roots))
                part.reshard()

    def _parts(self) -> list[FSDPModule]:
        return [module for root in self._roots for module in root.modules() if isinstance(module, FSDPModule)]

    def equally_many(self, passes: list[Pass]) -> list[Pass]:
        most = max(from_all_processes(len(passes)))
        return [(0.0, passes[0][1])] * (most - len(passes)) + passes

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Every pass reduces its gradients into the shards, so that no process ever holds whole ones."""
        return nullcontext()

    def clip(self, max_norm: float) -> torch.Tensor:
        norm = torch.nn.utils.clip_grad_norm_(self.trained, max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def are_finite(self) -> bool:
        return all(from_all_processes(all(bool(split.local_part(p).isfinite().all()) for p in self.trained)))

    def save(self, folder: Path, step: int, parts: Parts, *, keep: int, with_adam: bool = True) -> None:
        """Every process writes its part, if it can while the training goes on; then the first one writes the manifest.
        An error shows when that is settled: before the next save at the latest."""
        self.settle()
        target = folder / checkpoints.name_of(step)
        in_first(lambda: shutil.rmtree(target, ignore_errors=True))
        adam = self.adam.state_dict() if with_adam else {}
        with telling_when_full(folder.parent, "a checkpoint"):
            written = split.save(target, self.modules, adam.get("state", {}))
        tensors, state = parts() if process_index() == 0 else ({}, {})
        tensors |= {"adam_groups": adam["param_groups"]} if with_adam else {}
        said = json.dumps(state)  # now: what it refers to changes in the next step

        def finish() -> None:
            with telling_when_full(folder.parent, "a checkpoint"):
                written()
            if process_index() == 0:
                checkpoints.save_checkpoint(
                    folder, step, tensors=tensors, state=json.loads(said), keep=keep, begun=True
                )

        pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving = pool.submit(finish)
        pool.shutdown(wait=False)
        if not with_adam:  # the best weights, which may be read at any time
            self.settle()

    def settle(self) -> None:
        if (saving := self._saving) is not None:
            self._saving = None
            shared_failure(saving.exception())

    def load_modules(self, checkpoint: Path) -> None:
        if not split.is_split(checkpoint):
            what = "the checkpoint holds whole weights, and this run splits them"
            raise InputError(what, where=str(checkpoint), fix=UNSHARDED)
        super().load_modules(checkpoint)

    def release(self) -> None:
        """After the training: whole modules on the CPU of the first process, gathered tensor by tensor; elsewhere they
        are empty."""
        self.settle()
        for root, skeleton in zip(self._roots, self._skeletons, strict=True):
            live = dict(root.named_parameters())
            filled = {id(empty): _gathered(live[name]) for name, empty in skeleton.named_parameters()}
            for module in skeleton.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        module._parameters[name] = filled[id(parameter)]
            skeleton.to("cpu" if process_index() == 0 else META)
            root.__class__, root.__dict__ = type(skeleton), skeleton.__dict__


def precision_of(root: nn.Module) -> MixedPrecisionPolicy:
    """Layers of a module with an `autocast` dtype are gathered in it; shards and the sums of gradients stay float32.

    Inputs stay as they are: autocast casts those of products, which leaves rotary angles and sums exact.
    """
    autocast = getattr(root, "autocast", None)
    if not isinstance(autocast, torch.dtype):
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=autocast, reduce_dtype=torch.float32, cast_forward_inputs=False)


def layers_of(root: nn.Module) -> Iterator[nn.Module]:
    """The elements of the outermost lists of modules in a model: its layers."""
    for child in root.children():
        yield from child if isinstance(child, nn.ModuleList) else layers_of(child)


def _skeleton(root: nn.Module) -> nn.Module:
    """A copy with parameters that take no memory."""
    empty: dict[int, Any] = {}
    for parameter in root.parameters():
        like = torch.empty_like(parameter, device=META)
        empty[id(parameter)] = nn.Parameter(like, requires_grad=parameter.requires_grad)
    return copy.deepcopy(root, empty)


def _gathered(parameter: nn.Parameter) -> nn.Parameter:
    full = parameter.full_tensor().detach()  # type: ignore[attr-defined]
    full = full.cpu() if process_index() == 0 else full.to(META)
    return nn.Parameter(full, requires_grad=parameter.requires_grad)
