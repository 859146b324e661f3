"""A pretrained model of real size (Gemma 3 270M: vocabulary 262,144, windows of 512 tokens) stays on the fast path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import transformers
from alignkit_hf.options import HFOptions
from alignkit_hf.policy import HFPolicy

from alignkit.components import Context
from alignkit.options import Sampling
from alignkit.records import Group, Prompt

if TYPE_CHECKING:
    from alignkit.batch import GroupBatch

FOLDER = os.environ.get("ALIGNKIT_REAL_MODEL", "")
pytestmark = pytest.mark.skipif(
    not (Path(FOLDER) / "config.json").is_file(),
    reason="needs a pretrained model: run `make real-model`, then set ALIGNKIT_REAL_MODEL to its folder",
)
BOUND = 1e-4
"""In nats."""
WINDOW = 512
STORY = (
    "The harbour master counted the boats each evening, and each evening one of them was missing. Nobody in the town "
    "had seen it leave. On the fourth day a girl who sold oranges by the gate said that she knew where they went. "
)


@pytest.fixture(scope="module")
def policy() -> HFPolicy:
    """The policy as anyone loads it."""
    return HFPolicy(HFOptions(model=FOLDER), Context(device="cpu"))


@pytest.fixture(scope="module")
def batch(policy: HFPolicy) -> GroupBatch:
    """Prompts shorter than the window, ending within it, and longer than it."""
    answers = ("She pointed at the fog.", "Nobody believed her, not even the man who had lost his boat first.")
    words = (STORY * 13).split()
    beginnings = (Prompt(text=" ".join(words[:count])) for count in range(350, len(words)))
    ending_within = next(prompt for prompt in beginnings if len(policy.encoder.prompts([prompt])[0]) >= WINDOW - 8)
    groups = [Group(prompt, answers) for prompt in (Prompt(text=STORY), ending_within, Prompt(text=STORY * 13))]
    encoded = policy.encode(groups)
    short, within, long = encoded.prompt_lengths.tolist()
    assert short < 100
    assert within < WINDOW < within + int(encoded.lengths.max())
    assert long > WINDOW
    return encoded


def float64_logprobs(batch: GroupBatch, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """[R] of transformers' own forward of one sequence at a time in float64, norms and rotary angles too."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    lm = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float64, attn_implementation="sdpa")
    prompts = torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())
    found = []
    for group, ids in zip(
        batch.group_index.tolist(), torch.split(batch.response_ids, batch.lengths.tolist()), strict=True
    ):
        row = torch.cat((prompts[group], ids))[None]
        with torch.no_grad():
            logits = lm(row, use_cache=False, logits_to_keep=len(ids) + 1).logits[0, :-1]
        found.append(logits.log_softmax(-1).gather(1, ids[:, None])[:, 0])
    return torch.cat(found)


def test_it_takes_the_packed_layout_and_is_exact(
    policy: HFPolicy, batch: GroupBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert policy.raw.path.packed
    assert policy.explain().startswith("Gemma3ForCausalLM runs in the packed layout (log-probabilities are ")
    with torch.no_grad():
        found = policy.forward(batch).logprobs
    expected = float64_logprobs(batch, monkeypatch)
    assert expected.dtype == torch.float64
    assert float(expected.std()) > 1, "a model that has learnt nothing"
    assert float((found - expected).abs().max()) < BOUND


def test_sampled_log_probabilities_are_those_of_a_pass(policy: HFPolicy) -> None:
    prompts = [Prompt(text=STORY), Prompt(text=STORY * 12)]
    sampled = policy.generate(prompts, n=2, sampling=Sampling(max_tokens=12), seed=1)
    assert sampled.prompt_lengths.tolist()[0] < WINDOW < sampled.prompt_lengths.tolist()[1]
    assert sampled.logprobs is not None
    with torch.no_grad():
        found = policy.forward(sampled).logprobs
    assert float((found - sampled.logprobs).abs().max()) < BOUND
