"""The token budget from free memory: by hand, against what torch keeps, and as the engine uses it."""

from __future__ import annotations

import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from alignkit.algorithms import policy_logprobs
from alignkit.errors import StoppedByCheck
from alignkit.interfaces import Feed, Optimizer
from alignkit.ops import until_it_fits
from alignkit.options import TrainingOptions
from alignkit.records import Group, Prompt
from alignkit.testing import TinyPolicy, assert_near, terms_of_network
from alignkit.training import engine, memory
from alignkit.training.engine import train
from alignkit.training.feeds import OfflineFeed
from alignkit.training.memory import bytes_per_token, free_bytes, token_budget

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.batch import GroupBatch
    from alignkit.companions import Metrics
    from alignkit.outputs import PolicyOutput

CPU = torch.device("cpu")
GIB = 2**30


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 3, 5))


def tied() -> nn.Module:
    module = nn.Sequential(nn.Embedding(1000, 4), nn.Linear(4, 10), nn.LayerNorm(10), nn.Linear(4, 1000, bias=False))
    module[3].weight = module[0].weight
    return module


def test_a_token_takes_what_goes_in_and_out_of_each_matrix() -> None:
    assert bytes_per_token([tied()]) == 8 * (4 + 10)
    assert bytes_per_token([Experts()]) == 8 * 8 * (3 + 5)
    module = tied()
    assert bytes_per_token([module, module]) == 8 * (4 + 10), "weights that are shared count once"


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        # 0.8 * free - 16 bytes for each of 10^6 + 10^3 weights, over 8 * 2000 bytes a token
        (1_000_000_000, 32768),  # 48,999 tokens
        (700_000_000, 32768),  # 33,999
        (675_000_000, 32768),  # 32,749 is under it, see below
        (100_000_000, 2048),  # 3,999
        (1_000, 512),
        (None, 32768),
    ],
)
def test_the_budget_by_hand(monkeypatch: pytest.MonkeyPatch, free: int | None, expected: int) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    monkeypatch.setattr(memory, "HIGHEST", {"cpu": 32768})
    expected = 16384 if free == 675_000_000 else expected
    assert token_budget([nn.Linear(1000, 1000)], CPU)[0] == expected
    monkeypatch.setattr(memory, "HIGHEST", {"cpu": 1024})
    assert token_budget([nn.Linear(1000, 1000)], CPU)[0] == min(expected, 1024)


def test_frozen_weights_need_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 30_000_000)
    module = nn.Linear(1000, 1000)
    assert token_budget([module], CPU)[0] == 512  # 499
    assert token_budget([module.requires_grad_(False)], CPU)[0] == 1024  # 1,500


def test_free_memory_is_what_the_container_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    everything = free_bytes(CPU)
    assert everything is not None
    assert 0 < everything < 2**50
    for name, text in {"max": "1000000", "current": "700000", "stat": "anon 5\ninactive_file 200000"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert free_bytes(CPU) == 500_000
    (tmp_path / "memory.max").write_text("max")
    assert free_bytes(CPU) != 500_000
    assert free_bytes(torch.device("meta")) is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("could not create a primitive"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_passes_without_gradient_take_smaller_pieces(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    policy = TinyPolicy()
    batch = policy.encode([Group(Prompt(text="ask" * k), ("red", "green")) for k in range(1, 7)])
    expected = policy_logprobs(policy, batch, 10**6)

    class Hungry(TinyPolicy):
        def forward(self, piece: GroupBatch, **asked: Any) -> PolicyOutput:
            if piece.num_groups > 2:
                raise error
            return super().forward(piece, **asked)

    assert_near(policy_logprobs(Hungry(), batch, 160), expected, terms=terms_of_network(policy.modules(), tokens=100))
    assert caplog.messages == [f"out of memory: now {size} tokens at a time" for size in (80, 40)]


def test_other_errors_and_pieces_of_one_token_end_it() -> None:
    sizes: list[int] = []

    def compute(size: int) -> None:
        sizes.append(size)
        raise MemoryError if size < 9 else ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        until_it_fits(compute, 9, sizes.append)
    with pytest.raises(MemoryError):
        until_it_fits(compute, 5, sizes.append)
    assert sizes == [9, 5, 2, 2, 1, 1]


class Watching(Optimizer[TrainingOptions]):
    """Remembers the budgets that `prepare` was given, and runs out of memory above 64 tokens once it is to."""

    consumes = Feed.DEMONSTRATIONS
    broken = False

    def prepare(self, batch: GroupBatch) -> GroupBatch:
        self.seen = [*getattr(self, "seen", []), self.max_tokens]
        return batch

    def loss(self, batch: GroupBatch) -> tuple[torch.Tensor, Metrics]:
        if self.broken and self.max_tokens > 64:
            raise torch.OutOfMemoryError
        return -batch.token_mean(self.policy.forward(batch).logprobs), {}


def run(folder: Path, notices: list[str], *, resume: bool = False, broken: bool = False, **options: Any) -> Watching:
    policy = TinyPolicy()
    groups = [Group(Prompt(text="say"), ("red",)) for _ in range(8)]
    optimizer = Watching(TrainingOptions(minibatch_size=4, save_every=1, n_epochs=2, **options), policy=policy)
    optimizer.broken = broken

    def on_step(record: dict[str, float]) -> None:
        if broken and record["step"] == 3:
            raise StoppedByCheck("here")

    with suppress(StoppedByCheck):
        train(
            optimizer, OfflineFeed(groups, policy), folder=folder, seed=0,
            on_step=on_step, on_notice=notices.append, resume=resume,
        )  # fmt: skip
    return optimizer


def test_auto_is_resolved_told_kept_and_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine, "token_budget", lambda modules, device: (256, "so much"))
    notices: list[str] = []
    optimizer = run(tmp_path / "a", notices, broken=True)
    assert notices == [
        "max_tokens = 256: so much",
        "out of memory: continuing with max_tokens = 128",
        "out of memory: continuing with max_tokens = 64",
    ]
    assert (optimizer.seen, optimizer.max_tokens) == ([256], 64)

    shutil.copytree(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(engine, "token_budget", lambda modules, device: (999, "other memory"))
    resumed = run(tmp_path / "a", [], resume=True)
    assert (resumed.seen, resumed.max_tokens) == ([256], 64), "prepared as before, and trained as it went on"
    told = run(tmp_path / "b", [], resume=True, max_tokens=32)
    assert (told.seen, told.max_tokens) == ([32] * 2, 32), "another figure in the recipe counts"


def test_a_figure_of_the_recipe_is_taken_as_it_is(tmp_path: Path) -> None:
    notices: list[str] = []
    optimizer = run(tmp_path, notices, max_tokens=512)
    assert (optimizer.seen, notices) == ([512], [])
