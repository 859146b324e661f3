"""The tokenizer that is saved with a model: by itself it makes of texts and messages the tokens that are read here."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit_hf.encoding import Encoder

NEW_PADDING = "<|padding|>"
_CONTENT = "0"
_RENDERED = "{% set rendered %}"


def saved_tokenizer(tokenizer: Any, encoder: Encoder) -> Any:
    """A copy that begins texts and conversations as the encoder does."""
    own = copy.deepcopy(tokenizer)
    if own.bos_token is None:
        return own
    if not own.chat_template:
        if not encoder.adds_bos:
            own.add_bos_token = True
    elif encoder.use_template and encoder.adds_bos and isinstance(own.chat_template, str):
        rendered = _render(own, _CONTENT)
        if rendered is not None and not rendered.startswith(own.bos_token):
            own.chat_template = "{{ bos_token }}" + own.chat_template
    return own


def scoring_tokenizer(tokenizer: Any, encoder: Encoder, rows: int) -> Any:
    """A copy for a reward model: it pads and ends conversations so that transformers reads the score where we do.

    transformers reads it at the last token that is not padding. So no response may end with padding: another special
    token, or a new one. And nothing may follow the end token: many templates write a line break there.

    Args:
        rows: of the embedding.
    """
    own = saved_tokenizer(tokenizer, encoder)
    ends = {encoder.end_id, *encoder.stop_ids}
    known = [token for token in (own.pad_token_id, own.bos_token_id) if token is not None and token < rows]
    free = [token for token in known if token not in ends]
    own.add_special_tokens({"pad_token": own.convert_ids_to_tokens(free[0]) if free else NEW_PADDING})
    rendered = _render(own, _CONTENT) if encoder.use_template and isinstance(own.chat_template, str) else None
    if rendered is not None:
        end = own.convert_ids_to_tokens(encoder.end_id)
        tail = rendered[rendered.rfind(_CONTENT) + len(_CONTENT) :]
        if tail != end:
            own.chat_template = (
                f"{_RENDERED}{own.chat_template}{{% endset %}}{{% if messages[-1]['role'] != 'assistant' %}}"
                f"{{{{ rendered }}}}{{% else %}}{{{{ rendered.removesuffix({_literal(tail)}) + {_literal(end)} }}}}"
                "{% endif %}"
            )
    return own


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _render(tokenizer: Any, content: str) -> str | None:
    """A short conversation; None if the template refuses it."""
    turn = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    try:
        text: str = tokenizer.apply_chat_template(turn, tokenize=False)
    except Exception:  # a template may reject this conversation with any error
        return None
    return text
