"""Commands without a run directory: from file to file."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

from alignkit.errors import InputError
from alignkit.recipe.tables import DEFAULT_PLUGIN
from alignkit.records import Group, Prompt, read_groups, write_groups

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignkit.interfaces import Policy, PreferenceSource, RewardSource
    from alignkit.recipe.resolved import Resolved
    from alignkit.runs.reporting import Reporter


def sample(
    resolved: Resolved,
    prompts: Path,
    n: int,
    out: Path,
    reporter: Reporter,
    *,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Samples `n` responses per prompt of a data file from the recipe's policy -> groups in `out`.

    Args:
        columns: old column name of the file -> new one.
    """
    reader = resolved.registry.get("preferences", DEFAULT_PLUGIN["prompts"])
    options = cast("type[PreferenceSource[Any]]", reader.load()).options_of_file(prompts, columns or {})
    source: PreferenceSource[Any] = resolved.build_spec("preferences", {"plugin": str(reader), **options})
    asked = [group.prompt for group in source.preferences(NoPolicy())]
    resolved.load("policy").try_records(resolved.config("policy"), source.first())
    policy: Policy[Any] = resolved.build("policy")
    reporter.note(f"sampling {n} responses for each of {len(asked)} prompts")
    with closing(resolved.sampler()) as sampler:
        sampler.sync(policy, 0)
        batch = sampler.generate(asked, n=n, sampling=resolved.sampling, seed=resolved.run.seed)
    write_groups(out, batch.groups)
    finished = round(float(batch.finished.float().mean()), 4)
    return {"groups": batch.num_groups, "responses": batch.num_responses, "finished": finished, "out": str(out)}


def score(resolved: Resolved, groups: Path, out: Path, reporter: Reporter) -> dict[str, Any]:
    """Scores the responses of a groups file with the recipe's reward -> the same groups with `scores` in `out`."""
    from alignkit.runs.first import TRIED, try_on
    from alignkit.training.scores import score_groups

    records = list(read_groups(groups))
    if not records:
        raise InputError("the file is empty", where=str(groups), fix="give a file of groups, one JSON record per line")
    try_on(resolved, ["reward"], [(f"{groups}:{line}", record) for line, record in enumerate(records[:TRIED], start=1)])
    source: RewardSource[Any] = resolved.build("reward")
    reporter.note(f"scoring {sum(len(record.responses) for record in records)} responses")
    scored = score_groups(source, records)
    write_groups(out, scored)
    values = [value for group in scored for value in group.scores or () if value is not None]
    mean = round(sum(values) / len(values), 4) if values else None
    abstained = sum(len(group.responses) for group in scored) - len(values)
    return {"groups": len(scored), "scores": len(values), "abstained": abstained, "mean": mean, "out": str(out)}


class NoPolicy:
    """The `Ask` of a command that has no policy: it refuses to sample."""

    prompts: Sequence[Prompt] = ()

    def __call__(self, prompts: Sequence[Prompt], k: int) -> list[Group]:
        raise InputError("this source samples responses, which only a run can do", fix="use `alignkit preferences`")
