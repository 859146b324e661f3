"""Checks a loaded model: every tensor came from its files and was used, and the tokenizer fits the embedding."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
import transformers

from alignkit import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel

    from alignkit_hf.sources import Place

logger = logging.getLogger(__name__)

_SHOWN = 3
_OLD_BUFFERS = (".masked_bias", ".rotary_emb.inv_freq", ".position_ids")
"""Constants that earlier versions of transformers stored with the weights."""


def load_weights(
    kind: Any, place: Place, *, where: str, fresh: Iterable[str] = (), **arguments: Any
) -> PreTrainedModel:
    """The model of an Auto class, with all its tensors from the files.

    What transformers itself expects is no error: tied weights, and tensors that the model's class ignores.

    Args:
        fresh: names of tensors that may be missing.

    Raises:
        InputError: a tensor is missing, left over or of another shape.
    """
    model, found = kind.from_pretrained(
        place.name,
        revision=place.revision,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **arguments,
    )
    missing = set(found["missing_keys"]) - set(fresh)
    left = {name for name in found["unexpected_keys"] if not name.endswith(_OLD_BUFFERS)}
    if left and model.get_output_embeddings() is None:
        left -= _head_of_language_model(model)
    shapes = {name: (tuple(stored), tuple(own)) for name, stored, own in found["mismatched_keys"]}
    if missing or left or shapes:
        raise _unfit(model, place.name, missing - shapes.keys(), left, shapes, where)
    quantised = [
        name for name, tensor in model.named_parameters() if tensor.is_floating_point() and tensor.itemsize == 1
    ]
    if quantised and not getattr(model, "is_quantized", False):
        raise InputError(
            f"{place.name} holds {_some(quantised)} in 8 bits, but not the scale",
            where=where,
            fix="give the complete folder of the quantised model, or the model that it was made from",
        )
    loaded: PreTrainedModel = model
    return loaded


def check_adapter(place: Place, expected: set[str], given: set[str], *, where: str) -> None:
    """Raises InputError if an adapter's files don't hold exactly the expected tensors."""
    missing, left = expected - given, given - expected
    if not (missing or left):
        return
    said = [f"has no tensor {_some(missing)}"] if missing else []
    said += [f"holds {_some(left)}, which the adapted model doesn't have"] if left else []
    raise InputError(
        f"the adapter {place.name} {', and '.join(said)}", where=where, fix="save it again with peft's save_pretrained"
    )


def check_vocabulary(tokenizer: Any, rows: int, *, where: str) -> frozenset[int]:
    """The tokens without a row in the embedding: special ones that neither the tokenizer nor its template writes.

    A padding token among them is replaced by the end token, because no layout here feeds padding.

    Raises:
        InputError: the tokenizer has a token without a row.
    """
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return frozenset()
    added = tokenizer.added_tokens_decoder
    written = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token}
    template = str(tokenizer.chat_template or "")
    fed = sorted(
        token
        for token, number in beyond.items()
        if token in written or token in template or number not in added or not added[number].special
    )
    if fed:
        raise InputError(
            f"the tokenizer has the token {_some(fed)}, but the model's embedding has only {rows} rows",
            where=where,
            fix="in transformers: model.resize_token_embeddings(len(tokenizer)), train the new rows, save both; "
            "or give the tokenizer that belongs to the model",
        )
    if tokenizer.pad_token in beyond:
        logger.warning(
            "the padding token %s has no row in the embedding of %d rows: it is never fed, and what is saved pads with "
            "another token",
            tokenizer.pad_token,
            rows,
        )
        tokenizer.pad_token = tokenizer.eos_token
    return frozenset(beyond.values())


def _head_of_language_model(model: PreTrainedModel) -> set[str]:
    """Names of the tensors that a causal LM of this config has outside of its trunk."""
    try:
        with torch.device("meta"):
            lm = transformers.AutoModelForCausalLM.from_config(model.config)  # type: ignore[no-untyped-call]
    except ValueError:  # there is none
        return set()
    return {name for name in lm.state_dict() if not name.startswith(f"{lm.base_model_prefix}.")}


def _unfit(
    model: PreTrainedModel,
    name: str,
    missing: set[str],
    left: set[str],
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
    where: str,
) -> InputError:
    said = []
    if missing:
        count = f"{len(missing)} of {len(model.state_dict())} tensors"
        said.append(f"lacks {_some(missing)} ({count}), which would be random")
    if left:
        said.append(f"holds {_some(left)}, which {type(model).__name__} doesn't have")
    for tensor, (stored, own) in list(shapes.items())[:_SHOWN]:
        said.append(f"holds {tensor} as {list(stored)}, and its config says {list(own)}")
    fix = "give the complete folder that save_pretrained wrote for this config"
    first = min(missing, default="")
    prefixed = next((other for other in left if first and other.endswith(f".{first}")), None)
    if prefixed is not None:
        fix = f"remove {prefixed.removesuffix(first)!r} from the front of each tensor's name"
    elif left and not missing and not shapes:
        fix = "remove what is left over, or load the model in transformers and save it again"
    return InputError(f"{name} {'; it '.join(said)}", where=where, fix=fix)


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more
