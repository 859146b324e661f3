"""The preference sources `reward` and `rules`: responses of the policy itself, ranked by a reward source, or by rules.

With a temperature the ranking is a draw from Plackett-Luce on score / temperature, made by adding Gumbel noise to the
scores and sorting (Yellott 1977, J. Math. Psychol. 15): what annotators do who agree with the source on average.
"""

from __future__ import annotations

import logging
import math
import random
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from alignkit.interfaces import PreferenceSource
from alignkit_reward.options import LabellerOptions, RankingOptions, RulesLabellerOptions
from alignkit_reward.rules import RulesReward

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignkit.interfaces import Context, RewardSource, Sampler
    from alignkit.options import Config
    from alignkit.records import Group

logger = logging.getLogger(__name__)


OptionsT = TypeVar("OptionsT", bound=RankingOptions)


class Labeller(PreferenceSource[OptionsT]):
    """Base: ranks fresh responses by the reward source that a subclass makes. `name` is what the records say."""

    samples = True
    name: ClassVar[str]

    def __init__(self, config: OptionsT, context: Context | None = None) -> None:
        super().__init__(config, context)
        self._source = self.make_source()

    @abstractmethod
    def make_source(self) -> RewardSource[Any]:
        """The reward source that ranks."""

    def preferences(self, sampler: Sampler) -> Iterator[Group]:
        """One ranked group a prompt, in the prompts' order; prompts without two different scores are left out."""
        drawn = [group.without_duplicates() for group in sampler(sampler.prompts, self.config.k)]
        left_out = 0
        for group, scores in zip(drawn, self._source.score(drawn), strict=True):
            known = [score for score in scores if score is not None]
            if len(set(known)) < 2:
                left_out += 1
                continue
            ranked = replace(group, scores=tuple(scores), source=self.name).ranked_by_scores()
            yield self._with_noise(ranked) if self.config.temperature else ranked
        if left_out:
            logger.warning("%d of %d prompts left out: all their responses score the same", left_out, len(drawn))

    def _with_noise(self, group: Group) -> Group:
        draw = random.Random(f"{self.context.seed}/{group.prompt.key}")
        scores = cast("tuple[float, ...]", group.scores)
        noisy = [score + self.config.temperature * _gumbel(draw) for score in scores]
        order = sorted(noisy, reverse=True)
        return replace(group, ranks=tuple(order.index(value) for value in noisy))


class RewardLabeller(Labeller[LabellerOptions]):
    """Ranks fresh responses by any reward source."""

    Config: ClassVar[type[Config]] = LabellerOptions
    name = "reward"

    def make_source(self) -> RewardSource[Any]:
        return cast("RewardSource[Any]", self.context.build("reward", self.config.source))


class RulesLabeller(Labeller[RulesLabellerOptions]):
    """Ranks fresh responses by checkable rules."""

    Config: ClassVar[type[Config]] = RulesLabellerOptions
    name = "rules"

    def make_source(self) -> RewardSource[Any]:
        return RulesReward(self.config, self.context)


def _gumbel(draw: random.Random) -> float:
    return -math.log(-math.log(draw.random() or 0.5))
