"""GroupBatch against a plain nested-list reading of the same batch, written here without any of its methods."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any

import pytest
import torch

from alignkit.batch import GroupBatch, Totals
from alignkit.records import Group, Prompt
from alignkit.testing import near
from alignkit.testing.material import differing_fields

TOKEN_FIELDS = ("logprobs", "ref_logprobs", "values", "advantages", "returns", "token_rewards")


def small() -> GroupBatch:
    """Two prompts [1 2 3], [4]; responses [10 11], [12] and [13 14 15]; the last one is cut off."""
    groups = [
        Group(Prompt.of("p"), ("a", "b"), ranks=(1, 0), labels=(False, True), scores=(0.25, 0.5)),
        Group(Prompt.of("q"), ("c",), ranks=(0,), labels=(True,)),
    ]
    return GroupBatch.from_ids(
        [[1, 2, 3], [4]], [[[10, 11], [12]], [[13, 14, 15]]], groups, finished=[True, True, False], temperature=0.7
    )


def random_batch(seed: int, *, most_groups: int = 7) -> GroupBatch:
    """A batch of random sizes with every field set; response tokens are numbered, so that each is told apart."""
    rng = random.Random(seed)
    sizes = [rng.randint(1, 5) for _ in range(rng.randint(1, most_groups))]
    groups, prompts, responses, token = [], [], [], 1000
    for g, size in enumerate(sizes):
        prompts.append([100 * g + i for i in range(rng.randint(0, 9))])
        rows = []
        for _ in range(size):
            length = rng.randint(1, 8)
            rows.append(list(range(token, token + length)))
            token += length
        responses.append(rows)
        texts = tuple(f"{g}.{k}" for k in range(size))
        ranks = tuple(rng.randint(0, 2) for _ in texts)
        groups.append(Group(Prompt.of(f"prompt {g}"), texts, ranks=ranks, labels=tuple(r > 0 for r in ranks)))
    count = sum(sizes)
    batch = GroupBatch.from_ids(prompts, responses, groups, finished=[rng.random() < 0.5 for _ in range(count)])
    offsets = {name: 0.5 * (i + 1) for i, name in enumerate(TOKEN_FIELDS)}
    columns = {name: batch.response_ids * 2.0 + offset for name, offset in offsets.items()}
    return batch.replace(rewards=torch.arange(count) / 4, **columns)


Row = tuple[Any, ...]


def rows_of(batch: GroupBatch) -> list[tuple[str, tuple[int, ...], list[Row]]]:
    """(prompt text, prompt tokens, [everything known about a response]) of each group, by counting along the axes."""
    read, prompt_at, response_at, token_at = [], 0, 0, 0
    owner = batch.group_index.tolist()
    for g, group in enumerate(batch.groups):
        prompt_end = prompt_at + int(batch.prompt_lengths[g])
        rows: list[Row] = []
        for text in group.responses:
            assert owner[response_at] == g
            token_end = token_at + int(batch.lengths[response_at])
            tokens = slice(token_at, token_end)
            columns = [getattr(batch, name) for name in ("response_ids", *TOKEN_FIELDS)]
            whole = [getattr(batch, name) for name in ("finished", "ranks", "labels", "rewards")]
            rows.append(
                (
                    text,
                    *(None if column is None else tuple(column[tokens].tolist()) for column in columns),
                    *(None if column is None else column[response_at].item() for column in whole),
                )
            )
            response_at, token_at = response_at + 1, token_end
        read.append((group.prompt.plain, tuple(batch.prompt_ids[prompt_at:prompt_end].tolist()), rows))
        prompt_at = prompt_end
    assert (prompt_at, response_at, token_at) == (len(batch.prompt_ids), len(batch.lengths), len(batch.response_ids))
    return read


def responses_of(parts: list[GroupBatch]) -> list[tuple[str, tuple[int, ...], Row]]:
    return sorted((prompt, ids, row) for part in parts for prompt, ids, rows in rows_of(part) for row in rows)


def test_layout_by_hand() -> None:
    batch = small()
    assert batch.prompt_ids.tolist() == [1, 2, 3, 4]
    assert batch.prompt_lengths.tolist() == [3, 1]
    assert batch.response_ids.tolist() == [10, 11, 12, 13, 14, 15]
    assert batch.lengths.tolist() == [2, 1, 3]
    assert batch.group_index.tolist() == [0, 0, 1]
    assert batch.finished.tolist() == [True, True, False]
    assert batch.ranks is not None
    assert batch.labels is not None
    assert batch.ranks.tolist() == [1, 0, 0]
    assert batch.labels.tolist() == [False, True, True]
    assert (batch.num_groups, batch.num_responses, batch.num_tokens) == (2, 3, 6)
    assert batch.response_index.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.first_token.tolist() == [0, 2, 3]
    assert batch.last_token.tolist() == [1, 2, 5]
    assert batch.group_sizes.tolist() == [2, 1]
    assert batch.temperature == 0.7
    assert batch.device == torch.device("cpu")


def test_ids_are_long_and_flags_are_boolean() -> None:
    batch = small()
    for name in ("prompt_ids", "prompt_lengths", "response_ids", "lengths", "group_index", "ranks"):
        assert getattr(batch, name).dtype == torch.long, name
    assert batch.finished.dtype == torch.bool
    assert batch.labels is not None
    assert batch.labels.dtype == torch.bool


def test_an_empty_prompt_is_allowed() -> None:
    batch = GroupBatch.from_ids([[]], [[[5]]], [Group(Prompt.of(""), ("x",))])
    assert batch.prompt_ids.dtype == torch.long
    assert batch.prompt_lengths.tolist() == [0]
    assert rows_of(batch.select([0]))[0][1] == ()


def test_records_are_finished_unless_said_otherwise() -> None:
    assert GroupBatch.from_ids([[1]], [[[2], [3]]], [Group(Prompt.of("p"), ("a", "b"))]).finished.tolist() == [True] * 2


def test_feedback_is_taken_only_where_all_groups_have_it() -> None:
    groups = [Group(Prompt.of("p"), ("a",), ranks=(0,), labels=(True,)), Group(Prompt.of("q"), ("b",), ranks=(0,))]
    batch = GroupBatch.from_ids([[1], [2]], [[[3]], [[4]]], groups)
    assert batch.ranks is not None
    assert batch.labels is None


def test_from_ids_refuses_what_does_not_fit() -> None:
    group = Group(Prompt.of("p"), ("a", "b"))
    with pytest.raises(ValueError, match="stop token"):
        GroupBatch.from_ids([[1]], [[[2], []]], [group])
    with pytest.raises(ValueError, match="don't match"):
        GroupBatch.from_ids([[1]], [[[2]]], [group])
    with pytest.raises(ValueError, match="don't match"):
        GroupBatch.from_ids([[1], [2]], [[[2], [3]]], [group])
    with pytest.raises(ValueError, match="don't match"):
        GroupBatch.from_ids([[1]], [[[2], [3]], [[4]]], [group])
    with pytest.raises(ValueError, match="1 finished flags for 2 responses"):
        GroupBatch.from_ids([[1]], [[[2], [3]]], [group], finished=[True])


def test_sums_by_hand() -> None:
    batch = small()
    x = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    assert batch.sum_by_response(x).tolist() == [3.0, 4.0, 56.0]
    assert batch.sum_by_group(torch.tensor([3, 4, 56])).tolist() == [7, 56]
    assert batch.sum_by_response(x.double()).dtype == torch.float64


def test_means_divide_by_the_step() -> None:
    batch = small()
    x = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    assert batch.token_mean(x).item() == near(63 / 6, terms=6)
    assert batch.response_mean(x[:3]).item() == near(7 / 3, terms=3)
    assert batch.group_mean(x[:2]).item() == near(3 / 2, terms=2)
    step = batch.replace(totals=Totals(tokens=12.0, responses=5.0, groups=4.0))
    assert step.token_mean(x).item() == near(63 / 12, terms=6)
    assert step.response_mean(x[:3]).item() == near(7 / 5, terms=3)
    assert step.group_mean(x[:2]).item() == near(3 / 4, terms=2)
    assert batch.counts() == step.counts() == Totals(6.0, 3.0, 2.0)


def test_sums_carry_gradients_to_their_own_tokens() -> None:
    x = torch.zeros(6, requires_grad=True)
    (small().sum_by_response(x) * torch.tensor([1.0, 10.0, 100.0])).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 10, 100, 100, 100]


def test_replace_leaves_the_original() -> None:
    batch = small()
    changed = batch.replace(logprobs=torch.zeros(6), temperature=1.0)
    assert batch.logprobs is None
    assert batch.temperature == 0.7
    assert changed.response_ids is batch.response_ids


@pytest.mark.parametrize("seed", range(10))
def test_select_takes_groups_in_the_order_asked_for(seed: int) -> None:
    batch = random_batch(seed)
    rows = rows_of(batch)
    chosen = list(range(batch.num_groups))
    random.Random(seed).shuffle(chosen)
    chosen = chosen[: 1 + len(chosen) // 2]
    assert rows_of(batch.select(chosen)) == [rows[g] for g in chosen]
    assert rows_of(batch) == rows


def test_select_may_repeat_a_group() -> None:
    batch = random_batch(3)
    rows = rows_of(batch)
    assert rows_of(batch.select([1, 0, 1])) == [rows[1], rows[0], rows[1]]


def test_selecting_nothing_gives_an_empty_batch() -> None:
    batch = random_batch(0)
    for empty in (batch.select([]), batch.select_responses(torch.zeros(batch.num_responses, dtype=torch.bool))):
        assert (empty.num_groups, empty.num_responses, empty.num_tokens) == (0, 0, 0)
        assert empty.prompt_ids.numel() == 0


def test_selecting_drops_the_totals() -> None:
    batch = random_batch(0).replace(totals=Totals(1.0, 1.0, 1.0))
    assert batch.select([0]).totals is None
    assert batch.select_responses(torch.ones(batch.num_responses, dtype=torch.bool)).totals is None


@pytest.mark.parametrize("seed", range(10))
def test_select_responses_trims_groups_and_drops_empty_ones(seed: int) -> None:
    batch = random_batch(seed)
    rng = random.Random(seed)
    keep = [rng.random() < 0.5 for _ in range(batch.num_responses)]
    flags = iter(keep)
    expected = [(prompt, ids, [row for row in rows if next(flags)]) for prompt, ids, rows in rows_of(batch)]
    assert rows_of(batch.select_responses(torch.tensor(keep))) == [row for row in expected if row[2]]


def test_a_trimmed_group_keeps_its_feedback_in_step() -> None:
    trimmed = small().select_responses(torch.tensor([False, True, True])).groups
    assert trimmed[0] == Group(Prompt.of("p"), ("b",), ranks=(0,), labels=(True,), scores=(0.5,))
    assert trimmed[1] is not None
    assert trimmed[1] == small().groups[1]


@pytest.mark.parametrize("divisible", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 8, 13, 25, 60, 10_000])
@pytest.mark.parametrize("seed", range(6))
def test_split_gives_every_response_once_within_the_budget(seed: int, max_tokens: int, divisible: bool) -> None:
    batch = random_batch(seed)
    parts = batch.split(max_tokens, divisible=divisible)
    assert responses_of(parts) == responses_of([batch])
    for part in parts:
        cost = len(part.prompt_ids) + len(part.response_ids)
        alone = part.num_responses == 1 if divisible else part.num_groups == 1
        assert cost <= max_tokens or alone
        assert part.num_groups > 0


@pytest.mark.parametrize("seed", range(6))
def test_split_keeps_groups_whole_unless_they_are_divisible(seed: int) -> None:
    batch = random_batch(seed)
    whole = sorted(rows_of(batch))
    assert sorted(row for part in batch.split(1) for row in rows_of(part)) == whole
    assert all(part.num_responses == 1 for part in batch.split(1, divisible=True))
    roomy = max(len(ids) + sum(len(row[1]) for row in rows) for _, ids, rows in whole)
    assert sorted(row for part in batch.split(roomy, divisible=True) for row in rows_of(part)) == whole


def test_split_puts_the_longest_groups_first_and_prompts_once() -> None:
    lengths = [2, 9, 5, 9]
    groups = [Group(Prompt.of(str(g)), ("x",)) for g in range(4)]
    batch = GroupBatch.from_ids([[0]] * 4, [[[1] * length] for length in lengths], groups)
    parts = batch.split(10)
    assert [[group.prompt.plain for group in part.groups] for part in parts] == [["1"], ["3"], ["2", "0"]]
    one_prompt = GroupBatch.from_ids([[0] * 6], [[[1] * 3, [1] * 3]], [Group(Prompt.of("p"), ("x", "y"))])
    assert len(one_prompt.split(12, divisible=True)) == 1
    assert [part.prompt_ids.tolist() for part in one_prompt.split(11, divisible=True)] == [[0] * 6] * 2


def test_an_empty_batch_splits_into_nothing_to_do() -> None:
    empty = random_batch(0).select([])
    for divisible in (False, True):
        assert empty.split(10, divisible=divisible) == []


@pytest.mark.parametrize("divisible", [False, True])
def test_split_passes_the_totals_on(divisible: bool) -> None:
    batch = random_batch(1)
    assert {part.totals for part in batch.split(9, divisible=divisible)} == {batch.counts()}
    totals = Totals(1000.0, 100.0, 10.0)
    assert {part.totals for part in batch.replace(totals=totals).split(9, divisible=divisible)} == {totals}


@pytest.mark.parametrize("seed", range(6))
def test_means_over_micro_batches_sum_to_those_of_the_step(seed: int) -> None:
    batch = random_batch(seed)
    assert batch.values is not None
    assert batch.rewards is not None
    token_mean = sum(batch.values.tolist()) / batch.num_tokens
    response_mean = sum(batch.rewards.tolist()) / batch.num_responses
    for max_tokens in (1, 20, 1000):
        parts = batch.split(max_tokens, divisible=True)
        found = sum(p.token_mean(p.values).item() for p in parts if p.values is not None)
        assert found == near(token_mean, terms=batch.num_tokens, scale=float(batch.values.abs().max()))
        found = sum(p.response_mean(p.rewards).item() for p in parts if p.rewards is not None)
        assert found == near(response_mean, terms=batch.num_responses, scale=float(batch.rewards.abs().max()))
        whole = batch.split(max_tokens)
        assert sum(p.group_mean(p.group_sizes.double()).item() for p in whole) == pytest.approx(
            batch.num_responses / batch.num_groups
        )


@pytest.mark.parametrize("seed", range(6))
def test_split_does_not_depend_on_the_order_of_equal_work(seed: int) -> None:
    batch = random_batch(seed)
    order = list(range(batch.num_groups))
    random.Random(seed).shuffle(order)

    def sizes(parts: list[GroupBatch]) -> list[tuple[int, int]]:
        return [(len(part.prompt_ids) + len(part.response_ids), part.num_groups) for part in parts]

    assert sizes(batch.split(25)) == sizes(batch.select(order).split(25))


@pytest.mark.parametrize("seed", range(6))
def test_concat_puts_a_split_together_again(seed: int) -> None:
    batch = random_batch(seed)
    joined = GroupBatch.concat(batch.split(20))
    assert sorted(rows_of(joined)) == sorted(rows_of(batch))
    assert joined.totals is None
    in_order = GroupBatch.concat([batch.select([g]) for g in range(batch.num_groups)])
    assert differing_fields(in_order, batch) == []


def test_concat_drops_what_one_batch_lacks_and_refuses_other_temperatures() -> None:
    batch = random_batch(2)
    joined = GroupBatch.concat([batch, batch.replace(values=None)])
    assert joined.values is None
    assert joined.logprobs is not None
    assert joined.num_groups == 2 * batch.num_groups
    with pytest.raises(ValueError, match="temperatures"):
        GroupBatch.concat([batch, batch.replace(temperature=0.5)])


def test_to_moves_every_tensor() -> None:
    batch = random_batch(0)
    moved = batch.to("meta")
    for field in fields(batch):
        value = getattr(moved, field.name)
        if isinstance(value, torch.Tensor):
            assert value.device.type == "meta", field.name
    assert batch.device.type == "cpu"
    assert moved.groups == batch.groups
