"""Text to tokens and back: prompt and response are tokenised separately, so that no token spans their boundary.

Chat messages go through the tokenizer's chat template with the generation prompt; a prompt has exactly one BOS. A
response is its text plus the end token, unless it was cut off.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from alignkit import GroupBatch, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch

    from alignkit import Group, Prompt

logger = logging.getLogger(__name__)

_CONTENT = "0"


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
        self.use_template = use_template and bool(getattr(tokenizer, "chat_template", None))
        self.bos_id: int | None = tokenizer.bos_token_id
        default_ids = tokenizer("").get("input_ids") or []
        self.adds_bos = self.bos_id is not None and self.bos_id in default_ids
        self.end_id = end_id if end_id is not None else self._end_of_turn()
        self._told: set[str] = set()

    def encode(self, groups: Sequence[Group], device: torch.device | str) -> GroupBatch:
        """The batch of the groups. Texts that are too long are cut, counted and logged.

        Raises:
            InputError: no group fits the limit, so cutting would ruin all of them.
        """
        prompts = self.prompts([group.prompt for group in groups])
        texts = [text for group in groups for text in group.responses]
        whole = [ended for group in groups for ended in group.finished or (True,) * len(group.responses)]
        flat = iter(
            [*ids, self.end_id] if ended or not ids else ids
            for ids, ended in zip(self._tokenise(texts), whole, strict=True)
        )
        responses = [[next(flat) for _ in group.responses] for group in groups]
        fits, cut = [], 0
        for index, rows in enumerate(responses):
            longest = max(map(len, rows))
            room = max(self.max_length - longest, self.max_length // 2, 1)
            shortened = self.shorten(prompts[index], room)
            limit = self.max_length - len(shortened)
            fits += [len(ids) <= limit for ids in rows]
            cut += len(shortened) < len(prompts[index]) or longest > limit
            prompts[index], responses[index] = shortened, [ids[:limit] for ids in rows]
        self._report(cut, len(groups))
        finished = [ended and fit for ended, fit in zip(whole, fits, strict=True)]
        return GroupBatch.from_ids(prompts, responses, groups, finished=finished, device=device)

    def prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of each prompt, at least one."""
        encoded = []
        for prompt, ids in zip(prompts, self._tokenise([self.render(prompt) for prompt in prompts]), strict=True):
            templated = prompt.messages is not None and self.use_template
            needs_bos = self.bos_id is not None and (self.adds_bos if templated else True)
            if needs_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
                ids = [self.bos_id, *ids]  # noqa: PLW2901
            encoded.append(ids or [self.end_id])
        return encoded

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
        if prompt.messages is None:
            return prompt.text or ""
        if self.use_template:
            text: str = self.tokenizer.apply_chat_template(
                list(prompt.messages), tokenize=False, add_generation_prompt=True
            )
            return text
        self._tell_once("no chat template is in use: messages become 'User: ...' lines")
        lines = [f"{message['role'].capitalize()}: {_text(message['content'])}" for message in prompt.messages]
        return "\n".join([*lines, "Assistant:"])

    def decode(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """Text of each response, without the stop token and other special tokens."""
        stops = set(self.stop_ids)
        bare = [ids[:-1] if ids and ids[-1] in stops else ids for ids in responses]
        texts: list[str] = self.tokenizer.batch_decode(
            bare, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return texts

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
            list(texts), add_special_tokens=add_special_tokens, return_attention_mask=False, return_token_type_ids=False
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

    def _end_of_turn(self) -> int:
        """The token that ends an assistant's turn in the chat template if it is a stop token; else the first one."""
        if self.use_template:
            turn = [{"role": "user", "content": _CONTENT}, {"role": "assistant", "content": _CONTENT}]
            try:
                text: str = self.tokenizer.apply_chat_template(turn, tokenize=False)
            except Exception:  # a template may reject this conversation with any error
                return self.stop_ids[0]
            tail = self._tokenise([text[text.rfind(_CONTENT) + len(_CONTENT) :]])[0]
            return next((token for token in tail if token in self.stop_ids), self.stop_ids[0])
        return self.stop_ids[0]

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

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            logger.warning(message)


def _text(content: str | Iterable[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)
