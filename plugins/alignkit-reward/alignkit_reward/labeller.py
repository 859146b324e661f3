"""The preference source `reward`: responses of the policy itself, ranked by a reward source.

With a temperature the ranking is a draw from Plackett-Luce on score / temperature, made by adding Gumbel noise to the
scores and sorting (Yellott 1977, J. Math. Psychol. 15): what annotators do who agree with the source on average.
"""

from __future__ import annotations

import logging
import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from alignkit.interfaces import PreferenceSource
from alignkit_reward.options import LabellerOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignkit.interfaces import Context, RewardSource, Sampler
    from alignkit.options import Config
    from alignkit.records import Group

logger = logging.getLogger(__name__)


class RewardLabeller(PreferenceSource[LabellerOptions]):
    """Ranks fresh responses by a reward source."""

    Config: ClassVar[type[Config]] = LabellerOptions
    samples = True

    def __init__(self, config: LabellerOptions, context: Context | None = None) -> None:
        super().__init__(config, context)
        self._source = cast("RewardSource[Any]", self.context.build("reward", config.source))

    def preferences(self, sampler: Sampler) -> Iterator[Group]:
        """One ranked group a prompt, in the prompts' order; prompts without two different scores are left out."""
        drawn = [group.without_duplicates() for group in sampler(sampler.prompts, self.config.k)]
        left_out = 0
        for group, scores in zip(drawn, self._source.score(drawn), strict=True):
            known = [score for score in scores if score is not None]
            if len(set(known)) < 2:
                left_out += 1
                continue
            ranked = replace(group, scores=tuple(scores), source="reward").ranked_by_scores()
            yield self._with_noise(ranked) if self.config.temperature else ranked
        if left_out:
            logger.warning("%d of %d prompts left out: all their responses score the same", left_out, len(drawn))

    def _with_noise(self, group: Group) -> Group:
        draw = random.Random(f"{self.context.seed}/{group.prompt.key}")
        scores = cast("tuple[float, ...]", group.scores)
        noisy = [score + self.config.temperature * _gumbel(draw) for score in scores]
        order = sorted(noisy, reverse=True)
        return replace(group, ranks=tuple(order.index(value) for value in noisy))


def _gumbel(draw: random.Random) -> float:
    return -math.log(-math.log(draw.random() or 0.5))
