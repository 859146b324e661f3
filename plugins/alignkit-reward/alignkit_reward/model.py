"""The reward source `model`: a sequence classifier with one label, read at the last token of each response.

Scores are shifted and scaled to mean 0 and variance 1 on demonstrations. arXiv:2009.01325, section 3.4, and detail 12
of arXiv:2403.17031 only shift; the scale makes one kl_coef fit any reward model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from alignkit import InputError, PluginError, RewardSource
from alignkit.algorithms import scorer_outputs
from alignkit_reward.options import ModelOptions
from alignkit_reward.stored import StoredReward, load_policy_class

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from alignkit import Context, Footprint, Group, Held, Load, Policy, Scorer


class ModelReward(RewardSource[ModelOptions]):
    """A trained reward model.

    Raises:
        InputError: no model is given, or the folder has none.
    """

    def __init__(self, config: ModelOptions | None = None, context: Context | None = None) -> None:
        super().__init__(config, context)
        if not self.config.model:
            raise InputError("there is no reward model yet", where="model", fix="train one, or set the folder of one")
        self._folder = Path(self.config.model).expanduser()
        self._stored = StoredReward.read(self._folder)
        self._policy_class = load_policy_class(self._stored.policy, str(self._folder))
        self._scorer = self._load()

    @classmethod
    def load(cls, path: Path, config: ModelOptions, context: Context) -> ModelReward:
        """The reward model that training saved in a folder."""
        return cls(replace(config, model=str(path), train={}, loss="pairwise"), context)

    @classmethod
    def footprint(cls, config: ModelOptions | None, held: Held, load: Load) -> Footprint | None:
        if config is None:
            return None
        folder = Path(config.model).expanduser()
        policy = cast("type[Policy[Any]]", load_policy_class(StoredReward.read(folder).policy, str(folder)))
        return policy.footprint(None, replace(held, folder=folder.as_posix()), load)

    @classmethod
    def try_records(cls, config: ModelOptions, records: Iterable[tuple[str, Group]]) -> None:
        """Has the policy plugin that made the reward model render them; one that is yet to be trained reads what its
        policy reads."""
        if config.model:
            folder = Path(config.model).expanduser()
            policy = load_policy_class(StoredReward.read(folder).policy, str(folder))
            policy.try_records_of_scorer(folder, records)

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        """The model's scores, normalised as measured by `calibrate`.

        Raises:
            PluginError: a score is not finite.
        """
        if not groups:
            return []
        scores = self._raw_scores(groups)
        if self.config.normalise:
            scores = (scores - self._stored.mean) / self._stored.std
        flat = iter(scores.tolist())
        return [[next(flat) for _ in group.responses] for group in groups]

    def calibrate(self, groups: Sequence[Group]) -> None:
        """Stores the mean and standard deviation of these responses' raw scores with the model."""
        if not (self.config.normalise and groups):
            return
        scores = self._raw_scores(groups)
        std = float(scores.std(correction=0))
        self._stored = replace(self._stored, mean=float(scores.mean()), std=std if std > 0 else 1.0)
        if self._folder.is_dir():
            self._stored.write(self._folder)

    def start_critic(self) -> Scorer:
        """A trainable copy of the reward model, with the score normalisation folded into its head."""
        scorer = self._load()
        if self.config.normalise and (self._stored.mean, self._stored.std) != (0.0, 1.0):
            scorer.rescale(self._stored.mean, self._stored.std)
        return scorer

    def _load(self) -> Scorer:
        given = {} if self.config.append_end is None else {"append_end": self.config.append_end}
        return self._policy_class.load_scorer(self._folder, self.context, **given)

    def _raw_scores(self, groups: Sequence[Group]) -> Tensor:
        """[S] in float64 on the CPU."""
        batch = self._scorer.encode(groups)
        scores = scorer_outputs(self._scorer, batch, self.config.max_tokens).scores.double().cpu()
        if not bool(scores.isfinite().all()):
            group = int(batch.group_index[(~scores.isfinite()).nonzero()[0, 0]])
            raise PluginError(f"reward model {self._folder}: the score of group {group} is not finite")
        return scores
