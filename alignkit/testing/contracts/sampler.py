"""The contract of samplers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch

from alignkit.algorithms.passes import policy_logprobs
from alignkit.options import Sampling
from alignkit.samplers import Sampler
from alignkit.testing.contracts.component import ComponentContract
from alignkit.testing.material import nudge, prompts
from alignkit.testing.tiny import TinyPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from alignkit.batch import GroupBatch
    from alignkit.interfaces import Policy

SAMPLING = Sampling(max_tokens=12, temperature=0.8)
MANY = 10**6


class SamplerContract(ComponentContract):
    """`class TestMine(SamplerContract): component = Mine; options = {...}`

    Every sampler is made once for a test and closed after it.
    """

    atol: ClassVar[float] = 1e-4
    """Largest difference between the sampler's log-probabilities and the policy's."""

    def policy(self) -> Policy[Any]:
        """A new policy that the sampler can sample, in float32; every call gives an equal one."""
        return TinyPolicy(context=self.context())

    @pytest.fixture
    def sampler(self) -> Iterator[Sampler[Any]]:
        made = self.make()
        assert isinstance(made, Sampler)
        yield made
        made.close()

    def test_rollouts_are_those_of_the_weights_and_say_their_version(self, sampler: Sampler[Any]) -> None:
        policy = self.policy()
        for version in (3, 4, 9):
            sampler.sync(policy, version)
            batch = _sampled(sampler)
            assert batch.version == version
            self.assert_of(policy, batch)
            nudge(policy.modules())

    def assert_of(self, policy: Policy[Any], batch: GroupBatch) -> None:
        """Fails unless the log-probabilities that came with the samples are the policy's."""
        apart = float((_logprobs(batch) - policy_logprobs(policy, batch, MANY)).detach().abs().max())
        assert apart <= self.atol, f"log-probabilities are {apart:.1e} nats from the policy's"

    def test_new_weights_give_new_samples_and_old_ones_the_old(self, sampler: Sampler[Any]) -> None:
        policy, moved = self.policy(), self.policy()
        nudge(moved.modules(), size=0.5)
        found = []
        for number, one in enumerate((policy, moved, policy)):
            sampler.sync(one, number)
            found.append(_sampled(sampler).groups)
        assert found[0] == found[2]
        assert found[0] != found[1]

    def test_rollouts_are_whole_or_cut_off_at_the_limit(self, sampler: Sampler[Any]) -> None:
        policy = self.policy()
        sampler.sync(policy, 0)
        batch = _sampled(sampler, n=4)
        ends = set(
            policy.encode(
                [replace(group, responses=("",), finished=None) for group in batch.groups]
            ).response_ids.tolist()
        )
        assert [group.prompt for group in batch.groups] == prompts()
        assert batch.lengths.shape == (4 * len(prompts()),)
        assert batch.temperature == SAMPLING.temperature
        assert [int(last) in ends for last in batch.response_ids[batch.last_token]] == batch.finished.tolist()
        assert bool((batch.lengths[~batch.finished] == SAMPLING.max_tokens).all())
        assert [flag for group in batch.groups for flag in group.finished or ()] == batch.finished.tolist()

    def test_a_rollout_follows_from_seed_place_and_number_alone(self, sampler: Sampler[Any]) -> None:
        sampler.sync(self.policy(), 0)
        whole = _sampled(sampler)
        assert _sampled(sampler).groups == whole.groups
        assert _sampled(sampler, seed=1).groups != whole.groups
        alone = sampler.generate(prompts()[2:3], n=1, sampling=SAMPLING, seed=0, places=[2])
        assert alone.groups[0].responses[0] == whole.groups[2].responses[0]
        same = sampler.generate(prompts()[:1] * 4, n=2, sampling=replace(SAMPLING, max_tokens=20), seed=0)
        assert len({response for group in same.groups for response in group.responses}) > 4, "equal prompts got copies"

    def test_what_was_begun_is_of_the_weights_it_began_with(self, sampler: Sampler[Any]) -> None:
        policy = self.policy()
        sampler.sync(policy, 3)
        expected = _sampled(sampler)
        finish = sampler.begin(prompts(), n=3, sampling=SAMPLING, seed=0)
        nudge(policy.modules(), size=0.5)
        batch = finish()
        assert (batch.groups, batch.version) == (expected.groups, 3), "it used weights that came after begin"
        assert torch.equal(_logprobs(batch), _logprobs(expected))

    def test_temperature_zero_takes_the_likeliest_token(self, sampler: Sampler[Any]) -> None:
        sampler.sync(self.policy(), 0)
        batch = sampler.generate(prompts(), n=2, sampling=Sampling(max_tokens=6, temperature=0.0), seed=0)
        assert all(one == two for one, two in (group.responses for group in batch.groups))
        self.assert_of(self.policy(), batch)

    def test_it_can_be_closed_twice(self, sampler: Sampler[Any]) -> None:
        sampler.close()
        sampler.close()


def _sampled(sampler: Sampler[Any], *, n: int = 3, seed: int = 0) -> GroupBatch:
    return sampler.generate(prompts(), n=n, sampling=SAMPLING, seed=seed)


def _logprobs(batch: GroupBatch) -> Tensor:
    found = batch.logprobs if batch.sampler_logprobs is None else batch.sampler_logprobs
    assert found is not None, "the batch has neither logprobs nor sampler_logprobs"
    return found
