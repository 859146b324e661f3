"""The one training loop: feed -> prepare -> epochs x minibatches x micro-batches -> loss -> step -> metrics.

It runs every algorithm, in one process or several. Everything random is seeded by (seed, position), and all processes
hold the prepared batch, of which each trains a block of every minibatch. So a stopped run continues bit for bit from
its last checkpoint, and with another number of processes up to rounding.
"""

from __future__ import annotations

import math
import random
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from transformers import get_scheduler

from alignkit.batch import GroupBatch, Totals
from alignkit.errors import CheckpointError, InputError, StoppedByCheck, describe_error
from alignkit.ops.distributed import from_all_processes, mean_over_processes, num_processes, own_block
from alignkit.ops.memory import until_it_fits
from alignkit.outputs import TrainResult
from alignkit.training import checkpoint as checkpoints
from alignkit.training.adam import make_adam, restore_adam
from alignkit.training.feeds import epoch_order, planned_steps
from alignkit.training.memory import token_budget
from alignkit.training.processes import gathered, in_first
from alignkit.training.scores import attributed, checked_loss, shared_figures
from alignkit.training.signals import StopSignals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from alignkit.companions import Metrics
    from alignkit.interfaces import Optimizer
    from alignkit.options import TrainingOptions
    from alignkit.records import Group
    from alignkit.training.feeds import BatchFeed

    LogStep = Callable[[dict[str, float]], None]
    Pass = tuple[float, Callable[[], tuple[torch.Tensor, Metrics]]]
    Notice = Callable[[str], None]


BEST = "best"
"""Folder, next to the checkpoints, of the weights with the best gold reward."""


@dataclass
class Position:
    """The position in a run: optimisation steps done, the current batch, and the minibatches done of it."""

    step: int = 0
    batch: int = 0
    minibatch: int = 0


def _ignore(_: object) -> None:
    """Ignores reports."""


def train(
    optimizer: Optimizer[Any],
    feed: BatchFeed,
    *,
    folder: Path,
    seed: int,
    on_step: LogStep = _ignore,
    on_notice: Notice = _ignore,
    resume: bool = False,
    fingerprint: str = "",
    force: bool = False,
    resumable: bool = True,
    texts: Sequence[Group] = (),
) -> TrainResult:
    """Trains the optimizer's modules in place.

    Args:
        folder: checkpoints go to `folder/checkpoints`.
        resumable: whether to write them; the best weights are always written if the options ask for them.
        fingerprint: of the recipe and the data; a checkpoint with another one is refused unless `force` is set.
        texts: for the algorithm's companions (ptx).

    Raises:
        StoppedByCheck: the loss or gradient is not finite, or an alarm stops the run.
        Interrupted: SIGINT or SIGTERM, after a checkpoint.
        CheckpointError: checkpoints exist but none verifies or fits.
    """
    engine = Engine(optimizer, feed, folder / "checkpoints", seed, on_step, on_notice, fingerprint, resumable, texts)
    if resume:
        try:
            engine.restore(force=force)
        except (KeyError, ValueError, RuntimeError) as error:
            what = f"the checkpoint does not fit: {describe_error(error)}"
            raise InputError(what, where=str(folder), fix="use the recipe that wrote it, or --overwrite") from error
    with engine.signals.caught():
        return engine.run()


class Engine:
    """One training stage; use `train`."""

    def __init__(
        self,
        optimizer: Optimizer[Any],
        feed: BatchFeed,
        folder: Path,
        seed: int,
        on_step: LogStep,
        on_notice: Notice,
        fingerprint: str,
        resumable: bool,
        texts: Sequence[Group],
    ) -> None:
        self.optimizer, self.feed, self.folder, self.seed = optimizer, feed, folder, seed
        self.on_step, self.on_notice = on_step, on_notice
        self.fingerprint, self.resumable = fingerprint, resumable
        self.options: TrainingOptions = optimizer.config
        self.position, self.step_tokens = Position(), 0
        self.batch: GroupBatch | None = None
        alone = num_processes() == 1
        said = "saving after this step" + ("; repeat to stop at once" if alone else "")
        self.signals = StopSignals(lambda name: on_notice(f"{name}: {said}"), relayed=not alone)
        self.companions = optimizer.companions(texts, seed)
        self._wrap()
        if self.options.max_tokens == "auto":
            own, why = token_budget(self.wrapped.values(), self.accelerator.device)
            optimizer.max_tokens = min(from_all_processes(own))
            on_notice(f"max_tokens = {optimizer.max_tokens}: {why}")
        self.first_max_tokens = optimizer.max_tokens

    def _wrap(self) -> None:
        modules = self.optimizer.modules()
        device = next(parameter for module in modules.values() for parameter in module.parameters()).device
        self.accelerator = Accelerator(cpu=device.type == "cpu")
        adam = make_adam(self.optimizer, device)
        *wrapped, self.adam = self.accelerator.prepare(*modules.values(), adam)
        self.wrapped: dict[str, torch.nn.Module] = dict(zip(modules, wrapped, strict=True))
        self.optimizer.bind(self.wrapped)
        for module in self.wrapped.values():
            module.train()
        total = planned_steps(self.feed, self.options)
        name = "constant_with_warmup" if self.options.lr_schedule == "constant" else self.options.lr_schedule
        self.scheduler = get_scheduler(
            name, adam, num_warmup_steps=round(self.options.warmup * total), num_training_steps=total
        )

    def run(self) -> TrainResult:
        """Runs the loop from the current position to the end of the feed."""
        start, tokens = time.perf_counter(), 0
        metrics: dict[str, float] = {}
        for index in range(self.position.batch, self.feed.num_batches):
            batch = self.batch if self.batch is not None else self._prepared(index)
            self.batch = batch
            if self._reason:
                self._end_early()
                break
            self._check_companions()
            schedule = list(self._schedule(index, batch.num_groups))
            for epoch_ends, chosen in schedule[self.position.minibatch :]:
                step_start = time.perf_counter()
                part = batch.select(chosen or [0])
                metrics = self._step(part, empty=not chosen)
                tokens += self.step_tokens
                self.position.minibatch += 1
                metrics["tokens_per_s"] = self.step_tokens / (time.perf_counter() - step_start)
                self.on_step({"step": self.position.step, **metrics, **self.optimizer.batch_metrics})
                if not self.optimizer.keep_going(metrics):
                    break
                self._save_if_due(epoch_ends=epoch_ends and self.feed.repeatable)
            self.position = Position(self.position.step, index + 1, 0)
            self.batch = None
            if not self.feed.repeatable or index + 1 == self.feed.num_batches:
                self._save_if_due(epoch_ends=True)
        self._require_finite_weights()
        return TrainResult(self.position.step, time.perf_counter() - start, tokens, metrics, self._reason)

    def _prepared(self, index: int) -> GroupBatch:
        torch.manual_seed(_mixed(self.seed, index, -1))
        batch = self.feed.batch(index)
        with torch.no_grad():
            if not self.feed.repeatable:
                figures = self._observed(batch)
                batch, more = self.feed.corrected(attributed(self.optimizer.prepare, batch))
                self.optimizer.batch_metrics = {**self.optimizer.batch_metrics, **figures, **more}
                return gathered(batch)
            # A resumed run prepares its data with the first run's token budget, so that both round alike.
            now, self.optimizer.max_tokens = self.optimizer.max_tokens, self.first_max_tokens
            pieces = batch.pieces(self.first_max_tokens)
            prepared = gathered(GroupBatch.concat([attributed(self.optimizer.prepare, piece) for piece in pieces]))
            self.optimizer.max_tokens = now
        if not prepared.num_groups:
            raise InputError(
                f"none of the {self.feed.groups_per_batch} records has anything to learn",
                where="the training data",
                fix=f"give {self.optimizer.consumes.value} that tell good responses from bad ones; see docs/data.md",
            )
        return prepared

    def _observed(self, batch: GroupBatch) -> dict[str, float]:
        """Figures of the reward and the companions on rollouts; saves the weights if they are the best."""
        reward, step = self.optimizer.reward, self.position.step
        figures = {**self.feed.figures, **({} if reward is None else shared_figures(reward.figures(), batch.device))}
        for companion in self.companions:
            figures |= companion.observe(batch, step)
        if any(companion.is_best(step) for companion in self.companions):
            self._save_best()
        return figures

    def _schedule(self, index: int, num_groups: int) -> Iterator[tuple[bool, list[int]]]:
        """(last of its epoch, groups of this process) for each minibatch of a batch."""
        size = self.options.minibatch_size
        for epoch in range(self.options.n_epochs):
            order = epoch_order(num_groups, seed=self.seed, batch=index, epoch=epoch)
            for start in range(0, num_groups, size):
                chosen = order[start : start + size]
                yield start + size >= num_groups, [chosen[place] for place in own_block(len(chosen))]

    def _step(self, part: GroupBatch, *, empty: bool) -> dict[str, float]:
        """One optimisation step; halves the token budget and retries when memory runs out."""
        part = part.replace(totals=self._step_totals(part, empty=empty))
        with torch.no_grad():
            self.optimizer.begin_step(part)
        for companion in self.companions:
            companion.begin_step(self.position.step)
        compute = partial(self._backward, part, 0.0 if empty else 1.0)
        sums, norm = until_it_fits(compute, self.optimizer.max_tokens, self._take_fewer_tokens)
        names = sorted(sums)
        totals = mean_over_processes(torch.stack([sums[name] for name in names]))
        metrics = dict(zip(names, totals.tolist(), strict=True))
        metrics |= {"grad_norm": float(norm), "learning_rate": self.scheduler.get_last_lr()[0]}
        self._require_finite(metrics)
        metrics |= self.optimizer.take_step(part)
        self.adam.step()
        self.scheduler.step()
        self.adam.zero_grad()
        self.position.step += 1
        for companion in self.companions:
            metrics |= companion.after_step(self.position.step)
        return metrics

    def _take_fewer_tokens(self, max_tokens: int) -> None:
        self.adam.zero_grad()
        self.optimizer.max_tokens = max_tokens
        self.on_notice(f"out of memory: continuing with max_tokens = {max_tokens}")

    def _backward(
        self, part: GroupBatch, weight: float, max_tokens: int
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        micro_batches = part.split(max_tokens, divisible=not self.optimizer.couples_responses)
        own: list[Pass] = [(weight, partial(checked_loss, self.optimizer.loss, micro)) for micro in micro_batches]
        # Companions' losses come first: the last pass, which synchronises gradients, must use every module.
        others = [(1.0, loss) for companion in self.companions for loss in companion.losses(max_tokens)]
        named = [name for companion in self.companions for name in companion.loss_figures]
        sums = {name: torch.zeros((), device=part.device) for name in named}
        for number, (share, compute) in enumerate([*others, *own], start=1 - len(others)):
            torch.manual_seed(_mixed(self.seed, self.position.step, number))
            with ExitStack() as unsynchronised:
                if number < len(own):
                    for module in self.wrapped.values():
                        unsynchronised.enter_context(self.accelerator.no_sync(module))
                loss, metrics = compute()
                self.accelerator.backward(loss * share)
            for name, value in {"loss": loss, **metrics}.items():
                figure = torch.as_tensor(value, dtype=torch.float32, device=loss.device).detach() * share
                sums[name] = sums[name] + figure if name in sums else figure
        parameters = [p for module in self.wrapped.values() for p in module.parameters() if p.requires_grad]
        norm = self.accelerator.clip_grad_norm_(parameters, self.options.max_grad_norm)
        return sums, torch.as_tensor(norm)

    def _step_totals(self, part: GroupBatch, *, empty: bool) -> Totals:
        own = part.counts()
        counts = torch.tensor([own.tokens, own.responses, own.groups], dtype=torch.float64, device=part.device)
        shared = mean_over_processes(counts * (not empty))
        self.step_tokens = round(float(shared[0]) * num_processes())
        # A process without groups left joins with a group that must not count: its means are 0.
        return Totals(math.inf, math.inf, math.inf) if empty else Totals(*shared.tolist())

    def _require_finite(self, metrics: Mapping[str, float]) -> None:
        if bad := [name for name in ("loss", "grad_norm") if not math.isfinite(metrics[name])]:
            raise self._wrecked(f"step {self.position.step + 1}: {' and '.join(bad)}")

    def _require_finite_weights(self) -> None:
        trained = [p for module in self.wrapped.values() for p in module.parameters() if p.requires_grad]
        if not torch.stack([parameter.isfinite().all() for parameter in trained]).all():
            raise self._wrecked(f"step {self.position.step}: weights")

    def _wrecked(self, what: str) -> StoppedByCheck:
        return StoppedByCheck(f"{what} not finite; {checkpoints.way_back(self.folder, self.position.step)}")

    @property
    def _reason(self) -> str:
        """Why the run should end early; empty to continue."""
        return next((companion.reason for companion in self.companions if companion.reason), "")

    def _check_companions(self) -> None:
        alarms = [alarm for companion in self.companions for alarm in companion.check(self.optimizer.batch_metrics)]
        for alarm in alarms:
            self.on_notice(alarm)
        if why := " ".join(alarm for alarm in alarms if alarm.stops):
            self.save()
            raise StoppedByCheck(f"step {self.position.step}: {why}")

    def _end_early(self) -> None:
        """Drops the current batch, and restores the best weights if a companion asks for them."""
        self.batch, self.position = None, Position(self.position.step, self.feed.num_batches, 0)
        at_best = any(companion.ends_at_best for companion in self.companions)
        best = in_first(lambda: checkpoints.newest_checkpoint(self.folder / BEST)[0]) if at_best else None
        if best is not None:
            checkpoints.tensors_to_modules(checkpoints.load_tensors(best, "modules"), self._whole_modules())
        self.save()
        self.on_notice(f"stopped after step {self.position.step}: {self._reason}")

    def _save_best(self) -> None:
        in_first(self._write_best)

    def _write_best(self) -> None:
        tensors = {"modules": checkpoints.modules_to_tensors(self._whole_modules())}
        checkpoints.save_checkpoint(self.folder / BEST, self.position.step, tensors=tensors, state={}, keep=1)

    def _whole_modules(self) -> dict[str, torch.nn.Module]:
        return {name: self.accelerator.unwrap_model(module) for name, module in self.wrapped.items()}

    def _save_if_due(self, *, epoch_ends: bool) -> None:
        self.signals.number = max(from_all_processes(self.signals.number))
        every = self.options.save_every
        due = self.position.step % every == 0 if every else epoch_ends
        if due or self.signals.number:
            self.save()
        self.signals.raise_after(self.position.step)

    def save(self) -> None:
        """Writes a checkpoint of everything a resumed run needs; the first process writes, the others wait.

        Raises:
            StoppedByCheck: the weights are not finite; nothing is written.
        """
        self._require_finite_weights()
        # Out of memory in one process lowers its budget; all continue as a resumed run would.
        self.optimizer.max_tokens = min(from_all_processes(self.optimizer.max_tokens))
        if self.resumable:
            in_first(self._write)

    def _write(self) -> None:
        modules = checkpoints.modules_to_tensors(self._whole_modules())
        tensors: dict[str, Any] = {"modules": modules, "adam": self.adam.state_dict()}
        tensors |= {c.name: held for c in self.companions if (held := c.tensors())}
        if self.batch is not None and not self.feed.repeatable:
            tensors["batch"] = checkpoints.batch_to_tensors(self.batch)
        state = {
            "position": vars(self.position),
            "fingerprint": self.fingerprint,
            "scheduler": self.scheduler.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batch_metrics": self.optimizer.batch_metrics,
            "companions": {companion.name: companion.state_dict() for companion in self.companions},
            "max_tokens": [self.options.max_tokens, self.first_max_tokens, self.optimizer.max_tokens],
        }
        keep = self.options.keep_checkpoints
        checkpoints.save_checkpoint(self.folder, self.position.step, tensors=tensors, state=state, keep=keep)

    def restore(self, *, force: bool) -> None:
        """Restores the newest checkpoint that verifies, if there is one."""
        path, problems = in_first(lambda: checkpoints.newest_checkpoint(self.folder))
        for problem in problems:
            self.on_notice(f"skipped a checkpoint: {problem}" + ("" if path else "; starting from the first step"))
        if path is None:
            return
        state = checkpoints.load_state(path)
        if state["fingerprint"] != self.fingerprint and not force:
            raise CheckpointError(
                f"{path} belongs to another recipe or other data\n  fix: use --overwrite, --force or another --out"
            )
        checkpoints.tensors_to_modules(checkpoints.load_tensors(path, "modules"), self._whole_modules())
        restore_adam(self.adam, self.scheduler, checkpoints.load_tensors(path, "adam"), state["scheduler"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.batch_metrics = dict(state["batch_metrics"])
        self.position = Position(**state["position"])
        asked, first, last = state["max_tokens"]
        if asked == self.options.max_tokens:
            self.first_max_tokens, self.optimizer.max_tokens = first, last
        for companion in self.companions:
            companion.load_state_dict(state["companions"].get(companion.name, {}))
            if (path / f"{companion.name}.pt").exists():
                companion.load_tensors(checkpoints.load_tensors(path, companion.name))
        if (path / "batch.pt").exists():
            packed = checkpoints.load_tensors(path, "batch")
            self.batch = checkpoints.batch_from_tensors(packed, self.accelerator.device)
        self.on_notice(f"resumed after step {self.position.step}")


def _mixed(seed: int, *numbers: int) -> int:
    return random.Random(f"{seed}/{'/'.join(map(str, numbers))}").getrandbits(63)
