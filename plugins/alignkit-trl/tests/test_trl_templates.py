"""The chat templates that TRL ships, of some thirty families of models: an answer is what each of them renders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
import trl
from alignkit_hf.chat import Chat
from tokenizers import Tokenizer, models

from alignkit.records import Group, Prompt

TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
OF_MODELS_THAT_SEE = ("idefics3", "llava_next", "smolvlm")
"""They take lists of parts alone."""
MESSAGES = [
    {"role": "user", "content": "Name a pet."},
    {"role": "assistant", "content": "Which one?"},
    {"role": "user", "content": "A small one."},
]
ANSWER = {"role": "assistant", "content": "A mouse."}


def rendered(tokenizer: Any, messages: list[dict[str, Any]], *, in_parts: bool) -> str:
    shown = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages] if in_parts else messages
    text: str = tokenizer.apply_chat_template(shown, tokenize=False)
    return text


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_an_answer_is_what_the_template_renders(path: Path) -> None:
    backend = Tokenizer(models.BPE(vocab={"a": 0, "<s>": 1, "</s>": 2}, merges=[]))
    tokenizer: Any = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    prompt, [answer] = Chat(tokenizer, use_template=True).answers(Group(Prompt.of(MESSAGES), (ANSWER["content"],)))
    whole = rendered(tokenizer, [*MESSAGES, ANSWER], in_parts=path.stem.startswith(OF_MODELS_THAT_SEE))
    assert prompt + answer == whole
    assert "small one" in prompt
    assert "mouse" in answer
