"""Tries the first records of a recipe's files before a model is loaded."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from alignkit.errors import InputError, blamed
from alignkit.interfaces import Feed, PreferenceSource
from alignkit.options import Config, specs_of
from alignkit.plugins import Part, read_component
from alignkit.recipe.tables import OPTION_TABLES, REWARD_TRAINING
from alignkit.runs.plan import Stage, consumed_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from alignkit.recipe.resolved import Resolved
    from alignkit.records import Group

    Records = Sequence[tuple[str, Group]]

READERS = {
    "demonstrations": {"sft"},
    "preferences": {"preferences", "reward", "align"},
    "prompts": {"preferences", "align", "eval"},
    "ptx": {"align"},
}
"""Table -> the stages that may read it."""
TRIED = 5000
"""Groups of a file that `alignkit score` tries."""


def try_records(resolved: Resolved, stages: Sequence[Stage]) -> None:
    """Has the policy and whatever scores or labels its responses read the first records of these stages' files.

    Raises:
        InputError: a record is not what a stage or a component needs; names its place.
    """
    names = {stage.name for stage in stages}
    found: dict[str, Records] = {
        table: list(resolved.build(table).first())
        for table, readers in READERS.items()
        if table in resolved.names and readers & names and _reads_files(resolved, table)
    }
    prompts = measured = found.get("prompts" if "prompts" in resolved.names else "preferences", ())
    if "eval" in names and resolved.eval.prompts:
        source = resolved.build_spec("preferences", resolved.eval.prompts)
        found["eval"] = measured = list(islice(source.first(), resolved.eval.count))
    if "eval" in names and resolved.eval.texts:
        found["texts"] = list(resolved.build_spec("preferences", resolved.eval.texts).first())
    for table, records in found.items():
        if table in ("demonstrations", "ptx", "texts"):
            _check_answered(records)
        elif table == "preferences":
            _check_fed(resolved, records, names)
        try_on(resolved, ["policy"], records)
    try_on(resolved, _labellers(resolved, names), prompts)
    try_on(resolved, {"reward", "eval"} if "eval" in names else (), measured)


def try_on(resolved: Resolved, tables: Iterable[str], records: Records) -> None:
    """Tries records with the components of these tables, and those in their options. Raises what these find."""
    for table in tables if records else ():
        for part in _parts(resolved, table):
            with blamed(part.registration.owner):
                part.registration.load().try_records(part.config, records)


def _parts(resolved: Resolved, table: str) -> Iterator[Part]:
    if table in resolved.names:
        yield resolved.part(table)
    if table in resolved.names or table in OPTION_TABLES:
        yield from _nested(resolved, resolved.config(table))


def _nested(resolved: Resolved, config: Config) -> Iterator[Part]:
    for _, role, spec in specs_of(config):
        part, _ = read_component(resolved.registry, role, spec)
        if part is not None:
            yield part
            yield from _nested(resolved, part.config)


def _labellers(resolved: Resolved, stages: set[str]) -> set[str]:
    """The tables whose components see the prompts, or responses to them."""
    tables = {"preferences", "candidates"} if "preferences" in stages else set()
    if "align" in stages and (consumed_by(resolved) is Feed.ROLLOUTS or resolved.run.rounds > 1):
        tables |= {"reward", "optimizer"}
    return tables


def _reads_files(resolved: Resolved, table: str) -> bool:
    """Whether the table's source has first records; building one that has none may cost something."""
    source: type[PreferenceSource[Any]] = resolved.load(table)
    return source.first is not PreferenceSource.first


def _check_answered(records: Records) -> None:
    for place, group in records:
        if not all(group.responses):
            raise InputError(
                "a prompt without an answer to learn", where=place, fix="add the answer, or read it in [prompts]"
            )


def _check_fed(resolved: Resolved, records: Records, stages: set[str]) -> None:
    """Refuses preferences that don't hold what the algorithms learn from; labels may be missing here and there."""
    for table, stage in ((REWARD_TRAINING, "reward"), ("optimizer", "align")):
        feed = resolved.load(table).consumes if stage in stages and table in resolved else Feed.ROLLOUTS
        unranked = [(place, group) for place, group in records if group.ranks is None]
        without = unranked if feed is Feed.RANKINGS else [one for one in unranked if one[1].labels is None]
        if without and (feed is Feed.RANKINGS or (feed is Feed.LABELS and len(without) == len(records))):
            raise InputError(
                f"no {feed.value}, which {resolved.part(table).registration.name} learns from",
                where=without[0][0],
                fix=f"{_columns(without[0][1])}give such data; docs/reference/data.md lists its forms",
            )


def _columns(group: Group) -> str:
    """What a record may hold under names that no form has."""
    names = ", ".join(group.prompt.meta)
    return f"if {names} should count, rename: --columns OLD=chosen; else " if names else ""
