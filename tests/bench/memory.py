"""`--dry-run` beside the memory that is taken: `python -m tests.bench.memory` prints docs/how-to/scale.md's table.

Each case trains a random Llama for three steps (DDP makes its buckets anew after the first), in processes of its own
that each take two micro-batches a step. Measured is the highest resident memory while it trains, above that before the
model is loaded. The process has trained a tiny one before, so that libraries don't count. glibc gives freed blocks
above 64 KiB back at once here (MALLOC_MMAP_THRESHOLD_): otherwise a process keeps what the holes between small tensors
add up to, which can be as much again.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SIZES: dict[str, dict[str, int]] = {
    "10M": {"vocab_size": 8000, "hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 4},
    "50M": {"vocab_size": 16000, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 8},
    "150M": {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14},
}
HEADS = 8
LENGTH, STEPS = 64, 3
TOKENS = {"10M": 512, "50M": 512, "150M": 256}
"""Tokens of a micro-batch: fewer for the large model, so that it takes minutes."""
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Case:
    """A model's size, the rank of LoRA (0: full training), and the processes."""

    size: str
    rank: int = 0
    processes: int = 1


@dataclass(frozen=True)
class Measured:
    """Bytes: the estimate of the dry run, and the highest of a process."""

    estimate: int
    peak: int

    @property
    def ratio(self) -> float:
        return self.estimate / self.peak


CASES = (
    *(Case(size, rank) for size in SIZES for rank in (0, 8)),
    *(Case(size, rank, processes=2) for size in SIZES for rank in (0, 8)),
)


def write_model(folder: Path, **sizes: int) -> Path:
    """A random Llama with a byte-level tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from alignkit.testing.tiny_hf import write_tiny_llama

    write_tiny_llama(folder)
    config = LlamaConfig(
        **{**sizes, "num_attention_heads": HEADS, "num_key_value_heads": HEADS // 2},
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def options_of(folder: Path, rank: int, tokens: int, processes: int = 1) -> dict[str, Any]:
    """The recipe: demonstrations of 64 tokens after prompts of 64, two micro-batches of them a step and process."""
    groups = processes * 2 * STEPS * tokens // (2 * LENGTH)
    return {
        "policy": {"model": str(folder), "lora": {"r": rank}},
        "sft": {"max_tokens": tokens, "minibatch_size": groups // STEPS},
        "demonstrations": {"path": "-"},
        "sampling": {"max_tokens": LENGTH},
        "run": {"device": "cpu"},
    }


def train(folder: Path, rank: int, tokens: int) -> None:
    """Three steps of two micro-batches. What loading took is forgotten."""
    import alignkit
    from alignkit import Group, Prompt

    recipe = options_of(folder, rank, tokens, int(os.environ.get("WORLD_SIZE", "1")))
    context = alignkit.make_context(device="cpu")
    policy = alignkit.build_component("policy", {"plugin": "hf", **recipe["policy"]}, context)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    algorithm = alignkit.build_component("optimizer", {"plugin": "sft", **recipe["sft"]}, policy=policy)
    count = STEPS * recipe["sft"]["minibatch_size"]
    groups = [Group(Prompt(text=f"{n:064}"), (f"{n:063}",)) for n in range(count)]
    alignkit.train(algorithm, groups, progress=False)


def child(tiny: Path, folder: Path, rank: int, tokens: int) -> None:
    """Prints the highest resident bytes above those before loading, in this process."""
    train(tiny, rank, tokens)
    gc.collect()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    train(folder, rank, tokens)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024
    print(json.dumps({"peak": peak - before}), flush=True)


def estimate(folder: Path, case: Case) -> int:
    """The peak in one of the processes, as `alignkit sft --dry-run` says."""
    from alignkit.recipe.reading import checked
    from alignkit.recipe.recipe import recipe_of
    from alignkit.runs.dry import dry_run

    recipe = options_of(folder, case.rank, TOKENS[case.size], case.processes)
    demonstrations = folder / "demonstrations.jsonl"
    demonstrations.write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    recipe["demonstrations"]["path"] = str(demonstrations)
    resolved = checked(recipe_of(recipe, flags={}, options={}))
    stage = dry_run(resolved, ["sft"], device="cpu")["memory"]["sft"]
    return int(stage["peak"] if case.processes == 1 else stage["peak_per_process"]["ddp"][str(case.processes)])


def measure(case: Case, folder: Path) -> Measured:
    """Trains in processes of their own."""
    tiny = write_model(folder / "tiny", vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
    model = write_model(folder / case.size, **SIZES[case.size])
    start = [sys.executable, "-m"]
    if case.processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes), "-m"]
    words = [*start, "tests.bench.memory", "child", str(tiny), str(model), str(case.rank), str(TOKENS[case.size])]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    peaks = [json.loads(line)["peak"] for line in done.stdout.splitlines() if line.startswith('{"peak"')]
    if done.returncode or len(peaks) != case.processes:
        raise RuntimeError(done.stderr[-2000:])
    return Measured(estimate(model, case), max(peaks))


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        child(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
        return
    print("| model | training | processes | estimate | measured | estimate / measured |\n|---|---|---|---|---|---|")
    chosen = [case for case in CASES if not sys.argv[1:] or f"{case.size}/{case.rank}/{case.processes}" in sys.argv[1:]]
    for case in chosen:
        with TemporaryDirectory() as folder:
            found = measure(case, Path(folder))
        kind = f"LoRA, r = {case.rank}" if case.rank else "all weights"
        sizes = " | ".join(f"{size / 2**20:,.0f} MiB" for size in (found.estimate, found.peak))
        print(f"| {case.size} | {kind} | {case.processes} | {sizes} | {found.ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
