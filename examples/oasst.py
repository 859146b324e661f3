"""People's rankings of replies from OpenAssistant (arXiv:2304.07327), for `qa-rankings.toml`.

The data set is a forest of messages: each row names the one that it replies to, and, among several replies to one
message, its rank (0 is best).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from alignkit_data import Dataset, DatasetOptions

from alignkit import Group, Prompt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from alignkit import Ask

ROLES = {"prompter": "user", "assistant": "assistant"}


def rankings(
    ask: Ask,  # noqa: ARG001
    *,
    path: str = "OpenAssistant/oasst1",
    split: str = "validation",
    language: str = "en",
) -> Iterator[Group]:
    """One group for each message with two or more ranked replies, in the order of the rows."""
    rows = Dataset(DatasetOptions(path=path, split=split, columns={"text": "prompt"})).groups()
    messages = {row.prompt.meta["message_id"]: row.prompt for row in rows if row.prompt.meta["lang"] == language}
    replies: dict[str, list[Prompt]] = defaultdict(list)
    for message in messages.values():
        if message.meta["role"] == "assistant" and message.meta.get("rank") is not None:
            replies[message.meta["parent_id"]].append(message)
    for asked, ranked in replies.items():
        if asked in messages and len(ranked) > 1:
            texts = tuple(str(reply.text) for reply in ranked)
            ranks = tuple(int(reply.meta["rank"]) for reply in ranked)
            yield Group(Prompt.of(_turns(asked, messages)), texts, ranks=ranks, source="people")


def _turns(last: str, messages: Mapping[str, Prompt]) -> list[dict[str, Any]]:
    """The conversation that ends with a message."""
    turns: list[dict[str, Any]] = []
    place: str | None = last
    while place in messages:
        message = messages[place]
        turns.insert(0, {"role": ROLES[message.meta["role"]], "content": message.text})
        place = message.meta.get("parent_id")
    return turns
