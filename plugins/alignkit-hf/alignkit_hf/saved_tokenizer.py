"""The tokenizer that is saved with a model: by itself it makes of texts and messages the tokens that are read here."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit_hf.encoding import Encoder

NEW_PADDING = "<|padding|>"
PLAIN_CHATS = (
    "{{ bos_token }}{% for m in messages %}{{ '' if loop.first else '\\n' }}"
    "{{ m['role'] | capitalize }}: {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAssistant:' }}"
    "{% elif messages[-1]['role'] == 'assistant' %}{{ END }}{% endif %}"
)
"""The lines that `alignkit_hf.chat` writes without a template."""


def saved_tokenizer(tokenizer: Any, encoder: Encoder) -> Any:
    """One that begins texts and conversations as the encoder does, and renders chats if they were rendered plain."""
    bos, template = tokenizer.bos_token, tokenizer.chat_template
    start = encoder.chat.frame().start
    if encoder.plain_chats:
        end = _literal(tokenizer.convert_ids_to_tokens(encoder.end_id))
        return _with_template(tokenizer, PLAIN_CHATS.replace("END", end))
    if bos is not None and not template and not encoder.adds_bos:
        own = copy.deepcopy(tokenizer)
        own.add_bos_token = True
        return own
    if bos is not None and encoder.use_template and encoder.adds_bos and start and not start.startswith(bos):
        return _with_template(tokenizer, "{{ bos_token }}" + template)
    return tokenizer


def scoring_tokenizer(tokenizer: Any, encoder: Encoder) -> Any:
    """One for a reward model, whose conversations end with the token where the score is read.

    transformers reads it at the last token, and many templates write a line break behind the end token.
    """
    own = saved_tokenizer(tokenizer, encoder)
    written, trained = encoder.end_of_answer()
    if not encoder.use_template or written == trained:
        return own
    return _with_template(
        own,
        f"{{% set rendered %}}{own.chat_template}{{% endset %}}{{% if messages[-1]['role'] != 'assistant' %}}"
        f"{{{{ rendered }}}}{{% else %}}{{{{ rendered.removesuffix({_literal(written)}) + {_literal(trained)} }}}}"
        "{% endif %}",
    )


def padding_tokenizer(tokenizer: Any, encoder: Encoder, rows: int) -> Any:
    """One that pads with a token that no response ends with, because transformers takes a score behind no padding.

    Args:
        rows: of the embedding; a new padding token has none.
    """
    ends = {encoder.end_id, *encoder.stop_ids}
    known = [token for token in (tokenizer.pad_token_id, tokenizer.bos_token_id) if token is not None and token < rows]
    free = [token for token in known if token not in ends]
    if free and free[0] == tokenizer.pad_token_id:
        return tokenizer
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"pad_token": own.convert_ids_to_tokens(free[0]) if free else NEW_PADDING})
    return own


def _with_template(tokenizer: Any, template: str) -> Any:
    """A shallow copy: a whole one of a large vocabulary takes seconds."""
    own = copy.copy(tokenizer)
    own.chat_template = template
    return own


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
