"""The preference sources `reward` and `rules`: the policy's own responses, ranked by a reward source or by rules.

With a temperature the ranking is drawn from Plackett-Luce on score / temperature, by adding Gumbel noise to the scores
and sorting (Yellott 1977, J. Math. Psychol. 15): annotators who agree with the source on average.
"""

from __future__ import annotations

import math
import random
from abc import abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from alignkit import PreferenceSource
from alignkit.preferences import ranked_by_scores
from alignkit_reward.options import LabellerOptions, RankingOptions, RulesLabellerOptions
from alignkit_reward.rules import RulesReward

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from alignkit import Ask, Group, RewardSource


OptionsT = TypeVar("OptionsT", bound=RankingOptions)


class Labeller(PreferenceSource[OptionsT]):
    """Base: ranks fresh responses by a subclass's reward source. The records name `name` as their source."""

    samples = True
    name: ClassVar[str]

    @cached_property
    def _source(self) -> RewardSource[Any]:
        return self.make_source()

    @abstractmethod
    def make_source(self) -> RewardSource[Any]:
        """The reward source that ranks."""

    def preferences(self, ask: Ask) -> Iterator[Group]:
        """One ranked group per prompt, in the prompts' order; drops prompts without two different scores."""
        drawn = [group.without_duplicates() for group in ask(ask.prompts, self.config.k)]
        for group in ranked_by_scores(drawn, self._source.score(drawn), source=self.name):
            yield self._with_noise(group) if self.config.temperature else group

    def figures(self) -> Mapping[str, Any]:
        """`worth`: what the reward source says of its scores."""
        worth = self._source.worth()
        return {"worth": worth} if worth else {}

    def _with_noise(self, group: Group) -> Group:
        draw = random.Random(f"{self.context.seed}/{group.prompt.key}")
        scores = cast("tuple[float, ...]", group.scores)
        noisy = [score + self.config.temperature * _gumbel(draw) for score in scores]
        order = sorted(noisy, reverse=True)
        return replace(group, ranks=tuple(order.index(value) for value in noisy))


class RewardLabeller(Labeller[LabellerOptions]):
    """Ranks fresh responses by any reward source."""

    name = "reward"

    def make_source(self) -> RewardSource[Any]:
        return cast("RewardSource[Any]", self.context.build("reward", self.config.source))


class RulesLabeller(Labeller[RulesLabellerOptions]):
    """Ranks fresh responses by checkable rules."""

    name = "rules"

    def make_source(self) -> RewardSource[Any]:
        return RulesReward(self.config, self.context)

    @classmethod
    def try_records(cls, config: RulesLabellerOptions, records: Iterable[tuple[str, Group]]) -> None:
        RulesReward.try_records(config, records)


def _gumbel(draw: random.Random) -> float:
    return -math.log(-math.log(draw.random() or 0.5))
