"""Rounds of sampling, ranking and training, for algorithms that learn from preferences.

This is iterative or online DPO (arXiv:2312.11456, arXiv:2312.16682), for every such algorithm. A round is two stages
that pass files, so that each can be resumed: preferences from the current policy, then alignment. The reference stays
the policy before the first round, so that all rounds share one optimum, or moves along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkit.errors import InputError
from alignkit.interfaces import Ask, Feed, ForeignTrainer, Optimizer, PreferenceSource, RewardSource
from alignkit.options import Config
from alignkit.plugins import build
from alignkit.preferences.rank_fit import ranked_by_scores
from alignkit.training.scores import checked_scores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignkit.components import Context
    from alignkit.recipe.resolved import Resolved
    from alignkit.records import Group


def round_folder(number: int) -> str:
    """The folder of a round, counted from 1, in the run directory."""
    return f"rounds/{number}"


def round_seed(seed: int, number: int) -> int:
    """The seed for sampling and ranking in a round; unique in the run."""
    return seed if number < 2 else seed * 1_000_003 + 500_000 + number


def samples_at_the_start(resolved: Resolved) -> bool:
    """Whether the first round ranks fresh samples too: there are rounds and a reward, but no preferences."""
    names = resolved.names
    return resolved.run.rounds > 1 and "preferences" not in names and {"reward", "prompts"} <= names.keys()


def check_rounds(resolved: Resolved) -> None:
    """Checks, before any model loads, that the recipe allows rounds.

    Raises:
        InputError: its algorithm or its tables do not.
    """
    if resolved.run.rounds == 1:
        return
    if "optimizer" not in resolved.names:
        raise InputError("rounds need an algorithm", where="run.rounds", fix="add [optimizer]")
    name, algorithm = resolved.names["optimizer"], resolved.load("optimizer")
    if algorithm.consumes is Feed.ROLLOUTS:
        raise InputError(
            f"{name} samples in each of its own iterations, so it has no rounds",
            where="run.rounds",
            fix="set optimizer.iterations instead, or choose an algorithm that learns from preferences",
        )
    if issubclass(algorithm, ForeignTrainer) and resolved.run.round_reference == "kept":
        raise InputError(
            f"{name} makes its own reference from the policy it gets",
            where="run.round_reference",
            fix='set it to "moved"',
        )
    samples = "preferences" in resolved.names and resolved.load("preferences").samples
    if not samples and "reward" not in resolved.names:
        raise InputError(
            "later rounds need something to rank the policy's responses",
            where="run.rounds",
            fix="add [reward], or a [preferences] plugin that samples and ranks",
        )


def ranker_text(resolved: Resolved) -> str:
    """How fresh samples are ranked, for people."""
    if "reward" in resolved.names:
        return f"{resolved.run.round_samples} responses per prompt, ranked by the reward {resolved.names['reward']}"
    return f"from {resolved.names['preferences']}"


class RankedByReward(PreferenceSource[Config]):
    """Fresh responses, ranked by a reward source; prompts without two different scores are dropped."""

    samples = True

    def __init__(self, reward: RewardSource[Any], count: int) -> None:
        super().__init__()
        self._reward, self._count = reward, count

    def preferences(self, ask: Ask) -> Iterator[Group]:
        drawn = [group.without_duplicates() for group in ask(ask.prompts, self._count)]
        return iter(ranked_by_scores(drawn, checked_scores(self._reward, drawn), source="reward"))


def ranker(resolved: Resolved, reward: RewardSource[Any] | None, context: Context) -> PreferenceSource[Any]:
    """The source that samples and ranks: the run's reward if any, else its [preferences]."""
    if reward is not None:
        return RankedByReward(reward, resolved.run.round_samples)
    source: PreferenceSource[Any] = build(resolved.part("preferences"), context)
    return source


def keep_reference(optimizer: Optimizer[Any], start: Any) -> None:
    """Replaces an algorithm's reference, if it has one, by the policy that `start()` loads, frozen."""
    if optimizer.reference is not None:
        optimizer.reference = None
        optimizer.reference = start().reference()
