"""A reference is asked once for the same tokens: across runs, never across weights, tokens, temperatures or budgets."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from alignkit.algorithms.cached import cached_logprobs
from alignkit.algorithms.passes import policy_logprobs
from alignkit.components import Context
from alignkit.interfaces import Feed
from alignkit.ops.digests import digest_of_tensors
from alignkit.recipe.tables import RunOptions
from alignkit.testing import TinyOptions, TinyPolicy
from alignkit.testing.material import groups_for

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.batch import GroupBatch

BUDGET = 40


class Counting(TinyPolicy):
    """Counts its passes."""

    passes = 0

    def forward(self, batch: GroupBatch, **asked: bool) -> Any:
        self.passes += 1
        return super().forward(batch, **asked)


def asked(folder: Path | None, policy: Counting, batch: GroupBatch, budget: int = BUDGET) -> int:
    """Passes that the log-probabilities cost, which are compared with those of no cache."""
    policy.passes = 0
    logprobs = cached_logprobs(policy, batch, budget, folder)
    passes = policy.passes
    assert torch.equal(logprobs, policy_logprobs(policy, batch, budget))
    return passes


def batch_of(policy: TinyPolicy) -> GroupBatch:
    return policy.encode(groups_for(Feed.RANKINGS))


def test_the_same_weights_and_tokens_are_asked_once(tmp_path: Path) -> None:
    policy = Counting()
    batch = batch_of(policy)
    assert asked(None, policy, batch) == asked(tmp_path, policy, batch) > 0
    assert asked(tmp_path, policy, batch) == 0
    assert asked(tmp_path, Counting(), batch) == 0, "another object with the same weights"
    assert len(list(tmp_path.rglob("*"))) == 2, "the folder and one file; nothing unfinished is left"


def change_a_weight(policy: TinyPolicy) -> None:
    with torch.no_grad():
        weight = next(iter(policy.modules()["policy"].parameters()))
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))


def test_the_last_bit_of_one_weight_is_another_policy(tmp_path: Path) -> None:
    policy = Counting()
    batch = batch_of(policy)
    asked(tmp_path, policy, batch)
    change_a_weight(policy)
    assert asked(tmp_path, policy, batch) > 0
    assert asked(tmp_path, Counting(TinyOptions(window=2)), batch) > 0, "other options"


@pytest.mark.parametrize("change", ["token", "prompt", "split", "temperature", "budget"])
def test_anything_else_that_counts_is_a_miss(tmp_path: Path, change: str) -> None:
    policy = Counting()
    batch, budget = batch_of(policy), BUDGET
    asked(tmp_path, policy, batch)
    if change == "token":
        batch = batch.replace(response_ids=batch.response_ids.roll(1))
    elif change == "prompt":
        batch = batch.replace(prompt_ids=batch.prompt_ids.roll(1))
    elif change == "split":
        lengths = batch.lengths.clone()
        lengths[0] += lengths[1] - 1
        lengths[1] = 1
        batch = batch.replace(lengths=lengths)
    elif change == "temperature":
        batch = batch.replace(temperature=0.5)
    else:
        budget = 2 * BUDGET
    assert asked(tmp_path, policy, batch, budget) > 0


@pytest.mark.parametrize("content", [b"", b"cut off", None])
def test_a_file_that_cannot_be_read_is_computed_again(tmp_path: Path, content: bytes | None) -> None:
    policy = Counting()
    batch = batch_of(policy)
    asked(tmp_path, policy, batch)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-4] if content is None else content)
    assert asked(tmp_path, policy, batch) > 0
    assert asked(tmp_path, policy, batch) == 0


def test_a_disk_that_takes_nothing_stops_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    policy = Counting()
    assert asked(tmp_path / "file", policy, batch_of(policy)) > 0
    assert "cannot cache" in caplog.text


def test_the_digest_is_of_names_types_shapes_and_bits() -> None:
    expected = hashlib.sha256(b"a torch.bfloat16 (2,);" + bytes([0x80, 0x3F, 0x00, 0xC0])).hexdigest()
    assert digest_of_tensors({"a": torch.tensor([1.0, -2.0], dtype=torch.bfloat16)}) == expected
    zero = torch.zeros(2)
    others = [{"b": zero}, {"a": zero.half()}, {"a": zero[None]}, {"a": -zero}, {"a": zero[0]}, {"a": zero[:0]}]
    assert len({digest_of_tensors(tensors) for tensors in [{"a": zero}, *others]}) == 7


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert RunOptions().cache_folder == tmp_path / "alignkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunOptions().cache_folder == tmp_path / ".cache" / "alignkit"
    assert RunOptions(cache="~/kept").cache_folder == tmp_path / "kept"
    assert RunOptions(cache="").cache_folder is None
    assert replace(Context(), seed=1).cache is None
