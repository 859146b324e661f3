"""Tries the first records of a recipe's files before a model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignkit.errors import InputError
from alignkit.interfaces import Feed, PreferenceSource
from alignkit.recipe.tables import REWARD_TRAINING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignkit.recipe.resolved import Resolved
    from alignkit.records import Group
    from alignkit.runs.plan import Stage

READERS = {
    "demonstrations": {"sft"},
    "preferences": {"preferences", "reward", "align"},
    "prompts": {"preferences", "align", "eval"},
    "ptx": {"align"},
}
"""Table -> the stages that may read it."""


def try_records(resolved: Resolved, stages: Sequence[Stage]) -> None:
    """Has the policy read the first records of the files that these stages read.

    Raises:
        InputError: a record is not what the stage or the policy needs; names its place.
    """
    names = {stage.name for stage in stages}
    for table, readers in READERS.items():
        # Building a source without first records may cost something.
        reads = table in resolved.names and readers & names
        if reads and resolved.load(table).first is not PreferenceSource.first:
            records = list(resolved.build(table).first())
            if table in ("demonstrations", "ptx"):
                _check_answered(records)
            elif table == "preferences":
                _check_fed(resolved, records, names)
            if "policy" in resolved.names:
                resolved.load("policy").try_records(resolved.config("policy"), records)


def _check_answered(records: Sequence[tuple[str, Group]]) -> None:
    for place, group in records:
        if not all(group.responses):
            raise InputError(
                "a prompt without an answer to learn", where=place, fix="add the answer, or read it in [prompts]"
            )


def _check_fed(resolved: Resolved, records: Sequence[tuple[str, Group]], stages: set[str]) -> None:
    """Refuses preferences that don't hold what the algorithms learn from; labels may be missing here and there."""
    for table, stage in ((REWARD_TRAINING, "reward"), ("optimizer", "align")):
        feed = resolved.load(table).consumes if stage in stages and table in resolved else Feed.ROLLOUTS
        unranked = [(place, group) for place, group in records if group.ranks is None]
        without = unranked if feed is Feed.RANKINGS else [one for one in unranked if one[1].labels is None]
        if without and (feed is Feed.RANKINGS or (feed is Feed.LABELS and len(without) == len(records))):
            raise InputError(
                f"no {feed.value}, which {resolved.part(table).registration.name} learns from",
                where=without[0][0],
                fix="give such data; docs/data.md lists its forms",
            )
