"""What client and server say to each other: JSON over HTTP, in version 1.

- `GET /health` -> `{"protocol": 1, "reward": "rules", "digest": "9f.."}`. The digest changes with the scores.
- `POST /score` with `{"protocol": 1, "groups": [GROUP, ...]}`, each GROUP as in a groups file (docs/reference/data.md)
  -> `{"protocol": 1, "digest": "9f..", "scores": [[1.5, null], ...], "figures": {"reward/0": 1.5}}`: a list for each
  group with a number for each response, null where the reward abstains. Numbers are float64 and lose nothing.
- An error is `{"error": "what"}` with status 400 or 413 (the request), 401 (the key), 422 (the reward failed; the same
  request would fail again) or 503 (later).

Imports no torch.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alignkit import Group

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Rows = list[list[float | None]]

VERSION = 1
SHOWN = 200


class BadReply(Exception):  # noqa: N818
    """Whatever answered is no score server, or scored something else."""


@dataclass(frozen=True)
class Served:
    """The reward behind a server: its plugin, and a digest that changes with its scores."""

    reward: str
    digest: str

    def to_bytes(self) -> bytes:
        """The body of `/health`."""
        return json.dumps({"protocol": VERSION, "reward": self.reward, "digest": self.digest}).encode()

    @classmethod
    def of(cls, body: bytes) -> Served:
        """Raises BadReply."""
        said = _said(body)
        return cls(str(said.get("reward", "")), str(said.get("digest", "")))


@dataclass(frozen=True)
class Scored:
    """A reply of `/score`."""

    digest: str
    rows: Rows
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Raises ValueError if a number is not finite."""
        said = {"protocol": VERSION, "digest": self.digest, "scores": self.rows, "figures": dict(self.figures)}
        return json.dumps(said, allow_nan=False).encode()

    @classmethod
    def of(cls, body: bytes, groups: Sequence[Group]) -> Scored:
        """Raises BadReply unless every response of the groups has a finite number or null."""
        said = _said(body)
        rows, figures = said.get("scores"), said.get("figures", {})
        wanted = [len(group.responses) for group in groups]
        found = [len(row) if isinstance(row, list) else -1 for row in rows] if isinstance(rows, list) else None
        if found != wanted:
            raise BadReply(f"scores for {found} responses, not for {wanted}: {_shown(body)}")
        assert isinstance(rows, list)
        if not isinstance(figures, dict) or not all(map(_is_number, figures.values())):
            raise BadReply(f"figures that are no numbers: {_shown(body)}")
        if not all(value is None or _is_number(value) for row in rows for value in row):
            raise BadReply(f"a score that is no finite number: {_shown(body)}")
        scores = [[None if value is None else float(value) for value in row] for row in rows]
        return cls(str(said.get("digest", "")), scores, {str(name): float(x) for name, x in figures.items()})


def request_of(groups: Sequence[Group]) -> bytes:
    """The body of a request for `/score`."""
    said = {"protocol": VERSION, "groups": [group.to_json() for group in groups]}
    return json.dumps(said, allow_nan=False).encode()


def groups_of(body: bytes) -> list[Group]:
    """The groups of a request. Raises ValueError if it is none."""
    try:
        said = json.loads(body, parse_constant=_refuse)
        if said["protocol"] != VERSION:
            raise ValueError(f"the request has protocol {said['protocol']!r}, this server {VERSION}")
        return [Group.from_json(record) for record in said["groups"]]
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no request for scores: {type(error).__name__}: {error}") from error


def _said(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BadReply(f"no JSON: {_shown(body)}") from error
    if not isinstance(said, dict) or said.get("protocol") != VERSION:
        raise BadReply(f"no reply in protocol {VERSION}: {_shown(body)}")
    return said


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _shown(body: bytes) -> str:
    return repr(body[:SHOWN].decode(errors="replace"))
