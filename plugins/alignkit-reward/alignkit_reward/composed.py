"""Reward sources made of others: `sum` weights several objectives, `ensemble` combines several views of one.

An ensemble lowers the reward where its members disagree, against over-optimisation: Coste et al., arXiv:2310.02743,
eq. 2 (the minimum, their worst-case optimisation) and eq. 3 (the mean less the spread, uncertainty-weighted).

If a source abstains on a response, so does the whole: a sum or spread of the rest would not be comparable. The mean of
each source is logged as `reward/0`, `reward/1`, ...
"""

from __future__ import annotations

from abc import abstractmethod
from statistics import fmean, pstdev, pvariance
from typing import TYPE_CHECKING, Any, TypeVar, cast

from alignkit import RewardSource
from alignkit_reward.options import ComposedOptions, EnsembleOptions, SumOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Context, Group, Scorer

OptionsT = TypeVar("OptionsT", bound=ComposedOptions)


class ComposedReward(RewardSource[OptionsT]):
    """Base: builds the sources and asks all of them."""

    def __init__(self, config: OptionsT, context: Context | None = None) -> None:
        super().__init__(config, context)
        build = self.context.build
        self.sources = [cast("RewardSource[Any]", build("reward", spec)) for spec in config.sources]
        self._figures: dict[str, float] = {}

    @abstractmethod
    def combined(self, parts: Sequence[float]) -> float:
        """The score of a response, from each source's score."""

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        of_sources = [source.score(groups) for source in self.sources]
        rows = [[_known(parts) for parts in zip(*row, strict=True)] for row in zip(*of_sources, strict=True)]
        self._figures = self._figures_of([parts for row in rows for parts in row if parts is not None])
        return [[None if parts is None else self.combined(parts) for parts in row] for row in rows]

    def _figures_of(self, whole: Sequence[Sequence[float]]) -> dict[str, float]:
        """Figures from the responses that every source scored; 0 if there are none."""
        columns = list(zip(*whole, strict=True)) or [(0.0,)] * len(self.sources)
        return {f"reward/{number}": fmean(column) for number, column in enumerate(columns)}

    def figures(self) -> Mapping[str, float]:
        return self._figures

    def worth(self) -> str:
        return "; ".join(filter(None, (source.worth() for source in self.sources)))

    def calibrate(self, groups: Sequence[Group]) -> None:
        for source in self.sources:
            source.calibrate(groups)


class SumReward(ComposedReward[SumOptions]):
    """Weighted sum of reward sources."""

    def __init__(self, config: SumOptions, context: Context | None = None) -> None:
        super().__init__(config, context)
        self._weights = config.weights or (1.0,) * len(config.sources)

    def combined(self, parts: Sequence[float]) -> float:
        return sum(weight * part for weight, part in zip(self._weights, parts, strict=True))

    def start_critic(self) -> Scorer | None:
        """The critic of the first source that has one, scaled by its weight in the sum."""
        for weight, source in zip(self._weights, self.sources, strict=True):
            if weight and (critic := source.start_critic()) is not None:
                if weight != 1:
                    critic.rescale(0.0, 1 / weight)
                return critic
        return None


class EnsembleReward(ComposedReward[EnsembleOptions]):
    """The members' common score, less their disagreement. The mean spread is logged as `reward_spread`."""

    def combined(self, parts: Sequence[float]) -> float:
        if self.config.combine == "minimum":
            return min(parts)
        return fmean(parts) - self.config.spread_coef * self._spread(parts)

    def _spread(self, parts: Sequence[float]) -> float:
        return pvariance(parts) if self.config.spread == "variance" else pstdev(parts)

    def _figures_of(self, whole: Sequence[Sequence[float]]) -> dict[str, float]:
        spreads = [self._spread(parts) for parts in whole] or [0.0]
        return {**super()._figures_of(whole), "reward_spread": fmean(spreads)}

    def start_critic(self) -> Scorer | None:
        """The critic of the first member that has one."""
        return next((critic for source in self.sources if (critic := source.start_critic()) is not None), None)


def _known(parts: Sequence[float | None]) -> list[float] | None:
    """The scores of all sources for a response; None if one of them abstained."""
    known = [part for part in parts if part is not None]
    return known if len(known) == len(parts) else None
