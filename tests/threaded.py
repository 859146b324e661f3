"""A sampler that works in a thread, with copies of the policy: what an engine in processes of its own does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any

from alignkit import AheadOptions, Context
from alignkit.ops import mismatch_weights
from alignkit.samplers import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alignkit import GroupBatch, Policy, Prompt

SECONDS = 20.0


class Threaded(Sampler[AheadOptions]):
    """The sampler.

    Attributes:
        copies: version -> the policy as it was.
        stepped: set it after each step, if `waits`: all batches but the first wait for a step after they were begun.
        in_time: of each batch that waited, whether there was such a step.
    """

    def __init__(
        self, config: AheadOptions | None = None, context: Context | None = None, *, waits: bool = False
    ) -> None:
        super().__init__(config, context)
        self.copies: dict[int, Policy[Any]] = {}
        self.stepped, self.in_time = Event(), list[bool]()
        self._waits, self._version, self._begun = waits, -1, 0
        self._pool = ThreadPoolExecutor(1)

    def sync(self, policy: Policy[Any], version: int) -> None:
        self.copies[version], self._version = policy.reference(), version

    def generate(self, prompts: Sequence[Prompt], **how: Any) -> GroupBatch:
        return self._sampled(self._version, prompts, how)

    def begin(self, prompts: Sequence[Prompt], **how: Any) -> Callable[[], GroupBatch]:
        self._begun += 1
        self.stepped.clear()
        return self._pool.submit(self._later, self._begun, self._version, prompts, how).result

    def _later(self, number: int, version: int, prompts: Sequence[Prompt], how: Mapping[str, Any]) -> GroupBatch:
        if self._waits and number > 1:
            self.in_time.append(self.stepped.wait(SECONDS))
        return self._sampled(version, prompts, how)

    def _sampled(self, version: int, prompts: Sequence[Prompt], how: Mapping[str, Any]) -> GroupBatch:
        batch = self.copies[version].generate(prompts, **how)
        return batch.replace(logprobs=None, sampler_logprobs=batch.logprobs, version=version)

    def corrected(self, batch: GroupBatch) -> tuple[GroupBatch, Mapping[str, float]]:
        weights, figures = mismatch_weights(batch, "sequence-mask", 1e6)
        assert batch.advantages is not None
        return batch.replace(advantages=batch.advantages * weights), figures

    def close(self) -> None:
        self._pool.shutdown()
