"""Rotary scalings that switch on the longest row of a pass: no row depends on what stands beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from alignkit_hf import modeling, probe
from alignkit_hf.modeling import PackedModel, Path, Request
from hf_tiny import assert_equal_figures, build_model, plain_logprobs, token_batch

from alignkit.options import Sampling
from alignkit.records import Prompt

if TYPE_CHECKING:
    from conftest import BuildFolder, LoadPolicy

SWITCH = 14
"""In tokens."""
SHORT = {"original_max_position_embeddings": SWITCH}
EVERYTHING = Request(logprobs=True, entropy=True, hidden=True)


@pytest.mark.parametrize("packed", [True, False])
def test_rows_on_both_sides_are_as_alone(packed: bool) -> None:
    model, batch = build_model("phi3", **SHORT), token_batch()
    rows = batch.prompt_lengths[batch.group_index] + batch.lengths
    assert (rows > SWITCH).tolist() == [True, False, False, False, True, False], "one group on both sides"
    expected = plain_logprobs(model, batch)
    path = probe.find_path(model, layout="auto", attention="auto")
    assert path.packed
    runner = PackedModel(model, path=path if packed else Path(packed=False))
    found = runner(batch, EVERYTHING)
    assert_equal_figures(model, found["logprobs"], expected)
    for response in range(batch.num_responses):
        keep = torch.arange(batch.num_responses) == response
        tokens = keep[batch.response_index]
        alone = runner(batch.select_responses(keep), EVERYTHING)
        for name, values in alone.items():
            assert_equal_figures(model, found[name][tokens], values)


def test_gradients_go_through_both_sides() -> None:
    model, batch = build_model("phi3", **SHORT), token_batch()
    weights = torch.linspace(-1, 1, batch.num_tokens)
    (weights * plain_logprobs(model, batch)).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    path = probe.find_path(model, layout="packed", attention="auto")
    (weights * PackedModel(model, path=path)(batch, EVERYTHING)["logprobs"]).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_equal_figures(model, found, expected)


def test_the_probe_looks_at_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its switch beyond every row of the probe, a packed layout that ignores it must not pass."""
    monkeypatch.setattr(modeling, "sides", lambda lm, batch: [])
    model = build_model("phi3", original_max_position_embeddings=100)
    assert not probe.find_path(model, layout="auto", attention="auto").packed
    assert model.config.rope_parameters["original_max_position_embeddings"] == 100


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_samples_do_not_depend_on_the_prompts_beside_them(
    build_folder: BuildFolder, load_policy: LoadPolicy, layout: str
) -> None:
    policy = load_policy(folder=build_folder("phi3", **SHORT), layout=layout)
    texts = ["red ball", "a little dog who liked to play with the big red ball in the park", "the dog"]
    prompts = [Prompt(text=text) for text in texts]
    sampling = Sampling(max_tokens=4)
    together = policy.generate(prompts, n=2, sampling=sampling, seed=3)
    lengths = together.prompt_lengths.tolist()
    assert [length > SWITCH for length in lengths] == [False, True, False]
    assert max(lengths[0], lengths[2]) + 4 <= SWITCH
    assert together.logprobs is not None
    assert_equal_figures(policy.raw, together.logprobs, plain_logprobs(policy.raw.lm, together).detach())
    assert_equal_figures(policy.raw, together.logprobs, policy.forward(together).logprobs.detach())


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_response_that_passes_the_switch_is_sampled_on_its_prompts_side(
    build_folder: BuildFolder, load_policy: LoadPolicy, layout: str
) -> None:
    policy = load_policy(folder=build_folder("phi3", **SHORT), layout=layout)
    prompts = [Prompt(text="a little dog who liked"), Prompt(text="red")]
    batch = policy.generate(prompts, n=2, sampling=Sampling(max_tokens=20), seed=3)
    assert bool((batch.prompt_lengths[batch.group_index] + batch.lengths > SWITCH).any())
    assert batch.logprobs is not None
    policy.raw.lm.config.rope_parameters["original_max_position_embeddings"] = 1000
    below = plain_logprobs(policy.raw.lm, batch).detach()
    assert_equal_figures(policy.raw, batch.logprobs, below)
