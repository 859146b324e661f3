"""The reward `brevity`: responses of about the wanted length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignkit import RewardSource, hookimpl
from alignkit.options import Config, Count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignkit import Group
    from alignkit.hookspecs import Register

ALIGNKIT_INTERFACE = 1


@dataclass(frozen=True, kw_only=True)
class BrevityOptions(Config):
    """Responses of about the wanted length."""

    words: Count = 20
    """Words of the response that scores best, 0; twice as many, or none, score -1."""


class BrevityReward(RewardSource[BrevityOptions]):
    """Minus the distance to the wanted number of words, as a share of it."""

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        return [[self._score_one(response) for response in group.responses] for group in groups]

    def _score_one(self, response: str) -> float:
        return -abs(len(response.split()) / self.config.words - 1)


@hookimpl
def register_reward_sources(register: Register) -> None:
    register("brevity", BrevityReward, config=BrevityOptions)
