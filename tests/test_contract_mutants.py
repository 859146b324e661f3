"""Broken components: each must fail the contract's test that is named beside it, and the sound ones pass them all."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import nn

from alignkit import (
    Config,
    Feed,
    Group,
    GroupBatch,
    Optimizer,
    PreferenceSource,
    Prompt,
    RolloutOptions,
)
from alignkit.algorithms.passes import policy_logprobs
from alignkit.testing import (
    OptimizerContract,
    PreferenceSourceContract,
    RewardSourceContract,
    TinyPolicy,
    TinyReward,
)
from alignkit.testing.failing import contract_of, failing
from alignkit.testing.material import groups_for, nudge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from alignkit import Ask, Metrics
    from alignkit.testing import ComponentContract

Scores = list[list[float | None]]


class NoisyReward(TinyReward):
    def score(self, groups: Sequence[Group]) -> Scores:
        return [[random.random() for _ in group.responses] for group in groups]


class WhitenedOverTheBatch(TinyReward):
    def score(self, groups: Sequence[Group]) -> Scores:
        rows = super().score(groups)
        flat = [score or 0.0 for row in rows for score in row]
        return [[(score or 0.0) - sum(flat) / len(flat) for score in row] for row in rows]


class RankAmongSiblings(TinyReward):
    def score(self, groups: Sequence[Group]) -> Scores:
        return [[float(sorted(g.responses).index(text)) for text in g.responses] for g in groups]


class WholeNumbers(TinyReward):
    def score(self, groups: Sequence[Group]) -> Scores:
        return [[len(text) for text in group.responses] for group in groups]


class NotANumber(TinyReward):
    def score(self, groups: Sequence[Group]) -> Scores:
        return [[float("nan") for _ in group.responses] for group in groups]


class OneAGroup(TinyReward):
    def score(self, groups: Sequence[Group]) -> Scores:
        return [row[:1] for row in super().score(groups)]


class ReadsTheRanks(TinyReward):
    def score(self, groups: Sequence[Group]) -> Scores:
        return [[-float(rank) for rank in group.ranks or (0,) * len(group.responses)] for group in groups]


class WritesIntoRecords(TinyReward):
    def score(self, groups: Sequence[Group]) -> Scores:
        for group in groups:
            group.prompt.meta["seen"] = True  # type: ignore[index]
        return super().score(groups)


class TextsOnly(TinyReward):
    def score(self, groups: Sequence[Group]) -> Scores:
        return [[float(len(group.prompt.text))] * len(group.responses) for group in groups]  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Undocumented(Config):
    letter: str = "a"


class WithoutHelp(TinyReward):
    Config: ClassVar[type[Config]] = Undocumented


@pytest.mark.parametrize(
    ("component", "test"),
    [
        (NoisyReward, "scoring_again_gives_the_same"),
        (WhitenedOverTheBatch, "a_group_scores_the_same_alone_and_in_any_batch"),
        (RankAmongSiblings, "a_response_scores_the_same_without_its_siblings"),
        (WholeNumbers, "one_float_or_none_for_each_response"),
        (NotANumber, "one_float_or_none_for_each_response"),
        (OneAGroup, "one_float_or_none_for_each_response"),
        (ReadsTheRanks, "feedback_that_a_record_carries_is_not_read"),
        (WritesIntoRecords, "records_stay_as_they_are"),
        (TextsOnly, "empty_responses_and_conversations_are_scored"),
        (WithoutHelp, "every_option_is_documented"),
    ],
)
def test_a_broken_reward_fails(component: type[Any], test: str, tmp_path: Path) -> None:
    assert failing(contract_of(RewardSourceContract, component), tmp_path, test)


class Rankings(PreferenceSource[Config]):
    def preferences(self, ask: Ask) -> Iterator[Group]:
        yield from groups_for(Feed.RANKINGS)


class UsedUp(Rankings):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._left = iter(groups_for(Feed.RANKINGS))

    def preferences(self, ask: Ask) -> Iterator[Group]:
        return self._left


class FromOne(Rankings):
    def preferences(self, ask: Ask) -> Iterator[Group]:
        for group in super().preferences(ask):
            yield replace(group, ranks=tuple(rank + 1 for rank in group.ranks or ()))


class Nothing(Rankings):
    def preferences(self, ask: Ask) -> Iterator[Group]:
        return iter(())


class NotJSON(Rankings):
    def preferences(self, ask: Ask) -> Iterator[Group]:
        yield Group(Prompt.of("a"), ("b",), meta={"when": (1, 2)})


@pytest.mark.parametrize(
    ("component", "test"),
    [
        (UsedUp, "the_order_is_fixed"),
        (FromOne, "ranks_start_at_the_best"),
        (Nothing, "it_yields_groups"),
        (NotJSON, "groups_survive_the_file_between_stages"),
    ],
)
def test_a_broken_preference_source_fails(component: type[Any], test: str, tmp_path: Path) -> None:
    assert failing(contract_of(PreferenceSourceContract, component), tmp_path, test)


@dataclass(frozen=True, kw_only=True)
class ReinforceOptions(RolloutOptions):
    """Options of `Reinforce`."""


class Reinforce(Optimizer[ReinforceOptions]):
    """REINFORCE with a running mean as baseline and a penalty for leaving the reference: small, and sound."""

    consumes = Feed.ROLLOUTS
    uses_reference = True
    couples_responses = False

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.baseline = 0.0

    def prepare(self, batch: GroupBatch) -> GroupBatch:
        assert self.reference is not None
        assert batch.rewards is not None
        self.baseline = 0.5 * self.baseline + 0.5 * float(batch.rewards.mean())
        return batch.replace(
            logprobs=policy_logprobs(self.policy, batch, 10_000),
            ref_logprobs=policy_logprobs(self.reference, batch, 10_000),
            rewards=batch.rewards - self.baseline,
        )

    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        assert batch.rewards is not None
        assert batch.ref_logprobs is not None
        logprobs = self.policy.forward(batch).logprobs
        kl = batch.response_mean(batch.sum_by_response((logprobs - batch.ref_logprobs).square() / 2))
        gain = batch.response_mean(batch.rewards * batch.sum_by_response(logprobs))
        return 0.1 * kl - gain, {"kl": kl.detach()}

    def state_dict(self) -> dict[str, Any]:
        return {"baseline": self.baseline}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.baseline = state["baseline"]


class DropoutLeftOn(TinyPolicy):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        for module in self.modules()["policy"].modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.2


class MeanOfTheMicroBatch(Reinforce):
    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        return super().loss(batch.replace(totals=None))


class MetricOfTheMicroBatch(Reinforce):
    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        loss, _ = super().loss(batch)
        return loss, {"length": batch.lengths.double().mean()}


class MetricWithGraph(Reinforce):
    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        loss, _ = super().loss(batch)
        return loss, {"policy_loss": loss}


class NoiseInTheLoss(Reinforce):
    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        loss, metrics = super().loss(batch)
        return loss * (1 + torch.rand(())), metrics


class PrepareWrites(Reinforce):
    def prepare(self, batch: GroupBatch) -> GroupBatch:
        prepared = super().prepare(batch)
        assert batch.rewards is not None
        batch.rewards.sub_(batch.rewards.mean())
        return prepared


class LossWrites(Reinforce):
    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        assert batch.rewards is not None
        batch.rewards.clamp_(-0.01, 0.01)
        return super().loss(batch)


class PrepareTrains(Reinforce):
    def prepare(self, batch: GroupBatch) -> GroupBatch:
        nudge(self.policy.modules(), 1e-3)
        return super().prepare(batch)


class ShiftedByOne(Reinforce):
    def prepare(self, batch: GroupBatch) -> GroupBatch:
        prepared = super().prepare(batch)
        assert prepared.logprobs is not None
        return prepared.replace(logprobs=prepared.logprobs.roll(1))


class ReferenceIsThePolicy(Reinforce):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.reference = self.policy


class KLToTheWrongPolicy(Reinforce):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        other = copy.deepcopy(self.policy)
        nudge(other.modules())
        self.reference = other.reference()


class StateForgotten(Reinforce):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class StateAsTensor(Reinforce):
    def state_dict(self) -> dict[str, Any]:
        return {"baseline": torch.tensor(self.baseline)}


class LossOnOtherWeights(Reinforce):
    def loss(self, batch: GroupBatch) -> tuple[Tensor, Metrics]:
        loss, metrics = super().loss(batch)
        decay = sum(p.square().sum() for module in self.policy.modules().values() for p in module.parameters())
        return loss + 0.1 * decay * batch.num_responses / (batch.totals or batch.counts()).responses, metrics


class IdleModule(Reinforce):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.critic = nn.Linear(2, 1)

    def modules(self) -> dict[str, nn.Module]:
        return {**super().modules(), "critic": self.critic}


class Unbound(Reinforce):
    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        pass


class ScalesNothing(Reinforce):
    def learning_rate_scales(self) -> Mapping[str, float]:
        return {"critic.": 10.0}


OPTIMIZER_MUTANTS = [
    (MeanOfTheMicroBatch, "micro_batches_never_change_the_gradient"),
    (MeanOfTheMicroBatch, "means_are_over_the_whole_step"),
    (MetricOfTheMicroBatch, "micro_batches_never_change_the_gradient"),
    (MetricWithGraph, "loss_is_a_finite_scalar_with_detached_metrics"),
    (NoiseInTheLoss, "loss_twice_is_the_same"),
    (PrepareWrites, "prepare_and_loss_leave_their_batch_alone"),
    (LossWrites, "prepare_and_loss_leave_their_batch_alone"),
    (PrepareTrains, "prepare_changes_no_weights"),
    (PrepareTrains, "zero_learning_rate_leaves_the_kl_at_zero"),
    (ShiftedByOne, "the_ratio_is_one_at_the_first_step"),
    (ReferenceIsThePolicy, "the_reference_stays_and_is_not_trained"),
    (KLToTheWrongPolicy, "zero_learning_rate_leaves_the_kl_at_zero"),
    (StateForgotten, "state_survives_as_json"),
    (StateAsTensor, "state_survives_as_json"),
    (LossOnOtherWeights, "the_policy_learns_through_response_tokens_only"),
    (IdleModule, "every_module_is_trained"),
    (Unbound, "forward_passes_run_through_bound_modules"),
    (ScalesNothing, "learning_rate_scales_name_parameters"),
]


@pytest.mark.parametrize(("component", "test"), OPTIMIZER_MUTANTS)
def test_a_broken_optimizer_fails(component: type[Any], test: str, tmp_path: Path) -> None:
    assert failing(contract_of(OptimizerContract, component), tmp_path, test)


def test_an_optimizer_whose_policy_drops_out_fails(tmp_path: Path) -> None:
    contract = contract_of(OptimizerContract, Reinforce, policy=lambda self: DropoutLeftOn())
    assert failing(contract, tmp_path, "the_ratio_is_one_at_the_first_step")


@pytest.mark.parametrize(("base", "component"), [(PreferenceSourceContract, Rankings), (OptimizerContract, Reinforce)])
def test_sound_components_pass(base: type[ComponentContract], component: type[Any], tmp_path: Path) -> None:
    assert failing(contract_of(base, component), tmp_path) == set()
