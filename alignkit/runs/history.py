"""Which prompts are held out, and which ones a model has been trained on.

A prompt is held out by its own digest, so all stages agree, whatever their data. Each trained folder lists the prompts
that its model, and what it started from, learned from: those of other recipes, seeds and runs too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from alignkit.errors import InputError
from alignkit.files import write_synced
from alignkit.records import Group, Prompt, message_text

if TYPE_CHECKING:
    from alignkit.options import Config

    Source = Path | Config | Mapping[str, Any]

RecordT = TypeVar("RecordT", Group, Prompt)

FILE = "trained_on.json"
DIGITS = 16


def digest_of_prompt(prompt: Prompt) -> str:
    """Digest of what a prompt asks: its turns without the system's, whatever the white space.

    A text counts as a user's turn, because one file may hold as a chat what another holds as text.
    """
    turns = prompt.messages or ({"role": "user", "content": prompt.text},)
    asked = [turn for turn in turns if turn["role"] not in ("system", "developer")] or turns
    said = [(turn["role"], " ".join(message_text(turn).split())) for turn in asked]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:DIGITS]


def split_by_prompt(records: Sequence[RecordT], share: float) -> tuple[list[RecordT], list[RecordT]]:
    """(rest, held out): holds out about `share` of all possible prompts.

    A prompt alone decides where it belongs, so the split is the same in any order, with duplicates, among other
    prompts. An empty prompt (a plain text to learn) is never held out.
    """
    parts: tuple[list[RecordT], list[RecordT]] = ([], [])
    for record in records:
        prompt = _prompt(record)
        held = int(digest_of_prompt(prompt), 16) < share * 16**DIGITS
        parts[held and bool(prompt.plain.strip())].append(record)
    return parts


@dataclass(frozen=True)
class History:
    """What a model was trained on.

    Attributes:
        prompts: digests.
        since: the models before, whose training nobody recorded.
    """

    prompts: frozenset[str] = frozenset()
    since: frozenset[str] = frozenset()

    def __or__(self, other: History) -> History:
        return History(self.prompts | other.prompts, self.since | other.since)

    def and_of(self, records: Sequence[Group] | Sequence[Prompt]) -> History:
        """This, then training on these records."""
        return self | History(frozenset(digest_of_prompt(_prompt(record)) for record in records))

    def write(self, folder: Path) -> None:
        """Adds it to a folder's."""
        said = self | (recorded(folder) or History())
        folder.mkdir(parents=True, exist_ok=True)
        write_synced(folder / FILE, json.dumps({"since": sorted(said.since), "prompts": sorted(said.prompts)}))

    def of_measuring_on(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """What a result on these prompts has to say first: `on` for people, the numbers for machines."""
        count = len(prompts)
        seen = sum(digest_of_prompt(prompt) in self.prompts for prompt in prompts)
        since = f" since {' and '.join(sorted(self.since))}, whose own training is unknown" if self.since else ""
        told = f"{count} prompts, {seen or 'none'} of them trained on{since}"
        on = told if seen or since else f"{count} unseen prompts"
        return {"on": on, "prompts": count, "trained_on": seen, "unknown_before": sorted(self.since)}


def recorded(source: Source) -> History | None:
    """The history in a folder, or of all folders that options name; None if there is none.

    Raises:
        InputError: a folder's is damaged.
    """
    folders = [str(source)] if isinstance(source, Path) else _texts(source)
    files = [os.path.join(os.path.expanduser(folder), FILE) for folder in folders]  # noqa: PTH111, PTH118
    found = [_read(Path(file)) for file in files if os.path.isfile(file)]  # noqa: PTH113 (no text is an error)
    return reduce(or_, found) if found else None


def _read(file: Path) -> History:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        return History(frozenset(said["prompts"]), frozenset(said["since"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("is damaged", where=str(file), fix="delete it: what the model saw is then unknown") from error


def history_of(policy: Source, *rewards: Source) -> History:
    """The history of a policy, from its folder or its options, and of rewards that it learns from."""
    name = str(policy) if isinstance(policy, Path) else getattr(policy, "model", "") or type(policy).__name__
    known = recorded(policy) or History(since=frozenset([name]))
    for reward in rewards:
        known |= recorded(reward) or History()
    return known


def _prompt(record: Group | Prompt) -> Prompt:
    return record if isinstance(record, Prompt) else record.prompt


def _texts(value: object) -> Iterator[str]:
    """All strings in options."""
    if isinstance(value, str):
        yield value
    inner = vars(value) if is_dataclass(value) else value
    if isinstance(inner, Mapping | list | tuple):
        for item in inner.values() if isinstance(inner, Mapping) else inner:
            yield from _texts(item)
