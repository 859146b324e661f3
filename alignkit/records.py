"""Text records: a prompt and its K responses, stored as JSONL. Imports no torch.

A demonstration is a group of one, a preference pair a ranked group of two, a human ranking a ranked group of K, and a
rollout a scored group. The stages of a run pass these records as files.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import InputError
from alignkit.files import replacing, telling_when_full

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt: plain `text` for base models, or chat `messages`, exactly one of the two.

    `meta` holds what a reward may need (a reference answer, an id) and is passed on unchanged. Chat templates read two
    of its entries, `tools` and `chat_template_kwargs`.
    """

    text: str | None = None
    messages: tuple[Message, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.text is None) == (self.messages is None):
            raise ValueError("a prompt must be either text or messages")
        if self.messages is not None:
            if not self.messages:
                raise ValueError("a prompt needs at least one message")
            for message in self.messages:
                if not isinstance(message.get("role"), str) or "content" not in message:
                    raise ValueError(f"a message needs 'role' and 'content', found {sorted(message)}")
                calls = message.get("tool_calls") or []
                if not (isinstance(calls, list | tuple) and all(isinstance(call, dict) for call in calls)):
                    raise ValueError("a message's tool_calls must be a list of objects")
            texts = tuple({**message, "content": content_text(message["content"])} for message in self.messages)
            object.__setattr__(self, "messages", texts)
        check_storable(self.plain)

    @property
    def content(self) -> str | list[Message]:
        """The text or the list of messages, as stored and as passed to reward functions."""
        return self.text if self.messages is None else list(self.messages)  # type: ignore[return-value]

    @property
    def key(self) -> str:
        """A stable hash of the content, to split records by prompt."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def identity(self) -> str:
        """A stable hash of all that a reward sees: unlike `key`, it tells prompts with other meta apart."""
        whole = {field.name: getattr(self, field.name) for field in fields(self)}
        return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @property
    def plain(self) -> str:
        """The prompt as readable text, whatever its form."""
        if self.messages is None:
            return self.text or ""
        return "\n".join(f"{message['role']}: {message_text(message)}" for message in self.messages)

    @classmethod
    def of(cls, content: str | Iterable[Message], meta: Mapping[str, Any] | None = None) -> Prompt:
        """A prompt from a string or from messages."""
        if isinstance(content, str):
            return cls(text=content, meta=dict(meta or {}))
        return cls(messages=tuple(dict(message) for message in content), meta=dict(meta or {}))


def content_text(content: Any) -> str | None:
    """A message's content; a list of text parts becomes one text.

    Raises:
        ValueError: it is something else, or a part of it is (an image).
    """
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise ValueError(f"a message's content is {type(content).__name__}, expected text")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ValueError(f"a message holds a part of type {kind!r}, but only text can be read")
        texts.append(text)
    return "".join(texts)


def message_text(message: Message) -> str:
    """What a message says: its reasoning, its content and its tool calls, as Qwen and Hermes write them."""
    reasoning, calls = message.get("reasoning_content"), message.get("tool_calls") or ()
    said = (f"<think>\n{reasoning}\n</think>\n\n" if reasoning else "") + (message["content"] or "")
    shown = [json.dumps(call.get("function") if "function" in call else call, ensure_ascii=False) for call in calls]
    return "\n".join([said] * bool(said) + [f"<tool_call>\n{call}\n</tool_call>" for call in shown])


def check_storable(text: str) -> None:
    """Raises ValueError for half of a surrogate pair, which no file or tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a lone surrogate, {text[error.start]!a}: half of a character that was cut in two") from None


_PER_RESPONSE = ("ranks", "scores", "labels", "finished")


def _is_finite(number: Any) -> bool:
    return isinstance(number, int | float) and abs(number) <= sys.float_info.max


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and its K >= 1 responses, with what is known about them.

    Attributes:
        ranks: one integer per response; 0 is best, ties share a rank.
        scores: one float per response; higher is better, None if the source abstained.
        labels: whether each response is desirable, for unpaired feedback.
        finished: False if the length limit cut the response off, so that no end token follows; None if all are
            complete.
        source: of the feedback.
        meta: more about the feedback; `weight`, a number >= 0, weighs the group's ranking; `turns` holds the whole
            assistant message of each response that is more than text (tool calls, reasoning), else null.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    ranks: tuple[int, ...] | None = None
    scores: tuple[float | None, ...] | None = None
    labels: tuple[bool, ...] | None = None
    finished: tuple[bool, ...] | None = None
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.responses)
        if count == 0:
            raise ValueError("a group needs at least one response")
        if not all(isinstance(response, str) for response in self.responses):
            raise ValueError("responses must be strings")
        check_storable("".join(self.responses))
        for name in _PER_RESPONSE:
            values = getattr(self, name)
            if values is not None and len(values) != count:
                raise ValueError(f"{len(values)} {name} for {count} responses")
        if self.ranks is not None and not all(type(rank) is int and rank >= 0 for rank in self.ranks):
            raise ValueError(f"ranks must be integers from 0 (best), found {list(self.ranks)}")
        if self.scores is not None and not all(score is None or _is_finite(score) for score in self.scores):
            raise ValueError(f"scores must be finite numbers or null, found {list(self.scores)}")
        for name, flags in (("labels", self.labels), ("finished", self.finished)):
            if flags is not None and not all(isinstance(flag, bool) for flag in flags):
                raise ValueError(f"{name} must be true or false, found {list(flags)}")
        if not (isinstance(self.weight, int | float) and 0 <= self.weight < math.inf):
            raise ValueError(f"meta.weight must be a number >= 0, found {self.weight!r}")
        if not isinstance(self.source, str):
            raise ValueError(f"source must be text, found {self.source!r}")
        for name in BY_RESPONSE:
            if name in self.meta and not (isinstance(self.meta[name], list | tuple) and len(self.meta[name]) == count):
                raise ValueError(f"meta.{name} must be a list with a value for each response")

    @property
    def weight(self) -> float:
        """Weight of the group's ranking in a loss: `meta.weight`, default 1."""
        return self.meta.get("weight", 1.0)  # type: ignore[no-any-return]

    def preferred_pairs(self) -> list[tuple[int, int]]:
        """(better, worse) indices of all pairs with different ranks."""
        ranks = self.ranks or ()
        return [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]

    def choose(self, indices: Iterable[int]) -> Group:
        """The group with only these responses, in this order."""
        chosen = list(indices)
        if chosen == list(range(len(self.responses))):
            return self
        given = {name: values for name in ("responses", *_PER_RESPONSE) if (values := getattr(self, name)) is not None}
        kept: dict[str, Any] = {name: tuple(values[index] for index in chosen) for name, values in given.items()}
        return replace(self, meta=meta_of_chosen(self.meta, chosen), **kept)

    def without_duplicates(self) -> Group:
        """The group with only the first of equal responses."""
        return self.choose([index for index, text in enumerate(self.responses) if text not in self.responses[:index]])

    def ranked_by_scores(self) -> Group:
        """The group with ranks from its scores; equal scores tie, responses without a score are dropped."""
        scores = self.scores or (None,) * len(self.responses)
        known = {index: score for index, score in enumerate(scores) if score is not None}
        if not known:
            raise ValueError("no response has a score")
        order = sorted(set(known.values()), reverse=True)
        return replace(self.choose(known), ranks=tuple(order.index(score) for score in known.values()), labels=None)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON types, without empty fields."""
        record: dict[str, Any] = {"prompt": self.prompt.content, "responses": list(self.responses)}
        for name in _PER_RESPONSE:
            if (values := getattr(self, name)) is not None:
                record[name] = list(values)
        if self.source:
            record["source"] = self.source
        if self.meta:
            record["meta"] = dict(self.meta)
        if self.prompt.meta:
            record["prompt_meta"] = dict(self.prompt.meta)
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Group:
        """The group of a JSON record; other columns go to the prompt. Raises ValueError or KeyError if it is none."""
        if isinstance(record["responses"], str):
            raise ValueError("responses must be a list of strings")
        known = {*_PER_RESPONSE, "prompt", "responses", "source", "meta", "prompt_meta"}
        columns = {name: value for name, value in record.items() if name not in known}
        said: dict[str, Any] = {name: tuple(record[name]) for name in _PER_RESPONSE if record.get(name) is not None}
        return cls(
            prompt=Prompt.of(record["prompt"], {**columns, **(record.get("prompt_meta") or {})}),
            responses=tuple(record["responses"]),
            source=record.get("source", ""),
            meta=dict(record.get("meta") or {}),
            **said,
        )


def read_groups(path: Path | str) -> Iterator[Group]:
    """Reads the groups of a JSONL file that alignkit wrote. Raises InputError with `file:line`."""
    path = Path(path)
    if not path.is_file():
        raise InputError("no such file", where=str(path), fix="check the path")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                check_storable(json.dumps(record, ensure_ascii=False))
                yield Group.from_json(record)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
                raise InputError(
                    reason,
                    where=f"{path}:{number}",
                    fix="give 'prompt' and 'responses' (docs/reference/data.md); of other forms `alignkit preferences "
                    f"-o preferences.path={path} --out groups.jsonl` makes them",
                ) from error


def write_groups(path: Path | str, groups: Iterable[Group]) -> int:
    """Writes one JSON record per line, whole or not at all; returns how many.

    Raises:
        AlignkitError: the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = size = 0
    with telling_when_full(path, path.name, lambda: _bytes_of(groups) or size), replacing(path) as lines:
        for group in groups:
            line = _line_of(group)
            count, size = count + 1, size + len(line.encode())
            lines.write(line)
    return count


def _line_of(group: Group) -> str:
    return json.dumps(group.to_json(), ensure_ascii=False) + "\n"


def _bytes_of(groups: Iterable[Group]) -> int:
    """The size of the groups' file; 0 where iterating is not free."""
    return sum(len(_line_of(group).encode()) for group in groups) if isinstance(groups, list | tuple) else 0


FIELD = "annotations"


BY_RESPONSE = ("sampled_from", "shown", "picked", "turns")
"""Fields of a group's meta with one value per response."""


def meta_of_chosen(meta: Mapping[str, Any], indices: Sequence[int]) -> Mapping[str, Any]:
    """A group's meta for only these of its responses, in this order."""
    place = {old: new for new, old in enumerate(indices)}
    moved_lists = {name: [meta[name][index] for index in indices] for name in BY_RESPONSE if name in meta}
    if FIELD not in meta:
        return {**meta, **moved_lists}
    kept = []
    for record in meta[FIELD]:
        moved = dict(record)
        if moved.get("ranks") is not None:
            moved["ranks"] = [moved["ranks"][index] for index in indices]
        if moved.get("order") is not None:
            moved["order"] = [place[index] for index in moved["order"] if index in place]
        kept.append(moved)
    return {**meta, **moved_lists, FIELD: kept}
