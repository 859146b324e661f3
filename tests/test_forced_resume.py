"""A forced resume with other options: what they say counts from there, and what does not fit is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, get_scheduler

import alignkit
from alignkit.errors import InputError, StoppedByCheck
from alignkit.interfaces import Feed, Optimizer
from alignkit.options import TrainingOptions
from alignkit.records import Group, Prompt
from alignkit.runs.algorithm import digest_of_models
from alignkit.testing import TinyPolicy
from alignkit.testing.tiny_hf import write_tiny_llama
from alignkit.training.adam import restore_adam
from alignkit.training.engine import train
from alignkit.training.feeds import OfflineFeed

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.batch import GroupBatch
    from alignkit.companions import Metrics


def made(**options: Any) -> tuple[nn.Linear, torch.optim.Optimizer, Any]:
    module = nn.Linear(2, 2)
    adam = torch.optim.AdamW(module.parameters(), **options)
    return module, adam, get_scheduler("linear", adam, num_warmup_steps=0, num_training_steps=10)


def test_moments_and_position_are_restored_and_options_are_those_of_now() -> None:
    module, adam, scheduler = made(lr=0.1, weight_decay=0.0, betas=(0.9, 0.9))
    for _ in range(4):
        module(torch.ones(1, 2)).sum().backward()
        adam.step()
        scheduler.step()
    now, fresh, schedule = made(lr=0.05, weight_decay=0.3, betas=(0.9, 0.8))
    restore_adam(fresh, schedule, adam.state_dict(), scheduler.state_dict())
    (group,) = fresh.param_groups
    # 6 of 10 steps are left
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.05 * 0.6, 0.3, (0.9, 0.8))
    assert schedule.get_last_lr() == [0.05 * 0.6]
    assert torch.equal(fresh.state[now.weight]["exp_avg_sq"], adam.state[module.weight]["exp_avg_sq"])
    fresh.step()
    schedule.step()
    assert group["lr"] == pytest.approx(0.05 * 0.5)


class Likelihood(Optimizer[TrainingOptions]):
    """Maximum likelihood."""

    consumes = Feed.DEMONSTRATIONS

    def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
        return -batch.token_mean(self.policy.forward(batch).logprobs), {}


def trained(folder: Path, *, stop: int = 0, frozen: bool = False, resume: bool = False, **options: Any) -> list[Any]:
    """The learning rates of the steps."""
    policy, rates = TinyPolicy(), []
    if frozen:
        next(policy.modules()["policy"].parameters()).requires_grad_(False)
    config = TrainingOptions(**{"minibatch_size": 2, "save_every": 1, "lr_schedule": "constant", **options})
    groups = [Group(Prompt(text="say"), (text,)) for text in ("red", "green", "blue", "black")]

    def on_step(record: dict[str, float]) -> None:
        rates.append(record["learning_rate"])
        if record["step"] == stop:
            raise StoppedByCheck("here")

    feed, optimizer = OfflineFeed(groups, policy), Likelihood(config, policy=policy)
    train(optimizer, feed, folder=folder, seed=0, on_step=on_step, resume=resume, force=True, fingerprint=repr(options))
    return rates


def test_a_forced_resume_takes_other_options_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(StoppedByCheck):
        trained(tmp_path, stop=2, n_epochs=2, learning_rate=0.01, warmup=0.0)
    with pytest.raises(InputError, match="the checkpoint does not fit") as refused:
        trained(tmp_path, frozen=True, resume=True, n_epochs=2)
    assert "--overwrite" in refused.value.fix
    changed = {"weight_decay": 0.1, "learning_rate": 0.003, "adam_beta2": 0.9, "n_epochs": 2, "warmup": 0.0}
    assert trained(tmp_path, resume=True, **changed) == [0.003] * 3


def test_other_weights_and_another_template_under_the_same_path_are_noticed(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "model")
    groups = [Group(Prompt.of([{"role": "user", "content": "Hi"}]), ("yes", "no"), (0, 1))]
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    tokenizer.save_pretrained(model)

    def digest() -> str:
        policy = alignkit.build_component("policy", {"plugin": "hf", "model": str(model), "lora": {"r": 2}})
        return digest_of_models(alignkit.build_component("optimizer", {"plugin": "dpo"}, policy=policy), groups)

    before = digest()
    assert digest() == before
    tokenizer.chat_template = "{% for m in messages %}<{{ m['content'] }}]{% endfor %}"
    tokenizer.save_pretrained(model)
    other_template = digest()
    assert other_template != before
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert digest() not in (before, other_template)
