"""`alignkit preferences verdicts`: the saved verdicts of judges."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignkit import InputError
from alignkit.commands import AsJson, default_cache, show
from alignkit_judge.cache import VerdictCache

if TYPE_CHECKING:
    from alignkit_judge.cache import Row

app = typer.Typer(help="List, repair or forget the saved verdicts of judges.", no_args_is_help=True)
SHOWN = 200

File = Annotated[
    Path | None,
    typer.Argument(metavar="FILE", help="File of verdicts. [default: verdicts.sqlite in alignkit's cache folder]"),
]
Judge = Annotated[str, typer.Option("--judge", metavar="NAME", help="Only verdicts of this judge.", show_default=False)]


@app.command("list")
def list_verdicts(
    file: File = None,
    judge: Judge = "",
    replies: Annotated[
        int, typer.Option("--replies", metavar="N", help="Also show up to N replies without a verdict.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Count verdicts and the reasons for none, for each judge.

    Examples:
        alignkit preferences verdicts list --replies 3
    """
    rows = _of(_opened(file), judge)
    by_judge: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        answer = row.answer
        by_judge[_name(row)]["verdicts" if answer.values is not None else answer.reason or "abstained"] += 1
    found: dict[str, Any] = {name: dict(counts.most_common()) for name, counts in sorted(by_judge.items())}
    if replies:
        unusable = [row.answer.reply for row in rows if row.answer.unusable and row.answer.reply]
        found["replies"] = [reply[:SHOWN] if as_json else repr(reply[:SHOWN]) for reply in unusable[:replies]]
    show(found, as_json)


@app.command()
def repair(file: File = None, judge: Judge = "", as_json: AsJson = False) -> None:
    """Read the saved replies without a verdict again, as this version reads them. Asks no judge.

    Examples:
        alignkit preferences verdicts repair
    """
    cache = _opened(file)
    unusable = [row for row in _of(cache, judge) if row.answer.unusable]
    repaired = sum(_repaired(cache, row) for row in unusable)
    show({"unusable": len(unusable), "repaired": repaired}, as_json)


@app.command()
def forget(
    file: File = None,
    judge: Judge = "",
    unusable: Annotated[bool, typer.Option("--unusable", help="Only replies without a verdict.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="All verdicts in the file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove verdicts, so that the next run asks again and pays again.

    Examples:
        alignkit preferences verdicts forget --unusable
    """
    if not (judge or unusable or everything):
        raise InputError("names no verdicts", where="forget", fix="use --judge NAME, --unusable or --all")
    cache = _opened(file)
    chosen = [row for row in _of(cache, judge) if row.answer.unusable or not unusable]
    cache.forget(row.key for row in chosen)
    show({"forgotten": len(chosen)}, as_json)


def _opened(file: Path | None) -> VerdictCache:
    path = file or default_cache() / "verdicts.sqlite"
    if not path.is_file():
        raise InputError(
            "there is no such file of verdicts", where=str(path), fix="name the file, or run a judge first"
        )
    try:
        return VerdictCache(path)
    except sqlite3.DatabaseError as error:
        raise InputError(f"is no file of verdicts: {error}", where=str(path), fix="name another file") from error


def _of(cache: VerdictCache, judge: str) -> list[Row]:
    rows = cache.rows()
    chosen = [row for row in rows if judge in ("", _name(row))]
    if rows and not chosen:
        names = ", ".join(sorted({_name(row) for row in rows}))
        raise InputError(f"there are no verdicts of {judge!r}", where="--judge", fix=f"choose one of: {names}")
    return chosen


def _name(row: Row) -> str:
    """The judge's name; the start of its digest for verdicts of earlier versions."""
    return str(row.record.get("judge_name") or row.judge[:12])


def _repaired(cache: VerdictCache, row: Row) -> bool:
    """Stores the verdict that the saved reply holds, if there is one."""
    from alignkit_judge.replies import Malformed, parse_reply

    old, form = row.answer, row.form
    if form is None or not old.reply:
        return False
    try:
        found = parse_reply(old.reply, form)
    except Malformed:
        return False
    answer = replace(old, values=found.values, reason=found.reason, reasoning=found.reasoning)
    cache.replace(row.key, answer, row.record)
    return True
