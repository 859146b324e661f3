"""1B to 70B models on 1 to 64 GPUs, computed: `python -m tests.bench.scale` prints the table of docs/how-to/scale.md.

Sizes come from the functions of `--dry-run`, for Llamas by their published shapes; those of deep models from
their first layers. Nothing is measured here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from alignkit_hf.footprint import footprint
from alignkit_hf.options import HFOptions, LoraOptions

from alignkit import Footprint, Held, Load
from alignkit.runs.dry import _peak

SHAPES = {
    "1B": (2048, 8192, 16, 32, 8, 128256),
    "8B": (4096, 14336, 32, 32, 8, 128256),
    "70B": (8192, 28672, 80, 64, 8, 128256),
}
"""Width, inner width, layers, heads, key heads, vocabulary: Llama 3.2 and 3.1."""
TIED = ("1B",)
LOAD = Load(device="cuda", max_tokens=8192, prompt=512, response=512, responses=3)
FLOPS, SHARE = 990e12, 0.4
"""Dense bfloat16 of an H100, and the share of it that trainings commonly reach."""
GPUS = (1, 8, 64)
POLICY, REFERENCE = Held(name="policy", trained=True), Held(name="reference")
CRITIC = Held(name="critic", trained=True, scores=True)
REWARD = Held(name="reward", scores=True, of_reward=True)


@dataclass(frozen=True)
class Training:
    """A kind of training: its name, LoRA's rank, the models it holds, passes per token in units of 2 N FLOPs, and the
    responses that are sampled at a time."""

    name: str
    rank: int
    held: tuple[Held, ...]
    passes: int
    rows: int = 0


TRAININGS = (
    Training("all weights (SFT)", 0, (POLICY,), 4),
    Training("LoRA, r = 16 (SFT, DPO)", 16, (POLICY, REFERENCE), 3),
    Training("all weights and a reference (DPO)", 0, (POLICY, REFERENCE), 5),
    Training("the same with a critic and a reward model (PPO)", 0, (POLICY, CRITIC, REFERENCE, REWARD), 10, 64),
)


def write_config(folder: Path, name: str, layers: int = 0) -> str:
    """The folder of a model's config, without weights."""
    width, inner, depth, heads, keys, vocabulary = SHAPES[name]
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocabulary, "hidden_size": width,
        "intermediate_size": inner, "num_hidden_layers": layers or depth, "num_attention_heads": heads,
        "num_key_value_heads": keys, "tie_word_embeddings": name in TIED, "max_position_embeddings": 8192,
    }  # fmt: skip
    path = folder / f"{name}-{layers}"
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (path / "model.safetensors").write_bytes(b"")
    return str(path)


@cache
def weighed(folder: Path, name: str, rank: int, held: Held, rows: int) -> Footprint:
    """The footprint of one model, its activations from those of the first layers."""
    depth = SHAPES[name][2]

    def of(layers: int) -> Footprint:
        options = HFOptions(
            model=write_config(folder, name, layers),
            lora=LoraOptions(r=rank),
            weights="bfloat16" if rank else "float32",
            gradient_checkpointing=True,
        )
        return footprint(options, held, replace(LOAD, rows=rows))

    one, two = of(1), of(2)

    def deep(field: str) -> int:
        first, second = getattr(one, field) or 0, getattr(two, field) or 0
        return int(first + (second - first) * (depth - 1))

    sizes = {field: deep(field) for field in vars(two) if field != "largest"}
    return Footprint(**{**sizes, "casts": 0}, largest=two.largest)


def main() -> None:
    """Prints the table."""
    heads = " | ".join(f"GiB per GPU, {count}" for count in GPUS)
    print(f"| model | training | {heads} | tokens/s per GPU |\n|---|---|{'---|' * (len(GPUS) + 1)}")
    with TemporaryDirectory() as folder:
        for name in SHAPES:
            for training in TRAININGS:
                models = {
                    one.name: weighed(Path(folder), name, training.rank, one, training.rows) for one in training.held
                }
                peaks = [_peak(models, "fsdp2" if count > 1 else "ddp", count) / 2**30 for count in GPUS]
                speed = SHARE * FLOPS / (2 * training.passes * models["policy"].parameters)
                print(
                    f"| {name} | {training.name} | {' | '.join(f'{x:,.0f}' for x in peaks)} | {speed:,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
