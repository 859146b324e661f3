"""What the recipes of examples/hardware take: `python -m tests.bench.hardware` prints the table of their README.

Sizes are those of `--dry-run --on cuda`, for models of the published dimensions, without weights. Nothing is measured.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import transformers

from alignkit.commands import read_recipe
from alignkit.runs.dry import BYTES, dry_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignkit.commands import Resolved

RECIPES = Path(__file__).parents[2] / "examples" / "hardware"
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen/Qwen2.5-0.5B-Instruct": (
        "Qwen2Config",
        {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
         "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "Qwen/Qwen2.5-7B-Instruct": (
        "Qwen2Config",
        {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
         "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False},
    ),
    "Qwen/Qwen3-8B": (
        "Qwen3Config",
        {"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False},
    ),
    "Qwen/Qwen3-0.6B": (
        "Qwen3Config",
        {"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
    ),
    "meta-llama/Llama-3.1-8B-Instruct": (
        "LlamaConfig",
        {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False},
    ),
}  # fmt: skip
"""Model -> its class of transformers and the dimensions of its published config.json."""
REWARD_MODEL = "Qwen/Qwen3-0.6B"
"""Has the dimensions of the reward model in 8gpu-fsdp2-vllm.toml."""

ROWS = {
    "prompts": '{"prompt": "1 + 1 = ?", "final_answer": "2"}\n',
    "preferences": '{"prompt": "1 + 1 = ?", "chosen": "2", "rejected": "3"}\n',
}
"""Table -> a file for it; --dry-run reads no data, but looks whether they are there."""


@dataclass(frozen=True)
class Machine:
    """A recipe, and how many processes share its work."""

    recipe: str
    processes: int = 1

    @property
    def path(self) -> Path:
        return RECIPES / f"{self.recipe}.toml"


MACHINES = (
    Machine("16gb-qlora-dpo"),
    Machine("16gb-ppo"),
    Machine("80gb-grpo"),
    Machine("8gpu-fsdp2-vllm", 4),
    Machine("two-nodes-dpo", 16),
)


def write_config(folder: Path, model: str) -> str:
    """The folder of a model's config, made by transformers' own class, without weights."""
    kind, dimensions = SHAPES[model]
    path = folder / model.replace("/", "--")
    path.mkdir(exist_ok=True)
    config = getattr(transformers, kind)(architectures=[kind.replace("Config", "ForCausalLM")], **dimensions)
    config.save_pretrained(path)
    (path / "model.safetensors").write_bytes(b"")
    return str(path)


def resolved_recipe(path: Path, folder: Path) -> Resolved:
    """A recipe with small files and configs without weights in place of what it names, as if there were a GPU.

    Args:
        folder: gets them.
    """
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    overrides = [f"policy.model={write_config(folder, tables['policy']['model'])}"]
    if tables.get("reward", {}).get("model"):
        overrides.append(f"reward.model={write_config(folder, REWARD_MODEL)}")
    for table, row in ROWS.items():
        if table in tables:
            (folder / f"{table}.jsonl").write_text(row, encoding="utf-8")
            overrides.append(f"{table}.path={folder / table}.jsonl")
    with (
        patch("alignkit_hf.options.require_package", lambda *_, **__: None),
        patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": "0"}),
    ):
        return read_recipe(path, flags={}, overrides=overrides)


def rows(machine: Machine, found: dict[str, Any]) -> Iterator[str]:
    """A row of the table for each stage that trains."""
    for stage, memory in found["memory"].items():
        models = memory["models"].values()
        sums = [sum(one[part] or 0 for one in models) for part in BYTES]
        split = memory["peak_per_process"]["fsdp2"]
        sums.append(split[str(machine.processes)] if machine.processes > 1 else memory["peak"])
        trained = " + ".join(f"{one['trained'] / 1e6:,.0f}M" for one in models if one["trained"])
        cells = " | ".join(f"{size / 2**30:,.1f}" for size in sums)
        held = ", ".join([*memory["models"], *memory["unknown"]])
        tokens = memory["assumed"]["max_tokens"]
        name = f"[{machine.recipe}]({machine.recipe}.toml)"
        yield f"| {name} | {stage}: {held} | {machine.processes} | {trained} | {tokens:,} | {cells} |"


def main() -> None:
    """Prints the table."""
    heads = "trained | tokens | weights | gradients | AdamW | activations | keys and values | peak of a process"
    print(f"| recipe | stage: models | processes | {heads} |\n|{'---|' * 11}")
    with TemporaryDirectory() as folder:
        for machine in MACHINES:
            found = dry_run(resolved_recipe(machine.path, Path(folder)), device="cuda", processes=(machine.processes,))
            for row in rows(machine, found):
                print(row, flush=True)


if __name__ == "__main__":
    main()
