"""Loads models and tokenizers: safetensors only, float32 weights, dropout off, an adapter on request."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from alignkit import InputError
from alignkit_hf.options import check_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from alignkit_hf.modeling import PackedModel
    from alignkit_hf.options import HFOptions, LoraOptions


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


def load_causal_lm(options: HFOptions, device: torch.device) -> PreTrainedModel:
    """The model on its device; an adapter in the folder is merged into it.

    Raises:
        InputError: the model can't be loaded.
    """
    name, adapter = base_and_adapter(options.model)
    arguments: dict[str, Any] = {
        "dtype": torch.bfloat16 if options.weights == "bfloat16" else torch.float32,
        "use_safetensors": True,
        "trust_remote_code": options.trust_remote_code,
        "revision": options.revision,
    }
    if options.attention != "auto":
        arguments["attn_implementation"] = options.attention
    if options.quantize == "4bit":
        arguments |= {"quantization_config": _four_bits(), "device_map": {"": device}, "dtype": torch.bfloat16}
    with loading("model", options.model):
        lm: PreTrainedModel = transformers.AutoModelForCausalLM.from_pretrained(name, **arguments)
        if adapter is not None:
            from peft import PeftModel

            with _quiet_peft():
                lm = PeftModel.from_pretrained(lm, adapter).merge_and_unload()
    switch_dropout_off(lm)
    let_every_token_learn(lm)
    return lm if options.quantize == "4bit" else lm.to(device)  # type: ignore[arg-type]


def load_tokenizer(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The saved tokenizer of a model.

    Raises:
        InputError: it can't be loaded.
    """
    base, adapter = base_and_adapter(name)
    source = adapter if adapter is not None and (Path(adapter) / "tokenizer_config.json").exists() else base
    with loading("model", name):
        return transformers.AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=trust_remote_code
        )


def base_and_adapter(name: str) -> tuple[str, str | None]:
    """The model, and the adapter's folder if `name` is one (otherwise None)."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name, None
    if (folder / "config.json").exists():
        return str(folder), None
    adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return str(adapter["base_model_name_or_path"]), str(folder)


@contextlib.contextmanager
def loading(option: str, name: str) -> Iterator[None]:
    """Turns transformers' errors about a model that can't be loaded into one message."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"transformers can't load {name!r}: {first}",
            where=option,
            fix="check the folder or the hub id; without a network, download the model first",
        ) from error


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


def add_adapter(model: nn.Module, lora: LoraOptions, *, head: str | None = None, where: str = "lora") -> nn.Module:
    """The model in a PeftModel with an adapter that starts at zero; `head` names a module that is fully trained.

    Raises:
        InputError: the model has no module of one of the target names, or an adapter can't be added to it.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets: str | list[str] = list(lora.target_modules)
    if lora.target_modules == ("all-linear",):
        targets = "all-linear"
    names = [name for name, _ in model.named_modules()]
    linear = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D)}
    fix = f"choose from: {', '.join(sorted(linear))}"
    known = [one for one in lora.target_modules if any(f".{name}".endswith(f".{one}") for name in names)]
    if unknown := [one for one in lora.target_modules if targets != "all-linear" and one not in known]:
        what = f"no module of the model is called {' or '.join(unknown)}"
        raise InputError(what, where=f"{where}.target_modules", fix=fix)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=targets,
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM" if head is None else "SEQ_CLS",
        modules_to_save=None if head is None else [head],
    )
    try:
        with _quiet_peft():
            return get_peft_model(model, config)
    except ValueError as error:
        raise InputError(str(error), where=f"{where}.target_modules", fix=fix) from error


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
    size = int(lm.get_input_embeddings().weight.shape[0])  # type: ignore[index]
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


@contextlib.contextmanager
def _quiet_peft() -> Iterator[None]:
    """Hides warnings that concern only peft: it uses a deprecated name of transformers, and sets ranks for experts of a
    mixture that are not adapted."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        yield


def _four_bits() -> Any:
    return transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
