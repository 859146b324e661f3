"""Loads models and tokenizers: safetensors only, float32 weights, dropout off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from alignkit import InputError
from alignkit_hf.options import check_tokens
from alignkit_hf.sources import Source, loading
from alignkit_hf.weights import load_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from alignkit_hf.modeling import PackedModel
    from alignkit_hf.options import HFOptions
    from alignkit_hf.sources import Place


def pick_device(name: str) -> torch.device:
    """The device that a context names; auto: CUDA, then MPS, then the CPU.

    Raises:
        InputError: there is no such device.
    """
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            first = str(error).splitlines()[0]
            raise InputError(
                f"there is no device {name!r}: {first}", where="run.device", fix="use auto or cpu"
            ) from error
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def autocast_dtype(dtype: str, device: torch.device) -> torch.dtype | None:
    """The computing precision over float32 weights, or None for float32."""
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if dtype == "bfloat16" else None


def load_causal_lm(options: HFOptions, source: Source, device: torch.device) -> PreTrainedModel:
    """The model without its adapters, on its device.

    Raises:
        InputError: the model can't be loaded, or a tensor is missing or left over.
    """
    arguments: dict[str, Any] = {
        "dtype": torch.bfloat16 if options.weights == "bfloat16" else torch.float32,
        "trust_remote_code": options.trust_remote_code,
    }
    if options.attention != "auto":
        arguments["attn_implementation"] = options.attention
    if options.quantize == "4bit":
        arguments |= {"quantization_config": _four_bits(), "device_map": {"": device}, "dtype": torch.bfloat16}
    with loading("model", options.model):
        return load_weights(transformers.AutoModelForCausalLM, source.base, where="model", **arguments)


def load_tokenizer(place: Place, *, trust_remote_code: bool = False) -> Any:
    """The saved tokenizer of a model.

    Raises:
        InputError: it can't be loaded.
    """
    with loading("model", place.name):
        return transformers.AutoTokenizer.from_pretrained(
            place.name, revision=place.revision, trust_remote_code=trust_remote_code
        )


def tokenizer_of(options: HFOptions) -> Any:
    """The tokenizer of the model that the options name. Raises InputError if it can't be loaded."""
    with loading("model", options.model):
        source = Source.of(options.model, options.revision)
        return load_tokenizer(source.with_tokenizer, trust_remote_code=options.trust_remote_code)


def make_ready(lm: PreTrainedModel) -> None:
    """Prepares a loaded model for training: no dropout, every token learns, and its config says what is tied."""
    switch_dropout_off(lm)
    let_every_token_learn(lm)
    head = lm.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is not None and head.weight is not lm.get_input_embeddings().weight:
        for config in (lm.config, lm.config.get_text_config()):
            config.tie_word_embeddings = False


def switch_dropout_off(model: nn.Module) -> None:
    """Sets every dropout to 0, so that training and sampling use the same policy.

    The config, and so the saved model, stays unchanged.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)


def let_every_token_learn(model: nn.Module) -> None:
    """Gives the padding token's embedding a gradient: no layout reads padding, and it may be the stop token."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None


def rows_of_embedding(lm: PreTrainedModel) -> int:
    """Number of tokens that have an embedding."""
    return int(lm.get_input_embeddings().weight.shape[0])  # type: ignore[index]


def set_generation_defaults(lm: PreTrainedModel, tokenizer: Any, stop_ids: tuple[int, ...]) -> None:
    """Makes what is saved stop where this policy stops, and pad with a token that exists."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(stop_ids[0])
    generation: Any = getattr(lm, "generation_config", None)
    if generation is None:
        return
    generation.eos_token_id = list(stop_ids) if len(stop_ids) > 1 else stop_ids[0]
    generation.pad_token_id = tokenizer.pad_token_id
    try:
        generation.validate(strict=True)
    except ValueError:  # a temperature without do_sample, for example, which transformers refuses to save
        generation.do_sample = True


def prepare_for_training(model: PackedModel, *, gradient_checkpointing: bool) -> PackedModel:
    """Switches gradient checkpointing on if requested."""
    if gradient_checkpointing:
        enable_checkpointing(model.lm)
        model.train()
    return model


def enable_checkpointing(lm: PreTrainedModel) -> None:
    """Switches gradient checkpointing on, under the name that this version of transformers uses."""
    switch = getattr(lm, "activation_checkpointing_enable", None) or lm.gradient_checkpointing_enable
    switch({"use_reentrant": False})


def context_length(lm: PreTrainedModel, tokenizer: Any, limit: int) -> int:
    """Longest sequence in tokens: the option's limit, or the model's context. Raises InputError beyond the context."""
    config = lm.config.get_text_config()
    known = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    context = next((value for value in known if isinstance(value, int) and value > 0), 0)
    if not context:
        context = tokenizer.model_max_length if tokenizer.model_max_length < 10**9 else 2**20
    if limit > context:
        raise InputError(f"{limit} tokens exceed the model's context of {context}", where="max_length", fix="lower it")
    return limit or context


def stop_tokens(lm: PreTrainedModel, tokenizer: Any, given: tuple[int, ...], end: int | None = None) -> tuple[int, ...]:
    """The tokens that end a response: the given ones, or those of the generation config, the tokenizer, the config.

    Args:
        end: token that is appended to responses, if one is given.

    Raises:
        InputError: there is none, or a given one is outside the vocabulary.
    """
    size = rows_of_embedding(lm)
    check_tokens(given, size, where="stop_token_ids")
    check_tokens(() if end is None else (end,), size, where="end_token_id")
    generation = getattr(lm, "generation_config", None)
    for source in (
        given,
        getattr(generation, "eos_token_id", None),
        tokenizer.eos_token_id,
        lm.config.get_text_config().eos_token_id,
    ):
        ids = (source,) if isinstance(source, int) else tuple(source or ())
        if ids:
            return ids
    raise InputError("the model names no end token", where="stop_token_ids", fix="set it, for example [2]")


def _four_bits() -> Any:
    return transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
