"""`make models`: writes docs/reference/models.md: what each architecture runs in, why, and how exact it is.

    python -m tests.architectures                 all of them, and the model in $ALIGNKIT_REAL_MODEL
    python -m tests.architectures --only gemma    print the rows of these, and write nothing

Each is a transformers config with the vocabulary, width and heads of a released model, a few layers and random weights,
one at a time: the largest takes about 8 GB.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from alignkit_hf import exact, probe
from alignkit_hf.modeling import PackedModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PAGE = Path(__file__).parent.parent / "docs/reference/models.md"
REAL_MODEL = "ALIGNKIT_REAL_MODEL"
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0 + number / 100 for number in range(48)],
    "long_factor": [1.0 + number for number in range(48)],
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1.5e5, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A released model's config with fewer layers.

    Attributes:
        kind: transformers' name of the architecture. heads: query heads, key heads and their size.
        special: what makes its attention or its head another one than Llama's. options: the rest of the config.
    """

    name: str
    kind: str
    layers: int
    vocabulary: int
    width: int
    inner: int
    heads: tuple[int, int, int]
    special: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        """The model with random weights."""
        queries, keys, size = self.heads
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(
            self.kind,
            vocab_size=self.vocabulary, hidden_size=self.width, intermediate_size=self.inner,
            num_hidden_layers=self.layers, num_attention_heads=queries, num_key_value_heads=keys, head_dim=size,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, **self.options,
        )  # fmt: skip
        return transformers.AutoModelForCausalLM.from_config(config).eval()


ARCHITECTURES = (
    Architecture("Gemma 2 2B", "gemma2", 2, 256_000, 2304, 9216, (8, 4, 256), "window 4096, soft caps",
                 {"sliding_window": 4096, "query_pre_attn_scalar": 256}),
    Architecture("Gemma 3 1B", "gemma3_text", 6, 262_144, 1152, 6912, (4, 1, 256), "window 512",
                 {"sliding_window": 512, "query_pre_attn_scalar": 256}),
    Architecture("Mistral 7B v0.1", "mistral", 2, 32_000, 4096, 14_336, (32, 8, 128), "window 4096",
                 {"sliding_window": 4096}),
    Architecture("Qwen 2.5 0.5B", "qwen2", 2, 151_936, 896, 4864, (14, 2, 64), "", {"tie_word_embeddings": True}),
    Architecture("Qwen 3 0.6B", "qwen3", 2, 151_936, 1024, 3072, (16, 8, 128), "", {"tie_word_embeddings": True}),
    Architecture("Llama 3.2 1B", "llama", 2, 128_256, 2048, 8192, (32, 8, 64), "",
                 {"tie_word_embeddings": True, "max_position_embeddings": 131_072, "rope_parameters": LLAMA3}),
    Architecture("Phi 3 mini 128k", "phi3", 2, 32_064, 3072, 8192, (32, 32, 96), "rotary switch at 4096",
                 {"max_position_embeddings": 131_072, "sliding_window": 262_144, "rope_parameters": LONGROPE}),
    Architecture("Phi 4 mini", "phi3", 2, 200_064, 3072, 8192, (24, 8, 128), "rotary switch at 4096",
                 {"max_position_embeddings": 131_072, "sliding_window": 262_144, "tie_word_embeddings": True,
                  "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.75}}),
    Architecture("gpt-oss 20B", "gpt_oss", 2, 201_088, 2880, 2880, (64, 8, 64), "window 128, sinks; 4 of 32 experts",
                 {"sliding_window": 128, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": YARN}),
    Architecture("OLMo 2 1B", "olmo2", 2, 100_352, 2048, 8192, (16, 16, 128)),
    Architecture("SmolLM 3 3B", "smollm3", 4, 128_256, 2048, 11_008, (16, 4, 128), "a layer without rotary",
                 {"tie_word_embeddings": True}),
    Architecture("Falcon-H1 0.5B", "falcon_h1", 2, 32_784, 1024, 2048, (8, 2, 64), "attention beside a state space",
                 {"mamba_d_ssm": 1536, "mamba_n_heads": 24, "mamba_d_head": 64, "mamba_d_state": 128,
                  "lm_head_multiplier": 0.04, "tie_word_embeddings": False}),
    Architecture("LFM2 350M", "lfm2", 3, 65_536, 1024, 6656, (16, 8, 64), "convolutions instead of some attention",
                 {"layer_types": ["conv", "conv", "full_attention"], "tie_word_embeddings": True}),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    model: str
    layers: str
    special: str
    layout: str
    figures: tuple[str, str, str]
    reason: str

    def __str__(self) -> str:
        same, packed, padded = self.figures
        cells = (self.model, self.layers, self.special, self.layout, same, packed, padded, self.reason)
        return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Probes each architecture, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of the name")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("alignkit_hf").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    rows = []
    for row in table(options.only.lower()):
        print(row, flush=True)
        rows.append(row)
        if not options.only:
            PAGE.write_text(page(rows), encoding="utf-8")


def table(only: str = "") -> Iterator[Row]:
    """A row for each architecture whose name holds `only`, and for the pretrained model where there is one."""
    folder = os.environ.get(REAL_MODEL)
    if folder and only in "gemma 3 270m":
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        yield probed(model, "**Gemma 3 270M, pretrained**", "window 512")
        del model
    for architecture in ARCHITECTURES:
        if only in architecture.name.lower():
            yield probed(architecture.build(), architecture.name, architecture.special)
            gc.collect()


def probed(model: Any, name: str, special: str) -> Row:
    """What the probe finds for a model."""
    layers = exact.count_layers(PackedModel(model))
    path = probe.find_path(model, layout="auto", attention="auto")
    found = path.accuracy
    figures = ("", "", "") if found is None else tuple(f"{x:.0e}" for x in (found.same, found.packed, found.padded))
    return Row(name, str(layers), special, "packed" if path.packed else "padded", figures, path.reason)  # type: ignore[arg-type]


def page(rows: list[Row]) -> str:
    """docs/reference/models.md."""
    return TEXT.format(
        rows="\n".join(map(str, rows)), torch=torch.__version__.split("+")[0], transformers=transformers.__version__
    )


TEXT = """\
<!-- Written by `make models` (tests/architectures.py); don't edit. -->
# Models

Any causal LM of transformers runs. A model whose packed attention computes what its own does runs in the packed layout:
each prompt once, no padding. Any other one runs in padded rows, with one warning that says why; the results are those
of the model's own forward pass in both. `policy.layout` forces one of the two.

## How it is decided

When a model is loaded, five short responses to two prompts are run one at a time in the model's own forward pass, in
padded rows, and packed. Sliding windows are shortened to 6 tokens meanwhile, and rotary switches moved to 12, so that
the rows stand on both sides.

1. In float64, packed and single sequences may differ by rounding only. What rounding explains is the model's own
   float32 error times the ratio of the two precisions, times 512. A window that is off by one, a missing soft cap, sink
   or scale is many orders of magnitude above it, with small weights and with large activations.
2. The vocabulary head, times the scale and soft cap of the config, must give the model's own logits.
3. In the weights' precision, the packed log-probabilities may be 8 times as far from float64 as those of the model's
   own forward at most. `alignkit` says which layout is nearer when a run starts.

Models with more than 300 million weights in their layers run as many of their first layers in float64 as have every
kind of layer among them; the whole model then runs in its own precision too, and differences are judged against those
of padded rows and against the effect of another prompt token. So are quantised models and those on devices without
float64.

## What each runs in

Vocabulary, widths and heads of the released models, a few layers, random weights (pretrained where it says so); torch
{torch}, transformers {transformers}, float32 on a CPU. "Same": the largest difference of packed hidden states from
single sequences, both in float64. "Packed", "padded": the largest difference of a log-probability in that layout from
float64, in nats.

| model | layers | special | runs in | same | packed | padded | why not packed |
|---|---|---|---|---|---|---|---|
{rows}

Made by `make models`. `make real-model` makes the folder of the pretrained one; `ALIGNKIT_REAL_MODEL` names it.

## Rotary scalings that switch

Phi 3 and Phi 4 (longrope) use other rotary factors for sequences longer than `original_max_position_embeddings`.
transformers takes one set for a whole pass, by its longest row. Here each response gets what it would get alone: rows
on different sides of the switch are computed apart. While sampling, a response stays on the side of its prompt, because
nobody knows how long it will be.
"""


if __name__ == "__main__":
    main()
