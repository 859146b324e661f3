"""The contract of policies."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import torch

from alignkit.batch import GroupBatch
from alignkit.interfaces import Policy
from alignkit.options import Sampling
from alignkit.testing.contracts.component import ComponentContract
from alignkit.testing.contracts.servable import ServableContract
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

    from alignkit.interfaces import Model


SAMPLING = Sampling(max_tokens=12, temperature=0.8)


class PolicyContract(ServableContract, ComponentContract):
    """`class TestMine(PolicyContract): component = Mine; options = {...}`

    Every call of `make` must give an equal policy, in float32.
    """

    def independent_logprobs(self, policy: Any, batch: GroupBatch) -> Tensor | None:
        """[R] log-probabilities computed without the policy's `forward`, response by response; None skips the check."""
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
        assert_close(policy, plain.logprobs, output.logprobs)

    def test_forward_equals_an_independent_computation(self) -> None:
        policy = self._policy()
        batch = policy.encode(groups())
        for temperature in (1.0, 0.6):
            tempered = batch.replace(temperature=temperature)
            expected = self.independent_logprobs(policy, tempered)
            if expected is None:
                pytest.skip("no independent computation: override independent_logprobs")
            assert_close(policy, policy.forward(tempered).logprobs, expected)

    def test_forward_does_not_depend_on_neighbours(self) -> None:
        policy = self._policy()
        batch = policy.encode(groups())
        together = policy.forward(batch).logprobs
        alone = [policy.forward(batch.select([g])).logprobs for g in range(batch.num_groups)]
        assert_close(policy, torch.cat(alone), together)
        only = [torch.arange(batch.num_responses) == s for s in range(batch.num_responses)]
        single = [policy.forward(batch.select_responses(one)).logprobs for one in only]
        assert_close(policy, torch.cat(single), together)

    def test_a_token_is_predicted_from_its_prompt_and_the_tokens_before_it(self) -> None:
        policy = self._policy()
        batch = policy.encode(groups())
        before = policy.forward(batch).logprobs
        longest = int(batch.lengths.argmax())
        place = int(batch.first_token[longest] + batch.lengths[longest] // 2)
        ids = batch.response_ids.clone()
        ids[place] = next(token for token in ids.tolist() if token not in (int(ids[place]), _stop_token(batch)))
        after = policy.forward(batch.replace(response_ids=ids)).logprobs
        bound = largest_rounding(policy, before)
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
        assert_close(policy, policy.forward(batch).logprobs, first)

    def test_rollouts_are_whole_or_cut_off_at_the_limit(self) -> None:
        policy = self._policy()
        batch = policy.generate(prompts(), n=4, sampling=SAMPLING, seed=0)
        stop = _stop_token(policy.encode(groups()))
        assert batch.group_index.tolist() == [g for g in range(len(prompts())) for _ in range(4)]
        assert [group.prompt for group in batch.groups] == prompts()
        assert [len(group.responses) for group in batch.groups] == [4] * len(prompts())
        assert batch.temperature == SAMPLING.temperature
        stops = batch.sum_by_response((batch.response_ids == stop).long())
        assert torch.equal(stops == 1, batch.finished), "finished must mean that the response ends with the stop token"
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
        assert_close(policy, batch.logprobs, policy.forward(batch).logprobs)

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
        for place, prompt in enumerate(prompts()):
            alone = policy.generate([prompt], n=1, sampling=SAMPLING, seed=0, places=[place])
            assert alone.groups[0].responses[0] == whole.groups[place].responses[0]
        torch.rand(5)
        places = range(len(prompts()))[::-1]
        again = policy.generate(prompts()[::-1], n=3, sampling=SAMPLING, seed=0, places=places)
        assert again.groups[::-1] == whole.groups
        longer = policy.generate(prompts()[:2], n=5, sampling=replace(SAMPLING, max_tokens=20), seed=0)
        short, long = _response_ids(whole), _response_ids(longer)
        for place, index in product(range(2), range(3)):
            ids = short[3 * place + index]
            assert long[5 * place + index][: len(ids)] == ids, "the number of prompts, of responses or of tokens counts"

    def test_equal_prompts_get_responses_of_their_own(self) -> None:
        policy, count = self._policy(), 16
        batch = policy.generate(prompts()[:1] * count, n=4, sampling=replace(SAMPLING, max_tokens=20), seed=0)
        copies = sum(one.responses == batch.groups[0].responses for one in batch.groups[1:])
        assert not copies, f"{copies} of {count - 1} equal prompts got the first one's responses: use `places`"

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
        assert_close(policy, before, policy.forward(batch).logprobs)
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
        loaded = type(policy).load(tmp_path / "policy", self.config(), self.context())
        batch, again = policy.encode(groups()), loaded.encode(groups())
        assert torch.equal(batch.prompt_ids, again.prompt_ids)
        assert torch.equal(batch.response_ids, again.response_ids)
        assert_close(policy, loaded.forward(again).logprobs, policy.forward(batch).logprobs)

    def test_forward_runs_through_bound_modules_once(self) -> None:
        policy = self._policy()
        wrapped = {name: CountingModule(module) for name, module in policy.modules().items()}
        batch = policy.encode(groups())
        before = policy.forward(batch).logprobs
        policy.bind(wrapped)
        assert_close(policy, policy.forward(batch, entropy=True, hidden=True).logprobs, before)
        assert sum(module.calls for module in wrapped.values()) == 1


def _stop_token(batch: GroupBatch) -> int:
    """The last token of an encoded record."""
    return int(batch.response_ids[batch.last_token[0]])


def _response_ids(batch: GroupBatch) -> list[list[int]]:
    return [ids.tolist() for ids in torch.split(batch.response_ids, batch.lengths.tolist())]


def with_other_last_tokens(batch: GroupBatch) -> GroupBatch:
    """Each response with its last token replaced by its first."""
    ids = batch.response_ids.clone()
    ids[batch.last_token] = batch.response_ids[batch.first_token]
    return batch.replace(response_ids=ids)


def assert_close(model: Model, found: Tensor, expected: Tensor) -> None:
    """Fails if figures of the model differ by more than rounding."""
    assert_near(found, expected, terms=_terms(model, expected))


def largest_rounding(model: Model, figures: Tensor) -> float:
    """The largest rounding difference of two computations of the model's figures."""
    return rounding(_terms(model, figures), scale=float(figures.detach().abs().max()))


def _terms(model: Model, figures: Tensor) -> int:
    return terms_of_network(model.modules(), tokens=figures.numel())
