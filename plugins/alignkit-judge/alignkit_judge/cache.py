"""Keeps paid verdicts in SQLite: a question is asked once, even if the program is killed in between."""

from __future__ import annotations

import json
import sqlite3
import weakref
from typing import TYPE_CHECKING

from alignkit_judge.questions import Answer, digest
from alignkit_judge.templates import template_digest

if TYPE_CHECKING:
    from pathlib import Path

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
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
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

    def put(self, judge: str, question: Question, answer: Answer) -> None:
        """Stores an answer on disk at once."""
        self._connection.execute(
            "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?)",
            (_key(judge, question), *_parts(judge, question), json.dumps(answer.to_json())),
        )


def _parts(judge: str, question: Question) -> tuple[str, str, str, str, int]:
    return judge, template_digest(question), question.item, question.order, question.sample


def _key(judge: str, question: Question) -> str:
    return digest(_parts(judge, question))
