"""Trains one algorithm: its feed, its loop, and the figures of each step."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import TYPE_CHECKING, Any

from alignkit.companions import Alarm
from alignkit.errors import InputError
from alignkit.files import telling_when_full
from alignkit.interfaces import Algorithm, Feed, ForeignTrainer, Optimizer
from alignkit.ops.digests import digest_of_tensors
from alignkit.ops.distributed import process_index
from alignkit.records import Group, Prompt
from alignkit.training.engine import train
from alignkit.training.feeds import BatchFeed, OfflineFeed, RolloutFeed, planned_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from alignkit.options import Sampling
    from alignkit.outputs import TrainResult
    from alignkit.runs.history import History
    from alignkit.runs.reporting import Reporter
    from alignkit.samplers import Sampler


def train_algorithm(
    algorithm: Algorithm[Any],
    data: Sequence[Group] | Sequence[Prompt],
    *,
    name: str,
    folder: Path,
    sampling: Sampling,
    seed: int,
    reporter: Reporter,
    write: Callable[[Mapping[str, Any]], None],
    fingerprint: str,
    history: History,
    texts: Sequence[Group] = (),
    sampler: Sampler[Any] | None = None,
    resume: bool = False,
    force: bool = False,
    resumable: bool = True,
    shard: bool = False,
) -> TrainResult:
    """Trains an algorithm's modules in place, with the engine's loop or its own.

    Args:
        data: prompts for algorithms on rollouts, groups for all others.
        name: label of its steps in reports.
        folder: for checkpoints.
        write: receives, in the first process only, the figures of each step, and records of `alarm`s with their
            `text`, of the `planned` steps, and of some `samples` that the step of a record starts to learn from.
        fingerprint: of everything except the data; a checkpoint with another one is refused unless `force` is set.
        history: of the policy so far; the folder gets it, with the data, at the first step.
        texts: for ptx.
        sampler: makes the rollouts; None: the policy itself.
        resumable: whether to write checkpoints.
        shard: whether several processes split the weights.

    Raises:
        InputError: the records don't fit the algorithm.
        StoppedByCheck, Interrupted, CheckpointError: as `alignkit.training.engine.train`.
    """
    groups = [Group(item, ("",)) if isinstance(item, Prompt) else item for item in data]
    _check(algorithm, groups, shard=shard)
    feed = _feed(algorithm, data, sampling, seed, sampler)
    first = [{"planned": planned_steps(feed, algorithm.config)}]
    reporter.start(name, first[0]["planned"])
    remember = cache(history.and_of([*groups, *texts]).write)

    def on_step(record: dict[str, float]) -> None:
        if process_index() == 0:
            remember(folder)
            if event := {**(first.pop() if first else {}), **_new_samples(feed)}:
                write({"step": record["step"], **event})
            write(record)
            reporter.step(record)

    def on_notice(text: str) -> None:
        alarm = text if isinstance(text, Alarm) else None
        if alarm and process_index() == 0:
            write({**alarm.record, "text": text})
        if not (alarm and alarm.stops):  # else the error says it
            reporter.note(f"alarm: {text}" if alarm else text)

    if isinstance(algorithm, ForeignTrainer):
        return algorithm.run(groups, sampling=sampling, folder=folder, seed=seed, on_step=on_step)
    assert isinstance(algorithm, Optimizer)
    whole = f"{fingerprint}/{digest_of([*groups, *texts])}/{digest_of_models(algorithm, groups)}" if resumable else ""
    return train(
        algorithm,
        feed,
        folder=folder,
        seed=seed,
        on_step=on_step,
        on_notice=on_notice,
        resume=resume,
        force=force,
        resumable=resumable,
        shard=shard,
        fingerprint=whole,
        texts=texts,
    )


def save_trained(algorithm: Algorithm[Any], path: Path) -> None:
    """Writes the trained model.

    Raises:
        AlignkitError: the disk is full.
    """

    def needed() -> int:
        parameters = [p for module in algorithm.policy.modules().values() for p in module.parameters()]
        return sum(parameter.numel() * parameter.element_size() for parameter in parameters)

    with telling_when_full(path, "the model", needed):
        algorithm.save(path)


def _check(algorithm: Algorithm[Any], groups: Sequence[Group], *, shard: bool) -> None:
    if shard and isinstance(algorithm, ForeignTrainer):
        what = f"{type(algorithm).__name__} has a loop of its own, which splits no weights"
        raise InputError(what, where="run.shard", fix='set run.shard = "none"')
    if algorithm.consumes is not Feed.RANKINGS:
        return
    without = [number for number, group in enumerate(groups, start=1) if group.ranks is None]
    if without:
        raise InputError(
            f"{len(without)} of {len(groups)} records have no ranks; the first of them is number {without[0]}",
            where="the training data",
            fix=f"give {type(algorithm).__name__} rankings or pairs; see docs/reference/data.md",
        )
    if groups and not any(group.weight for group in groups):
        raise InputError(
            f"all {len(groups)} records have weight 0", where="the training data", fix="give some of them a weight"
        )


def _feed(
    algorithm: Algorithm[Any], data: Sequence[Any], sampling: Sampling, seed: int, sampler: Sampler[Any] | None
) -> BatchFeed:
    if algorithm.consumes is not Feed.ROLLOUTS:
        return OfflineFeed(data, algorithm.policy)
    assert algorithm.reward is not None
    options = algorithm.config
    return RolloutFeed(
        data, algorithm.policy, algorithm.reward, sampling=sampling, options=options, seed=seed, sampler=sampler
    )


def _new_samples(feed: BatchFeed) -> dict[str, Any]:
    """The examples of the feed's last batch, each once."""
    examples, feed.examples = feed.examples, ()
    return {"samples": [group.to_json() for group in examples]} if examples else {}


def digest_of_models(algorithm: Optimizer[Any], groups: Sequence[Group]) -> str:
    """Digest of what a checkpoint does not hold: frozen weights, and how the policy makes tokens of texts."""
    modules = [*algorithm.modules().items(), *(algorithm.reference.modules().items() if algorithm.reference else ())]
    frozen = {
        f"{place} {name}.{key}": parameter
        for place, (name, module) in enumerate(modules)
        for key, parameter in module.named_parameters()
        if not parameter.requires_grad
    }
    encoded = algorithm.policy.encode(groups[:8])
    return digest_of_tensors({**frozen, "prompts": encoded.prompt_ids, "responses": encoded.response_ids})[:16]


def digest_of(groups: Sequence[Group]) -> str:
    """Digest of the records, so that a run never resumes on other data."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(json.dumps(group.to_json(), sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
