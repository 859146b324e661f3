"""Text to tokens and back: prompt and response are tokenised separately, so that no token spans their boundary.

Chats go through the tokenizer's chat template (see `alignkit_hf.chat`); a prompt has exactly one BOS. A response to a
text is its text plus the end token, one to a chat what the template renders up to the end of the turn. A response that
was cut off has no end.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from alignkit import GroupBatch, InputError
from alignkit_hf.chat import Chat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch

    from alignkit import Group, Prompt

logger = logging.getLogger(__name__)

_NEWLINE = "\n"
MEND = 'change the row, take a model whose template renders it, or set policy.chat_template = "plain" (without tools)'


class Encoder:
    """Encodes groups for one model.

    Args:
        tokenizer: a transformers tokenizer.
        stop_ids: the tokens that end a response, at least one.
        end_id: the token appended to text; None: the chat template's end of turn, or the first stop token.
        max_length: longest prompt plus response, in tokens.
        use_template: whether messages go through the tokenizer's chat template.
        unusable: tokens of the tokenizer that the model doesn't have.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        stop_ids: Sequence[int],
        end_id: int | None,
        max_length: int,
        use_template: bool = True,
        unusable: frozenset[int] = frozenset(),
    ) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = tuple(stop_ids)
        self.max_length = max_length
        self.unusable = unusable
        self.chat = Chat(tokenizer, use_template=use_template)
        self.use_template = self.chat.use_template
        self.bos_id: int | None = tokenizer.bos_token_id
        default_ids = tokenizer("").get("input_ids") or []
        self.adds_bos = self.bos_id is not None and self.bos_id in default_ids
        self._newline, zero, both = self._tokenise([_NEWLINE, "0", _NEWLINE + "0"])
        self._adds_space = both != self._newline + zero
        self.note = ""
        self._given_end = end_id
        self._turn_end, self._after = self._end_of_turn()
        self.end_id = end_id if end_id is not None else self.stop_ids[0] if self._turn_end is None else self._turn_end
        if end_id is None and self.use_template:
            self._note_end(self._turn_end)
        self._hidden = self._frame_ids()
        self.plain_chats = False
        self._told: set[str] = set()

    def encode(self, groups: Sequence[Group], device: torch.device | str) -> GroupBatch:
        """The batch of the groups. Texts that are too long are cut, counted and logged.

        Raises:
            InputError: no group fits the limit, so cutting would ruin all of them.
        """
        texts = [self._answers(group) for group in groups]
        prompts = self._prompt_ids([(group.prompt, text) for group, (text, _) in zip(groups, texts, strict=True)])
        whole = [ended for group in groups for ended in group.finished or (True,) * len(group.responses)]
        rows = [(group.prompt, rest) for group, (_, rests) in zip(groups, texts, strict=True) for rest in rests]
        flat = iter(self._response_ids(rows, whole))
        responses = [[next(flat) for _ in group.responses] for group in groups]
        fits, cut = [], 0
        for index, encoded in enumerate(responses):
            longest = max(map(len, encoded))
            room = max(self.max_length - longest, self.max_length // 2, 1)
            shortened = self.shorten(prompts[index], room)
            limit = self.max_length - len(shortened)
            fits += [len(ids) <= limit for ids in encoded]
            cut += len(shortened) < len(prompts[index]) or longest > limit
            prompts[index], responses[index] = shortened, [ids[:limit] for ids in encoded]
        self._report(cut, len(groups))
        finished = [ended and fit for ended, fit in zip(whole, fits, strict=True)]
        return GroupBatch.from_ids(prompts, responses, groups, finished=finished, device=device)

    def prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of each prompt, at least one."""
        return self._prompt_ids([(prompt, self.render(prompt)) for prompt in prompts])

    def _prompt_ids(self, prompts: Sequence[tuple[Prompt, str]]) -> list[list[int]]:
        encoded = []
        for (prompt, _), ids in zip(prompts, self._tokenise([text for _, text in prompts]), strict=True):
            templated = prompt.messages is not None and self.use_template
            needs_bos = self.bos_id is not None and (self.adds_bos if templated else True)
            if needs_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
                ids = [self.bos_id, *ids]  # noqa: PLW2901
            encoded.append(ids or [self.end_id])
        return encoded

    def _answers(self, group: Group) -> tuple[str, list[str]]:
        self._tell_of_plain_chats(group.prompt)
        try:
            return self.chat.answers(group)
        except ValueError as error:
            raise refusal(error, group.prompt) from error

    def _response_ids(self, rows: Sequence[tuple[Prompt, str]], whole: Sequence[bool]) -> list[list[int]]:
        """Token ids of each response, at least one, each with its end if it is whole."""
        responses = []
        for (prompt, text), ended, ids in zip(rows, whole, self._continued(rows), strict=True):
            if ended and prompt.messages is not None and self.use_template:
                ids = self._ended(ids, text, prompt)  # noqa: PLW2901
            elif ended:
                ids = [*ids, self.end_id]  # noqa: PLW2901
            responses.append(ids or [self.end_id])
        return responses

    def _continued(self, rows: Sequence[tuple[Prompt, str]]) -> list[list[int]]:
        """Token ids of responses; those in chats without the space that some tokenizers put before every text."""
        if not self._adds_space:
            return self._tokenise([text for _, text in rows])
        after = [prompt.messages is not None and not text.startswith(_NEWLINE) for prompt, text in rows]
        encoded = self._tokenise([_NEWLINE * go_on + text for go_on, (_, text) in zip(after, rows, strict=True)])
        return [ids[len(self._newline) * go_on :] for go_on, ids in zip(after, encoded, strict=True)]

    def end_of_answer(self) -> tuple[str, str]:
        """What the chat template writes behind an answer, and what of it is trained."""
        end = self.chat.frame().end
        return end, self._decode(self._ended(self._tokenise([end])[0], end, None))

    def _ended(self, ids: list[int], text: str, prompt: Prompt | None) -> list[int]:
        """A rendered turn up to the token that ends it, in its place the end token that the options name."""
        ends = {*self.stop_ids, self._turn_end}
        last = next((place for place in reversed(range(len(ids))) if ids[place] in ends), None)
        if last is not None and (ids[last + 1 :] == self._after or not self._decode(ids[last + 1 :]).strip()):
            return [*ids[:last], ids[last] if self._given_end is None else self._given_end]
        body = self._tokenise([text.removesuffix(self.chat.frame(prompt).end)])[0]
        return [*body, self.end_id]

    def prompts_with_room(self, prompts: Sequence[Prompt], room: int) -> list[list[int]]:
        """Token ids of each prompt, short enough for a response of `room` tokens.

        Raises:
            InputError: no prompt leaves that much room.
        """
        limit = self.max_length - room
        if limit < 1:
            raise InputError(
                f"responses of {room} tokens don't fit a context of {self.max_length}",
                where="sampling.max_tokens",
                fix="lower it, or raise policy.max_length",
            )
        encoded = self.prompts(prompts)
        self._report(sum(len(ids) > limit for ids in encoded), len(encoded))
        return [self.shorten(ids, limit) for ids in encoded]

    def render(self, prompt: Prompt) -> str:
        """The prompt's text as the model reads it; a BOS only if the template writes one."""
        self._tell_of_plain_chats(prompt)
        try:
            return self.chat.prompt(prompt)
        except ValueError as error:
            raise refusal(error, prompt) from error

    def decode(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """Text of each response, without the stop token and what else only frames turns."""
        stops = set(self.stop_ids)
        bare = [ids[:-1] if ids and ids[-1] in stops else ids for ids in responses]
        if self.use_template:
            bare = [[token for token in ids if token not in self._hidden] for ids in bare]
        texts: list[str] = self.tokenizer.batch_decode(
            bare, skip_special_tokens=not self.use_template, clean_up_tokenization_spaces=False
        )
        return texts

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def shorten(self, ids: list[int], limit: int) -> list[int]:
        """The last `limit` tokens of a prompt, keeping its BOS."""
        if len(ids) <= limit:
            return ids
        if ids[0] == self.bos_id and limit > 1:
            return [ids[0], *ids[len(ids) - limit + 1 :]]
        return ids[len(ids) - limit :]

    def _tokenise(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        if not texts:
            return []
        encoded: list[list[int]] = self.tokenizer(
            list(texts),
            add_special_tokens=add_special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        for text, ids in zip(texts, encoded, strict=True) if self.unusable else ():
            if found := self.unusable.intersection(ids):
                raise InputError(
                    f"the model has no embedding for the token {self.tokenizer.convert_ids_to_tokens(min(found))!r} "
                    f"in the text {text[:80]!r}",
                    where="policy.model",
                    fix="remove it from the text, or resize the model's embedding and train it",
                )
        return encoded

    def _end_of_turn(self) -> tuple[int | None, list[int]]:
        """The token that ends an assistant's turn in the chat template, and the tokens after it.

        A stop token if there is one, else a special token, else None: then the turn ends in text, or there is no
        template.
        """
        [tail] = self._tokenise([self.chat.frame().end])
        for ends in (set(self.stop_ids), self._special_ids()):
            for place, token in enumerate(tail):
                if token in ends:
                    return token, tail[place + 1 :]
        return None, []

    def _note_end(self, token: int | None) -> None:
        """Says where the template ends turns with another token than the tokenizer's; sampling stops there too."""
        if token is None:
            end = self.tokenizer.convert_ids_to_tokens(self.end_id)
            self.note = f"the chat template ends a turn with no token of its own; responses end with {end!r}"
            return
        name, eos = (self.tokenizer.convert_ids_to_tokens(one) for one in (token, self.tokenizer.eos_token_id or 0))
        if token not in self.stop_ids:
            self.note = f"the chat template ends a turn with {name!r}, which becomes an end token"
            self.stop_ids = (*self.stop_ids, token)
        elif token != self.tokenizer.eos_token_id:
            self.note = f"the chat template ends a turn with {name!r}"
        if self.note and self.tokenizer.eos_token_id is not None:
            self.note += f"; the tokenizer's eos is {eos!r}"

    def _special_ids(self) -> set[int]:
        added = self.tokenizer.added_tokens_decoder
        return {*self.tokenizer.all_special_ids, *(token for token, content in added.items() if content.special)}

    def _frame_ids(self) -> set[int]:
        """Tokens that are no part of a response's text, as they frame turns, pad, begin or end."""
        frame = self.chat.frame()
        [ids] = self._tokenise([frame.start + frame.end])
        named = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        return {*self.stop_ids, *named, *(self._special_ids() & set(ids))} - {None}

    def _report(self, cut: int, total: int) -> None:
        if not cut:
            return
        if cut == total:
            raise InputError(
                f"none of {total} prompts fits the limit of {self.max_length} tokens with its responses",
                where="policy.max_length",
                fix="raise it, at most to the model's context, or shorten the prompts",
            )
        logger.warning("%d of %d groups exceed the limit of %d tokens and were cut", cut, total, self.max_length)

    def _tell_of_plain_chats(self, prompt: Prompt) -> None:
        if prompt.messages is not None and not self.use_template:
            self.plain_chats = True
            self._tell_once("no chat template is in use: messages become 'User: ...' lines")

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            logger.warning(message)


def chats_in(records: Iterable[tuple[str, Group]]) -> list[tuple[str, Group]]:
    """The records whose prompt is a chat."""
    return [(place, group) for place, group in records if group.prompt.messages is not None]


def try_chats(records: Iterable[tuple[str, Group]], render: Callable[[Group], object]) -> None:
    """Raises InputError with the place of the first record that `render` refuses by a ValueError."""
    for place, group in records:
        try:
            render(group)
        except ValueError as error:
            raise InputError(str(error), where=place, fix=MEND) from error


def refusal(error: ValueError, prompt: Prompt) -> InputError:
    """The error of a row that the chat template refuses."""
    return InputError(str(error), where=f"the row whose prompt ends with {prompt.plain[-60:]!r}", fix=MEND)
