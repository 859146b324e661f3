"""The reward `brevity`: responses of about the wanted length."""

from collections.abc import Sequence
from dataclasses import dataclass

from alignkit import Config, Count, Group, Register, RewardSource, hookimpl


@dataclass(frozen=True, kw_only=True)
class BrevityOptions(Config):
    """Responses of about the wanted length."""

    words: Count = 20
    """Words of the response that scores best, 0; twice as many, or none, score -1."""


class BrevityReward(RewardSource[BrevityOptions]):
    """Minus the distance to the wanted number of words, as a share of it."""

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        return [[-abs(len(text.split()) / self.config.words - 1) for text in group.responses] for group in groups]


@hookimpl
def register_reward_sources(register: Register) -> None:
    register("brevity", BrevityReward)
