"""Targets that take bytes: the first byte chooses how the rest is read. Each returns "read" or "refused"."""

from __future__ import annotations

import json
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomli_w
from alignkit_judge.questions import Form

from alignkit.recipe.recipe import load_recipe
from tests.fuzz.judging import LOGPROBS, QUESTIONS, VERDICTS, read_reply, read_verdict
from tests.fuzz.labelling import TASKS, read_labels
from tests.fuzz.mutations import as_json
from tests.fuzz.reading import ROWS, TOLD, read_data
from tests.fuzz.settings import PAIRS, RECIPES, read_manifest, read_settings, two_checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CORPUS = Path(__file__).with_name("corpus")
ASKED = tuple(Form(question.protocol, question.nonce, question.labels) for question in QUESTIONS)
NUMBER = re.compile(r"(\d+)")
BODY, WITH_LOGPROBS = 64, 128
"""Bits of the first byte of a verdict."""
USES: tuple[Literal["ignore", "keep", "gold"] | None, ...] = ("ignore", "keep", "gold", *[None] * 29)
"""A database takes long, so few files of labels go into one."""


def verdicts(content: bytes, _folder: Path) -> str:
    """A text, or the body of a completion; `@id` stands for the nonce."""
    kind, form = content[0], ASKED[content[0] % len(ASKED)]
    text = content[1:].decode("utf-8", "surrogateescape").replace("@id", form.nonce)
    if kind & BODY:
        return read_reply(text, form)
    tokens = NUMBER.split(text) if kind & WITH_LOGPROBS else []
    others = [("7", LOGPROBS[len(text) % len(LOGPROBS)]), ("9", -0.7)]
    return read_verdict(text, form, [(token, others) for token in tokens])


def data(content: bytes, folder: Path) -> str:
    """A file of rows."""
    path = folder / f"data.{('jsonl', 'json', 'csv', 'tsv')[content[0] % 4]}"
    path.write_bytes(content[1:])
    return read_data(path, TOLD[content[0] // 4 % len(TOLD)])


def labels(content: bytes, folder: Path) -> str:
    """A file for `alignkit label import`."""
    path = folder / f"in.{('json', 'jsonl')[content[0] % 2]}"
    path.write_bytes(content[1:])
    return read_labels(path, USES[content[0] // 2 % len(USES)])


def recipes(content: bytes, folder: Path) -> str:
    """A recipe; `@pairs` stands for a file of pairs."""
    path = folder / "recipe.toml"
    path.write_bytes(content[1:].replace(b"@pairs", str(PAIRS).encode()))
    flags = {"optimizer": ("", "grpo", "x", "ppo")[content[0] % 4]}
    return read_settings(partial(load_recipe, path, flags=flags, overrides=[]))


def manifests(content: bytes, folder: Path) -> str:
    """The manifest of a checkpoint."""
    return read_manifest(content, folder)


RAW: dict[str, Callable[[bytes, Path], str]] = {
    target.__name__: target for target in (verdicts, data, labels, recipes, manifests)
}


def seeds(target: str) -> Iterator[bytes]:
    """Good inputs to begin with."""
    if target == "verdicts":
        for place, question in enumerate(QUESTIONS):
            text = json.dumps({"id": "@id", "reasoning": "because"} | VERDICTS[question.protocol])
            choice = {"message": {"content": text}, "finish_reason": "stop", "logprobs": {"content": []}}
            usage = {"prompt_tokens": 3, "completion_tokens": 4}
            yield bytes([place + 66 + -66 % 6]) + json.dumps({"choices": [choice], "usage": usage}).encode()
            yield from (bytes([first + place]) + text.encode() for first in (0, 132))
    elif target == "recipes":
        for number, recipe in enumerate(RECIPES):
            yield bytes([number]) + tomli_w.dumps(recipe).replace(str(PAIRS), "@pairs").encode()
    elif target == "manifests":
        with tempfile.TemporaryDirectory() as folder:
            yield two_checkpoints(Path(folder))[2]
    else:
        for row in (*ROWS, *TASKS):
            yield b"\x00" + _lines(row, target == "data").encode()
            yield b"\x01" + _lines(row, target != "data").encode()


def _lines(row: dict[str, Any], lines: bool) -> str:
    return f"{as_json(row)}\n" * 2 if lines else as_json([row, row])


def kept(target: str) -> list[bytes]:
    """The corpus: one JSON text a line with a character for each byte."""
    lines = (CORPUS / f"{target}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line).encode("latin-1") for line in lines]


def keep(target: str, inputs: set[bytes]) -> None:
    """Writes the corpus of a target."""
    CORPUS.mkdir(exist_ok=True)
    lines = [json.dumps(content.decode("latin-1")) for content in sorted(inputs, key=lambda one: (len(one), one))]
    (CORPUS / f"{target}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
