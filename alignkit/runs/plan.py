"""The stages that a recipe needs, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignkit.checking import differing
from alignkit.errors import InputError, closest
from alignkit.interfaces import Algorithm, Feed, ForeignTrainer, HasValues, Optimizer
from alignkit.options import AlarmOptions, Config, PtxOptions
from alignkit.recipe.tables import REWARD_TRAINING
from alignkit.runs.rounds import check_rounds, ranker_text, round_folder, samples_at_the_start
from alignkit.samplers import AheadOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignkit.recipe.resolved import Resolved

ORDER = ("sft", "preferences", "reward", "align", "eval")


@dataclass(frozen=True)
class Stage:
    """A stage of the plan, with a description for people.

    Attributes:
        round: its round, counted from 1; 0 outside rounds.
    """

    name: str
    text: str = ""
    round: int = 0

    @property
    def key(self) -> str:
        """Its key in run.json: its name, in its round's folder."""
        return f"{round_folder(self.round)}/{self.name}" if self.round else self.name


def plan(resolved: Resolved) -> list[Stage]:
    """The stages that the recipe's tables and its algorithm's `consumes` require.

    Raises:
        InputError: a table that the algorithm needs is missing.
    """
    names = resolved.names
    check_rounds(resolved)
    stages: list[Stage] = []
    if "demonstrations" in names:
        stages.append(Stage("sft", f"{names['sft']} on the demonstrations of {names['demonstrations']}"))
    trained = REWARD_TRAINING in resolved
    consumes = consumed_by(resolved) if "optimizer" in names else None
    wanted = "preferences" in names and (consumes is None or "prompts" not in names)
    if trained or consumes in (Feed.RANKINGS, Feed.LABELS) or wanted:
        if samples_at_the_start(resolved) and not trained:
            stages.append(Stage("preferences", ranker_text(resolved)))
        else:
            _need(resolved, "preferences", "an algorithm or reward model that learns from preferences")
            stages.append(Stage("preferences", f"from {names['preferences']}"))
    if trained:
        stages.append(Stage("reward", f"reward model by {resolved.part(REWARD_TRAINING).registration.name}"))
    if consumes is Feed.ROLLOUTS:
        _need(resolved, "reward", f"{names['optimizer']}, which learns from scored rollouts")
        if "prompts" not in names and "preferences" not in names:
            _need(resolved, "prompts", f"{names['optimizer']}, which samples responses to prompts")
        if wants_texts(resolved) and "demonstrations" not in names:
            _need(resolved, "ptx", "optimizer.ptx_coef, unless there is a table [demonstrations]")
    if consumes is Feed.DEMONSTRATIONS:
        raise InputError(
            f"{names['optimizer']} learns from demonstrations",
            where="optimizer.plugin",
            fix="name it in [sft] and add [demonstrations]",
        )
    if consumes is not None:
        stages += _alignment(resolved, consumes)
        stages.append(Stage("eval", "the final policy against the initial one"))
        _check_best_of(resolved)
    _check_algorithms(resolved)
    if not stages:
        raise InputError(
            "nothing to do: the recipe has no [demonstrations], [preferences] or [optimizer] table",
            fix="add one, or use --optimizer and --preferences",
        )
    _check_preferences_are_read(resolved, stages)
    if consumes is Feed.ROLLOUTS:
        resolved.sampling.check_rollouts()
    return stages


def _check_preferences_are_read(resolved: Resolved, stages: Sequence[Stage]) -> None:
    """Refuses preferences given by flag that no stage reads; unused ones in the recipe are fine."""
    if not {"preferences", "prompts"} <= resolved.names.keys() or "preferences" not in resolved.by_flag:
        return
    if all(stage.name != "preferences" for stage in stages):
        raise InputError(
            f"{resolved.names['optimizer']} does not use them: it learns from a reward that needs no training",
            where=f"--preferences {resolved.names['preferences']}",
            fix="train a reward model on them (--reward model -o reward.model=), or use an algorithm that learns"
            " from preferences (--optimizer dpo)",
        )


def _alignment(resolved: Resolved, consumes: Feed) -> list[Stage]:
    """The align stage, or the stages of all rounds."""
    name, rounds = resolved.names["optimizer"], resolved.run.rounds
    if rounds == 1:
        return [Stage("align", f"{name} on {consumes.value}")]
    moved = resolved.run.round_reference == "moved"
    reference = "the start of the round" if moved else "the policy before the first round"
    stages = [Stage("align", f"{name} on {consumes.value}", 1)]
    for number in range(2, rounds + 1):
        stages.append(Stage("preferences", ranker_text(resolved), number))
        stages.append(Stage("align", f"{name} on them, reference: {reference}", number))
    return stages


def _check_best_of(resolved: Resolved) -> None:
    if resolved.eval.best_of > 1 and "reward" not in resolved.names:
        raise InputError(
            "needs a reward to choose the best response", where="eval.best_of", fix="add [reward], or leave it out"
        )


def stages_alone(resolved: Resolved, names: Sequence[str]) -> list[Stage]:
    """The stages of these names; `align` includes all rounds, with the preferences between them.

    Raises:
        InputError: a stage does not exist.
    """
    for name in names:
        if name not in ORDER:
            raise InputError(f"no stage {name!r}", where="stages", fix=closest(name, ORDER))
    if "eval" in names:
        _check_best_of(resolved)
    if "align" not in names or resolved.run.rounds == 1:
        return [Stage(name) for name in ORDER if name in names]
    check_rounds(resolved)
    rounds = _alignment(resolved, consumed_by(resolved))
    return [stage for name in ORDER if name in names for stage in (rounds if name == "align" else [Stage(name)])]


def consumed_by(resolved: Resolved) -> Feed:
    """What the recipe's alignment algorithm learns from."""
    algorithm: type[Algorithm[Any]] = resolved.part("optimizer").registration.load()  # type: ignore[assignment]
    return algorithm.consumes


def wants_texts(resolved: Resolved) -> bool:
    """Whether the alignment algorithm needs texts for ptx."""
    options = resolved.config("optimizer")
    return isinstance(options, PtxOptions) and options.ptx_coef > 0


def _check_algorithms(resolved: Resolved) -> None:
    """Checks that the algorithms can use the policy, and report the figures that their options need."""
    tables = (REWARD_TRAINING, "optimizer", "sft") if "policy" in resolved.names else ()
    for table in [table for table in tables if table in resolved]:
        algorithm, name, policy = resolved.load(table), resolved.part(table).registration.name, resolved.names["policy"]
        if algorithm.needs_values and not issubclass(resolved.load("policy"), HasValues):
            raise InputError(
                f"{name} needs value heads or scorers, which the policy {policy} does not have",
                where=table,
                fix="choose an algorithm without a critic, or another policy",
            )
        own_loop = algorithm.consumes is Feed.ROLLOUTS and issubclass(algorithm, ForeignTrainer)
        if own_loop and resolved.names.get("sampler", "policy") != "policy":
            raise InputError(f"{name} samples in a loop of its own", where="sampler", fix="leave it out")
        check_figures(algorithm, resolved.config(table), name=name, table=table)
        if table == "optimizer" and "sampler" in resolved.names:
            check_ahead(algorithm, resolved.config("sampler"), name=name)


def check_ahead(algorithm: type[Algorithm[Any]], sampler: Config, *, name: str) -> None:
    """Refuses a sampler that works ahead where importance weights can't make up for it."""
    ahead = isinstance(sampler, AheadOptions) and sampler.ahead
    if ahead and not (issubclass(algorithm, Optimizer) and algorithm.weighs_rollouts):
        what = f"{name} can't weigh the rollouts of older weights"
        raise InputError(what, where="sampler.ahead", fix="set it to 0, or choose a policy gradient (ppo, grpo)")


def check_figures(algorithm: type[Algorithm[Any]], options: Config, *, name: str, table: str) -> None:
    """Refuses rules on figures that the algorithm does not report."""
    figures = options.figures if isinstance(options, AlarmOptions) else {}
    for option in differing(options, list(figures)):
        if figures[option] not in algorithm.reports:
            raise InputError(f"{name} reports no {figures[option]}", where=f"{table}.{option}", fix="leave it out")


def _need(resolved: Resolved, table: str, who: str) -> None:
    if table not in resolved.names:
        raise InputError(
            f"no table [{table}], needed by {who}", where=table, fix=f"add [{table}], or -o {table}.plugin=NAME"
        )
