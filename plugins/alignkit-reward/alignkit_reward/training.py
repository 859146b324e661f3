"""Reward models trained on rankings: Bradley-Terry, InfoNCE and Plackett-Luce over the scores of a group's responses.

For the mathematics and its sources see `alignkit.ops.ranking_losses`. One forward pass scores the K responses of a
group; other trainers run two passes for each of the K (K - 1) / 2 pairs.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch

from alignkit import Feed, Held, InputError, Optimizer, TrainingOptions
from alignkit.algorithms import require_values
from alignkit.ops import Rankings, bradley_terry, infonce, pair_accuracy, plackett_luce, with_ordered_pairs
from alignkit_reward.options import BradleyTerryOptions, InfoNCEOptions, PlackettLuceOptions
from alignkit_reward.stored import StoredReward, policy_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from alignkit import GroupBatch, Metrics

OptionsT = TypeVar("OptionsT", bound=TrainingOptions)


class RewardTraining(Optimizer[OptionsT]):
    """Base: trains a scorer that starts from the policy's trunk. A subclass defines `group_losses`.

    Attributes:
        loss_name: the loss that `alignkit.json` records.
    """

    consumes = Feed.RANKINGS
    needs_values = True
    loss_name: ClassVar[str]

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.scorer = require_values(self.policy).scorer()
        self._groups_without_order = 0

    @classmethod
    def holds(cls, config: OptionsT) -> tuple[Held, ...]:
        return (Held(name="policy"), Held(name="reward", trained=True, scores=True))

    @abstractmethod
    def group_losses(self, scores: Tensor, rankings: Rankings, batch: GroupBatch) -> Tensor:
        """[S] -> [G] the loss of each group."""

    def prepare(self, batch: GroupBatch) -> GroupBatch:
        """Drops and counts the groups that rank no response above another."""
        kept = with_ordered_pairs(batch)
        self._groups_without_order += batch.num_groups - kept.num_groups
        self.batch_metrics = {"groups_without_order": float(self._groups_without_order)}
        return kept

    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        """The mean over groups of their weighted losses; accuracy and margin over ordered pairs, mean score."""
        scores = self.scorer.forward(batch).scores
        rankings = Rankings.of_batch(batch)
        loss = batch.group_mean(batch.group_weights * self.group_losses(scores, rankings, batch))
        scores = scores.detach()
        gaps = scores[rankings.better] - scores[rankings.worse]
        return loss, {
            "accuracy": batch.group_mean(pair_accuracy(scores, rankings)),
            "margin": batch.group_mean(rankings.mean_by_group(gaps)),
            "score": batch.response_mean(scores),
        }

    def modules(self) -> dict[str, nn.Module]:
        return self.scorer.modules()

    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        self.scorer.bind(modules)

    def save(self, path: Path) -> None:
        """Writes the scorer, and next to it how to load it."""
        self.scorer.save(path)
        StoredReward(policy=policy_name(self.policy), loss=self.loss_name).write(path)


class BradleyTerry(RewardTraining[BradleyTerryOptions]):
    """All strictly ordered pairs of a ranking."""

    loss_name = "pairwise"

    def prepare(self, batch: GroupBatch) -> GroupBatch:
        """With a margin, keeps the annotators' scores [S] as `rewards`."""
        batch = super().prepare(batch)
        if not self.config.margin:
            return batch
        scores = [score for group in batch.groups for score in group.scores or (None,) * len(group.responses)]
        if None in scores:
            raise InputError(
                "a margin needs the annotators' scores, and some responses have none",
                where="margin",
                fix="use groups with scores, or set margin = 0",
            )
        return batch.replace(rewards=torch.tensor(scores, dtype=torch.float32, device=batch.device))

    def group_losses(self, scores: Tensor, rankings: Rankings, batch: GroupBatch) -> Tensor:
        margins = None
        if batch.rewards is not None and self.config.margin:
            margins = self.config.margin * (batch.rewards[rankings.better] - batch.rewards[rankings.worse])
        return bradley_terry(
            scores,
            rankings,
            margins=margins,
            label_smoothing=self.config.label_smoothing,
            center_coef=self.config.center_coef,
        )


class InfoNCE(RewardTraining[InfoNCEOptions]):
    """The best response against the rest."""

    loss_name = "infonce"

    def group_losses(self, scores: Tensor, rankings: Rankings, batch: GroupBatch) -> Tensor:
        return infonce(scores, rankings, temperature=self.config.temperature)


class PlackettLuce(RewardTraining[PlackettLuceOptions]):
    """The whole ranking, even if partial or tied."""

    loss_name = "plackett-luce"

    def group_losses(self, scores: Tensor, rankings: Rankings, batch: GroupBatch) -> Tensor:
        return plackett_luce(scores, rankings)
