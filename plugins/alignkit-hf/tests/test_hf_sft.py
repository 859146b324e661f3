"""Supervised fine-tuning: which tokens carry loss, against plain cross-entropy and TRL, and what is learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from alignkit_hf.options import SFTOptions
from alignkit_hf.sft import SFT
from alignkit_trl.testing.parity import parity_steps, trl_steps
from hf_tiny import END, TEXT, assert_equal_figures, build_model
from torch.nn import functional as F

from alignkit.interfaces import Feed
from alignkit.options import Sampling
from alignkit.records import Group, Prompt

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit_hf.policy import HFPolicy
    from conftest import BuildFolder, LoadPolicy

    from alignkit.batch import GroupBatch

GROUPS = [
    Group(prompt=Prompt(text="once upon a"), responses=(" time there was",)),
    Group(prompt=Prompt(text="the big"), responses=(" ball",)),
    Group(prompt=Prompt(text="in the park a little dog"), responses=("",)),
]


def masked_cross_entropy(model: Any, batch: GroupBatch) -> torch.Tensor:
    """transformers' way: labels of -100 on the prompt, one padded batch, the mean over the rest."""
    prompts = torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())
    responses = torch.split(batch.response_ids, batch.lengths.tolist())
    rows = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    ids = torch.stack([F.pad(row, (0, width - len(row))) for row in rows])
    mask = torch.stack([F.pad(torch.ones_like(row), (0, width - len(row))) for row in rows])
    labels = ids.masked_fill(mask == 0, -100)
    for row, prompt in zip(labels, prompts, strict=True):
        row[: len(prompt)] = -100
    loss: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    return loss


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_the_loss_is_the_cross_entropy_of_response_and_end_tokens(load_policy: LoadPolicy, family: str) -> None:
    policy = load_policy(family)
    batch = policy.encode(GROUPS)
    loss, metrics = SFT(SFTOptions(), policy=policy).loss(batch)
    expected = masked_cross_entropy(build_model(family), batch)
    assert_equal_figures(policy.raw, loss, expected)
    assert float(metrics["loss"]) == pytest.approx(loss.item())
    assert batch.response_ids[batch.last_token].tolist() == [END] * 3


@pytest.mark.filterwarnings("ignore")
def test_losses_and_gradients_of_five_steps_equal_trl(
    build_folder: BuildFolder, load_policy: LoadPolicy, tmp_path: Path
) -> None:
    trl = pytest.importorskip("trl")
    folder = build_folder("llama", attention_dropout=0.0)
    policy = load_policy(folder=folder)
    words = TEXT[:20]
    groups = [
        Group(prompt=Prompt(text=" ".join(words[i : i + 1 + i % 5])), responses=(" " + " ".join(words[: i % 7]),))
        for i in range(20)
    ]
    batch = policy.encode(groups)
    prompts = torch.split(batch.prompt_ids, batch.prompt_lengths.tolist())
    responses = torch.split(batch.response_ids, batch.lengths.tolist())
    rows = [
        {"input_ids": torch.cat((p, r)).tolist(), "labels": [-100] * len(p) + r.tolist()}
        for p, r in zip(prompts, responses, strict=True)
    ]
    theirs = trl_steps(
        trl.SFTTrainer,
        trl.SFTConfig,
        transformers.AutoModelForCausalLM.from_pretrained(folder),
        rows,
        tokenizer=policy.tokenizer,
        folder=tmp_path / "trl",
        rows_per_step=4,
    )
    ours = parity_steps(SFT(SFTOptions(), policy=policy), batch, groups_per_step=4)
    assert len(theirs.losses) == 5
    ours.assert_equal_to(theirs)


def test_it_consumes_demonstrations_and_couples_nothing() -> None:
    assert SFT.consumes is Feed.DEMONSTRATIONS
    assert not SFT.couples_responses
    assert not SFT.uses_reference


def learn(policy: HFPolicy, groups: list[Group], steps: int, rate: float) -> float:
    sft = SFT(SFTOptions(), policy=policy)
    adam = torch.optim.AdamW(policy.raw.parameters(), lr=rate)
    batch = policy.encode(groups)
    for _ in range(steps):
        loss, _ = sft.loss(batch)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return loss.item()


def test_the_model_learns_to_stop_where_padding_is_the_end_token(
    build_folder: BuildFolder, load_policy: LoadPolicy
) -> None:
    folder = build_folder("llama", pad="<end>", pad_token_id=END, loud=1.0)
    policy = load_policy(folder=folder)
    prompts = [Prompt(text=text) for text in ("the big", "a little dog", "once upon")]
    before = policy.generate(prompts, n=4, sampling=Sampling(max_tokens=12), seed=0)
    assert before.finished.float().mean() < 0.5
    groups = [Group(prompt=prompt, responses=(f" {word}",)) for prompt, word in zip(prompts, ("ball", "red", "a"))]  # noqa: B905
    assert learn(policy, groups, 60, 1e-2) < 0.05
    after = policy.generate(prompts, n=4, sampling=Sampling(max_tokens=12, temperature=0.0), seed=0)
    assert bool(after.finished.all())
    assert [group.responses[0] for group in after.groups] == [" ball", " red", " a"]
