"""Whether cost grows with the tokens and no faster: `python -m tests.bench.linear`, on a quiet machine.

Prints one JSON line for sampling and training with 64 to 1,024 prompts a step, and one for 2 to 16 responses a prompt.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import torch
from alignkit_hf import probe
from alignkit_hf.generation import Budget, sample
from alignkit_hf.modeling import PackedModel, Request
from alignkit_hf.sampling import TokenChooser, uniform_streams
from transformers import LlamaConfig, LlamaForCausalLM

from alignkit.batch import GroupBatch
from alignkit.options import Sampling
from alignkit.records import Group, Prompt

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPT, RESPONSE = 24, 16
PROMPTS, RESPONSES = (64, 256, 1024), (2, 4, 8, 16)
MAX_TOKENS = 16_384


def best_rate(work: Callable[[], int]) -> float:
    """Tokens a second, the best of three."""
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        tokens = work()
        rates.append(tokens / (time.perf_counter() - start))
    return max(rates)


def tiny_model() -> PackedModel:
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    return PackedModel(model, path=probe.find_path(model, layout="auto", attention="auto"))


def sampling_rate(model: PackedModel, count: int) -> float:
    """Tokens/s of sampling four responses to each of `count` prompts."""
    prompts = [[3 + (i + j) % 200 for j in range(PROMPT)] for i in range(count)]
    streams = uniform_streams(0, range(count), 4, RESPONSE)
    chooser = TokenChooser(Sampling(max_tokens=RESPONSE), streams, [0], model.device)
    budget = Budget(tokens=10**9, rows=256)
    return best_rate(lambda: len(sample(model, prompts, 4, RESPONSE, chooser, budget).logprobs))


def training_rate(model: PackedModel, count: int, responses: int) -> float:
    """Response tokens/s of forward and backward over `count` prompts, in micro-batches."""
    groups = [Group(Prompt(text=str(i)), ("x",) * responses) for i in range(count)]
    ids = [[3 + (i + j) % 200 for j in range(PROMPT)] for i in range(count)]
    answers = [[[3 + (k + j) % 200 for j in range(RESPONSE)] for k in range(responses)] for _ in range(count)]
    batch = GroupBatch.from_ids(ids, answers, groups)

    def step() -> int:
        for micro in batch.split(MAX_TOKENS):
            model(micro, Request(logprobs=True))["logprobs"].sum().backward()
        return batch.num_tokens

    return best_rate(step)


def main() -> None:
    torch.manual_seed(0)
    model = tiny_model()
    for name, rates in (
        ("sampling, tokens/s by prompts", {n: sampling_rate(model, n) for n in PROMPTS}),
        ("training, response tokens/s by prompts", {n: training_rate(model, n, 4) for n in PROMPTS}),
        ("training, response tokens/s by responses", {k: training_rate(model, 64, k) for k in RESPONSES}),
    ):
        print(json.dumps({"curve": name, **{str(key): round(rate) for key, rate in rates.items()}}))


if __name__ == "__main__":
    main()
