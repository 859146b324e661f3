"""The estimated memory of a token, against what autograd keeps."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import torch
from hf_tiny import VOCABULARY

from alignkit.batch import GroupBatch
from alignkit.records import Group, Prompt
from alignkit.training.memory import bytes_per_token

if TYPE_CHECKING:
    from conftest import LoadPolicy


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "qwen3_moe", "gpt_oss"])
def test_a_token_keeps_about_what_is_estimated(load_policy: LoadPolicy, family: str) -> None:
    policy = load_policy(family)
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(count)]

    groups = [Group(Prompt(text=""), ("", "")) for _ in range(8)]
    batch = GroupBatch.from_ids([tokens(40) for _ in groups], [[tokens(30), tokens(30)] for _ in groups], groups)
    weights = {tensor.untyped_storage().data_ptr() for tensor in policy.raw.state_dict().values()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logprobs = policy.forward(batch).logprobs
    probabilities = batch.num_tokens * VOCABULARY * 4  # of the vocabulary head, whose memory has a limit of its own
    assert logprobs.requires_grad
    share = (sum(kept.values()) - probabilities) / 800 / bytes_per_token([policy.raw])
    assert 0.4 < share < 1.6  # at this width the soft-capped attention scores of gemma2 are half of it
