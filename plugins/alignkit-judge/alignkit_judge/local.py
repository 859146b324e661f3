"""A local judge: reads the verdict of a transformers causal LM from the logits of the answer tokens, in batches.

Verdicts are never sampled and never made up: a model that puts less than `min_mass` of its probability on the tokens of
all answers together is not answering the question, so it abstains.
"""

from __future__ import annotations

import inspect
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from alignkit import InputError
from alignkit.ops import until_it_fits
from alignkit_judge.questions import HIGHEST, LOWEST, Answer, digest
from alignkit_judge.templates import ANSWER, local_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from alignkit_judge.options import JudgeModel
    from alignkit_judge.questions import Question

logger = logging.getLogger(__name__)
Chances = dict[str, float]
_TIE = "C"


class LocalJudge:
    """Asks a model in this process.

    Raises:
        InputError: the model can't be loaded, or its vocabulary has no token for an answer.
    """

    def __init__(self, judge: JudgeModel, device: str) -> None:
        self._judge = judge
        self._model: Any
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(judge.model)
            dtype = judge.dtype if judge.dtype == "auto" else getattr(torch, judge.dtype)
            model: Any = AutoModelForCausalLM
            self._model, found = model.from_pretrained(judge.model, dtype=dtype, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise InputError(
                f"can't be loaded: {error}", where=f"judge {judge.model}", fix="check the folder"
            ) from error
        if wrong := sorted({*found["missing_keys"], *found["unexpected_keys"]}):
            raise InputError(
                f"tensors are missing or left over: {', '.join(wrong[:3])}",
                where=f"judge {judge.model}",
                fix="give the folder that save_pretrained wrote",
            )
        self._device = _device(device)
        self._model.to(self._device).eval()
        self._control = sorted({*self._tokenizer.all_special_tokens, *self._tokenizer.get_added_vocab()} - {""})
        self._ids = self._answer_ids()
        few = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._only_last: dict[str, int] = {"logits_to_keep": 1} if few else {}
        config = AutoConfig.from_pretrained(judge.model)
        self._context = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)

    def answers(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """(index of the question, answer), in batches of similar length. All questions must have the same protocol."""
        encoded = []
        for index, question in enumerate(questions):
            text = self._prompt(question)
            reasoning = self._reason(question, text) if question.reasoning else ""
            ids = self._tokenizer(
                text + reasoning + self._lead(), add_special_tokens=self._adds_specials, verbose=False
            )["input_ids"]
            if len(ids) + 1 > self._context:
                yield index, Answer(None, "longer than the judge's context")
            else:
                encoded.append((ids, index, reasoning))
        encoded.sort(key=lambda entry: len(entry[0]))
        for batch in _batches(encoded, self._judge.batch_tokens):
            asked = [questions[index] for _, index, _ in batch]
            for (_, index, reasoning), question, chances in zip(
                batch, asked, self._chances([ids for ids, _, _ in batch], asked), strict=True
            ):
                yield index, verdict(question, chances, self._judge.min_mass, reasoning)

    @property
    def _adds_specials(self) -> bool:
        return not self._tokenizer.chat_template

    def _lead(self) -> str:
        return "" if self._tokenizer.chat_template else f"\n{ANSWER}"

    def _prompt(self, question: Question) -> str:
        text = local_text(question, self._control)
        if not self._tokenizer.chat_template:
            return text
        message = [{"role": "user", "content": text}]
        return str(self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    def _reason(self, question: Question, text: str) -> str:
        """The model's reasoning, one question at a time, so that it does not depend on the others."""
        inputs = self._tokenizer(text, add_special_tokens=self._adds_specials, return_tensors="pt").to(self._device)
        length = inputs["input_ids"].shape[1]
        room = self._context - length - 16
        if room < 1:
            return ""
        sampled = {"do_sample": True, "temperature": self._judge.temperature} if self._judge.temperature else {}
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(int(digest([question.item, question.order, question.sample])[:12], 16))
            written = self._model.generate(
                **inputs,
                max_new_tokens=min(self._judge.reply_tokens, room),
                pad_token_id=self._pad,
                **(sampled or {"do_sample": False}),
            )
        reasoning = self._tokenizer.decode(written[0, length:], skip_special_tokens=True)
        return f"{reasoning}\n{ANSWER}" if self._tokenizer.chat_template else str(reasoning)

    @property
    def _pad(self) -> int:
        pad = self._tokenizer.pad_token_id
        return int(pad if pad is not None else self._tokenizer.eos_token_id or 0)

    def _answer_ids(self) -> dict[str, list[int]]:
        """Token ids of each answer: every token that is exactly the answer, with or without a leading space."""
        wanted = {*"ABCDEFGHI", *map(str, range(LOWEST, HIGHEST + 1)), "0"}
        found: dict[str, list[int]] = {label: [] for label in wanted}
        special = set(self._tokenizer.all_special_ids)
        for number, token in enumerate(self._tokenizer.convert_ids_to_tokens(range(len(self._tokenizer)))):
            bare = (token or "").replace("▁", "").replace("Ġ", "").strip()
            if bare in found and number not in special:
                found[bare].append(number)
        return found

    def _tokens_of(self, label: str) -> list[int]:
        if not self._ids[label]:
            raise InputError(
                f"its vocabulary has no token {label!r}", where=f"judge {self._judge.model}", fix="use another model"
            )
        return self._ids[label]

    def _chances(self, rows: list[list[int]], questions: Sequence[Question]) -> list[Chances]:
        """The probability of each answer, for questions of one protocol."""
        following = self._next(rows)
        if questions[0].protocol == "pointwise":
            return self._score_chances(rows, following)
        tie = _TIE if questions[0].protocol == "pairwise" else ""
        return [
            {label: float(probabilities[self._tokens_of(label)].sum()) for label in question.labels + tie}
            for question, probabilities in zip(questions, following, strict=True)
        ]

    def _score_chances(self, rows: list[list[int]], following: Tensor) -> list[Chances]:
        """The probabilities of 1 to 10. If the vocabulary has single digits only, 10 is "1" then "0": a second pass."""
        scores = [str(score) for score in range(LOWEST, HIGHEST)]
        chances = [{score: float(each[self._tokens_of(score)].sum()) for score in scores} for each in following]
        ten = self._ids[str(HIGHEST)]
        if ten:
            return [
                {**known, str(HIGHEST): float(each[ten].sum())} for known, each in zip(chances, following, strict=True)
            ]
        ones = self._tokens_of("1")
        said_one = [[*row, ones[int(each[ones].argmax())]] for row, each in zip(rows, following, strict=True)]
        zero = self._next(said_one)[:, self._tokens_of("0")].sum(1).tolist()
        return [
            {**known, "1": known["1"] * (1 - share), str(HIGHEST): known["1"] * share}
            for known, share in zip(chances, zero, strict=True)
        ]

    def _next(self, rows: list[list[int]]) -> Tensor:
        """[B, V] probabilities of the token after each row; fewer rows at a time when memory runs out."""

        def compute(size: int) -> Tensor:
            return torch.cat([self._pass(rows[start : start + size]) for start in range(0, len(rows), size)])

        smaller = partial(logger.warning, "out of memory: now the judge reads %d questions at a time")
        return until_it_fits(compute, len(rows), smaller)

    @torch.no_grad()
    def _pass(self, rows: list[list[int]]) -> Tensor:
        """[B, V] probabilities of the token after each row; rows are padded on the left, with their own positions."""
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self._pad)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, longest - len(row) :] = torch.tensor(row)
            mask[number, longest - len(row) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        moved = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        logits = self._model(**moved, **self._only_last).logits[:, -1]
        probabilities: Tensor = logits.double().softmax(-1).cpu()
        return probabilities


def verdict(question: Question, chances: Chances, min_mass: float, reasoning: str = "") -> Answer:
    """The answer that the probabilities give: the expected score, shares of a pair, or each letter's probability."""
    mass = sum(chances.values())
    if mass < min_mass or mass == 0:
        return Answer(None, "no answer", reasoning)
    if question.protocol == "pointwise":
        return Answer((sum(int(score) * chance for score, chance in chances.items()) / mass,), "", reasoning)
    tie = chances[_TIE] if question.protocol == "pairwise" else 0.0
    return Answer(tuple((chances[label] + tie / 2) / mass for label in question.labels), "", reasoning)


def _batches(rows: list[tuple[list[int], int, str]], budget: int) -> Iterator[list[tuple[list[int], int, str]]]:
    """Splits rows, in order, into batches that fit the token budget when padded to the longest row."""
    batch: list[tuple[list[int], int, str]] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row[0]) > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
