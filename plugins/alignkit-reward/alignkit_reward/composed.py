"""The reward source `sum`: a weighted sum of other sources.

Where one of them abstains from a response, so does the sum: a partial sum could not be compared with a whole one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from alignkit.interfaces import RewardSource
from alignkit_reward.options import SumOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignkit.interfaces import Context, Scorer
    from alignkit.options import Config
    from alignkit.records import Group


class SumReward(RewardSource[SumOptions]):
    """Weighted sum of reward sources."""

    Config: ClassVar[type[Config]] = SumOptions

    def __init__(self, config: SumOptions, context: Context | None = None) -> None:
        super().__init__(config, context)
        build = self.context.build
        self._sources = [cast("RewardSource[Any]", build("reward", spec)) for spec in config.sources]
        self._weights = config.weights or (1.0,) * len(config.sources)

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        of_sources = [source.score(groups) for source in self._sources]
        return [[self._total(parts) for parts in zip(*rows, strict=True)] for rows in zip(*of_sources, strict=True)]

    def _total(self, parts: Sequence[float | None]) -> float | None:
        known = [weight * part for weight, part in zip(self._weights, parts, strict=True) if part is not None]
        return sum(known) if len(known) == len(parts) else None

    def calibrate(self, groups: Sequence[Group]) -> None:
        for source in self._sources:
            source.calibrate(groups)

    def start_critic(self) -> Scorer | None:
        """The critic of the first source that has one."""
        return next((critic for source in self._sources if (critic := source.start_critic()) is not None), None)
