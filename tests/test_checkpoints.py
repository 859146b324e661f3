"""Checkpoints: the last good one is never lost, a full disk and wrecked weights are said as such."""

from __future__ import annotations

import errno
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import SafetensorError

from alignkit.errors import AlignkitError, CheckpointError, StoppedByCheck
from alignkit.files import telling_when_full
from alignkit.interfaces import Feed, Optimizer
from alignkit.options import TrainingOptions
from alignkit.records import Group, Prompt
from alignkit.testing import TinyPolicy
from alignkit.training.checkpoint import (
    MANIFEST,
    checkpoint_folders,
    newest_checkpoint,
    save_checkpoint,
)
from alignkit.training.engine import train
from alignkit.training.feeds import OfflineFeed

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.batch import GroupBatch
    from alignkit.companions import Metrics


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(folder, step, tensors={"modules": torch.full((3,), float(step))}, state={}, keep=keep)


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoint_folders(folder)]


@pytest.mark.parametrize("keep", [1, 2])
def test_partial_saves_do_not_count_and_are_cleared_away(tmp_path: Path, keep: int) -> None:
    save(tmp_path, 1, keep)
    save(tmp_path, 2, keep)
    for partial in (save(tmp_path, 3, keep=9), save(tmp_path, 4, keep=9)):
        (partial / MANIFEST).unlink()
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "step-00000002"
    save(tmp_path, 3, keep)
    assert steps(tmp_path) == [3, 2][:keep]


def test_a_run_that_went_back_keeps_what_it_saves_and_not_the_damaged_future(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    damaged = tmp_path / "step-00000003" / "modules.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "step-00000002"
    (tmp_path / "step-00000002" / "state.json").write_text("longer than before")
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "step-00000001"
    save(tmp_path, 2, keep=1)
    assert steps(tmp_path) == [2]


def test_one_save_that_was_cut_off_is_no_checkpoint_and_two_are_an_error(tmp_path: Path) -> None:
    (save(tmp_path, 1) / MANIFEST).unlink()
    assert newest_checkpoint(tmp_path) == (None, [f"step-00000001: no readable {MANIFEST} (the save was interrupted)"])
    (save(tmp_path / "other", 2) / MANIFEST).unlink()
    shutil.move(tmp_path / "other" / "step-00000002", tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint verifies(.|\n)*fix: restore .* or start again"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:863] . unexpected pos 241280 vs 241174"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["space", "quota", "torch", "torch zip", "safetensors"],
)
def test_a_full_disk_is_called_that_whatever_library_writes(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(AlignkitError, match=r"the disk is full: the model needs 4,000 bytes, [\d,]+ are"),
        telling_when_full(tmp_path, "the model", lambda: 4000),
    ):
        raise error
    with pytest.raises(RuntimeError, match="another"), telling_when_full(tmp_path, "the model"):
        raise RuntimeError("another")


class Wrecking(Optimizer[TrainingOptions]):
    """Maximum likelihood; a step of the given number writes infinity into a weight."""

    consumes = Feed.DEMONSTRATIONS
    wreck_at = 0

    def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
        return -batch.token_mean(self.policy.forward(batch).logprobs), {}

    def take_step(self, batch: GroupBatch) -> dict[str, float]:
        self.wreck_at -= 1
        if self.wreck_at == 0:
            parameter = next(self.policy.modules()["policy"].parameters())
            assert parameter.grad is not None
            parameter.grad.fill_(float("nan"))
        return {}


def trained(folder: Path, wreck_at: int, **options: Any) -> None:
    policy = TinyPolicy()
    algorithm = Wrecking(TrainingOptions(minibatch_size=4, n_epochs=1, **options), policy=policy)
    algorithm.wreck_at = wreck_at
    groups = [Group(Prompt(text=f"ask {number}"), ("yes",)) for number in range(12)]
    train(algorithm, OfflineFeed(groups, policy), folder=folder, seed=0)


@pytest.mark.parametrize("wreck_at", [2, 3])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, wreck_at: int) -> None:
    with pytest.raises(StoppedByCheck, match=f"step {wreck_at}: weights not finite; the checkpoint .* is kept"):
        trained(tmp_path, wreck_at, save_every=1)
    assert steps(tmp_path / "checkpoints")[0] == wreck_at - 1


def test_weights_are_checked_after_the_last_step_too(tmp_path: Path) -> None:
    with pytest.raises(StoppedByCheck, match="step 3: weights not finite; no checkpoint was saved before"):
        trained(tmp_path, 3, save_every=100)


def test_the_way_back_from_a_checkpoint_that_leads_to_the_fault_is_an_earlier_one(tmp_path: Path) -> None:
    class Exploding(Wrecking):
        seen = 0

        def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
            self.seen += 1
            loss, figures = super().loss(batch)
            return (loss * float("inf") if self.seen == 3 else loss), figures

    policy = TinyPolicy()
    algorithm = Exploding(TrainingOptions(minibatch_size=4, save_every=1), policy=policy)
    groups = [Group(Prompt(text=f"ask {number}"), ("yes",)) for number in range(12)]
    with pytest.raises(StoppedByCheck, match=r"already leads to it\n  fix: delete .*step-00000002, lower"):
        train(algorithm, OfflineFeed(groups, policy), folder=tmp_path, seed=0)
