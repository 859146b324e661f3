"""What all programs are timed on: rows of text, a tokenizer and saved models, built locally and kept in a folder.

The rows are HH harmless where the file is at hand. Elsewhere they are words drawn at random, as many as HH's rows have
tokens, with a tokenizer that knows these words.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import shutil
from dataclasses import asdict, dataclass
from itertools import chain, islice, product
from string import ascii_letters
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from alignkit.records import Group, Prompt
from tests.bench.shapes import BOS, EOS, PAD, Shape, save_models

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


SPECIAL = ["<pad>", "<bos>", "<eos>"]
RECORD = "material.json"
MAX_LENGTH = 512
SPACE = "Ġ"  # how a byte-level BPE writes it
NAMES = {"user": "Human", "assistant": "Assistant"}


@dataclass(frozen=True)
class Pair:
    """A prompt with the preferred and the other response, as text."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Lengths:
    """Log-normal token lengths: the median, the spread of the logarithm, and the bounds."""

    median: int
    spread: float
    low: int
    high: int

    def draw(self, rng: random.Random) -> int:
        """One length."""
        return max(self.low, min(self.high, round(rng.lognormvariate(0.0, self.spread) * self.median)))


HH_LENGTHS = (Lengths(85, 0.85, 8, 440), Lengths(29, 0.85, 2, 200))
"""Prompts of 118 tokens in the mean and responses of 45, as in HH harmless."""


@dataclass(frozen=True)
class Material:
    """Rows and the folder with `lm/` and `rm/`.

    Attributes:
        max_length: longest prompt with a response, in tokens. stop_ids: the first one ends the text of a response.
    """

    folder: Path
    pairs: Sequence[Pair]
    max_length: int
    stop_ids: tuple[int, ...] = (EOS,)

    @property
    def lm(self) -> str:
        """Folder of the causal LM."""
        return str(self.folder / "lm")

    @property
    def rm(self) -> str:
        """Folder of the reward model."""
        return str(self.folder / "rm")

    def tokenizer(self) -> Any:
        """The tokenizer of both models; a text gets a BOS when special tokens are asked for."""
        return PreTrainedTokenizerFast.from_pretrained(self.lm)

    def demonstrations(self, count: int) -> list[Group]:
        """A prompt with its preferred response."""
        return [Group(Prompt(text=pair.prompt), (pair.chosen,)) for pair in self._first(count)]

    def rankings(self, count: int, k: int) -> list[Group]:
        """Rankings of k: the row's own two responses and others of other rows."""
        rng = random.Random(1)
        pool = [text for pair in self.pairs for text in (pair.chosen, pair.rejected)]
        return [
            Group(
                Prompt(text=pair.prompt),
                (pair.chosen, pair.rejected, *(rng.choice(pool) for _ in range(k - 2))),
                ranks=tuple(range(k)),
            )
            for pair in self._first(count)
        ]

    def labelled(self, count: int) -> list[Group]:
        """A prompt with a desirable and an undesirable response."""
        return [
            Group(Prompt(text=pair.prompt), (pair.chosen, pair.rejected), labels=(True, False))
            for pair in self._first(count)
        ]

    def prompts(self, count: int, longest: int = 256) -> list[Prompt]:
        """Distinct prompts of at most `longest` tokens."""
        tokenizer = self.tokenizer()
        texts = dict.fromkeys(pair.prompt for pair in self.pairs)
        short = [text for text in texts if len(tokenizer(text)["input_ids"]) <= longest]
        if len(short) < count:
            raise ValueError(f"{count} prompts are wanted, and {len(short)} are at hand")
        return [Prompt(text=text) for text in short[:count]]

    def fixed_rollouts(self, count: int, k: int) -> list[Group]:
        """Prompts with k responses each that nobody sampled."""
        rng = random.Random(3)
        pool = [text for pair in self.pairs for text in (pair.chosen, pair.rejected) if len(text) < 400]
        return [Group(prompt, tuple(rng.choice(pool) for _ in range(k))) for prompt in self.prompts(count)]

    def _first(self, count: int) -> Sequence[Pair]:
        if len(self.pairs) < count:
            raise ValueError(f"{count} rows are wanted, and {len(self.pairs)} are at hand")
        return self.pairs[:count]


def make_material(shape: Shape, folder: Path, file: Path) -> None:
    """Makes the material of a folder that has none: of HH rows where the file is there, of random words elsewhere."""
    source = str(file) if file.is_file() else ""
    made_of = {"source": source, "shape": asdict(shape)}
    record = folder / RECORD
    if record.is_file() and json.loads(record.read_text())["made_of"] == made_of:
        return
    shutil.rmtree(folder, ignore_errors=True)
    if source:
        pairs = list(read_hh(file))
        save_models(shape, _trained_tokenizer(pairs, shape.vocabulary), folder, dtype=torch.float32)
        random.Random(0).shuffle(pairs)
        material = Material(folder, pairs, MAX_LENGTH)
    else:
        material = generated(shape, folder, torch.float32)
    record.write_text(json.dumps({"made_of": made_of, **asdict(material), "folder": ""}))


def open_material(folder: Path) -> Material:
    """What `make_material` left in a folder."""
    record = json.loads((folder / RECORD).read_text())
    pairs = [Pair(**pair) for pair in record["pairs"]]
    return Material(folder, pairs, record["max_length"], tuple(record.get("stop_ids", (EOS,))))


def generated(
    shape: Shape,
    folder: Path,
    dtype: torch.dtype,
    *,
    rows: int = 1000,
    lengths: tuple[Lengths, Lengths] = HH_LENGTHS,
    device: str = "cpu",
) -> Material:
    """Rows of random words, each word a token of the vocabulary, of the given prompt and response lengths."""
    rng = random.Random(0)
    words = _words(shape.vocabulary - len(SPECIAL) - 256)

    def text(length: Lengths) -> str:
        return "".join(f" {word}" for word in rng.choices(words, k=length.draw(rng)))

    prompt, response = lengths
    pairs = [Pair(text(prompt), text(response), text(response)) for _ in range(rows)]
    if not (folder / "rm").is_dir():
        save_models(shape, _word_tokenizer(shape.vocabulary), folder, dtype=dtype, device=device)
    return Material(folder, pairs, min(shape.context, prompt.high + response.high + 2))


def read_hh(file: Path) -> list[Pair]:
    """The rows of the HH file."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        Pair(
            "".join(f"\n\n{NAMES[turn['role']]}: {turn['content']}" for turn in row["prompt"]) + "\n\nAssistant:",
            " " + row["chosen"][0]["content"],
            " " + row["rejected"][0]["content"],
        )
        for row in rows
    ]


def _trained_tokenizer(pairs: Sequence[Pair], size: int) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for pair in pairs for text in (pair.prompt + pair.chosen, pair.rejected))
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer)


def _words(count: int) -> list[str]:
    """All strings of one letter, then of two, and so on."""
    by_length = (product(ascii_letters, repeat=length) for length in itertools.count(1))
    return ["".join(letters) for letters in islice(chain.from_iterable(by_length), count)]


def _word_tokenizer(size: int) -> Any:
    """A byte-level BPE to which each of the words with a space before it is one token.

    AutoTokenizer makes a BPE of whatever is stored beside a Qwen2 model, so a tokenizer of another kind is of no use.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = _words(size - len(SPECIAL) - len(alphabet))
    tokens = [*SPECIAL, *alphabet, *(SPACE + word for word in words)]
    merges = [(SPACE + word[:-1], word[-1]) for word in words]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrapped(tokenizer)


def _wrapped(tokenizer: Tokenizer) -> Any:
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[PAD], bos_token=SPECIAL[BOS], eos_token=SPECIAL[EOS]
    )
