"""Packed attention against plain attention of each sequence on its own, in float64; and the layout by hand."""

from __future__ import annotations

import pytest
import torch
from alignkit_hf.kernels import attention, flex
from alignkit_hf.kernels.attention import AttentionRule, packed_attention
from alignkit_hf.kernels.packed_layout import PackedLayout

from alignkit.batch import GroupBatch
from alignkit.records import Group, Prompt
from alignkit.testing import ELEMENTARY, assert_near

PROMPTS, RESPONSES = [[5, 6, 7], [8]], [[[10, 11], [12]], [[13, 14, 15]]]
RULES = {
    "plain": AttentionRule(),
    "scale": AttentionRule(scale=0.7),
    "window": AttentionRule(window=3),
    "window of one": AttentionRule(window=1),
    "soft cap": AttentionRule(softcap=1.5),
    "sinks": AttentionRule(sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
    "all": AttentionRule(scale=0.7, window=2, softcap=1.5, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
}


def batch() -> GroupBatch:
    groups = [Group(prompt=Prompt(text="x"), responses=("y",) * len(rows)) for rows in RESPONSES]
    return GroupBatch.from_ids(PROMPTS, RESPONSES, groups)


def test_the_layout_by_hand() -> None:
    layout = PackedLayout.of(batch())
    assert layout.input_ids.tolist() == [5, 6, 7, 10, 11, 12, 8, 13, 14, 15]
    assert layout.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2, 3]
    assert layout.lengths == (3, 2, 1, 1, 3)
    assert layout.responses == (2, 1)
    assert layout.predict_index.tolist() == [2, 3, 2, 6, 7, 8]
    assert layout.last_index.tolist() == [4, 5, 9]
    assert layout.group_lengths() == [6, 4]


def test_prompts_alone() -> None:
    layout = PackedLayout.of_prompts(PROMPTS, torch.device("cpu"))
    assert layout.input_ids.tolist() == [5, 6, 7, 8]
    assert layout.position_ids.tolist() == [0, 1, 2, 0]
    assert layout.lengths == (3, 1)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        PackedLayout.of_prompts([[1], []], torch.device("cpu"))


def one_by_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: AttentionRule) -> torch.Tensor:
    """Each sequence's tokens picked by hand, every pair scored in a loop."""
    sequences = [[0, 1, 2, 3, 4], [0, 1, 2, 5], [6, 7, 8, 9]]
    out = torch.zeros(1, query.shape[1], 10, value.shape[3], dtype=query.dtype)
    repeats = query.shape[1] // key.shape[1]
    for tokens in sequences:
        for place, token in enumerate(tokens):
            seen = tokens[: place + 1]
            if rule.window is not None:
                seen = seen[-rule.window :]
            for head in range(query.shape[1]):
                scores = key[0, head // repeats, seen] @ query[0, head, token]
                scores = scores * (query.shape[3] ** -0.5 if rule.scale is None else rule.scale)
                if rule.softcap is not None:
                    scores = rule.softcap * torch.tanh(scores / rule.softcap)
                weights = scores.exp()
                total = weights.sum() + (0 if rule.sinks is None else rule.sinks[head].exp())
                out[0, head, token] = weights @ value[0, head // repeats, seen] / total
    return out


@pytest.mark.parametrize("call_cost", [0, 10**9], ids=["by-segment", "by-padded-group"])
@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
@pytest.mark.parametrize("key_heads", [4, 2])
def test_packed_attention_equals_single_sequences(
    rule: AttentionRule, key_heads: int, call_cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "CALL_COST", call_cost)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, 10, size, generator=generator, dtype=torch.float64).requires_grad_()
        for heads, size in ((4, 8), (key_heads, 8), (key_heads, 6))
    )
    out = packed_attention(query, key, value, PackedLayout.of(batch()), rule)
    expected = one_by_one(query, key, value, rule)
    # soft caps and sinks are computed in float32: the products of 8 numbers, tanh, exp and the sum over 5 tokens
    terms, dtype = 8 + 2 * ELEMENTARY + 5, torch.float64 if rule.is_plain else torch.float32
    assert_near(out, expected, terms=terms, dtype=dtype)
    weights = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    got, wanted = (torch.autograd.grad((x * weights).sum(), (query, key, value)) for x in (out, expected))
    assert_near(got, wanted, terms=2 * terms, dtype=dtype)


def test_low_precision_on_a_cpu_is_computed_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 10, 8, generator=generator).bfloat16() for _ in range(3))
    layout = PackedLayout.of(batch())
    exact = packed_attention(query.float(), key.float(), value.float(), layout, AttentionRule())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = packed_attention(query.float(), key.float(), value, layout, AttentionRule())
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, exact.bfloat16())


def test_the_way_is_chosen_by_the_work_that_padding_adds() -> None:
    def pays(prompts: list[int], responses: list[list[int]]) -> bool:
        groups = [Group(prompt=Prompt(text="x"), responses=("y",) * len(rows)) for rows in responses]
        ids = [[3] * length for length in prompts], [[[3] * length for length in rows] for rows in responses]
        return attention._padding_pays(PackedLayout.of(GroupBatch.from_ids(*ids, groups)), "cpu")

    assert pays([20] * 8, [[15, 20]] * 8)
    assert not pays([20] * 40 + [3000], [[15, 20]] * 41)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 40])
def test_the_block_mask_of_flex_attention_is_that_of_the_segments(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flex attention without compilation, on a CPU, over several blocks."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setitem(flex._COMPILED, "flex", flex_attention)
    lengths = [(150, [70, 1, 200]), (3, [5]), (129, [128, 127]), (20, [300])]
    groups = [Group(prompt=Prompt(text="x"), responses=("y",) * len(rows)) for _, rows in lengths]
    prompts = [[3] * prompt for prompt, _ in lengths]
    layout = PackedLayout.of(GroupBatch.from_ids(prompts, [[[4] * n for n in rows] for _, rows in lengths], groups))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, layout.num_tokens, 16, generator=generator) for heads in (4, 2, 2))
    out = flex.block_sparse_attention(query, key, value, layout, scale=None, window=window)
    assert out is not None
    expected = packed_attention(query, key, value, layout, AttentionRule(window=window))
    assert_near(out, expected, terms=16 + ELEMENTARY + 350)
    blocks = flex.block_mask(layout, window)
    dense = blocks.to_dense()[0, 0]
    places = torch.arange(layout.num_tokens)
    seen = layout.visible(places[:, None], places[None], window)
    assert not dense.triu(1).any()
    assert dense.sum() < 0.8 * dense.numel() / 2, "hardly a block is skipped"
    for q, k in (dense == 0).nonzero().tolist():
        assert not seen[q * 128 : q * 128 + 128, k * 128 : k * 128 + 128].any()


def test_where_the_compiler_fails_the_padded_attention_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no triton")

    monkeypatch.setitem(flex._COMPILED, "flex", broken)
    monkeypatch.setattr(flex, "_FAILED", set())
    monkeypatch.setattr(flex, "serves", lambda query, value: True)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 10, 16, generator=generator) for _ in range(3))
    out = packed_attention(query, key, value, PackedLayout.of(batch()), AttentionRule())
    assert_near(out, one_by_one(query, key, value, AttentionRule()), terms=16 + ELEMENTARY + 5)
    assert {"RuntimeError"} == flex._FAILED
