"""The annotators' SQLite file: its tables and connections."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from alignkit import InputError, telling_when_full

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VERSION = 1
WAIT_SECONDS = 30.0
TABLES = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS items (
    id TEXT PRIMARY KEY, position INTEGER NOT NULL UNIQUE, record TEXT NOT NULL, gold TEXT, wanted INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS annotators (name TEXT PRIMARY KEY, token TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS orders (
    item TEXT NOT NULL, annotator TEXT NOT NULL, shown TEXT NOT NULL, PRIMARY KEY (item, annotator)
);
CREATE TABLE IF NOT EXISTS leases (
    item TEXT NOT NULL, annotator TEXT NOT NULL, given REAL NOT NULL, PRIMARY KEY (item, annotator)
);
CREATE TABLE IF NOT EXISTS annotations (
    number INTEGER PRIMARY KEY AUTOINCREMENT, write TEXT NOT NULL UNIQUE, item TEXT NOT NULL REFERENCES items (id),
    annotator TEXT NOT NULL, verdict TEXT NOT NULL, ranks TEXT, shown TEXT, seconds REAL, reason TEXT NOT NULL,
    at REAL NOT NULL, undone REAL
);
CREATE UNIQUE INDEX IF NOT EXISTS one_verdict ON annotations (item, annotator) WHERE undone IS NULL;
"""


def make_file(path: Path) -> None:
    """Creates the file and its tables, readable only by its owner because it holds the annotators' tokens.

    Raises:
        InputError: the file is something else, or from a newer version.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    try:
        with connected(path) as database:
            database.execute("PRAGMA journal_mode = WAL")
            known = database.execute("PRAGMA user_version").fetchone()[0]
            if known > VERSION:
                raise InputError(
                    f"the file has version {known}, this alignkit-label knows {VERSION}",
                    where=str(path),
                    fix="upgrade alignkit-label",
                )
            if known < VERSION:
                database.executescript(TABLES)
                database.execute(f"PRAGMA user_version = {VERSION}")
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"can't be used: {error}", where=str(path), fix="give a database of `alignkit label import`"
        ) from error


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    """A new connection. What a transaction commits is on disk before the next line runs."""
    database = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
    with telling_when_full(path, path.name), closing(database):
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
        yield database


@contextmanager
def transaction(path: Path) -> Iterator[sqlite3.Connection]:
    """A transaction that locks out other writers from the start, so that what it reads still holds at its end."""
    with connected(path) as database:
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
        except BaseException:
            if database.in_transaction:  # a full disk has ended it
                database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")


def now() -> float:
    """Seconds since 1970."""
    return time.time()
