"""Exports groups to the columns that TRL's trainers read, and rows to Parquet."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from alignkit import Group

TRLForm = Literal["pairs", "best-worst", "labels", "demonstrations"]


def to_trl_rows(groups: Iterable[Group], form: TRLForm = "pairs") -> Iterator[dict[str, Any]]:
    """Rows in TRL's standard form for text prompts, in its conversational form for chats.

    Args:
        groups: groups without the ranks or labels that the form needs give no rows.
        form: `pairs`: prompt, chosen, rejected for every strictly ordered pair; `best-worst`: only for the first best
            and the first worst response; `labels`: prompt, completion, label; `demonstrations`: prompt, completion for
            the best responses, or for all if nothing is ranked.
    """
    rows = {"pairs": _pairs, "best-worst": _best_worst, "labels": _labels, "demonstrations": _demonstrations}[form]
    for group in groups:
        for row in rows(group):
            tools = group.prompt.meta.get("tools")
            yield {"prompt": group.prompt.content, **row} | ({"tools": tools} if tools else {})


def _pairs(group: Group) -> Iterator[dict[str, Any]]:
    for better, worse in group.preferred_pairs():
        yield {"chosen": _answer(group, better), "rejected": _answer(group, worse)}


def _best_worst(group: Group) -> Iterator[dict[str, Any]]:
    if group.ranks and min(group.ranks) < max(group.ranks):
        best, worst = group.ranks.index(min(group.ranks)), group.ranks.index(max(group.ranks))
        yield {"chosen": _answer(group, best), "rejected": _answer(group, worst)}


def _labels(group: Group) -> Iterator[dict[str, Any]]:
    for index, label in enumerate(group.labels or ()):
        yield {"completion": _answer(group, index), "label": label}


def _demonstrations(group: Group) -> Iterator[dict[str, Any]]:
    for index in range(len(group.responses)):
        if group.ranks is None or group.ranks[index] == min(group.ranks):
            yield {"completion": _answer(group, index)}


def _answer(group: Group, index: int) -> str | list[dict[str, Any]]:
    response, turns = group.responses[index], group.meta.get("turns") or {}
    if group.prompt.messages is None:
        return response
    return [(turns[index] if turns else None) or {"role": "assistant", "content": response}]


def write_parquet(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes rows to a Parquet file, whole or not at all; returns the row count.

    Raises:
        ValueError: a column holds values of several types (some prompts are texts, others chats).
    """
    listed = list(rows)
    columns = list(dict.fromkeys(name for row in listed for name in row))
    pyarrow = import_module("pyarrow")
    try:
        table = pyarrow.table({name: [row.get(name) for row in listed] for name in columns})
    except (ValueError, TypeError) as error:
        raise ValueError(f"a column holds values of several types, which Parquet can't store: {error}") from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    import_module("pyarrow.parquet").write_table(table, partial)
    partial.replace(path)
    return len(listed)
