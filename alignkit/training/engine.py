"""The one training loop: feed -> prepare -> epochs x minibatches x micro-batches -> loss -> step -> metrics.

It runs every algorithm, in one process or several. Everything random is seeded by (seed, position), and all processes
hold the prepared batch, of which each trains a block of every minibatch. So a stopped run continues bit for bit from
its last checkpoint, and with another number of processes up to rounding.
"""

from __future__ import annotations

import math
import random
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from transformers import get_scheduler

from alignkit.batch import GroupBatch, Totals
from alignkit.errors import CheckpointError, InputError, StoppedByCheck, describe_error
from alignkit.interfaces import Optimizer
from alignkit.ops.distributed import from_all_processes, mean_over_processes, num_processes, own_block
from alignkit.ops.memory import until_it_fits
from alignkit.outputs import TrainResult
from alignkit.training import checkpoint as checkpoints
from alignkit.training.adam import restore_adam
from alignkit.training.budget import Spending
from alignkit.training.feeds import BatchFeed, epoch_order, planned_steps
from alignkit.training.layout import layout_of
from alignkit.training.memory import token_budget
from alignkit.training.processes import gathered, in_first
from alignkit.training.scores import attributed, checked_loss, shared_figures
from alignkit.training.signals import StopSignals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from alignkit.companions import Companion
    from alignkit.options import TrainingOptions
    from alignkit.records import Group
    from alignkit.training.replicas import Pass, Replicas

    LogStep = Callable[[dict[str, float]], None]
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
    shard: bool = False,
) -> TrainResult:
    """Trains the optimizer's modules in place.

    Args:
        folder: checkpoints go to `folder/checkpoints`.
        resumable: whether to write them; the best weights are always written if the options ask for them.
        fingerprint: of the recipe and the data; a checkpoint with another one is refused unless `force` is set.
        texts: for the algorithm's companions (ptx).
        shard: whether several processes split the weights; afterwards only the first one has them, on the CPU.

    Raises:
        StoppedByCheck: the loss or gradient is not finite, or an alarm stops the run.
        Interrupted: SIGINT or SIGTERM, after a checkpoint.
        CheckpointError: checkpoints exist but none verifies or fits.
    """
    companions = optimizer.companions(texts, seed)
    layout = layout_of(optimizer, companions, shard=shard, on_notice=on_notice)
    checkpoints_of = folder / "checkpoints"
    engine = Engine(
        optimizer, feed, checkpoints_of, seed, on_step, on_notice, fingerprint, resumable, companions, layout
    )
    if resume:
        try:
            engine.restore(force=force)
        except (KeyError, ValueError, RuntimeError) as error:
            what = f"the checkpoint does not fit: {describe_error(error)}"
            raise InputError(what, where=str(folder), fix="use the recipe that wrote it, or --overwrite") from error
    with engine.signals.caught():
        result = engine.run()
    layout.release()
    return result


@dataclass(eq=False)
class Engine:
    """One training stage; use `train`."""

    optimizer: Optimizer[Any]
    feed: BatchFeed
    folder: Path
    seed: int
    on_step: LogStep
    on_notice: Notice
    fingerprint: str
    resumable: bool
    companions: Sequence[Companion]
    layout: Replicas

    def __post_init__(self) -> None:
        self.options: TrainingOptions = self.optimizer.config
        self.position, self.step_tokens = Position(), 0
        self.spending = Spending(self.optimizer)
        self.companions = [*self.companions, self.spending]
        self.batch: GroupBatch | None = None
        alone = num_processes() == 1
        said = "saving after this step" + ("; repeat to stop at once" if alone else "")
        self.signals = StopSignals(lambda name: self.on_notice(f"{name}: {said}"), relayed=not alone)
        self.scheduler = self._scheduler()
        if self.options.max_tokens == "auto":
            own, why = token_budget(self.layout.modules.values(), self.layout.device)
            self.optimizer.max_tokens = min(from_all_processes(own))
            self.on_notice(f"max_tokens = {self.optimizer.max_tokens}: {why}")
        self.first_max_tokens = self.optimizer.max_tokens

    def _scheduler(self) -> Any:
        self.planned = total = planned_steps(self.feed, self.options)
        name = "constant_with_warmup" if self.options.lr_schedule == "constant" else self.options.lr_schedule
        warmup = round(self.options.warmup * total)
        return get_scheduler(name, self.layout.adam.optimizer, num_warmup_steps=warmup, num_training_steps=total)

    def run(self) -> TrainResult:
        """Runs the loop from the current position to the end of the feed."""
        start, tokens = time.perf_counter(), 0
        metrics: dict[str, float] = {}
        self.spending.begin()
        for index in range(self.position.batch, self.feed.num_batches):
            batch = None if self._reason else self._current(index)
            if batch is None or self._reason:
                self._end_early()
                break
            self._check_companions()
            for epoch_ends, chosen in islice(self._schedule(index, batch.num_groups), self.position.minibatch, None):
                step_start = time.perf_counter()
                part = batch.select(chosen or [0])
                metrics = self._step(part, empty=not chosen)
                tokens += self.step_tokens
                self.position.minibatch += 1
                metrics["tokens_per_s"] = self.step_tokens / (time.perf_counter() - step_start)
                self.on_step({"step": self.position.step, **metrics, **self.optimizer.batch_metrics})
                if self.spending.reason or not self.optimizer.keep_going(metrics):
                    break
                self._save_if_due(epoch_ends=epoch_ends and self.feed.repeatable)
            self.position = Position(self.position.step, index + 1, 0)
            self.batch = None
            self.spending.learned()
            if not self.feed.repeatable or index + 1 == self.feed.num_batches:
                self._save_if_due(epoch_ends=True)
        self._require_finite_weights()
        seconds, spent = time.perf_counter() - start, self.spending.spent
        return TrainResult(self.position.step, seconds, tokens, metrics, self._reason, spent)

    def _current(self, index: int) -> GroupBatch:
        """The batch that is learned from, prepared; after a checkpoint between two of its steps it is there already."""
        if self.batch is None:
            with self.layout.whole():
                self.batch = self._prepared(index)
            if self.feed.repeatable and self.position.step:
                self.spending.begin()  # the run before has spent this
            if any(companion.is_best(self.position.step) for companion in self.companions):
                self._save_best()
        return self.batch

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
                fix=f"give {self.optimizer.consumes.value} that tell good from bad; see docs/reference/data.md",
            )
        return prepared

    def _observed(self, batch: GroupBatch) -> dict[str, float]:
        """Figures of the reward and the companions on rollouts."""
        reward, step = self.optimizer.reward, self.position.step
        figures = {**self.feed.figures, **({} if reward is None else shared_figures(reward.figures(), batch.device))}
        for companion in self.companions:
            figures |= companion.observe(batch, step)
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
        measures = type(self.optimizer).begin_step is not Optimizer.begin_step
        with torch.no_grad(), self.layout.whole() if measures else nullcontext():
            self.optimizer.begin_step(part)
        for companion in self.companions:
            companion.begin_step(self.position.step)
        compute = partial(self._backward, part, 0.0 if empty else 1.0)
        if self.layout.retries:
            sums, norm = until_it_fits(compute, self.optimizer.max_tokens, self._take_fewer_tokens)
        else:
            sums, norm = compute(self.optimizer.max_tokens)
        names = sorted(sums)
        totals = mean_over_processes(torch.stack([sums[name] for name in names]))
        metrics = dict(zip(names, totals.tolist(), strict=True))
        metrics |= {"grad_norm": float(norm), "learning_rate": self.scheduler.get_last_lr()[0]}
        self._require_finite(metrics)
        metrics |= self.optimizer.take_step(part)
        self.layout.adam.step()
        self.spending.update(part.device)
        self.scheduler.last_epoch = max(self.scheduler.last_epoch, int(self.spending.share * self.planned) - 1)
        self.scheduler.step()
        self.layout.adam.zero_grad()
        self.position.step += 1
        for companion in self.companions:
            metrics |= companion.after_step(self.position.step)
        return metrics

    def _take_fewer_tokens(self, max_tokens: int) -> None:
        self.layout.adam.zero_grad()
        self.optimizer.max_tokens = max_tokens
        self.on_notice(f"out of memory: continuing with max_tokens = {max_tokens}")

    def _backward(
        self, part: GroupBatch, weight: float, max_tokens: int
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        micro_batches = part.split(max_tokens, divisible=not self.optimizer.couples_responses)
        losses: list[Pass] = [(weight, partial(checked_loss, self.optimizer.loss, micro)) for micro in micro_batches]
        own = self.layout.equally_many(losses)
        # Companions' losses come first: the last pass, which synchronises gradients, must use every module.
        others = [(1.0, loss) for companion in self.companions for loss in companion.losses(max_tokens)]
        named = [name for companion in self.companions for name in companion.loss_figures]
        sums = {name: torch.zeros((), device=part.device) for name in named}
        for number, (share, compute) in enumerate([*others, *own], start=1 - len(others)):
            torch.manual_seed(_mixed(self.seed, self.position.step, number))
            with self.layout.accumulating(last=number == len(own)):
                loss, metrics = compute()
                self.layout.accelerator.backward(loss * share)
            for name, value in {"loss": loss, **metrics}.items():
                figure = torch.as_tensor(value, dtype=torch.float32, device=loss.device).detach() * share
                sums[name] = sums[name] + figure if name in sums else figure
        return sums, self.layout.clip(self.options.max_grad_norm)

    def _step_totals(self, part: GroupBatch, *, empty: bool) -> Totals:
        own = part.counts()
        counts = torch.tensor([own.tokens, own.responses, own.groups], dtype=torch.float64, device=part.device)
        shared = mean_over_processes(counts * (not empty))
        self.step_tokens = round(float(shared[0]) * num_processes())
        if self.feed.repeatable:
            self.spending.add(round(float(shared[2] * num_processes())), self.step_tokens)
        # A process without groups left joins with a group that must not count: its means are 0.
        return Totals(math.inf, math.inf, math.inf) if empty else Totals(*shared.tolist())

    def _require_finite(self, metrics: Mapping[str, float]) -> None:
        if bad := [name for name in ("loss", "grad_norm") if not math.isfinite(metrics[name])]:
            raise self._wrecked(f"step {self.position.step + 1}: {' and '.join(bad)}")

    def _require_finite_weights(self) -> None:
        if not self.layout.are_finite():
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
            self.layout.load_modules(best)
        self.save()
        self.on_notice(f"stopped after step {self.position.step}: {self._reason}")

    def _save_best(self) -> None:
        self.layout.save(self.folder / BEST, self.position.step, lambda: ({}, {}), keep=1, with_adam=False)

    def _save_if_due(self, *, epoch_ends: bool) -> None:
        self.signals.number = max(from_all_processes(self.signals.number))
        every = self.options.save_every
        due = self.position.step % every == 0 if every else epoch_ends
        if due or self.signals.number:
            self.save(wait=self.signals.number > 0)
        self.signals.raise_after(self.position.step)

    def save(self, *, wait: bool = True) -> None:
        """Writes a checkpoint of everything a resumed run needs, before it returns if asked to `wait`.

        Raises:
            StoppedByCheck: the weights are not finite; nothing is written.
        """
        self._require_finite_weights()
        # Out of memory in one process lowers its budget; all continue as a resumed run would.
        self.optimizer.max_tokens = min(from_all_processes(self.optimizer.max_tokens))
        if self.resumable:
            parts = partial(self._parts, self.feed.sampled_ahead())
            self.layout.save(self.folder, self.position.step, parts, keep=self.options.keep_checkpoints)
        if wait:
            self.layout.settle()

    def _parts(self, ahead: GroupBatch | None) -> tuple[dict[str, Any], Mapping[str, Any]]:
        tensors: dict[str, Any] = {c.name: held for c in self.companions if (held := c.tensors())}
        tensors |= checkpoints.packed(batch=None if self.feed.repeatable else self.batch, ahead=ahead)
        return tensors, {
            "position": vars(self.position),
            "fingerprint": self.fingerprint,
            "scheduler": self.scheduler.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batch_metrics": self.optimizer.batch_metrics,
            "companions": {companion.name: companion.state_dict() for companion in self.companions},
            "max_tokens": [self.options.max_tokens, self.first_max_tokens, self.optimizer.max_tokens],
        }

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
        self.layout.load_modules(path)
        restore_adam(self.layout.adam, self.scheduler, self.layout.load_adam(path), state["scheduler"])
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
        self.batch = checkpoints.load_batch(path, "batch", self.layout.device)
        self.feed.go_on_with(checkpoints.load_batch(path, "ahead", self.layout.device))
        self.on_notice(f"resumed after step {self.position.step}")


def _mixed(seed: int, *numbers: int) -> int:
    return random.Random(f"{seed}/{'/'.join(map(str, numbers))}").getrandbits(63)
