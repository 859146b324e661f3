"""For authors of plugins: contract tests to inherit from, and a tiny policy, scorer and reward to run them with.

class TestMine(RewardSourceContract):
    component = Mine
"""

from __future__ import annotations

from alignkit.testing.tiny import TinyOptions, TinyPolicy, TinyReward, TinyRewardOptions, TinyScorer

__all__ = ["TinyOptions", "TinyPolicy", "TinyReward", "TinyRewardOptions", "TinyScorer"]
