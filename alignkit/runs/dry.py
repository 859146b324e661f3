"""What a run would do and the memory that it would take, without loading weights or data.

A process holds the weights and AdamW's state of all models all the time. Beside them, training adds gradients and the
activations of the models that the loss asks in one pass, and sampling adds keys and values; the peak is the larger of
the two. Several processes by DDP hold the same each, and a second copy of the gradients to exchange them; before the
training the first one sends its weights, two buckets of them at a time. By FSDP2 each holds an equal share of weights,
gradients and AdamW's state, and the parts that are gathered at the moment: two of each model under training, and the
whole policy to sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from alignkit.errors import InputError
from alignkit.footprint import Footprint, Held, Load
from alignkit.interfaces import SCORING_TOKENS, Feed
from alignkit.options import IterationOptions, LoopOptions
from alignkit.recipe.tables import REWARD_TRAINING
from alignkit.runs.plan import plan, stages_alone
from alignkit.training.memory import HIGHEST, LOWEST, USABLE, free_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit.recipe.resolved import Resolved

TRAINING = {"sft": "sft", "reward": REWARD_TRAINING, "align": "optimizer"}
"""Stage -> the table of its algorithm."""
PROCESSES = (2, 4, 8, 16)
RESPONSES = {Feed.DEMONSTRATIONS: 1, Feed.RANKINGS: 2, Feed.LABELS: 1}
BUCKET = 250 * 2**20
"""Bytes of weights that DDP sends in one message."""
BYTES = ("weights", "gradients", "adam", "activations", "cache")


def dry_run(
    resolved: Resolved, stages: Sequence[str] | None = None, *, device: str = "", processes: Sequence[int] = PROCESSES
) -> dict[str, Any]:
    """The plan, and for each stage that trains the memory of its models. Sizes are in bytes.

    Args:
        device: its type; empty: that of this run on this machine.
        processes: numbers of them to split the work over.

    Raises:
        InputError: there is no estimate for such a device.
    """
    if device not in ("", *HIGHEST):
        raise InputError("has no estimate", where=f"--on {device}", fix=f"choose one of: {', '.join(HIGHEST)}")
    chosen = plan(resolved) if stages is None else stages_alone(resolved, stages)
    names = [stage.name for stage in chosen]
    found = [name for name in TRAINING if name in names and TRAINING[name] in resolved]
    memory = {name: _stage(resolved, TRAINING[name], device or _device(resolved), processes) for name in found}
    return {"plan": {stage.key: stage.text for stage in chosen}, "memory": memory}


def _device(resolved: Resolved) -> str:
    asked = resolved.run.device.partition(":")[0]
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _stage(resolved: Resolved, table: str, device: str, processes: Sequence[int]) -> dict[str, Any]:
    algorithm, options = resolved.load(table), resolved.config(table)
    held = [*algorithm.holds(options)]
    if algorithm.consumes is Feed.ROLLOUTS:
        held.append(Held(name="reward", scores=True, of_reward=True))
    load, models = _load(algorithm.consumes, resolved, options, device), {}
    auto = isinstance(options, LoopOptions) and options.max_tokens == "auto"
    while True:
        models = {one.name: _footprint(resolved, one, load) for one in held}
        free = free_bytes(torch.device(device)) if auto and device == _device(resolved) else None
        if free is None or load.max_tokens <= LOWEST or _peak(models) <= USABLE * free:
            break
        load = Load(**{**vars(load), "max_tokens": load.max_tokens // 2})
    unknown = [name for name, one in models.items() if one is None or one.activations is None]
    layouts = {layout: {str(count): _peak(models, layout, count) for count in processes} for layout in ("ddp", "fsdp2")}
    return {
        "assumed": vars(load),
        "models": {name: vars(one) for name, one in models.items() if one is not None},
        "unknown": unknown,
        "peak": _peak(models),
        "peak_per_process": layouts,
    }


def _load(feed: Feed, resolved: Resolved, options: Any, device: str) -> Load:
    length = resolved.sampling.max_tokens
    asked = options.max_tokens if isinstance(options, LoopOptions) else SCORING_TOKENS
    responses, rows = RESPONSES.get(feed, 1), 0
    if feed is Feed.ROLLOUTS and isinstance(options, IterationOptions):
        responses = options.group_size
        rows = options.group_size * options.batch_size if resolved.names.get("sampler", "policy") == "policy" else 0
    return Load(
        device=device,
        max_tokens=HIGHEST.get(device, HIGHEST["cpu"]) if asked == "auto" else asked,
        prompt=length,
        response=length,
        responses=responses,
        rows=rows,
        adam=getattr(options, "adam", "torch"),
    )


def _footprint(resolved: Resolved, held: Held, load: Load) -> Footprint | None:
    table = "reward" if held.of_reward and REWARD_TRAINING not in resolved else "policy"
    found: Footprint | None = resolved.load(table).footprint(resolved.config(table), held, load)
    return found


def _peak(models: Mapping[str, Footprint | None], layout: str = "ddp", processes: int = 1) -> int:
    """The largest number of bytes in one process; models whose size is not known count as nothing."""
    known = [one for one in models.values() if one is not None]
    total = {name: sum(getattr(one, name) or 0 for one in known) for name in BYTES}
    kept, gradients = total["weights"] + total["adam"], total["gradients"]
    training, sampling, starting = gradients + total["activations"], total["cache"], 0
    if layout == "ddp" and processes > 1:
        training += gradients
        starting = total["weights"] + min(2 * BUCKET, sum(one.weights for one in known if one.trained))
    if layout == "fsdp2":
        whole = sum(one.weights for one in known if one.cache)
        training += 2 * sum(one.largest for one in known if one.trained) - sum(one.casts for one in known)
        training += gradients // processes - gradients
        kept, sampling = kept // processes, sampling + whole
    return max(starting, kept + max(training, sampling))


def told(found: Mapping[str, Any]) -> dict[str, Any]:
    """The result of `dry_run` for people."""
    stages = {}
    for name, stage in found["memory"].items():
        load = Load(**stage["assumed"])
        stages[f"{name} on {load.device}"] = {
            **{model: _line(Footprint(**one)) for model, one in stage["models"].items()},
            **dict.fromkeys(stage["unknown"], "not known, counts as nothing"),
            "micro-batches": f"{load.max_tokens} tokens; assumed: {load.responses} responses of {load.response} tokens"
            f" to a prompt of {load.prompt}",
            "peak": size_text(stage["peak"]),
            **{
                f"per process, {layout}": ", ".join(f"{count}: {size_text(peak)}" for count, peak in peaks.items())
                for layout, peaks in stage["peak_per_process"].items()
            },
        }
    return {"plan": found["plan"], **stages}


def _line(one: Footprint) -> str:
    parts = [f"{name} {size_text(size)}" for name in BYTES if (size := getattr(one, name))]
    trained = f", {one.trained / 1e6:,.1f}M trained" if one.trained else ""
    return f"{one.parameters / 1e6:,.1f}M parameters{trained}: {', '.join(parts)}"


def size_text(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
