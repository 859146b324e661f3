"""The Python API: `run` for a recipe, `train` for an algorithm built by hand."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import InputError, Interrupted
from alignkit.interfaces import Algorithm, Feed
from alignkit.options import PtxOptions, Sampling
from alignkit.recipe.reading import checked
from alignkit.recipe.recipe import recipe_of
from alignkit.recipe.resolved import Resolved, digest_of_training
from alignkit.records import Group, Prompt
from alignkit.runs.reporting import Reporter, make_reporter
from alignkit.runs.results import Run

if TYPE_CHECKING:
    from alignkit.outputs import TrainResult
    from alignkit.samplers import Sampler

    Name = str | Callable[..., Any]


def run(
    recipe: Path | str | Mapping[str, Any] | None = None,
    *,
    policy: str = "",
    sampler: str = "",
    preferences: Name = "",
    reward: Name = "",
    optimizer: str = "",
    options: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    stages: Sequence[str] | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    progress: bool = True,
) -> Run:
    """Runs the stages that a recipe needs, like the command `alignkit run`.

    Args:
        recipe: a TOML file, or its tables: `{"policy": {"model": "..."}, ...}`.
        policy, sampler, optimizer: the plugins of these tables.
        preferences, reward: the same, or a function like those named as `module:function`.
        options: any option by its dotted key, `{"optimizer.beta": 0.3}`; they override the recipe.
        out: the run directory. [default: runs/ and the recipe's name]
        stages: run exactly these, or this one, on what earlier ones left in `out`.
        resume: continue an earlier run in `out`.
        overwrite: replace an earlier run in `out`.
        force: resume although the recipe has changed.
        progress: show a bar in a terminal or a notebook, else a line now and then.

    Raises:
        InputError: the recipe is wrong, or `out` is in use; nothing has started.
        StoppedByCheck: the loss or gradient is not finite, or an alarm stops the run.
        Interrupted: SIGINT or SIGTERM during training, after a checkpoint.
        PluginError: a plugin failed; the message names it.
    """
    with closing(make_reporter(quiet=not progress)) as reporter:
        source = _source(recipe)
        flags = {"policy": policy, "sampler": sampler, "preferences": preferences, "reward": reward}
        flags["optimizer"] = optimizer
        resolved = checked(recipe_of(source, flags=flags, options=_options(options)), reporter.note)
        folder = default_folder(source) if out is None else Path(out).expanduser()
        switches = {"resume": resume, "overwrite": overwrite, "force": force}
        chosen = [stages] if isinstance(stages, str) else stages
        return run_resolved(resolved, folder, stages=chosen, reporter=reporter, **switches)


def run_resolved(
    resolved: Resolved, out: Path, *, stages: Sequence[str] | None, reporter: Reporter, **switches: bool
) -> Run:
    """Runs a checked recipe, for `run` and the command line.

    Args:
        switches: resume, overwrite, force.
    """
    from alignkit.runs.run import run_recipe

    return Run(out, resolved=resolved, stages=run_recipe(resolved, out, stages=stages, reporter=reporter, **switches))


def default_folder(recipe: object) -> Path:
    """The default run directory of a recipe."""
    return Path("runs") / (recipe.stem if isinstance(recipe, Path) else "run")


def _source(recipe: object) -> Path | Mapping[str, Any] | None:
    if recipe is None or isinstance(recipe, Mapping):
        return recipe
    if isinstance(recipe, str | os.PathLike):
        return Path(recipe).expanduser()
    raise InputError(
        f"{type(recipe).__name__} is not a recipe", where="recipe", fix="give the path of a TOML file, or its tables"
    )


def _options(options: object) -> Mapping[str, Any]:
    if options is None or isinstance(options, Mapping):
        return options or {}
    raise InputError(
        f"{type(options).__name__} is not a mapping", where="options", fix='write options={"optimizer.kl_coef": 0.05}'
    )


def train(
    optimizer: Algorithm[Any],
    data: Iterable[Group] | Iterable[Prompt],
    *,
    sampling: Sampling | None = None,
    out: Path | str | None = None,
    seed: int = 0,
    texts: Iterable[Group] = (),
    sampler: Sampler[Any] | None = None,
    progress: bool = True,
    resume: bool = False,
) -> TrainResult:
    """Trains an algorithm's policy, in place: `train(PPO(PPOOptions(...), policy=policy, reward=reward), prompts)`.

    Args:
        optimizer: an algorithm, made from its class or by `build_component`.
        data: what it `consumes`: prompts for rollouts, else groups.
        sampling: how rollouts are sampled.
        out: folder for checkpoints, metrics.jsonl and the trained model. Without it nothing stays on disk.
        seed: of the data's order and of sampling.
        texts: for `ptx_coef`.
        sampler: makes the rollouts, by default the policy itself; you close it.
        progress: as in `run`.
        resume: continue from the newest checkpoint in `out`.

    Raises:
        InputError: the data, options or `out` don't fit; nothing has started.
        StoppedByCheck, Interrupted: as in `run`. Without `out` the weights stay as they are at that moment.
    """
    _check_algorithm(optimizer, sampler)
    given, kept = _data(optimizer, data), _records(texts, Group, "texts")
    _check_use(optimizer, {"sampling": sampling, "sampler": sampler}, kept)
    folder = None if out is None else Path(out).expanduser()
    _check_folder(folder, resume=resume)

    from alignkit.ops.distributed import start_processes
    from alignkit.runs.algorithm import save_trained, train_algorithm
    from alignkit.runs.history import history_of
    from alignkit.runs.rundir import MetricsFile
    from alignkit.training.processes import in_first

    start_processes()
    sampling = sampling or Sampling()
    configs = [part.config for part in (optimizer.policy, optimizer.reward) if part is not None]
    place = tempfile.TemporaryDirectory(prefix="alignkit-") if folder is None else nullcontext(str(folder))
    name = type(optimizer).__name__
    with closing(make_reporter(quiet=not progress)) as reporter, place as path:
        Path(path).mkdir(parents=True, exist_ok=True)
        metrics = MetricsFile(Path(path) / "metrics.jsonl")
        try:
            result = train_algorithm(
                optimizer,
                given,
                name=name,
                folder=Path(path),
                sampling=sampling,
                seed=seed,
                reporter=reporter,
                write=lambda record: metrics.write("train", record),
                fingerprint=digest_of_training(optimizer.config, *configs, sampling, name=name, seed=seed),
                history=history_of(*configs),
                texts=kept,
                sampler=sampler,
                resume=resume,
                resumable=folder is not None,
            )
        except Interrupted as error:
            if folder is not None:
                raise
            number = signal.Signals(error.exit_code - 128)
            said = f"stopped by {number.name}; the weights are from the last step, no checkpoint is kept"
            raise Interrupted(number, said) from None
        if folder is not None:
            in_first(lambda: save_trained(optimizer, folder))
        reporter.finish({"steps": result.steps})
    return result


def _check_algorithm(optimizer: object, sampler: Sampler[Any] | None) -> None:
    from alignkit.runs.plan import check_ahead, check_figures

    if not isinstance(optimizer, Algorithm):
        made = optimizer.__name__ if isinstance(optimizer, type) else repr(optimizer)
        raise InputError(
            f"{made} is not an algorithm with a policy",
            where="optimizer",
            fix="make one: PPO(PPOOptions(...), policy=policy, reward=reward); alignkit.run takes names",
        )
    name = type(optimizer).__name__
    if optimizer.consumes is Feed.ROLLOUTS and optimizer.reward is None:
        raise InputError(f"{name} needs a reward to score rollouts", where="reward", fix=f"{name}(..., reward=reward)")
    check_figures(type(optimizer), optimizer.config, name=name, table="optimizer")
    if sampler is not None:
        check_ahead(type(optimizer), sampler.config, name=name)


def _data(optimizer: Algorithm[Any], data: object) -> list[Any]:
    """The records, checked to be what the algorithm learns from."""
    wanted = Prompt if optimizer.consumes is Feed.ROLLOUTS else Group
    records = _records(data, wanted, "data", f": {type(optimizer).__name__} learns from {optimizer.consumes.value}")
    if not records:
        raise InputError(f"no {wanted.__name__.lower()}s", where="data", fix="give at least one")
    return records


def _records(data: object, wanted: type[Any], where: str, why: str = "") -> list[Any]:
    if not isinstance(data, Iterable) or isinstance(data, str | Mapping):
        raise InputError(
            f"{type(data).__name__} is not a list of {wanted.__name__}s{why}", where=where, fix=_FIXES[wanted]
        )
    records = list(data)
    for number, record in enumerate(records):
        if not isinstance(record, wanted):
            found = f"number {number} is a {type(record).__name__}, not a {wanted.__name__}"
            raise InputError(f"{found}{why}", where=where, fix=_FIXES[wanted])
    return records


_FIXES = {
    Prompt: "make one with Prompt.of(text or messages), or take [group.prompt for group in groups]",
    Group: 'use read_groups(path), or make one: Group(Prompt.of("Hi"), ("Hello!", "What?"), ranks=(0, 1))',
}


def _check_use(optimizer: Algorithm[Any], for_rollouts: Mapping[str, object], texts: Sequence[Group]) -> None:
    """Refuses arguments that the algorithm would ignore."""
    name, options = type(optimizer).__name__, optimizer.config
    for argument, given in for_rollouts.items():
        if given is not None and optimizer.consumes is not Feed.ROLLOUTS:
            raise InputError(f"{name} samples nothing during training", where=argument, fix="leave it out")
    if texts and not (isinstance(options, PtxOptions) and options.ptx_coef):
        raise InputError(
            "have no effect without ptx_coef above 0",
            where="texts",
            fix="set ptx_coef (if the algorithm has it), or leave texts out",
        )


def _check_folder(folder: Path | None, *, resume: bool) -> None:
    if resume and folder is None:
        raise InputError("needs out, the folder with the checkpoints", where="resume", fix="set out, or remove resume")
    if folder is not None and folder.is_dir() and any(folder.iterdir()) and not resume:
        raise InputError("this folder is not empty", where=str(folder), fix="set resume=True, or choose another out")
