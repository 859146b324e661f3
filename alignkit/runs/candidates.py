"""Samples responses for labellers: from one policy, or several at several temperatures, without near-duplicates.

At most one policy is in memory besides the run's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from alignkit.preferences.similar import distinct
from alignkit.recipe.tables import CandidateOptions
from alignkit.records import Group, Prompt
from alignkit.samplers import OwnSampler, Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from alignkit.interfaces import Policy
    from alignkit.options import ComponentSpec, Sampling

SEED_STEP = 7919
"""Seeds of two voices (policy and temperature) differ by this, so that equal policies give different samples."""


@dataclass(eq=False)
class PolicySampler:
    """The `Ask` of a run; loads its policy on first use. Other policies sample themselves.

    Args:
        load: loads the run's policy.
        read_prompts: reads the run's prompts.
        options: other policies and temperatures; by default only the run's policy, at the run's temperature.
        load_other: loads a policy of `options.policies`.
        sampler: samples the run's policy; by default the policy itself.
    """

    load: Callable[[], Policy[Any]]
    read_prompts: Callable[[], list[Prompt]]
    sampling: Sampling
    seed: int
    options: CandidateOptions = field(default_factory=CandidateOptions)
    load_other: Callable[[ComponentSpec], Policy[Any]] | None = None
    sampler: Sampler[Any] = field(default_factory=OwnSampler)
    asked: int = field(default=0, init=False)

    @cached_property
    def _synced(self) -> Sampler[Any]:
        self.sampler.sync(self.load(), 0)
        return self.sampler

    @cached_property
    def prompts(self) -> Sequence[Prompt]:
        return self.read_prompts()

    def __call__(self, prompts: Sequence[Prompt], k: int) -> list[Group]:
        """`k` responses per prompt, or `candidates.count`; fewer if near-duplicates are dropped.

        Several voices take turns, and `meta.sampled_from` names the voice of each response. A prompt that is asked
        again gets other responses.
        """
        options = self.options
        k = options.count or k
        places = range(self.asked, self.asked + len(prompts))
        self.asked = places.stop
        if options == CandidateOptions(count=options.count):
            sampling, seed = self.sampling, self.seed
            return list(self._synced.generate(prompts, n=k, sampling=sampling, seed=seed, places=places).groups)
        drawn = list(self._drawn(prompts, k + options.spare, places))
        return [self._chosen(spoken, k) for spoken in zip(*drawn, strict=True)]

    def _drawn(self, prompts: Sequence[Prompt], wanted: int, places: range) -> Iterator[list[Group]]:
        """The groups of each voice, in the order of the prompts, with the voice's name on each response."""
        temperatures = self.options.temperatures or (self.sampling.temperature,)
        sources: list[ComponentSpec | None] = [None, *self.options.policies]
        voices = len(sources) * len(temperatures)
        for number, spec in enumerate(sources):
            policy = self._synced if spec is None else self._other(spec)
            name = "policy" if spec is None else _name(spec)
            for place, temperature in enumerate(temperatures):
                voice = place * len(sources) + number
                if count := (wanted - voice + voices - 1) // voices:
                    sampling = replace(self.sampling, temperature=temperature)
                    seed = self.seed + SEED_STEP * voice
                    batch = policy.generate(prompts, n=count, sampling=sampling, seed=seed, places=places)
                    said = [f"{name} at {temperature:g}"] * count
                    meta = {"sampled_from": said, "voice": voice}
                    yield [replace(group, meta={**group.meta, **meta}) for group in batch.groups]

    def _other(self, spec: ComponentSpec) -> Policy[Any]:
        if self.load_other is None:
            raise ValueError("this sampler can't load other policies")
        return self.load_other(spec)

    def _chosen(self, spoken: Sequence[Group], k: int) -> Group:
        """The first k responses, taken from each voice in turn, without near-duplicates."""
        ordered = sorted(spoken, key=lambda group: group.meta["voice"])
        turns = sorted((turn, voice) for voice, group in enumerate(ordered) for turn in range(len(group.responses)))
        every = [(ordered[voice].choose([turn]), ordered[voice].meta["sampled_from"][turn]) for turn, voice in turns]
        texts = [group.responses[0] for group, _ in every]
        near = self.options.near_duplicate
        kept = (distinct(texts, near) if near else list(range(len(texts))))[:k]
        finished = tuple((every[index][0].finished or (True,))[0] for index in kept)
        return Group(
            spoken[0].prompt,
            tuple(texts[index] for index in kept),
            finished=None if all(finished) else finished,
            meta={"sampled_from": [every[index][1] for index in kept]},
        )


def _name(spec: ComponentSpec) -> str:
    """The name of a policy in records: the last part of its model's path, else its plugin."""
    return str(spec.get("model") or spec.get("plugin", "policy")).rstrip("/").rpartition("/")[2]
