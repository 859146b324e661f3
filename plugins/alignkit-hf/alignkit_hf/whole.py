"""Encodes each conversation in one piece, for reward models that another tool trained.

They learned to score what their chat template renders, or what their tokenizer makes of the whole text. transformers
reads the score at the last token that is not the config's padding, so what follows it is left out here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alignkit import GroupBatch
from alignkit_hf.encoding import Encoder, refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from alignkit import Group


class WholeEncoder(Encoder):
    """Takes the tokens that all responses of a group begin with as the prompt, and the rest as the responses.

    Args:
        padding_id: the config's padding token; None if it has none.
        append_end: whether the end token follows a response to a text prompt, whatever the tokenizer appends.
        arguments: of `Encoder`.
    """

    def __init__(self, tokenizer: Any, *, padding_id: int | None, append_end: bool = False, **arguments: Any) -> None:
        super().__init__(tokenizer, **arguments)
        self._padding_id = padding_id
        self._append_end = append_end

    def encode(self, groups: Sequence[Group], device: torch.device | str) -> GroupBatch:
        """The batch of the groups. What is too long loses its beginning, counted and logged.

        Raises:
            InputError: no group fits the limit.
        """
        prompts, responses, cut = [], [], 0
        for group in groups:
            rows = self._conversations(group)
            cut += any(len(ids) > self.max_length for ids in rows)
            rows = [self.shorten(ids, self.max_length) for ids in rows]
            common = _common_prefix(rows)
            prompts.append(rows[0][:common] or [self.bos_id if self.bos_id is not None else self.end_id])
            responses.append([ids[common:] for ids in rows])
        self._report(cut, len(groups))
        finished = [ended for group in groups for ended in group.finished or (True,) * len(group.responses)]
        return GroupBatch.from_ids(prompts, responses, groups, finished=finished, device=device)

    def _conversations(self, group: Group) -> list[list[int]]:
        """Token ids of each response with its prompt, up to the token where the score is read."""
        if group.prompt.messages is not None and self.use_template:
            try:
                texts = self.chat.conversations(group)
            except ValueError as error:
                raise refusal(error, group.prompt) from error
            return [self._until_score(ids) for ids in self._tokenise(texts)]
        start, rests = self._answers(replace(group, finished=None))
        rows = self._tokenise([start + rest for rest in rests], add_special_tokens=True)
        if self._append_end:
            rows = [ids if ids[-1:] == [self.end_id] else [*ids, self.end_id] for ids in rows]
        return [self._until_score(ids) for ids in rows]

    def _until_score(self, ids: list[int]) -> list[int]:
        last = next((index for index in range(len(ids) - 1, 0, -1) if ids[index] != self._padding_id), 0)
        return ids[: last + 1] or [self.end_id]


def _common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """The number of tokens that all rows begin with, less than the length of each."""
    longest = min(map(len, rows)) - 1
    return next((i for i in range(longest) if len({row[i] for row in rows}) > 1), longest)
