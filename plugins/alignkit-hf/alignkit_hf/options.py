"""Options of the policy `hf` and the optimizer `sft`. Free of torch and transformers."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alignkit import (
    Config,
    InputError,
    Natural,
    NonNegative,
    Positive,
    TrainingOptions,
    has_nvidia_driver,
    may_be_model,
)


@dataclass(frozen=True, kw_only=True)
class LoraOptions(Config):
    """Low-rank adapters (arXiv:2106.09685) instead of full fine-tuning."""

    r: Natural = 0
    """Rank of the adapters; 0 trains all weights instead."""
    alpha: Positive = 16.0
    """The adapter's output is scaled by alpha / r."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Names of the linear modules that get an adapter; "all-linear" takes every one but the vocabulary head."""


@dataclass(frozen=True, kw_only=True)
class HFOptions(Config):
    """Any transformers causal LM: full fine-tuning or LoRA, from a local folder or the hub. safetensors only."""

    model: str = ""
    """Local folder or hub id. Required."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What is computed in. auto: bfloat16 on CUDA and where the weights are bfloat16, float32 elsewhere."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """What weights are kept in. bfloat16 halves those of the reference and of LoRA's base; weights that are trained
    have float32 copies beside them, in one process. What is saved is in bfloat16 then."""
    attention: str = "auto"
    """auto: packed groups by the fastest kernel. Another name is one of transformers' attentions (sdpa, eager,
    flash_attention_2) and takes the padded layout."""
    layout: Literal["auto", "packed", "padded"] = "auto"
    """packed: each prompt once and no padding. padded: one padded row a response. auto: packed where a probe at
    loading finds that the model computes the same in both."""
    lora: LoraOptions = field(default_factory=LoraOptions)
    """Low-rank adapters; `lora.r = 8` switches them on."""
    freeze_layers: Natural = 0
    """The embeddings and this many layers above them stay as they are: no gradient, no optimiser state. A vocabulary
    head that is tied to the embedding stays with it; another one and the last norm are trained. With LoRA, the adapters
    of these layers stay zero. Reward models and critics that start from this policy keep the same layers."""
    train_last: Natural = 0
    """The same counted from the other end: only this many last layers are trained, with the last norm and a vocabulary
    head of its own; 0 trains all that freeze_layers does not keep."""
    reference: Literal["auto", "copy", "adapter-off"] = "auto"
    """The frozen reference: a copy, or these weights with the adapter off. auto: adapter-off with LoRA."""
    quantize: Literal["none", "4bit"] = "none"
    """4bit keeps the frozen weights in 4 bits under LoRA (QLoRA, arXiv:2305.14314); needs CUDA and bitsandbytes."""
    max_length: Natural = 0
    """Longest prompt with its response, in tokens; 0 takes the model's own context."""
    chat_template: Literal["auto", "plain"] = "auto"
    """auto: messages through the tokenizer's chat template where it has one. plain: as "User: ..." lines."""
    stop_token_ids: tuple[int, ...] = ()
    """Any of these tokens ends a response. Empty: the end tokens of the model's generation config or tokenizer."""
    end_token_id: int | None = None
    """Token that a response is ended with when text is encoded. None: the chat template's end of turn, or the first
    stop token."""
    gradient_checkpointing: bool = False
    """Computes activations again in the backward pass: less memory, a third more time."""
    trust_remote_code: bool = False
    """Runs Python code that comes with the model. Only for models whose code you have read."""

    def check(self) -> None:
        """Finds what can be found without loading: a missing folder, options that exclude each other."""
        self._check_model()
        if self.layout == "packed" and self.attention != "auto":
            raise InputError(
                f"attention {self.attention!r} is one of the padded layout, but layout is 'packed'",
                where="attention",
                fix="leave attention at 'auto', or set layout = \"padded\"",
            )
        if self.weights == "bfloat16" and self.dtype == "float32":
            raise InputError(
                "weights in bfloat16 are not computed with in float32", where="dtype", fix="leave dtype at 'auto'"
            )
        if self.reference == "adapter-off" and self.lora.r == 0:
            raise InputError(
                "there is no adapter to switch off", where="reference", fix='set lora.r, or reference = "copy"'
            )
        if self.freeze_layers and self.train_last:
            raise InputError("freeze_layers says it already", where="train_last", fix="give one of the two")
        if self.quantize == "4bit":
            self._check_quantize()

    def _check_model(self) -> None:
        if not self.model:
            raise InputError("no model is given", where="model", fix="set it to a local folder or a hub id")
        folder = Path(self.model).expanduser()
        if folder.is_dir():
            _check_folder(folder)
            self._check_layers(folder)
        elif "/" in self.model and not may_be_model(self.model):
            raise InputError(f"there is no model folder {self.model}", where="model", fix="check the path")
        elif ("/" not in self.model or _offline()) and not _in_hub_cache(self.model):
            state = "neither a folder nor in the local cache"
            if _offline():
                state += ", and the hub is switched off (HF_HUB_OFFLINE)"
            raise InputError(
                f"{self.model!r} is {state}", where="model", fix="give a local folder or a hub id (owner/name)"
            )

    def _check_layers(self, folder: Path) -> None:
        file = folder / "config.json"
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        counts = (
            config.get("text_config", config).get(name) for name in ("num_hidden_layers", "n_layer", "num_layers")
        )
        layers = next((count for count in counts if isinstance(count, int)), None)
        for name in ("freeze_layers", "train_last"):
            if layers is not None and getattr(self, name) > layers:
                raise InputError(
                    f"the model has {layers} layers, not {getattr(self, name)}", where=name, fix=f"at most {layers}"
                )

    def _check_quantize(self) -> None:
        if self.lora.r == 0:
            raise InputError("4-bit weights can't be trained", where="quantize", fix="set lora.r, for example 8")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise InputError("4bit needs bitsandbytes", where="quantize", fix="pip install bitsandbytes (CUDA only)")
        if not has_nvidia_driver():
            raise InputError("4bit needs a CUDA device", where="quantize", fix='set quantize = "none"')


@dataclass(frozen=True, kw_only=True)
class SFTOptions(TrainingOptions):
    """Supervised fine-tuning on demonstrations (arXiv:2203.02155, section 3.5).

    Formula: -log pi(t | x, what stands before t), the mean over all response tokens t of the step
    Paper: Ouyang et al., arXiv:2203.02155, section 3.5.
    Use it when: there are good answers to imitate. It nearly always comes before the others.
    """

    learning_rate: NonNegative = 2e-5
    """Peak learning rate of AdamW."""


def _check_folder(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    if not names & {"config.json", "adapter_config.json"}:
        raise InputError(f"{folder} has no config.json", where="model", fix="give a folder that save_pretrained wrote")
    if not any(name.endswith(".safetensors") for name in names):
        raise InputError(
            f"{folder} has no weights in safetensors (pickled weights can run code and are not loaded)",
            where="model",
            fix="convert them: load in transformers and call save_pretrained",
        )
    for name in names & {"config.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json"}:
        try:
            json.loads((folder / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(
                f"not valid JSON: {error}", where=f"model ({folder / name})", fix="restore the file"
            ) from error


def _offline() -> bool:
    return any(
        os.environ.get(name, "").upper() in {"1", "TRUE", "YES", "ON"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _in_hub_cache(name: str) -> bool:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return (cache / f"models--{name.replace('/', '--')}").is_dir()
