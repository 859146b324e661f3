"""Rollouts are scored and prepared in equal shares of tokens, whatever the number of prompts in a share."""

from __future__ import annotations

import random

import pytest

from alignkit import Group, GroupBatch, Prompt
from alignkit.errors import StoppedByCheck
from alignkit.training import processes
from alignkit.training.processes import evenly, runs_of_equal_cost


@pytest.mark.parametrize(
    ("costs", "count", "ends"),
    [
        ([1, 1, 1, 9], 2, [3, 4]),
        ([9, 1, 1, 1], 2, [1, 4]),
        ([9, 1, 1, 1], 4, [1, 2, 3, 4]),
        ([1, 1, 1, 9], 3, [2, 3, 4]),
        ([4, 4, 4, 4, 4, 4], 3, [2, 4, 6]),
        ([2, 2, 2, 6, 6], 3, [3, 4, 5]),
        ([7], 1, [1]),
    ],
)
def test_runs_cost_about_the_same(costs: list[int], count: int, ends: list[int]) -> None:
    found = runs_of_equal_cost(costs, count)
    assert [run.stop for run in found] == ends
    assert [run.start for run in found] == [0, *ends[:-1]]


def test_no_run_is_empty_or_costs_a_thing_more_than_its_share() -> None:
    draw = random.Random(3)
    for _ in range(300):
        count = draw.randint(1, 8)
        costs = [draw.randint(1, 50) for _ in range(draw.randint(count, 40))]
        found = runs_of_equal_cost(costs, count)
        assert [place for run in found for place in run] == list(range(len(costs)))
        assert len(found) == count and all(found)
        assert max(sum(costs[place] for place in run) for run in found) <= sum(costs) / count + max(costs)


def batch(*lengths: int) -> GroupBatch:
    """A prompt of one token with a response, for each length."""
    groups = [Group(Prompt(text=str(length)), ("a",)) for length in lengths]
    return GroupBatch.from_ids([[1]] * len(lengths), [[[2] * length] for length in lengths], groups)


def as_process(patch: pytest.MonkeyPatch, number: int, parts: list[GroupBatch]) -> None:
    patch.setattr(processes, "num_processes", lambda: len(parts))
    patch.setattr(processes, "process_index", lambda: number)
    patch.setattr(processes, "from_all_processes", lambda _: parts)


def test_each_process_gets_as_many_tokens_and_all_together_the_same_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [batch(29, 1, 1), batch(1, 9, 9)]
    found = []
    for number in (0, 1):
        as_process(monkeypatch, number, parts)
        found.append(evenly(parts[number]))
    assert [[group.prompt.text for group in one.groups] for one in found] == [["29"], ["1", "1", "1", "9", "9"]]
    assert [one.num_tokens + one.num_groups for one in found] == [30, 26]


def test_fewer_prompts_than_processes_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [batch(3), batch(4).select([])]
    as_process(monkeypatch, 0, parts)
    with pytest.raises(StoppedByCheck, match="only 1 prompts have scores, for 2 processes"):
        evenly(parts[0])
