from alignkit_brevity import BrevityOptions, BrevityReward

from alignkit import Group, Prompt
from alignkit.testing import RewardSourceContract


class TestBrevity(RewardSourceContract):
    component = BrevityReward


def test_the_wanted_length_scores_best() -> None:
    reward = BrevityReward(BrevityOptions(words=4))
    group = Group(Prompt.of("Say hello."), ("good day to you", "good day", "a very good day to you and all", ""))
    assert reward.score([group]) == [[0.0, -0.5, -1.0, -1.0]]
