"""The contract of policies and of the scorers that they make."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from alignkit.batch import GroupBatch
from alignkit.errors import InputError
from alignkit.interfaces import Model, Policy, Scorer
from alignkit.options import Sampling
from alignkit.testing.contracts.component import ComponentContract
from alignkit.testing.material import (
    CountingModule,
    backward,
    clear_gradients,
    groups,
    nudge,
    prompts,
    trained_parameters,
)
from alignkit.testing.tolerance import assert_near, rounding, terms_of_network

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


SAMPLING = Sampling(max_tokens=12, temperature=0.8)


class PolicyContract(ComponentContract):
    """`class TestMine(PolicyContract): component = Mine; options = {...}`

    `make` must give equal policies at every call, in float32.
    """

    def reload(self, path: Path) -> Policy[Any]:
        """The policy that `save` wrote; by default the option `model` names the folder."""
        config = dataclasses.replace(self.config(), model=str(path))
        return self.component(config, self.context())  # type: ignore[return-value]

    def independent_logprobs(self, policy: Any, batch: GroupBatch) -> Tensor | None:
        """[R] log-probabilities worked out without the policy's `forward` (response by response); None if it can't."""
        return None

    def _policy(self) -> Policy[Any]:
        policy = self.make()
        assert isinstance(policy, Policy)
        return policy

    def test_encoding_keeps_the_records_and_ends_each_response_with_one_stop_token(self) -> None:
        policy, records = self._policy(), groups()
        batch = policy.encode(records)
        assert batch.groups == tuple(records)
        assert batch.group_index.tolist() == [g for g, group in enumerate(records) for _ in group.responses]
        assert int(batch.prompt_lengths.sum()) == len(batch.prompt_ids)
        assert int(batch.lengths.sum()) == len(batch.response_ids)
        assert bool(batch.finished.all())
        assert len(set(batch.response_ids[batch.last_token].tolist())) == 1, "responses end with different tokens"
        stops = batch.response_ids == _stop_token(batch)
        assert batch.sum_by_response(stops.long()).tolist() == [1] * batch.num_responses

    def test_encoding_does_not_depend_on_neighbours(self) -> None:
        policy, records = self._policy(), groups()
        whole, single = policy.encode(records), [policy.encode([group]) for group in records]
        joined = GroupBatch.concat(single)
        assert torch.equal(whole.prompt_ids, joined.prompt_ids)
        assert torch.equal(whole.response_ids, joined.response_ids)

    def test_an_empty_response_is_its_stop_token(self) -> None:
        batch = self._policy().encode([replace(groups()[0], responses=("",))])
        assert batch.num_tokens == 1

    def test_forward_gives_one_figure_for_each_response_token(self) -> None:
        policy = self._policy()
        batch = policy.encode(groups())
        output = policy.forward(batch, entropy=True, hidden=True)
        assert output.entropy is not None
        assert output.hidden is not None
        assert output.logprobs.shape == output.entropy.shape == (batch.num_tokens,)
        assert output.hidden.shape[0] == batch.num_tokens
        assert output.hidden.ndim == 2
        assert bool((output.logprobs <= 0).all())
        assert bool((output.entropy >= 0).all())
        plain = policy.forward(batch)
        assert (plain.entropy, plain.hidden, plain.values) == (None, None, None)
        _assert_close(policy, plain.logprobs, output.logprobs)

    def test_forward_equals_an_independent_computation(self) -> None:
        policy = self._policy()
        batch = policy.encode(groups())
        for temperature in (1.0, 0.6):
            tempered = batch.replace(temperature=temperature)
            expected = self.independent_logprobs(policy, tempered)
            if expected is None:
                pytest.skip("this contract brings no independent computation")
            _assert_close(policy, policy.forward(tempered).logprobs, expected)

    def test_forward_does_not_depend_on_neighbours(self) -> None:
        policy = self._policy()
        batch = policy.encode(groups())
        alone = [policy.forward(batch.select([g])).logprobs for g in range(batch.num_groups)]
        _assert_close(policy, torch.cat(alone), policy.forward(batch).logprobs)
        for s in range(batch.num_responses):
            only = torch.arange(batch.num_responses) == s
            one = policy.forward(batch.select_responses(only)).logprobs
            _assert_close(policy, one, policy.forward(batch).logprobs[batch.response_index == s])

    def test_a_token_is_predicted_from_its_prompt_and_the_tokens_before_it(self) -> None:
        policy = self._policy()
        batch = policy.encode(groups())
        before = policy.forward(batch).logprobs
        longest = int(batch.lengths.argmax())
        place = int(batch.first_token[longest] + batch.lengths[longest] // 2)
        ids = batch.response_ids.clone()
        ids[place] = next(token for token in ids.tolist() if token not in (int(ids[place]), _stop_token(batch)))
        after = policy.forward(batch.replace(response_ids=ids)).logprobs
        bound = _bound(policy, before)
        changed = ((after - before).abs() > bound).nonzero()[:, 0].tolist()
        assert place in changed
        assert place + 1 in changed, "a token does not see the one before it"
        assert min(changed) == place, "a token sees later ones"
        assert max(changed) <= int(batch.last_token[longest]), "a response sees another one"
        swapped = policy.encode([replace(group, prompt=prompts()[g - 1]) for g, group in enumerate(groups())])
        firsts = (policy.forward(swapped).logprobs - before)[batch.first_token].abs()
        assert bool((firsts > bound).any()), "the prompt makes no difference"

    def test_temperature_shapes_the_distribution(self) -> None:
        policy = self._policy()
        batch = policy.encode(groups())
        entropies = [
            policy.forward(batch.replace(temperature=temperature), entropy=True).entropy
            for temperature in (0.5, 1.0, 2.0)
        ]
        cold, usual, hot = (float(e.detach().sum()) for e in entropies if e is not None)
        assert cold < usual < hot

    def test_dropout_is_off_in_training_mode(self) -> None:
        policy = self._policy()
        batch = policy.encode(groups())
        for module in policy.modules().values():
            module.train()
        first = policy.forward(batch).logprobs
        assert torch.equal(first, policy.forward(batch).logprobs)
        for module in policy.modules().values():
            module.eval()
        _assert_close(policy, policy.forward(batch).logprobs, first)

    def test_rollouts_are_whole_or_cut_off_at_the_limit(self) -> None:
        policy = self._policy()
        batch = policy.generate(prompts(), n=4, sampling=SAMPLING, seed=0)
        stop = _stop_token(policy.encode(groups()))
        assert batch.group_index.tolist() == [g for g in range(len(prompts())) for _ in range(4)]
        assert [group.prompt for group in batch.groups] == prompts()
        assert [len(group.responses) for group in batch.groups] == [4] * len(prompts())
        assert batch.temperature == SAMPLING.temperature
        stops = batch.sum_by_response((batch.response_ids == stop).long())
        assert torch.equal(stops == 1, batch.finished), "finished means that the response ends with the stop token"
        assert bool((batch.response_ids[batch.last_token][batch.finished] == stop).all())
        assert bool((batch.lengths[~batch.finished] == SAMPLING.max_tokens).all())
        assert bool((batch.lengths <= SAMPLING.max_tokens).all())

    def test_rollouts_that_were_cut_off_stay_so_when_their_text_is_encoded(self) -> None:
        policy = self._policy()
        batch = policy.generate(prompts(), n=4, sampling=SAMPLING, seed=0)
        assert not bool(batch.finished.all()), "no rollout was cut off"
        assert [flag for group in batch.groups for flag in group.finished or ()] == batch.finished.tolist()
        assert torch.equal(policy.encode(batch.groups).finished, batch.finished), "an end token was added, or lost"

    def test_rollouts_carry_the_logprobs_that_forward_gives(self) -> None:
        policy = self._policy()
        batch = policy.generate(prompts(), n=3, sampling=SAMPLING, seed=0)
        assert batch.logprobs is not None
        assert not batch.logprobs.requires_grad
        _assert_close(policy, batch.logprobs, policy.forward(batch).logprobs)

    def test_rollouts_follow_the_distribution(self) -> None:
        policy, count = self._policy(), 400
        sampling = Sampling(max_tokens=1, temperature=0.7)
        batch = policy.generate(prompts()[:1], n=count, sampling=sampling, seed=0)
        output = policy.forward(batch, entropy=True)
        assert output.entropy is not None
        surprise = -output.logprobs.detach()
        standard_error = float(surprise.std()) / count**0.5
        assert abs(float(surprise.mean() - output.entropy[0].detach())) < 4 * standard_error

    def test_rollouts_differ_among_themselves_and_repeat_with_the_seed(self) -> None:
        policy = self._policy()
        first, again, other = (
            policy.generate(prompts(), n=2, sampling=SAMPLING, seed=seed).groups for seed in (0, 0, 1)
        )
        assert first == again
        assert first != other
        assert any(one != two for one, two in (group.responses for group in first))

    def test_a_rollout_does_not_depend_on_what_is_sampled_beside_it(self) -> None:
        policy = self._policy()
        whole = policy.generate(prompts(), n=3, sampling=SAMPLING, seed=0)
        for number, prompt in enumerate(prompts()):
            alone = policy.generate([prompt], n=1, sampling=SAMPLING, seed=0)
            assert alone.groups[0].responses[0] == whole.groups[number].responses[0]
        torch.rand(5)
        again = policy.generate(prompts()[::-1], n=3, sampling=SAMPLING, seed=0)
        assert again.groups[::-1] == whole.groups

    def test_temperature_zero_takes_the_likeliest_token(self) -> None:
        policy = self._policy()
        batch = policy.generate(prompts(), n=2, sampling=Sampling(max_tokens=6, temperature=0.0), seed=0)
        assert all(one == two for one, two in (group.responses for group in batch.groups))

    def test_the_reference_is_frozen_and_stays(self) -> None:
        policy = self._policy()
        reference = policy.reference()
        batch = policy.encode(groups())
        before = reference.forward(batch).logprobs
        assert not before.requires_grad
        _assert_close(policy, before, policy.forward(batch).logprobs)
        nudge(policy.modules())
        assert torch.equal(reference.forward(batch).logprobs, before), "the reference moves with the policy"
        assert not torch.allclose(policy.forward(batch).logprobs, before, atol=1e-3)

    def test_the_loss_reaches_the_trained_parameters(self) -> None:
        policy = self._policy()
        clear_gradients(policy.modules())
        backward(policy.forward(policy.encode(groups())).logprobs.sum())
        trained = trained_parameters(policy.modules()).values()
        assert trained
        assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in trained)

    def test_saved_and_loaded_it_is_the_same_policy(self, tmp_path: Path) -> None:
        policy = self._policy()
        nudge(policy.modules())
        policy.save(tmp_path / "policy")
        loaded = self.reload(tmp_path / "policy")
        batch, again = policy.encode(groups()), loaded.encode(groups())
        assert torch.equal(batch.prompt_ids, again.prompt_ids)
        assert torch.equal(batch.response_ids, again.response_ids)
        _assert_close(policy, loaded.forward(again).logprobs, policy.forward(batch).logprobs)

    def test_forward_runs_through_bound_modules_once(self) -> None:
        policy = self._policy()
        policy.add_value_head()
        wrapped = {name: CountingModule(module) for name, module in policy.modules().items()}
        batch = policy.encode(groups())
        before = policy.forward(batch).logprobs
        policy.bind(wrapped)
        output = policy.forward(batch, entropy=True, hidden=True, values=True)
        _assert_close(policy, output.logprobs, before)
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
        _assert_close(policy, output.logprobs, before)
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
        other = policy.forward(_with_other_last_tokens(batch), values=True).values
        assert values is not None
        assert other is not None
        _assert_close(policy, values, other)

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
        output, other = scorer.forward(batch), scorer.forward(_with_other_last_tokens(batch))
        _assert_close(scorer, output.values, other.values)
        assert bool(((output.scores - other.scores).abs() > _bound(scorer, output.scores)).all()), (
            "the last token makes no difference"
        )

    def test_a_score_does_not_depend_on_neighbours(self) -> None:
        scorer, batch = self._trained_scorer()
        alone = [scorer.forward(batch.select([g])) for g in range(batch.num_groups)]
        _assert_close(scorer, torch.cat([output.scores for output in alone]), scorer.forward(batch).scores)
        _assert_close(scorer, torch.cat([output.values for output in alone]), scorer.forward(batch).values)

    def test_a_saved_scorer_loads_again(self, tmp_path: Path) -> None:
        scorer, batch = self._trained_scorer()
        scorer.save(tmp_path / "scorer")
        loaded = self.component.load_scorer(tmp_path / "scorer", self.context())  # type: ignore[attr-defined]
        again: GroupBatch = loaded.encode(groups())
        assert torch.equal(again.response_ids, batch.response_ids)
        _assert_close(scorer, loaded.forward(again).scores, scorer.forward(batch).scores)

    def test_a_policy_is_refused_as_a_scorer(self, tmp_path: Path) -> None:
        self._policy().save(tmp_path / "policy")
        with pytest.raises(InputError):
            self.component.load_scorer(tmp_path / "policy", self.context())  # type: ignore[attr-defined]

    def _trained_scorer(self) -> tuple[Scorer, GroupBatch]:
        scorer = self._policy().scorer()
        assert isinstance(scorer, Model)
        nudge(scorer.modules())
        return scorer, scorer.encode(groups())


def _stop_token(batch: GroupBatch) -> int:
    """The last token of an encoded record."""
    return int(batch.response_ids[batch.last_token[0]])


def _with_other_last_tokens(batch: GroupBatch) -> GroupBatch:
    """Each response with its first token in the place of its last."""
    ids = batch.response_ids.clone()
    ids[batch.last_token] = batch.response_ids[batch.first_token]
    return batch.replace(response_ids=ids)


def _bound(model: Model, logprobs: Tensor) -> float:
    """The largest difference of two of the model's figures that rounding explains."""
    return rounding(_terms(model, logprobs), scale=float(logprobs.detach().abs().max()))


def _terms(model: Model, figures: Tensor) -> int:
    return terms_of_network(model.modules(), figures.numel())


def _assert_close(model: Model, found: Tensor, expected: Tensor) -> None:
    assert_near(found, expected, terms=_terms(model, expected))
