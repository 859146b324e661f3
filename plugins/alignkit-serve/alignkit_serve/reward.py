"""The reward source `http`: requests of whole groups, several at a time, whose scores come back in order."""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from alignkit import RetryGate, RewardSource
from alignkit_serve.client import ScoreClient
from alignkit_serve.options import HttpOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from alignkit import Context, Group
    from alignkit_serve.protocol import Scored


class HttpReward(RewardSource[HttpOptions]):
    """Raises InputError if no score server answers, so that a run without one stops before it samples."""

    def __init__(self, config: HttpOptions | None = None, context: Context | None = None) -> None:
        super().__init__(config, context)
        self._client = ScoreClient(self.config)
        self._figures: dict[str, float] = {}

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        """The server's scores. Raises what `ScoreClient.score` raises."""
        parts = list(divided(groups, self.config.batch_size))
        self._client.gate = RetryGate()
        pool = ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="reward")
        try:
            running = [pool.submit(self._client.score, part) for part in parts]
            for failed in (one for one in wait(running, return_when=FIRST_EXCEPTION).done if one.exception()):
                failed.result()
            scored = [one.result() for one in running]
        finally:
            # Whatever ended it, an interrupt too: nobody waits for the other requests.
            self._client.gate.open_for_good()
            pool.shutdown(wait=False, cancel_futures=True)
        self._figures = _mean(scored)
        return [row for one in scored for row in one.rows]

    def figures(self) -> Mapping[str, float]:
        return self._figures


def divided(groups: Sequence[Group], size: int) -> Iterator[Sequence[Group]]:
    """Consecutive groups with up to `size` responses together, at least one group."""
    start, count = 0, 0
    for end, group in enumerate(groups):
        if count and count + len(group.responses) > size:
            yield groups[start:end]
            start, count = end, 0
        count += len(group.responses)
    if count:
        yield groups[start:]


def _mean(scored: Sequence[Scored]) -> dict[str, float]:
    """The mean of each figure over all responses."""
    if len(scored) == 1:
        return dict(scored[0].figures)
    names = {name for one in scored for name in one.figures}
    counts = [sum(map(len, one.rows)) for one in scored]
    return {
        name: sum(one.figures.get(name, 0.0) * count for one, count in zip(scored, counts, strict=True)) / sum(counts)
        for name in sorted(names)
    }
