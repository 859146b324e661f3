"""A whole plugin: the reward `brevity`."""

from dataclasses import dataclass

from alignkit import Config, RewardSource, hookimpl


@dataclass(frozen=True, kw_only=True)
class BrevityOptions(Config):
    words: int = 20
    """Words of the response that scores best."""


class Brevity(RewardSource[BrevityOptions]):
    def score(self, groups):
        return [[-abs(len(text.split()) / self.config.words - 1) for text in group.responses] for group in groups]


@hookimpl
def register_reward_sources(register):
    register("brevity", Brevity)
