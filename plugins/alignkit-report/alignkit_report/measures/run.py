"""What a run says beside rewards, KL and length: the functions `measures` and `calibration` of an entry point in the
group `alignkit.reports`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkit_report.measures.calibration import Pairs, of_reward
from alignkit_report.measures.samples import START, of_samples, told
from alignkit_report.measures.tasks import run_tasks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignkit import Group, Policy


def measures(
    samples: Sequence[Group], policies: Mapping[str, Policy[Any]], tasks: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Policy -> measure -> figure with its interval.

    Args:
        samples: of all policies, with their figures.
        tasks: of lm-eval, for the policies before and after.
    """
    by_source: dict[str, list[Group]] = {}
    for group in samples:
        by_source.setdefault(group.source, []).append(group)
    found: dict[str, dict[str, Any]] = {name: {} for name in by_source}
    if len(by_source[START]) > 1:
        for name, table in of_samples(by_source).items():
            found[name] = told({measure: values[None] for measure, values in table.items()})
    for name in (START, "policy") if tasks else ():
        found[name] |= run_tasks(policies[name], tasks)
    return found


def calibration(groups: Sequence[Group]) -> dict[str, Any]:
    """The calibration of a reward model on ranked groups with its scores."""
    found = of_reward(Pairs.of(groups))
    return {name: value for name, value in found.items() if name not in ("pairs", "accuracy")}
