"""The cost of sampling and training grows with the tokens and no faster. For a quiet machine: `pytest -m slow -s`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import torch
from alignkit_hf import probe
from alignkit_hf.generation import Budget, sample
from alignkit_hf.modeling import PackedModel, Request
from alignkit_hf.sampling import TokenChooser, uniform_streams
from hf_tiny import build_model, token_batch

from alignkit.options import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 16
PROMPTS = (64, 256, 1024)


def best_rate(work: Callable[[], int]) -> float:
    """Tokens a second of CPU time, the best of three."""
    rates = []
    for _ in range(3):
        start = time.process_time()
        tokens = work()
        rates.append(tokens / (time.process_time() - start))
    return max(rates)


def packed_model() -> PackedModel:
    model = build_model("llama", hidden_size=128, intermediate_size=256)
    return PackedModel(model, path=probe.find_path(model, layout="auto", attention="auto"))


@pytest.mark.slow
def test_sampling_is_linear_in_the_prompts() -> None:
    model = packed_model()

    def rate(count: int) -> float:
        prompts = [[3 + (i + j) % 200 for j in range(24)] for i in range(count)]
        streams = uniform_streams(0, [str(i) for i in range(count)], 4, STEPS)
        chooser = TokenChooser(Sampling(max_tokens=STEPS), streams, [0], model.device)
        budget = Budget(tokens=10**9, rows=256)
        return best_rate(lambda: len(sample(model, prompts, 4, STEPS, chooser, budget).logprobs))

    rates = [rate(count) for count in PROMPTS]
    print("sampling, tokens/s:", dict(zip(PROMPTS, map(round, rates), strict=True)))
    assert min(rates) > 0.9 * rates[0]


@pytest.mark.slow
def test_training_passes_cost_no_more_a_token_with_more_responses() -> None:
    model = packed_model()

    def rate(responses: int) -> float:
        batch = token_batch([24] * 16, [[STEPS] * responses] * 16)

        def step() -> int:
            model(batch, Request(logprobs=True))["logprobs"].sum().backward()
            return batch.num_tokens

        return best_rate(step)

    torch.set_num_threads(1)
    rates = {responses: rate(responses) for responses in (2, 4, 8, 16)}
    print("training, response tokens/s:", {count: round(value) for count, value in rates.items()})
    assert min(rates.values()) > 0.9 * rates[2]
