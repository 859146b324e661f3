"""Broken policies and scorers: each must fail the test of the policy contract that is named beside it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from alignkit import Group, GroupBatch, PolicyOutput, Sampling, ScorerOutput
from alignkit.testing import TinyPolicy, TinyScorer, ValuesContract
from alignkit.testing.failing import contract_of, failing
from alignkit.testing.material import nudge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignkit import Context, Prompt


class DropoutLeftOn(TinyPolicy):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        for module in self._network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.2


class WithoutStopToken(TinyPolicy):
    def encode(self, groups: Sequence[Group]) -> GroupBatch:
        batch = super().encode(groups)
        keep = torch.ones(batch.num_tokens, dtype=torch.bool)
        keep[batch.last_token] = False
        return batch.replace(response_ids=batch.response_ids[keep], lengths=batch.lengths - 1)


class PaddedPrompts(TinyPolicy):
    def encode(self, groups: Sequence[Group]) -> GroupBatch:
        longest = max(len(group.prompt.plain) for group in groups)
        padded = [replace(g, prompt=replace(g.prompt, text=g.prompt.plain.rjust(longest))) for g in groups]
        return super().encode(padded).replace(groups=tuple(groups))


class OffByOne(TinyPolicy):
    def forward(self, batch: GroupBatch, **asked: bool) -> PolicyOutput:
        output = super().forward(batch, **asked)
        return replace(output, logprobs=output.logprobs.roll(1))


class SeesTheFuture(TinyPolicy):
    def forward(self, batch: GroupBatch, **asked: bool) -> PolicyOutput:
        output = super().forward(batch, **asked)
        sums = batch.sum_by_response(batch.response_ids.float())
        return replace(output, logprobs=output.logprobs - 0.01 * sums[batch.response_index])


class WhitenedOverTheBatch(TinyPolicy):
    def forward(self, batch: GroupBatch, **asked: bool) -> PolicyOutput:
        output = super().forward(batch, **asked)
        return replace(output, logprobs=output.logprobs - output.logprobs.mean().abs())


class BlindToThePrompt(TinyPolicy):
    def forward(self, batch: GroupBatch, **asked: bool) -> PolicyOutput:
        blank = batch.replace(prompt_ids=torch.ones_like(batch.prompt_ids))
        return super().forward(blank.replace(prompt_lengths=batch.prompt_lengths), **asked)


class WithoutTemperature(TinyPolicy):
    def forward(self, batch: GroupBatch, **asked: bool) -> PolicyOutput:
        return super().forward(batch.replace(temperature=1.0), **asked)


class AlwaysMore(TinyPolicy):
    def forward(self, batch: GroupBatch, **asked: bool) -> PolicyOutput:
        return super().forward(batch, entropy=True, hidden=True, values=asked.get("values", False))


class NeverCutOff(TinyPolicy):
    def generate(self, prompts: Sequence[Prompt], **how: Any) -> GroupBatch:
        batch = super().generate(prompts, **how)
        return batch.replace(finished=torch.ones_like(batch.finished))


class LogprobsOfAnotherTemperature(TinyPolicy):
    def generate(self, prompts: Sequence[Prompt], **how: Any) -> GroupBatch:
        batch = super().generate(prompts, **how)
        with torch.no_grad():
            return batch.replace(logprobs=self.forward(batch.replace(temperature=1.0)).logprobs)


class ForgetsTheTemperature(TinyPolicy):
    def generate(self, prompts: Sequence[Prompt], **how: Any) -> GroupBatch:
        return super().generate(prompts, **how).replace(temperature=1.0)


class Greedy(TinyPolicy):
    def generate(self, prompts: Sequence[Prompt], *, sampling: Sampling, **how: Any) -> GroupBatch:
        batch = super().generate(prompts, sampling=replace(sampling, temperature=0.0), **how)
        with torch.no_grad():
            batch = batch.replace(temperature=sampling.temperature or 1.0)
            return batch.replace(logprobs=self.forward(batch).logprobs)


class TooCold(TinyPolicy):
    def generate(self, prompts: Sequence[Prompt], *, sampling: Sampling, **how: Any) -> GroupBatch:
        batch = super().generate(prompts, sampling=replace(sampling, top_p=0.9), **how)
        with torch.no_grad():
            return batch.replace(logprobs=self.forward(batch).logprobs)


class SeedOfTheProcess(TinyPolicy):
    def generate(self, prompts: Sequence[Prompt], *, seed: int, **how: Any) -> GroupBatch:
        return super().generate(prompts, seed=int(torch.randint(1000, ())), **how)


class SeedOfTheBatch(TinyPolicy):
    def generate(self, prompts: Sequence[Prompt], *, seed: int, **how: Any) -> GroupBatch:
        return super().generate(prompts, seed=seed + len(prompts), **how)


class StreamOfTheText(TinyPolicy):
    def generate(self, prompts: Sequence[Prompt], *, places: Sequence[int] | None = None, **how: Any) -> GroupBatch:
        return super().generate(prompts, places=[int(prompt.key, 16) for prompt in prompts], **how)


class StreamOfTheCall(TinyPolicy):
    def generate(self, prompts: Sequence[Prompt], *, places: Sequence[int] | None = None, **how: Any) -> GroupBatch:
        return super().generate(prompts, **how)


class ReferenceIsThePolicy(TinyPolicy):
    def reference(self) -> TinyPolicy:
        return self


class ReferenceOfFreshWeights(TinyPolicy):
    def reference(self) -> TinyPolicy:
        other = TinyPolicy(self.config, self.context)
        nudge(other.modules())
        return other.reference()


class SavesFreshWeights(TinyPolicy):
    def save(self, path: Path) -> None:
        TinyPolicy(self.config, self.context).save(path)


class Unbound(TinyPolicy):
    def bind(self, modules: Mapping[str, nn.Module]) -> None:
        pass


class TwoPasses(TinyPolicy):
    def forward(self, batch: GroupBatch, **asked: bool) -> PolicyOutput:
        super().forward(batch)
        return super().forward(batch, **asked)


class ValuesAtTheTokenItself(TinyPolicy):
    def forward(self, batch: GroupBatch, **asked: bool) -> PolicyOutput:
        output = super().forward(batch, **asked)
        seen = batch.response_ids.float() if self._network.value_head is None else self._bias() * batch.response_ids
        return output if output.values is None else replace(output, values=output.values + seen)

    def _bias(self) -> torch.Tensor:
        assert self._network.value_head is not None
        return self._network.value_head.bias


class RandomValueHead(TinyPolicy):
    def add_value_head(self) -> None:
        super().add_value_head()
        nudge({"head": self._network.value_head or nn.Identity()})


class SharedTrunk(TinyPolicy):
    def scorer(self) -> TinyScorer:
        scorer = super().scorer()
        scorer._network.trunk = self._network.trunk
        return scorer


class RandomScorer(TinyPolicy):
    def scorer(self) -> TinyScorer:
        scorer = super().scorer()
        nudge(scorer.modules())
        return scorer


class _BeforeTheLast(TinyScorer):
    def forward(self, batch: GroupBatch) -> ScorerOutput:
        values = super().forward(batch).values
        return ScorerOutput(values, values[batch.last_token])


class ScoreBeforeTheLastToken(TinyPolicy):
    def scorer(self) -> TinyScorer:
        return _BeforeTheLast(super().scorer()._network, self.config)


class _AmongNeighbours(TinyScorer):
    def forward(self, batch: GroupBatch) -> ScorerOutput:
        output = super().forward(batch)
        return ScorerOutput(output.values, output.scores - output.scores.mean())


class ScoresOverTheBatch(TinyPolicy):
    def scorer(self) -> TinyScorer:
        return _AmongNeighbours(super().scorer()._network, self.config)


class LosesTheScorer(TinyPolicy):
    @classmethod
    def load_scorer(cls, path: Path, context: Context) -> TinyScorer:
        scorer = super().load_scorer(path, context)
        nn.init.zeros_(scorer._network.score.weight)
        return scorer


class TakesAPolicyForAScorer(TinyPolicy):
    @classmethod
    def load_scorer(cls, path: Path, context: Context) -> TinyScorer:
        return copy.deepcopy(cls(context=context).scorer())


MUTANTS = [
    (DropoutLeftOn, "dropout_is_off_in_training_mode"),
    (WithoutStopToken, "encoding_keeps_the_records_and_ends_each_response_with_one_stop_token"),
    (PaddedPrompts, "encoding_does_not_depend_on_neighbours"),
    (OffByOne, "forward_does_not_depend_on_neighbours"),
    (SeesTheFuture, "a_token_is_predicted_from_its_prompt_and_the_tokens_before_it"),
    (WhitenedOverTheBatch, "forward_does_not_depend_on_neighbours"),
    (BlindToThePrompt, "a_token_is_predicted_from_its_prompt_and_the_tokens_before_it"),
    (WithoutTemperature, "temperature_shapes_the_distribution"),
    (AlwaysMore, "forward_gives_one_figure_for_each_response_token"),
    (NeverCutOff, "rollouts_are_whole_or_cut_off_at_the_limit"),
    (LogprobsOfAnotherTemperature, "rollouts_carry_the_logprobs_that_forward_gives"),
    (ForgetsTheTemperature, "rollouts_are_whole_or_cut_off_at_the_limit"),
    (Greedy, "rollouts_differ_among_themselves_and_repeat_with_the_seed"),
    (TooCold, "rollouts_follow_the_distribution"),
    (SeedOfTheProcess, "rollouts_differ_among_themselves_and_repeat_with_the_seed"),
    (SeedOfTheBatch, "a_rollout_does_not_depend_on_what_is_sampled_beside_it"),
    (StreamOfTheText, "equal_prompts_get_responses_of_their_own"),
    (StreamOfTheCall, "a_rollout_does_not_depend_on_what_is_sampled_beside_it"),
    (ReferenceIsThePolicy, "the_reference_is_frozen_and_stays"),
    (ReferenceOfFreshWeights, "the_reference_is_frozen_and_stays"),
    (SavesFreshWeights, "saved_and_loaded_it_is_the_same_policy"),
    (Unbound, "forward_runs_through_bound_modules_once"),
    (TwoPasses, "forward_runs_through_bound_modules_once"),
    (ValuesAtTheTokenItself, "a_value_is_read_where_its_token_is_predicted"),
    (RandomValueHead, "the_value_head_is_zero_at_the_start_and_can_be_trained"),
    (SharedTrunk, "a_new_scorer_is_zero_and_has_a_trunk_of_its_own"),
    (RandomScorer, "a_new_scorer_is_zero_and_has_a_trunk_of_its_own"),
    (ScoreBeforeTheLastToken, "a_score_is_read_at_the_last_token_and_values_before_each"),
    (ScoresOverTheBatch, "a_score_does_not_depend_on_neighbours"),
    (LosesTheScorer, "a_saved_scorer_loads_again"),
    (TakesAPolicyForAScorer, "a_policy_is_refused_as_a_scorer"),
]


@pytest.mark.parametrize(("component", "test"), MUTANTS)
def test_a_broken_policy_fails(component: type[Any], test: str, tmp_path: Path) -> None:
    assert failing(contract_of(ValuesContract, component), tmp_path, test)
