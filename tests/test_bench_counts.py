"""The tokens and FLOPs that alignkit executes are those that follow from the lengths of the groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.bench import flops, ours, programs
from tests.bench.clock import Clock
from tests.bench.material import Lengths, Material, generated
from tests.bench.shapes import Shape
from tests.bench.workloads import WORKLOADS, Settings

if TYPE_CHECKING:
    from tests.bench.flops import Groups
    from tests.bench.workloads import Workload

SHAPE = Shape("llama", 512, 32, 48, 2, 4, 2, 1024)
SHORT = (Lengths(20, 0.5, 4, 60), Lengths(10, 0.5, 2, 30))
UNEVEN = (Lengths(60, 3.0, 3, 700), Lengths(10, 0.5, 2, 30))
SETTINGS = Settings(steps=2)
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Counter:
    """Counts tokens that reach an embedding, and FLOPs of matrix products and of attention's forward passes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens = 0
        uncounted = {CPU_ATTENTION: _every_query_and_key, torch.ops.aten.addmm_: _product_added_in_place}
        self._mode = FlopCounterMode(display=False, custom_mapping=uncounted)
        forward = torch.nn.Embedding.forward

        def counted(module: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
            self.tokens += ids.numel()
            return forward(module, ids)

        monkeypatch.setattr(torch.nn.Embedding, "forward", counted)

    def run(self, workload: Workload, material: Material) -> None:
        prepared = ours.prepare(workload, material, SETTINGS, Clock())
        self.tokens = 0
        with self._mode:
            prepared()

    @property
    def attention(self) -> int:
        return self._mode.get_flop_counts()["Global"][CPU_ATTENTION]

    @property
    def products(self) -> int:
        return self._mode.get_total_flops() - self.attention


def _every_query_and_key(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    rows, heads, queries, width = query
    return 2 * rows * heads * queries * key[2] * (width + value[3])


def _product_added_in_place(total: Any, left: Any, right: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return generated(SHAPE, tmp_path_factory.mktemp("short"), torch.float32, rows=40, lengths=SHORT)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return generated(SHAPE, tmp_path_factory.mktemp("uneven"), torch.float32, rows=40, lengths=UNEVEN)


def steps_of(workload: Workload, material: Material) -> list[Groups]:
    return programs.step_lengths(workload, material, SETTINGS)


def all_of(workload: Workload, material: Material) -> Groups:
    return [group for step in steps_of(workload, material) for group in step]


def test_work_of_one_group_by_hand() -> None:
    # a prompt of 3 tokens with responses of 2 and 1: 6 + (3 * 2 + 3) + (3 * 1 + 1) visible pairs
    assert flops.packed([(3, [2, 1])]) == flops.Work(tokens=6, head_tokens=3, pairs=19)
    # rows of 5 and 4 tokens, and each of them twice
    assert flops.one_by_one([(3, [2, 1])], repeats=2) == flops.Work(tokens=18, head_tokens=18, pairs=50)


def test_flops_of_one_token_by_hand() -> None:
    work = flops.Work(tokens=1, head_tokens=1, pairs=1)
    # query and output 32 x 32, key and value 32 x 16, three of 32 x 48, in each of two layers
    assert work.trunk_flops(SHAPE) == 2 * 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    assert work.head_flops(SHAPE) == 2 * 32 * 512
    assert work.attention_flops(SHAPE) == 2 * 2 * (32 + 32)


def test_sft_executes_each_token_once(counter: Counter, short: Material) -> None:
    workload = WORKLOADS["sft"].resized(groups=4)
    counter.run(workload, short)
    work = flops.packed(all_of(workload, short))
    assert counter.tokens == work.tokens
    assert counter.products == 3 * (work.trunk_flops(SHAPE) + work.head_flops(SHAPE))


def test_dpo_executes_each_prompt_once_for_policy_and_reference(counter: Counter, short: Material) -> None:
    workload = WORKLOADS["dpo"].resized(groups=4)
    counter.run(workload, short)
    work = flops.packed(all_of(workload, short))
    assert counter.tokens == 2 * work.tokens
    assert counter.products == (3 + 1) * (work.trunk_flops(SHAPE) + work.head_flops(SHAPE))


@pytest.mark.parametrize("name", ["reward-k2", "reward-k4", "reward-k9"])
def test_a_ranking_costs_its_own_tokens_and_not_its_pairs(name: str, counter: Counter, short: Material) -> None:
    workload = WORKLOADS[name].resized(groups=4)
    counter.run(workload, short)
    groups = all_of(workload, short)
    work = flops.packed(groups)
    scored = sum(len(lengths) for _, lengths in groups)
    heads = 2 * SHAPE.hidden * (work.head_tokens + 3 * scored)  # values are read and not trained
    assert counter.tokens == work.tokens
    assert counter.products == 3 * work.trunk_flops(SHAPE) + heads


def test_attention_over_groups_of_like_length_is_padded_to_the_longest(counter: Counter, short: Material) -> None:
    workload = WORKLOADS["sft"].resized(groups=4)
    counter.run(workload, short)
    areas = [
        len(step) * max(prompt + sum(lengths) for prompt, lengths in step) ** 2 for step in steps_of(workload, short)
    ]
    assert counter.attention == 4 * SHAPE.layers * SHAPE.hidden * sum(areas)


def test_attention_over_groups_of_unlike_length_goes_by_segment(counter: Counter, uneven: Material) -> None:
    workload = WORKLOADS["sft"].resized(groups=8)
    counter.run(workload, uneven)
    groups = all_of(workload, uneven)
    area = sum(prompt**2 + sum(length * (prompt + length) for length in lengths) for prompt, lengths in groups)
    assert counter.attention == 4 * SHAPE.layers * SHAPE.hidden * area
