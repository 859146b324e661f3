"""TRL's RewardTrainer on the policy's scorer, saved like every trained reward model."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from alignkit_reward.stored import StoredReward, policy_name

from alignkit import Feed
from alignkit_trl.offline import OfflineTrainer
from alignkit_trl.options import TRLRewardOptions

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit_hf.modeling import PackedModel

    from alignkit import Context, Group, Policy, RewardSource


class TRLReward(OfflineTrainer[TRLRewardOptions]):
    """A Bradley-Terry reward model."""

    consumes = Feed.RANKINGS
    trainer = "RewardTrainer"

    def __init__(
        self,
        config: TRLRewardOptions | None = None,
        context: Context | None = None,
        *,
        policy: Policy[Any],
        reward: RewardSource[Any] | None = None,
    ) -> None:
        super().__init__(config, context, policy=policy, reward=reward)
        self.scorer = self.hf.scorer()

    @property
    def packed(self) -> PackedModel:
        return self.scorer.raw

    def rows(self, group: Group, prompt: list[int], responses: list[list[int]]) -> list[dict[str, Any]]:
        return [
            {"chosen_ids": prompt + responses[better], "rejected_ids": prompt + responses[worse]}
            for better, worse in group.preferred_pairs()
            if responses[better] != responses[worse]
        ]

    def tokenizer(self) -> Any:
        """transformers reads the score at the last token that is not padding, so no response may end with padding."""
        tokenizer = copy.deepcopy(self.scorer.tokenizer)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(self.scorer.encoder.end_id)
        return tokenizer

    def save(self, path: Path) -> None:
        """Writes the scorer, and next to it how to load it."""
        self.scorer.save(path)
        StoredReward(policy=policy_name(self.policy), loss="pairwise").write(path)
