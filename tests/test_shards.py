"""Split weights (FSDP2): what they compute in, and their checkpoints. That they take the steps of whole ones is in
test_same_steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from many_processes import MIXED, largest_difference, results, started, trained
from safetensors.torch import load_file
from torch.distributed.fsdp import MixedPrecisionPolicy

from alignkit import AlignkitError, InputError, build_component
from alignkit.testing import TinyPolicy, TinyReward
from alignkit.training.layout import layout_of
from alignkit.training.replicas import Replicas
from alignkit.training.shards import Shards, check_shardable, layers_of, precision_of

if TYPE_CHECKING:
    from pathlib import Path

BOUND = 1e-5
"""See test_same_steps."""


@pytest.mark.slow
def test_layers_compute_in_bfloat16_with_float32_shards(tmp_path: Path) -> None:
    """As one process under autocast, up to the rounding of norms' weights: no more than 2^-8 of a gradient. Six steps:
    later rollouts may differ by a token."""
    assert started(tmp_path / "many", 2, tuple(MIXED), shard=True) == [0, 0]
    for case in MIXED:
        alone = trained(case, tmp_path / "one")
        found = results(tmp_path / "many", 2, case)[0]
        assert found["loss"][:6] == pytest.approx(alone["loss"][:6], rel=2e-3, abs=2e-3), case
        assert found["grad_norm"][:6] == pytest.approx(alone["grad_norm"][:6], rel=2e-2), case
        saved = load_file(tmp_path / "many" / f"{case}-saved" / "model.safetensors")
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
        # Weights that were ever rounded to bfloat16 would have no more than 8 bits.
        assert any(bool((tensor != tensor.bfloat16()).any()) for name, tensor in saved.items() if "layers" in name)


def test_layers_are_gathered_in_the_dtype_of_their_computation() -> None:
    root = torch.nn.Linear(2, 2)
    assert precision_of(root) == MixedPrecisionPolicy()
    root.autocast = torch.bfloat16  # type: ignore[assignment]
    found = precision_of(root)
    assert (found.param_dtype, found.reduce_dtype, found.cast_forward_inputs) == (torch.bfloat16, torch.float32, False)


@pytest.mark.slow
def test_the_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes nothing before the second step; killed then, nothing is there, and later all but the last."""
    monkeypatch.setenv("HELD_DISK", "1")
    folder = tmp_path / "hf-sft" / "checkpoints"
    assert started(tmp_path, 2, ["hf-sft"], last=2, shard=True) == [-9, -9]
    assert [path.name for path in folder.glob("*")] == ["step-00000001"]
    assert not list(folder.glob("*/manifest.json"))
    assert started(tmp_path, 2, ["hf-sft"], last=5, resume=True, shard=True) == [-9, -9]
    assert "step-00000003" in [path.parent.name for path in folder.glob("*/manifest.json")]
    assert started(tmp_path, 2, ["hf-sft"], resume=True, shard=True) == [0, 0]
    alone = trained("hf-sft", tmp_path / "one")
    assert largest_difference({"weights": results(tmp_path, 2, "hf-sft")[0]["weights"]}, alone) < BOUND


@pytest.mark.slow
def test_a_checkpoint_of_shards_goes_on_anywhere(tmp_path: Path) -> None:
    """Killed inside a batch of rollouts: bitwise with as many processes, else up to rounding, split or whole."""
    case = "hf-ppo"
    assert started(tmp_path / "whole", 2, [case], shard=True) == [0, 0]
    whole = results(tmp_path / "whole", 2, case)[0]["weights"]
    for processes, shard in ((2, True), (1, True), (4, True), (2, False)):
        folder = tmp_path / f"{processes}-{shard}"
        assert started(folder, 2, [case], last=4, shard=True) == [-9, -9]
        assert started(folder, processes, [case], resume=True, shard=shard) == [0] * processes
        found = results(folder, processes, case)[0]["weights"]
        assert float((found - whole).abs().max()) < 1e-6
        if processes == 2 and shard:
            assert torch.equal(found, whole)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp2"])
def test_a_save_that_takes_longer_than_processes_wait_for_each_other_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: bool
) -> None:
    slow = tmp_path / "slow"
    monkeypatch.setenv("SLOW_DISK", str(slow))
    assert started(tmp_path, 2, ["hf-sft"], resume=True, shard=shard) == [0, 0]
    assert slow.exists(), "the disk was not slow"
    assert list(tmp_path.glob("hf-sft/checkpoints/*/manifest.json"))


@pytest.mark.slow
def test_a_full_disk_of_one_process_is_told_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FULL_DISK", "1")
    assert started(tmp_path, 2, ["hf-sft"], shard=True) == [1, 1]
    assert capfd.readouterr().err.count("AlignkitError: ") == 2
    assert not list(tmp_path.glob("hf-sft/checkpoints/*/manifest.json"))


def test_what_cannot_be_split_is_refused() -> None:
    policy = TinyPolicy()
    packed = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    policy.modules()["policy"].register_parameter("packed", packed)
    with pytest.raises(InputError, match="4-bit weights"):
        check_shardable(build_component("optimizer", "sft", policy=policy), ())
    trpo = build_component("optimizer", "trpo", policy=TinyPolicy(), reward=TinyReward())
    with pytest.raises(InputError, match="TRPO updates weights itself"):
        check_shardable(trpo, ())
    with pytest.raises(InputError, match="reference needs whole weights"):
        moving = {"plugin": "grpo", "reference_refresh_every": 1, "kl_coef": 0.1}
        optimizer = build_component("optimizer", moving, policy=TinyPolicy(), reward=TinyReward())
        check_shardable(optimizer, optimizer.companions((), 0))


def test_what_does_not_fit_whole_names_another_sampler() -> None:
    layout = object.__new__(Shards)
    layout._roots = []
    said = r"CUDA out of memory[\s\S]*fix: whole weights.*\(--sampler vllm\)"
    with pytest.raises(AlignkitError, match=said), layout.whole():
        raise torch.OutOfMemoryError("CUDA out of memory: 2 GiB")
    with pytest.raises(KeyError, match="odd"), layout.whole():
        raise KeyError("odd")


def test_a_single_process_is_told_that_nothing_is_split() -> None:
    optimizer, notices = build_component("optimizer", "sft", policy=TinyPolicy()), list[str]()
    for shard in (False, True):
        assert type(layout_of(optimizer, (), shard=shard, on_notice=notices.append)) is Replicas
    assert notices == [
        "run.shard splits nothing in a single process: start several with --launch torchrun --processes N"
    ]


def test_the_layers_are_the_outermost_lists() -> None:
    def block() -> torch.nn.Module:
        return torch.nn.ModuleDict({"experts": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})

    root = torch.nn.ModuleDict(
        {"embedding": torch.nn.Embedding(3, 2), "layers": torch.nn.ModuleList([block(), block()])}
    )
    assert list(layers_of(root)) == list(root["layers"])
