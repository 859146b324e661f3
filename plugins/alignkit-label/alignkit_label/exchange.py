"""Records in and out: any file that `dataset` reads, JSON of Argilla 2 and Label Studio, and TRL's columns."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from alignkit_data import Dataset, to_trl_rows

from alignkit import Group, InputError, check_storable, write_synced
from alignkit_label.foreign import from_argilla, from_label_studio, to_argilla, to_label_studio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from alignkit_label.foreign import Record

Form = Literal["groups", "pairs", "labels", "argilla", "label-studio"]
NOT_KEPT: dict[str, str] = {
    "pairs": "ties, skips, seconds, reasons and who said what (--form groups keeps them)",
    "labels": "ties, skips, seconds, reasons, who said what, and what is between the best and the worst (--form groups"
    " keeps them)",
}
"""What a form can't hold."""


def read_records(path: Path, columns: Mapping[str, str], left_out: dict[str, int] | None = None) -> list[Group]:
    """The groups of a file. Single responses to one prompt (KTO) become one group.

    Args:
        left_out: gets the number of rows that can't be used, by reason.

    Raises:
        InputError: the file is missing, or fits none of the forms.
    """
    if not path.is_file():
        raise InputError("no such file", where=str(path), fix="check the path")
    foreign = _foreign(path)
    if foreign is None:
        data = Dataset.of_file(path, columns)
        groups = _joined(data.groups())
        several = [group for group in groups if len(group.responses) > 1]
        if left_out is not None:
            left_out |= {**data.describe().dropped, "one response": len(groups) - len(several)}
        return several
    convert, rows = foreign
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            check_storable(json.dumps(row, ensure_ascii=False))
            found.append(convert(row))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(what, where=f"{path}, record {number}", fix="see docs/reference/data.md") from error
    return found


def rows_of(groups: Iterable[Group], form: Form) -> Iterator[Record]:
    """Rows in this form; `pairs` and `labels` have TRL's columns."""
    if form == "pairs":
        return to_trl_rows(groups, form)
    if form == "labels":
        return to_trl_rows(_with_labels(groups), form)
    if form == "label-studio":
        return ({"id": number, **to_label_studio(group)} for number, group in enumerate(groups, start=1))
    return (to_argilla(group) if form == "argilla" else group.to_json() for group in groups)


def write_rows(path: Path, rows: Iterable[Record], form: Form) -> int:
    """Writes JSON lines, or one JSON list for Argilla and Label Studio, whole or not at all. Returns the row count."""
    listed = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if form in ("argilla", "label-studio"):
        text = json.dumps(listed, ensure_ascii=False, indent=1) + "\n"
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed)
    write_synced(path, text)
    return len(listed)


def _joined(groups: Iterable[Group]) -> list[Group]:
    """Joins groups of one response by prompt, at the place of the first; their labels become ranks."""
    joined: dict[str, list[Group]] = {}
    for number, group in enumerate(groups):
        key = group.prompt.key if len(group.responses) == 1 else f"group {number}"
        joined.setdefault(key, []).append(group)
    found = []
    for parts in joined.values():
        first = parts[0]
        if len(parts) > 1:
            known = [part.labels[0] for part in parts if part.labels]
            ranks = tuple(int(not label) for label in known) if len(set(known)) == 2 else None
            texts = tuple(part.responses[0] for part in parts)
            turns = [turn for part in parts for turn in part.meta.get("turns") or [None]]
            meta = {"turns": turns} if any(turns) else {}
            ranks = ranks if len(known) == len(parts) else None
            first = Group(first.prompt, texts, ranks, source=first.source, meta=meta)
        found.append(first)
    return found


def _foreign(path: Path) -> tuple[Callable[[Record], Group], list[Record]] | None:
    """The converter and the rows of a JSON file of Argilla or Label Studio; None for other files, which `dataset` reads
    or refuses."""
    if path.suffix != ".json":
        return None
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    first = rows[0] if isinstance(rows, list) and rows else None
    if not isinstance(first, dict):
        return None
    if isinstance(first.get("fields"), dict):
        return from_argilla, rows
    if isinstance(first.get("data"), dict):
        return from_label_studio, rows
    return None


def _with_labels(groups: Iterable[Group]) -> Iterator[Group]:
    """The best are desirable, the worst are not, those between are dropped. Existing labels (all bad) stay."""
    for group in groups:
        ranks = group.ranks or ()
        if group.labels is not None:
            yield group
        elif len(set(ranks)) > 1:
            kept = [index for index, rank in enumerate(ranks) if rank in (min(ranks), max(ranks))]
            yield replace(group.choose(kept), labels=tuple(ranks[index] == min(ranks) for index in kept))
