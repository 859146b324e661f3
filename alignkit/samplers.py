"""The role Sampler: who makes the rollouts. By default the policy itself; else another engine, with its weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Interval

from alignkit.components import Component, ConfigT
from alignkit.errors import InputError
from alignkit.options import Config, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from alignkit.batch import GroupBatch
    from alignkit.interfaces import Policy
    from alignkit.records import Prompt


@dataclass(frozen=True, kw_only=True)
class AheadOptions(Config):
    """Sampling ahead."""

    ahead: Annotated[int, Interval(ge=0, le=1)] = 0
    """1: sample the next batch of rollouts while this one is trained. Its weights are then one batch older, which
    importance weights make up for; an algorithm that can't be weighed refuses it. 0: first train, then sample."""


class Sampler(Component[ConfigT]):
    """Samples responses with the weights that `sync` last gave it."""

    @property
    def ahead(self) -> int:
        """How many batches of a training it begins before the one that is trained has ended."""
        return self.config.ahead if isinstance(self.config, AheadOptions) else 0

    @abstractmethod
    def sync(self, policy: Policy[Any], version: int) -> None:
        """Takes over the policy's weights under this version. In training all processes call it, else the first one.

        Raises:
            InputError: this sampler can't sample such a policy.
        """

    @abstractmethod
    def generate(
        self, prompts: Sequence[Prompt], *, n: int, sampling: Sampling, seed: int, places: Sequence[int] | None = None
    ) -> GroupBatch:
        """As `Policy.generate`, with the `version` of the weights.

        An engine of its own gives its log-probabilities as `sampler_logprobs` and leaves `logprobs` out: the algorithm
        computes the policy's in `prepare`.
        """

    def begin(
        self, prompts: Sequence[Prompt], *, n: int, sampling: Sampling, seed: int, places: Sequence[int] | None = None
    ) -> Callable[[], GroupBatch]:
        """Begins what `generate` does, with the present weights; the result waits for the batch.

        By default the batch is there at once. A sampler that offers `AheadOptions` works on it while the policy is
        trained: what it needs of the policy it takes before this returns, or when the result is called.
        """
        batch = self.generate(prompts, n=n, sampling=sampling, seed=seed, places=places)
        return lambda: batch

    def corrected(self, batch: GroupBatch) -> tuple[GroupBatch, Mapping[str, float]]:
        """A prepared batch, corrected for what lies between `sampler_logprobs` and `logprobs`, and figures of it."""
        return batch, {}

    def close(self) -> None:
        """Called once when the run ends, also after an error."""


@dataclass(frozen=True, kw_only=True)
class OwnOptions(AheadOptions):
    """The policy samples itself: exact, and nothing more to install."""

    def check(self) -> None:
        super().check()
        if self.ahead:
            what = "the policy can't sample while it is trained: both take the same processes"
            raise InputError(what, where="ahead", fix="leave it out, or let another engine sample: --sampler vllm")


class OwnSampler(Sampler[OwnOptions]):
    """The policy samples itself."""

    def sync(self, policy: Policy[Any], version: int) -> None:
        self._policy, self._version = policy, version

    def generate(
        self, prompts: Sequence[Prompt], *, n: int, sampling: Sampling, seed: int, places: Sequence[int] | None = None
    ) -> GroupBatch:
        batch = self._policy.generate(prompts, n=n, sampling=sampling, seed=seed, places=places)
        return batch.replace(version=self._version)


class Servable(ABC):
    """A Policy that another engine can sample: it hands out weights and token ids, and takes token ids back."""

    @property
    @abstractmethod
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a response."""

    @abstractmethod
    def named_weights(self, *, merged: bool = True) -> Iterator[tuple[str, Tensor]]:
        """(name in the saved model, whole tensor) in one order in every process, tied weights once.

        Collective where weights are sharded: every process must go to the end.

        Args:
            merged: the model with its adapter merged; else the adapter alone, nothing if there is none.
        """

    @abstractmethod
    def prompt_ids(self, prompts: Sequence[Prompt], room: int) -> list[list[int]]:
        """Token ids of each prompt, short enough for a response of `room` tokens."""

    @abstractmethod
    def batch_of(
        self,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        responses: Sequence[Sequence[Sequence[int]]],
        finished: Sequence[bool],
        sampling: Sampling,
    ) -> GroupBatch:
        """The batch of sampled responses: token ids per prompt, each with its stop token, and `finished` [S]."""
