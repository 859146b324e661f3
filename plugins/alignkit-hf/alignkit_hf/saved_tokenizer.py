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
    """A copy that begins texts and conversations as the encoder does, and renders chats if they were rendered plain."""
    own = copy.deepcopy(tokenizer)
    if encoder.plain_chats:
        own.chat_template = PLAIN_CHATS.replace("END", _literal(own.convert_ids_to_tokens(encoder.end_id)))
    if own.bos_token is None:
        return own
    start = encoder.chat.frame().start
    if not own.chat_template:
        if not encoder.adds_bos:
            own.add_bos_token = True
    elif encoder.use_template and encoder.adds_bos and start and not start.startswith(own.bos_token):
        own.chat_template = "{{ bos_token }}" + own.chat_template
    return own


def scoring_tokenizer(tokenizer: Any, encoder: Encoder) -> Any:
    """A copy for a reward model, whose conversations end with the token where the score is read.

    transformers reads it at the last token, and many templates write a line break behind the end token.
    """
    own = saved_tokenizer(tokenizer, encoder)
    written, trained = encoder.end_of_answer()
    if encoder.use_template and written != trained:
        own.chat_template = (
            f"{{% set rendered %}}{own.chat_template}{{% endset %}}{{% if messages[-1]['role'] != 'assistant' %}}"
            f"{{{{ rendered }}}}{{% else %}}{{{{ rendered.removesuffix({_literal(written)}) + {_literal(trained)} }}}}"
            "{% endif %}"
        )
    return own


def padding_tokenizer(tokenizer: Any, encoder: Encoder, rows: int) -> Any:
    """A copy that pads with a token that no response ends with, because transformers takes a score behind no padding.

    Args:
        rows: of the embedding; a new padding token has none.
    """
    own = copy.deepcopy(tokenizer)
    ends = {encoder.end_id, *encoder.stop_ids}
    known = [token for token in (own.pad_token_id, own.bos_token_id) if token is not None and token < rows]
    free = [token for token in known if token not in ends]
    own.add_special_tokens({"pad_token": own.convert_ids_to_tokens(free[0]) if free else NEW_PADDING})
    return own


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
