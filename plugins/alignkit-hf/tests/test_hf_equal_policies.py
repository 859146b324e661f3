"""Equal policies have a KL of 0 in an evaluation, however their text is sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from alignkit.commands import compare_samples
from alignkit.options import Sampling
from alignkit.records import Prompt

if TYPE_CHECKING:
    from conftest import LoadPolicy

PROMPTS = [Prompt(text=text) for text in ("once upon", "the big red ball", "a")]
HOW: list[dict[str, Any]] = [
    {}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.2}, {"repetition_penalty": 1.5}, {"min_tokens": 6},
    {"stop": ("e",)}, {"temperature": 0.0}, {"temperature": 0.6, "top_k": 9, "top_p": 0.9, "repetition_penalty": 0.8},
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "options"), [("llama", {}), ("gemma2", {}), ("bloom", {}), ("llama", {"lora": {"r": 2}})]
)
def test_the_kl_of_equal_policies_is_0_however_they_are_sampled(
    load_policy: LoadPolicy, family: str, options: dict[str, Any]
) -> None:
    policy = load_policy(family, **options)
    policies = {"start": policy.reference(), "policy": policy}
    for how in HOW:
        sampling = Sampling(**{"max_tokens": 8, **how})
        batches = {name: one.generate(PROMPTS, n=3, sampling=sampling, seed=1) for name, one in policies.items()}
        report, _ = compare_samples(batches, {}, policies=policies)
        assert report["policy"]["kl"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 9}, how
