"""What lies between sampler and trainer: weights and figures, by hand and by TRL's own lines."""

from __future__ import annotations

import inspect
import math
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from alignkit_vllm.options import VLLMOptions
from alignkit_vllm.sampler import VLLMSampler
from scripted_vllm import ScriptedVLLM, steps_of

import alignkit
from alignkit import Group, GroupBatch, Prompt, Sampling, registry
from alignkit.ops import mismatch_weights
from alignkit.testing import TinyPolicy, TinyReward

OWN = [-1.0, -0.5, -2.0, -0.1, -3.0]
THEIRS = [-1.5, -0.5, -1.0, -1.6, -3.1]
RATIOS = [math.exp(a - b) for a, b in zip(OWN, THEIRS, strict=True)]  # 1.65, 1, 0.37, 4.48, 1.11
FIRST, SECOND = RATIOS[0] * RATIOS[1] * RATIOS[2], RATIOS[3] * RATIOS[4]  # 0.61, 4.95


def batch(**more: Any) -> GroupBatch:
    """Two responses of 3 and 2 tokens."""
    made = GroupBatch.from_ids([[1]], [[[1, 2, 3], [4, 5]]], [Group(Prompt(text="a"), ("b", "c"))])
    return made.replace(logprobs=torch.tensor(OWN), sampler_logprobs=torch.tensor(THEIRS), **more)


@pytest.mark.parametrize(
    ("how", "weights", "share", "effective"),
    [
        ("off", [1.0] * 5, 1 / 5, RATIOS),
        ("token-truncate", [*RATIOS[:3], 3.0, RATIOS[4]], 1 / 5, [*RATIOS[:3], 3.0, RATIOS[4]]),
        ("token-mask", [*RATIOS[:3], 0.0, RATIOS[4]], 1 / 5, [*RATIOS[:3], 0.0, RATIOS[4]]),
        ("sequence-mask", [FIRST] * 3 + [0.0] * 2, 1 / 2, [FIRST, 0.0]),
    ],
)
def test_weights_and_figures_are_those_by_hand(
    how: Any, weights: list[float], share: float, effective: list[float]
) -> None:
    found, figures = mismatch_weights(batch(), how, 3.0)
    assert found.tolist() == pytest.approx(weights, rel=1e-5)
    assert figures["mismatch_share"] == pytest.approx(share)
    kl = sum(math.exp(a - b) - 1 - (a - b) for a, b in zip(OWN, THEIRS, strict=True)) / 5
    assert figures["sampler_kl"] == pytest.approx(kl, rel=1e-5)
    size = sum(effective) ** 2 / (len(effective) * sum(x * x for x in effective))
    assert figures["effective_share"] == pytest.approx(size, rel=1e-5)


def test_a_ratio_at_the_cap_counts() -> None:
    found, figures = mismatch_weights(batch(), "token-mask", max(RATIOS) * (1 + 1e-6))
    assert found.tolist() == pytest.approx(RATIOS, rel=1e-5)
    assert figures["mismatch_share"] == 0


def test_huge_ratios_stay_finite() -> None:
    apart = batch().replace(sampler_logprobs=torch.full((5,), -500.0))
    for how in ("off", "token-truncate", "token-mask", "sequence-mask"):
        weights, figures = mismatch_weights(apart, how, 3.0)  # type: ignore[arg-type]
        assert bool(weights.isfinite().all())
        assert figures["mismatch_share"] == 1
        assert math.isfinite(figures["effective_share"])


def test_a_batch_of_the_policy_itself_has_no_mismatch_to_measure() -> None:
    with pytest.raises(ValueError, match="needs logprobs and sampler_logprobs"):
        mismatch_weights(batch().replace(sampler_logprobs=None), "off", 3.0)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["token-truncate", "token-mask", "sequence-mask"])
def test_weights_are_those_of_trls_own_lines(how: Any) -> None:
    trainers = pytest.importorskip("trl.trainer.grpo_trainer")
    source = inspect.getsource(trainers.GRPOTrainer._generate_and_score_completions)
    start = source.find("                mask = completion_mask if tool_mask is None")
    end = source.find("            # Compute the per-token log probabilities for the reference model")
    if start < 0 or end < start:
        pytest.skip("this TRL computes the ratio elsewhere")
    padded = torch.tensor([[*OWN[:3]], [*OWN[3:], 0.0]]), torch.tensor([[*THEIRS[:3]], [*THEIRS[3:], 0.0]])
    names: dict[str, Any] = {
        "torch": torch,
        "math": math,
        "tool_mask": None,
        "completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "old_per_token_logps": padded[0],
        "sampling_per_token_logps": padded[1],
        "self": SimpleNamespace(
            vllm_importance_sampling_mode=how.replace("-", "_"),
            vllm_importance_sampling_clip_min=None,
            vllm_importance_sampling_clip_max=3.0,
        ),
    }
    exec(dedent(source[start:end]), names)
    theirs = names["vllm_importance_sampling_ratio"].expand(2, 3)[names["completion_mask"].bool()]
    assert torch.allclose(mismatch_weights(batch(), how, 3.0)[0], theirs, rtol=1e-6)


@pytest.mark.parametrize("how", ["off", "sequence-mask"])
def test_advantages_are_weighed_and_nothing_else_changes(how: Any) -> None:
    sampler = VLLMSampler(VLLMOptions(urls=("http://127.0.0.1:1",), mismatch=how))
    given = batch(advantages=torch.tensor([1.0, -2.0, 3.0, 4.0, 5.0]), returns=torch.ones(5))
    found, figures = sampler.corrected(given)
    expected = [FIRST, -2 * FIRST, 3 * FIRST, 0.0, 0.0] if how == "sequence-mask" else [1.0, -2.0, 3.0, 4.0, 5.0]
    assert found.advantages is not None
    assert found.advantages.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.replace(advantages=given.advantages) == given
    assert set(figures) == {"sampler_kl", "mismatch_share", "effective_share"}
    bare, same = sampler.corrected(batch())
    assert bare.advantages is None
    assert same == figures


@pytest.mark.parametrize("name", ["ppo", "grpo", "online-dpo"])
def test_algorithms_train_through_a_sampler(name: str, tmp_path: Any) -> None:
    algorithm: Any = registry().load("optimizer", name)
    policy = TinyPolicy()
    config = algorithm.Config(
        iterations=3,
        batch_size=2,
        group_size=4,
        minibatch_size=2,
        learning_rate=0.02,
        **({"critic": "policy"} if name == "ppo" else {}),
    )
    seen: list[GroupBatch] = []

    class Watched(algorithm):  # type: ignore[misc]
        def prepare(self, batch: GroupBatch) -> GroupBatch:
            assert batch.logprobs is None
            prepared: GroupBatch = super().prepare(batch)
            seen.append(prepared)
            return prepared

    optimizer = Watched(config, policy=policy, reward=TinyReward())
    with ScriptedVLLM() as server:
        sampler = VLLMSampler(VLLMOptions(urls=(server.url,), transfer_folder=str(tmp_path)))
        prompts = [Prompt(text=text) for text in ("a red", "blue", "green")]
        sampling = Sampling(max_tokens=8)
        result = alignkit.train(
            optimizer, prompts, sampling=sampling, sampler=sampler, progress=False, out=tmp_path / "out"
        )
        sampler.close()
    assert [one.version for one in seen] == [0, 1, 2]
    for one in seen:
        assert one.logprobs is not None and one.sampler_logprobs is not None
        assert torch.allclose(one.logprobs, one.sampler_logprobs, atol=1e-5)
    assert result.steps == 3 * config.n_epochs
    log = steps_of(tmp_path / "out")
    assert all(record["sampler_kl"] < 1e-8 and record["mismatch_share"] == 0 for record in log)
    assert all(record["effective_share"] == pytest.approx(1) for record in log)
