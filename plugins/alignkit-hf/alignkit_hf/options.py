"""Options of the policy `hf` and the optimizer `sft`. Imports neither torch nor transformers."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from alignkit import (
    Config,
    InputError,
    Natural,
    NonNegative,
    Positive,
    TrainingOptions,
    has_nvidia_driver,
    may_be_model,
    require_package,
)


@dataclass(frozen=True, kw_only=True)
class LoraOptions(Config):
    """Low-rank adapters (arXiv:2106.09685) instead of full fine-tuning."""

    r: Natural = 0
    """Rank of the adapters; 0: no adapters, all weights are trained."""
    alpha: Positive = 16.0
    """The adapter's output is scaled by alpha / r."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Names of the linear modules that get an adapter; "all-linear": all except the vocabulary head."""

    def check(self) -> None:
        super().check()
        self.counts_only_with("r above 0", self.r > 0, "alpha", "target_modules")


@dataclass(frozen=True, kw_only=True)
class HFOptions(Config):
    """Any transformers causal LM: full fine-tuning or LoRA, from a local folder or the hub. safetensors only."""

    matters: ClassVar[tuple[str, ...]] = (
        "model",
        "dtype",
        "weights",
        "lora.r",
        "freeze_layers",
        "reference",
        "quantize",
        "max_length",
        "chat_template",
        "gradient_checkpointing",
    )

    model: str = ""
    """Local folder or hub id. Required."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the computation. auto: bfloat16 on CUDA and for bfloat16 weights, otherwise float32."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights. bfloat16 halves the memory of the reference and of LoRA's base; trained weights also
    keep float32 copies (in one process only), and the model is saved in bfloat16."""
    attention: str = "auto"
    """auto: packed groups with the fastest kernel. Other names are transformers' attentions (sdpa, eager,
    flash_attention_2) and use the padded layout."""
    layout: Literal["auto", "packed", "padded"] = "auto"
    """packed: each prompt once, no padding. padded: one padded row per response. auto: packed if a probe at loading
    finds that the model computes the same in both."""
    lora: LoraOptions = field(default_factory=LoraOptions)
    """Low-rank adapters; `lora.r = 8` switches them on."""
    freeze_layers: Natural = 0
    """Freeze the embeddings and this many layers above them, with a vocabulary head tied to the embeddings (an untied
    head and the last norm are trained). LoRA adapters there stay zero. Reward models and critics that start from this
    policy freeze the same layers."""
    train_last: Natural = 0
    """The same counted from the top: train only this many last layers, the last norm and an untied vocabulary head;
    0: all that freeze_layers leaves."""
    reference: Literal["auto", "copy", "adapter-off"] = "auto"
    """The frozen reference: a copy, or the policy's weights with the adapter off. auto: adapter-off with LoRA, else a
    copy."""
    quantize: Literal["none", "4bit"] = "none"
    """4bit stores the frozen weights in 4 bits under LoRA (QLoRA, arXiv:2305.14314); needs CUDA and bitsandbytes."""
    max_length: Natural = 0
    """Longest prompt plus response, in tokens; 0: the model's context."""
    chat_template: Literal["auto", "plain"] = "auto"
    """auto: the tokenizer's chat template, if it has one. plain: messages as "User: ..." lines."""
    stop_token_ids: tuple[Natural, ...] = ()
    """Each of these tokens ends a response. Empty: the end tokens of the model's generation config or tokenizer."""
    end_token_id: Natural | None = None
    """Token appended to the text of a response. None: the chat template's end of turn, or the first stop token."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""

    def check(self) -> None:
        """Checks what needs no loading: a missing folder, options that exclude each other."""
        self._check_model()
        if self.layout == "packed" and self.attention != "auto":
            raise InputError(
                f'{self.attention!r} needs layout = "padded"',
                where="attention",
                fix='set layout = "padded", or leave attention at "auto"',
            )
        if self.weights == "bfloat16" and self.dtype == "float32":
            raise InputError(
                'can\'t be "float32" when weights is "bfloat16"', where="dtype", fix='leave dtype at "auto"'
            )
        if self.reference == "adapter-off" and self.lora.r == 0:
            raise InputError(
                "there is no adapter to switch off", where="reference", fix='set lora.r, or reference = "copy"'
            )
        if self.freeze_layers and self.train_last:
            raise InputError("can't be combined with freeze_layers", where="train_last", fix="leave one of them out")
        if self.quantize == "4bit":
            self._check_quantize()

    def _check_model(self) -> None:
        if not self.model:
            raise InputError("is missing", where="model", fix="set it to a local folder or a hub id")
        folder = Path(self.model).expanduser()
        if folder.is_dir():
            _check_folder(folder)
            self._check_against_config(folder)
        elif "/" in self.model and not may_be_model(self.model):
            raise InputError(f"there is no model folder {self.model}", where="model", fix="check the path")
        elif ("/" not in self.model or _offline()) and not _in_hub_cache(self.model):
            state = "neither a folder nor in the local cache"
            if _offline():
                state += ", and HF_HUB_OFFLINE switches the hub off"
            raise InputError(
                f"{self.model!r} is {state}", where="model", fix="give a local folder or a hub id (owner/name)"
            )

    def _check_against_config(self, folder: Path) -> None:
        file = folder / "config.json"
        if self.revision is not None:
            raise InputError("has no effect on a local folder", where="revision", fix="leave it out, or give a hub id")
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        config = config.get("text_config", config)
        vocabulary = config.get("vocab_size")
        ends = () if self.end_token_id is None else (self.end_token_id,)
        for name, tokens in (("stop_token_ids", self.stop_token_ids), ("end_token_id", ends)):
            if isinstance(vocabulary, int):
                check_tokens(tokens, vocabulary, where=name)
        counts = (config.get(name) for name in ("num_hidden_layers", "n_layer", "num_layers"))
        layers = next((count for count in counts if isinstance(count, int)), None)
        for name in ("freeze_layers", "train_last"):
            if layers is not None and getattr(self, name) > layers:
                raise InputError(
                    f"the model has {layers} layers, not {getattr(self, name)}", where=name, fix=f"set at most {layers}"
                )

    def _check_quantize(self) -> None:
        if self.lora.r == 0:
            raise InputError("4-bit weights can't be trained", where="quantize", fix="set lora.r, for example 8")
        require_package("bitsandbytes", where="quantize")
        if not has_nvidia_driver():
            raise InputError("4bit needs a CUDA device", where="quantize", fix='set quantize = "none"')


@dataclass(frozen=True, kw_only=True)
class SFTOptions(TrainingOptions):
    """Supervised fine-tuning on demonstrations (arXiv:2203.02155, section 3.5).

    Formula: -log pi(t | x, tokens before t), the mean over all response tokens t of the step
    Paper: Ouyang et al., arXiv:2203.02155, section 3.5.
    Use it when: you have good answers to imitate. It is nearly always the first stage.
    """

    learning_rate: NonNegative = 2e-5
    """Peak learning rate of AdamW."""


def check_tokens(tokens: tuple[int, ...], vocabulary: int, *, where: str) -> None:
    """Raises InputError if one of the tokens is outside the vocabulary."""
    if outside := [token for token in tokens if token >= vocabulary]:
        raise InputError(
            f"the vocabulary of {vocabulary} tokens has no token {outside[0]}",
            where=where,
            fix="use the tokenizer's ids",
        )


def _check_folder(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    if not names & {"config.json", "adapter_config.json"}:
        raise InputError(f"{folder} has no config.json", where="model", fix="give a folder that save_pretrained wrote")
    if not any(name.endswith(".safetensors") for name in names):
        raise InputError(
            f"{folder} has no safetensors weights (pickled weights can run code, so they are not loaded)",
            where="model",
            fix="convert them: load the model in transformers and call save_pretrained",
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
