"""Items, annotators and their verdicts in one SQLite file. Every method is one transaction, committed on return.

The client gives each write an id, so a write sent twice counts once. An item is leased for a while to the annotator who
sees it, so that two annotators don't judge an item that needs only one more verdict.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import random
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from alignkit import Group, InputError
from alignkit.preferences import FIELD, stored_annotations, with_annotations
from alignkit_label.schema import connected, make_file, now, transaction

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    Row = sqlite3.Row

Verdict = Literal["ranked", "both_bad", "skip"]
MOST_RESPONSES, LONGEST_REASON, LONGEST_SECONDS = 9, 2000, 86_400.0
LIVE = "undone IS NULL"
AUDIT = "audit"
"""The field of a group's meta that marks it as drawn at random."""
SETTINGS: dict[str, Any] = {
    "seed": 0, "overlap": 1, "overlap_share": 1.0, "gold_every": 10, "lease_minutes": 30.0, "guidelines": "",
}  # fmt: skip


class Refused(ValueError):  # noqa: N818
    """A write that is refused, and its HTTP status."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


@dataclass(frozen=True, slots=True)
class Said:
    """An annotator's verdict on an item.

    Attributes:
        write: the id made by the client.
        ranks: one for each response, in the record's order; None for a skip.
        shown: indices of the responses in the order shown.
    """

    write: str
    item: str
    annotator: str
    verdict: Verdict
    ranks: tuple[int, ...] | None
    shown: tuple[int, ...] | None = None
    seconds: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """A group to judge, without feedback. `gold`: the ranks known to be right."""

    id: str
    group: Group
    gold: tuple[int, ...] | None


class Store:
    """The file at `path`, created if missing."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        make_file(self.path)

    def add_items(self, groups: Iterable[Group], *, gold: bool = False) -> list[str]:
        """Adds groups of 2 to 9 different responses as items and returns all their ids; existing items only gain AIs'
        verdicts and the mark of an audit. With `gold`, their ranks count as the right ones.

        Raises:
            InputError: a group has another number of responses, or no ranks for gold.
        """
        listed = [_bare(group) for group in groups]
        with transaction(self.path) as database:
            place = database.execute("SELECT COALESCE(MAX(position), -1) + 1 FROM items").fetchone()[0]
            found = []
            for number, (group, ranks) in enumerate(listed, start=1):
                if not 2 <= len(group.responses) <= MOST_RESPONSES or (gold and ranks is None):
                    count = f"has {len(group.responses)} different responses, needs 2 to {MOST_RESPONSES}"
                    raise InputError(
                        "has no ranks" if gold and ranks is None else count,
                        where=f"record {number}",
                        fix="give 2 to 9 different responses, and ranks for gold items",
                    )
                right = json.dumps(ranks) if gold else None
                key = item_id(group)
                known = database.execute("SELECT record FROM items WHERE id = ?", (key,)).fetchone()
                if known is None:
                    database.execute("INSERT INTO items VALUES (?, ?, ?, ?, 1)", (key, place, _stored(group), right))
                    place += 1
                else:
                    joined = _stored(_joined(Group.from_json(json.loads(known["record"])), group))
                    database.execute("UPDATE items SET record = ? WHERE id = ?", (joined, key))
                found.append(key)
            _plan(database)
        return found

    def configure(self, **settings: Any) -> None:
        """Saves settings (see `SETTINGS`) and draws again which items need several annotators."""
        with transaction(self.path) as database:
            for name, value in settings.items():
                if name not in SETTINGS:
                    raise KeyError(name)
                database.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))
            _plan(database)

    def settings(self) -> dict[str, Any]:
        """The settings, with defaults for those never set."""
        with connected(self.path) as database:
            return _settings(database)

    def items(self) -> list[Item]:
        """All items, in order."""
        with connected(self.path) as database:
            rows = database.execute("SELECT * FROM items ORDER BY position").fetchall()
        return [_item(row) for row in rows]

    def wanted(self) -> dict[str, int]:
        """How many annotators each item needs."""
        with connected(self.path) as database:
            return dict(database.execute("SELECT id, wanted FROM items ORDER BY position").fetchall())

    def add_annotator(self, name: str) -> str:
        """The annotator's token; adding the same name again returns the same token."""
        with transaction(self.path) as database:
            values = (name, secrets.token_urlsafe(24))
            database.execute("INSERT OR IGNORE INTO annotators VALUES (?, ?)", values)
            row = database.execute("SELECT token FROM annotators WHERE name = ?", (name,)).fetchone()
        return str(row["token"])

    def annotators(self) -> list[str]:
        """The names of all annotators with a token."""
        with connected(self.path) as database:
            return [row["name"] for row in database.execute("SELECT name FROM annotators ORDER BY rowid")]

    def annotator_of(self, token: str) -> str | None:
        """The annotator with this token, or None."""
        found = None
        with connected(self.path) as database:
            for row in database.execute("SELECT name, token FROM annotators"):
                if hmac.compare_digest(row["token"].encode(), token.encode()):
                    found = str(row["name"])
        return found

    def next(self, annotator: str) -> tuple[Item, tuple[int, ...]] | None:
        """The annotator's current item, leased to them, and the order to show it in; None at the end."""
        with transaction(self.path) as database:
            row = _choose(database, annotator)
            if row is None:
                return None
            values = (row["id"], annotator, now())
            database.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", values)
            return _item(row), _shown(database, row, annotator)

    def record(self, said: Said) -> bool:
        """Saves a verdict whose ranks follow the order shown. False if this write is already saved.

        Raises:
            Refused: it is malformed, the item was not shown, or the annotator has already judged it.
        """
        with transaction(self.path) as database:
            row = database.execute("SELECT * FROM annotations WHERE write = ?", (said.write,)).fetchone()
            if row is not None:
                if (row["item"], row["annotator"]) != (said.item, said.annotator):
                    raise Refused(409, "this id belongs to another write")
                return False
            values = (said.item, said.annotator)
            order = database.execute("SELECT shown FROM orders WHERE item = ? AND annotator = ?", values).fetchone()
            if order is None:
                raise Refused(409, "the item was not shown to this annotator")
            shown = tuple(json.loads(order["shown"]))
            judged = f"SELECT 1 FROM annotations WHERE item = ? AND annotator = ? AND {LIVE}"
            if database.execute(judged, values).fetchone():
                raise Refused(409, "you have already judged this item")
            _insert(database, replace(_checked(said, shown), shown=shown))
            database.execute("DELETE FROM leases WHERE item = ? AND annotator = ?", values)
        return True

    def undo(self, annotator: str, write: str) -> None:
        """Takes back the annotator's last verdict and gives them its item again; repeating it changes nothing.

        Raises:
            Refused: the annotator has no such verdict, or has given others since.
        """
        with transaction(self.path) as database:
            last = _last(database, annotator)
            values = (write, annotator)
            row = database.execute("SELECT * FROM annotations WHERE write = ? AND annotator = ?", values).fetchone()
            if row is None:
                raise Refused(404, "no such verdict")
            if row["undone"] is not None:
                return
            if last is None or last["write"] != write:
                raise Refused(409, "there are later verdicts")
            database.execute("UPDATE annotations SET undone = ? WHERE write = ?", (now(), write))
            database.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (row["item"], annotator, now()))

    def take_over(self, said: Iterable[Said]) -> int:
        """Adds verdicts given elsewhere, with ranks in the record's order; returns how many are new."""
        with transaction(self.path) as database:
            return sum(_insert(database, one, otherwise="OR IGNORE") for one in said)

    def said(self) -> list[Said]:
        """All verdicts that were not undone, in the order given."""
        with connected(self.path) as database:
            rows = database.execute(f"SELECT * FROM annotations WHERE {LIVE} ORDER BY number").fetchall()
        return [_said(row) for row in rows]

    def last(self, annotator: str) -> str | None:
        """The write that the annotator can undo."""
        with connected(self.path) as database:
            row = _last(database, annotator)
        return None if row is None else str(row["write"])

    def progress(self, annotator: str) -> dict[str, int]:
        """How many items the annotator has done (skips included) and skipped, and their total."""
        with connected(self.path) as database:
            query = f"SELECT verdict = 'skip' FROM annotations WHERE annotator = ? AND {LIVE}"
            skips = [row[0] for row in database.execute(query, (annotator,))]
            left = len(_open_items(database, annotator))
        return {"done": len(skips), "skipped": sum(skips), "total": len(skips) + left}


def item_id(group: Group) -> str:
    """A digest of the prompt and the responses, independent of their order."""
    content = json.dumps([group.prompt.content, sorted(group.responses)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def without_gaps(ranks: Sequence[int]) -> tuple[int, ...]:
    """The same order and ties as ranks 0, 1, 2, ..."""
    known = sorted(set(ranks))
    return tuple(known.index(rank) for rank in ranks)


def _bare(group: Group) -> tuple[Group, tuple[int, ...] | None]:
    """The group without repeated responses and without feedback, except for AIs' verdicts, which nobody is shown; and
    its ranks."""
    once = group.without_duplicates()
    meta = {name: value for name, value in once.meta.items() if name not in (FIELD, "ranks_by")}
    bare = replace(once, ranks=None, scores=None, labels=None, meta=meta)
    ais = [one for one in stored_annotations(once) if one.kind == "ai"]
    return (with_annotations(bare, ais) if ais else bare), once.ranks


def _joined(item: Group, group: Group) -> Group:
    """The item with the AIs' verdicts and the mark of an audit that the group has."""
    turned = group.choose([group.responses.index(text) for text in item.responses])
    known = stored_annotations(item)
    new = [one for one in stored_annotations(turned) if one not in known]
    audit = {AUDIT: turned.meta[AUDIT]} if AUDIT in turned.meta else {}
    item = replace(item, meta={**item.meta, **audit})
    return with_annotations(item, [*known, *new]) if new else item


def _stored(group: Group) -> str:
    return json.dumps(group.to_json(), ensure_ascii=False)


def _settings(database: sqlite3.Connection) -> dict[str, Any]:
    kept = {row["name"]: json.loads(row["value"]) for row in database.execute("SELECT * FROM settings")}
    return {**SETTINGS, **kept}


def _plan(database: sqlite3.Connection) -> None:
    """Sets how many annotators each item needs: `overlap` for a share drawn by the seed, one for the rest."""
    settings = _settings(database)
    for (item,) in database.execute("SELECT id FROM items").fetchall():
        drawn = random.Random(f"{settings['seed']}:overlap:{item}").random() < settings["overlap_share"]
        database.execute("UPDATE items SET wanted = ? WHERE id = ?", (settings["overlap"] if drawn else 1, item))


def _item(row: Row) -> Item:
    gold = None if row["gold"] is None else tuple(json.loads(row["gold"]))
    return Item(row["id"], Group.from_json(json.loads(row["record"])), gold)


def _said(row: Row) -> Said:
    ranks, shown = (None if row[name] is None else tuple(json.loads(row[name])) for name in ("ranks", "shown"))
    return Said(
        row["write"], row["item"], row["annotator"], row["verdict"], ranks, shown, row["seconds"], row["reason"]
    )  # fmt: skip


def _open_items(database: sqlite3.Connection, annotator: str) -> list[Row]:
    """Items that the annotator may still get: gold, and items whose verdicts and other people's leases are fewer than
    they need. A skip does not count as a verdict."""
    since = now() - 60 * _settings(database)["lease_minutes"]
    query = f"""
        SELECT * FROM items WHERE
            NOT EXISTS (SELECT 1 FROM annotations WHERE item = id AND annotator = :me AND {LIVE})
            AND (gold IS NOT NULL OR wanted >
                (SELECT COUNT(*) FROM annotations WHERE item = id AND verdict != 'skip' AND {LIVE})
                + (SELECT COUNT(*) FROM leases AS l WHERE l.item = id AND l.annotator != :me AND given >= :since
                   AND NOT EXISTS (SELECT 1 FROM annotations AS a
                                   WHERE a.item = id AND a.annotator = l.annotator AND {LIVE})))
        ORDER BY position"""
    return database.execute(query, {"me": annotator, "since": since}).fetchall()


def _choose(database: sqlite3.Connection, annotator: str) -> Row | None:
    """The annotator's latest leased item; otherwise a gold item if one is due, or the first of the others."""
    found = _open_items(database, annotator)
    leases = "SELECT item FROM leases WHERE annotator = ? ORDER BY given DESC"
    by_id = {row["id"]: row for row in found}
    for (item,) in database.execute(leases, (annotator,)):
        if item in by_id:
            return by_id[item]
    query = f"SELECT gold IS NOT NULL FROM annotations JOIN items ON item = id WHERE annotator = ? AND {LIVE}"
    were_gold = [row[0] for row in database.execute(query, (annotator,))]
    due = len(were_gold) + 1 >= _settings(database)["gold_every"] * (sum(were_gold) + 1)
    gold = [row for row in found if row["gold"] is not None]
    others = [row for row in found if row["gold"] is None]
    return next(iter([*gold, *others] if due else [*others, *gold]), None)


def _shown(database: sqlite3.Connection, row: Row, annotator: str) -> tuple[int, ...]:
    """The order of the responses for this annotator: drawn once from the seed, then kept."""
    values = (row["id"], annotator)
    kept = database.execute("SELECT shown FROM orders WHERE item = ? AND annotator = ?", values).fetchone()
    if kept is not None:
        return tuple(json.loads(kept["shown"]))
    order = list(range(len(_item(row).group.responses)))
    random.Random(f"{_settings(database)['seed']}:{row['id']}:{annotator}").shuffle(order)
    database.execute("INSERT INTO orders VALUES (?, ?, ?)", (*values, json.dumps(order)))
    return tuple(order)


def _last(database: sqlite3.Connection, annotator: str) -> Row | None:
    query = f"SELECT * FROM annotations WHERE annotator = ? AND {LIVE} ORDER BY number DESC LIMIT 1"
    row: Row | None = database.execute(query, (annotator,)).fetchone()
    return row


def _checked(said: Said, shown: Sequence[int]) -> Said:
    """The verdict with its ranks in the record's order, from 0 without gaps."""
    if said.verdict not in get_args(Verdict):
        raise Refused(422, f"unknown verdict {said.verdict!r}")
    seconds = said.seconds
    if seconds is not None and not (math.isfinite(seconds) and 0 <= seconds <= LONGEST_SECONDS):
        raise Refused(422, "seconds is not a duration")
    reason = said.reason.strip()[:LONGEST_REASON]
    if said.verdict == "skip":
        if not reason:
            raise Refused(422, "a skip needs a reason")
        return replace(said, ranks=None, reason=reason)
    given = (0,) * len(shown) if said.verdict == "both_bad" else said.ranks
    if given is None or len(given) != len(shown) or not all(type(rank) is int and rank >= 0 for rank in given):
        raise Refused(422, f"ranks must be {len(shown)} integers from 0")
    ranks = dict(zip(shown, without_gaps(given), strict=True))
    return replace(said, ranks=tuple(ranks[index] for index in range(len(shown))), reason=reason)


def _insert(database: sqlite3.Connection, said: Said, otherwise: str = "") -> int:
    ranks, shown = (None if value is None else json.dumps(value) for value in (said.ranks, said.shown))
    columns = "write, item, annotator, verdict, ranks, shown, seconds, reason, at"
    values = (said.write, said.item, said.annotator, said.verdict, ranks, shown, said.seconds, said.reason, now())
    marks = ", ".join("?" * len(values))
    return database.execute(f"INSERT {otherwise} INTO annotations ({columns}) VALUES ({marks})", values).rowcount
