"""The contract of policies with value heads and scorers (`HasValues`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from alignkit.errors import InputError
from alignkit.interfaces import HasValues, Scorer
from alignkit.testing.contracts.policy import (
    PolicyContract,
    assert_close,
    largest_rounding,
    with_other_last_tokens,
)
from alignkit.testing.material import CountingModule, backward, clear_gradients, groups, nudge, trained_parameters

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.batch import GroupBatch


class ValuesContract(PolicyContract):
    """`PolicyContract`, and what critics and reward models need from a policy."""

    def _policy(self) -> Any:
        policy = self.make()
        assert isinstance(policy, HasValues)
        return policy

    def test_values_come_from_the_same_pass(self) -> None:
        policy = self._policy()
        policy.add_value_head()
        wrapped = {name: CountingModule(module) for name, module in policy.modules().items()}
        batch = policy.encode(groups())
        before = policy.forward(batch).logprobs
        policy.bind(wrapped)
        assert_close(policy, policy.forward(batch, entropy=True, hidden=True, values=True).logprobs, before)
        assert sum(module.calls for module in wrapped.values()) == 1

    def test_the_value_head_is_zero_at_the_start_and_can_be_trained(self) -> None:
        policy = self._policy()
        batch = policy.encode(groups())
        before = policy.forward(batch).logprobs
        policy.add_value_head()
        output = policy.forward(batch, values=True)
        assert output.values is not None
        assert output.values.shape == (batch.num_tokens,)
        assert not output.values.any()
        assert_close(policy, output.logprobs, before)
        clear_gradients(policy.modules())
        backward((output.values - 1).square().sum())
        gradients = [parameter.grad for parameter in trained_parameters(policy.modules()).values()]
        assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)

    def test_a_value_is_read_where_its_token_is_predicted(self) -> None:
        policy = self._policy()
        policy.add_value_head()
        nudge(policy.modules())
        batch = policy.encode(groups())
        values = policy.forward(batch, values=True).values
        other = policy.forward(with_other_last_tokens(batch), values=True).values
        assert values is not None
        assert other is not None
        assert_close(policy, values, other)

    def test_a_new_scorer_is_zero_and_has_a_trunk_of_its_own(self) -> None:
        policy = self._policy()
        batch = policy.encode(groups())
        before = policy.forward(batch).logprobs
        scorer = policy.scorer()
        output = scorer.forward(batch)
        assert output.scores.shape == (batch.num_responses,)
        assert output.values.shape == (batch.num_tokens,)
        assert not output.scores.any()
        assert not output.values.any()
        nudge(scorer.modules())
        assert bool(scorer.forward(batch).scores.any())
        assert torch.equal(policy.forward(batch).logprobs, before), "the scorer trains the policy's trunk"

    def test_a_score_is_read_at_the_last_token_and_values_before_each(self) -> None:
        scorer, batch = self._trained_scorer()
        output, other = scorer.forward(batch), scorer.forward(with_other_last_tokens(batch))
        assert_close(scorer, output.values, other.values)
        bound = largest_rounding(scorer, output.scores)
        assert bool(((output.scores - other.scores).abs() > bound).all()), "the last token makes no difference"

    def test_a_score_does_not_depend_on_neighbours(self) -> None:
        scorer, batch = self._trained_scorer()
        alone = [scorer.forward(batch.select([g])) for g in range(batch.num_groups)]
        assert_close(scorer, torch.cat([output.scores for output in alone]), scorer.forward(batch).scores)
        assert_close(scorer, torch.cat([output.values for output in alone]), scorer.forward(batch).values)

    def test_a_saved_scorer_loads_again(self, tmp_path: Path) -> None:
        scorer, batch = self._trained_scorer()
        scorer.save(tmp_path / "scorer")
        loaded = type(self._policy()).load_scorer(tmp_path / "scorer", self.context())
        again: GroupBatch = loaded.encode(groups())
        assert torch.equal(again.response_ids, batch.response_ids)
        assert_close(scorer, loaded.forward(again).scores, scorer.forward(batch).scores)

    def test_a_policy_is_refused_as_a_scorer(self, tmp_path: Path) -> None:
        self._policy().save(tmp_path / "policy")
        with pytest.raises(InputError):
            type(self._policy()).load_scorer(tmp_path / "policy", self.context())

    def _trained_scorer(self) -> tuple[Scorer, GroupBatch]:
        scorer: Scorer = self._policy().scorer()
        nudge(scorer.modules())
        return scorer, scorer.encode(groups())
