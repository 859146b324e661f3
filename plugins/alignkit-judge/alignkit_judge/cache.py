"""Keeps paid verdicts in SQLite: a question is asked once, even if the program is killed in between."""

from __future__ import annotations

import json
import sqlite3
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import telling_when_full
from alignkit_judge.questions import Answer, Form, digest
from alignkit_judge.templates import template_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from alignkit_judge.questions import Question

_TABLE = """CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY, judge TEXT NOT NULL, template TEXT NOT NULL, item TEXT NOT NULL, shown TEXT NOT NULL,
    sample INTEGER NOT NULL, answer TEXT NOT NULL
)"""


class VerdictCache:
    """Answers by the digest of (judge, template, item, order, sample). Several processes may share a file.

    Args:
        path: the file; None keeps verdicts in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._place = path or Path()
        self._place.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(
            path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False
        )
        weakref.finalize(self, self._connection.close)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(_TABLE)

    def get(self, judge: str, question: Question) -> Answer | None:
        """A judge's earlier answer to this question, or None."""
        row = self._connection.execute("SELECT answer FROM verdicts WHERE key = ?", (_key(judge, question),)).fetchone()
        return None if row is None else Answer.from_json(json.loads(row[0]))

    def has_any(self, judge: str) -> bool:
        """Whether there is any answer of this judge."""
        found = self._connection.execute("SELECT 1 FROM verdicts WHERE judge = ? LIMIT 1", (judge,)).fetchone()
        return found is not None

    def rows(self) -> list[Row]:
        """All stored answers, by judge."""
        found = self._connection.execute("SELECT key, judge, answer FROM verdicts ORDER BY judge, key").fetchall()
        return [Row(key, judge, json.loads(answer)) for key, judge, answer in found]

    def replace(self, key: str, answer: Answer, kept: Mapping[str, Any]) -> None:
        """Stores another answer to a question.

        Args:
            kept: what else stands in its record.
        """
        record = json.dumps({**kept, **answer.to_json()})
        self._connection.execute("UPDATE verdicts SET answer = ? WHERE key = ?", (record, key))

    def forget(self, keys: Iterable[str]) -> None:
        """Removes answers, so that their questions are asked again."""
        self._connection.executemany("DELETE FROM verdicts WHERE key = ?", [(key,) for key in keys])

    def put(self, judge: str, question: Question, answer: Answer, *, judge_name: str = "") -> None:
        """Stores an answer on disk at once.

        Args:
            judge: the judge's digest.
            judge_name: for people.
        """
        record = json.dumps(_record(judge_name, question, answer))
        with telling_when_full(self._place, "a verdict", lambda: len(record)):
            self._connection.execute(
                "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?)",
                (_key(judge, question), *_parts(judge, question), record),
            )


@dataclass(frozen=True)
class Row:
    """A stored answer: its key, the judge's digest, and the record."""

    key: str
    judge: str
    record: dict[str, Any]

    @property
    def answer(self) -> Answer:
        return Answer.from_json(self.record)

    @property
    def form(self) -> Form | None:
        """What its reply must fit; None for records of earlier versions."""
        asked = self.record.get("asked")
        return Form(**asked) if asked else None


def _record(judge_name: str, question: Question, answer: Answer) -> dict[str, Any]:
    asked = {"protocol": question.protocol, "nonce": question.nonce, "labels": question.labels}
    return {**answer.to_json(), "judge_name": judge_name, "asked": asked}


def _parts(judge: str, question: Question) -> tuple[str, str, str, str, int]:
    return judge, template_digest(question), question.item, question.order, question.sample


def _key(judge: str, question: Question) -> str:
    return digest(_parts(judge, question))
