"""Exports groups to TRL's columns, which both TRL and this package can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from alignkit_data import Dataset, DatasetOptions, to_trl_rows, write_parquet

from alignkit.records import Group, Prompt

if TYPE_CHECKING:
    from pathlib import Path

RANKED = Group(Prompt("p"), ("a", "b", "c"), ranks=(1, 0, 1))
CHAT = Group(Prompt.of([{"role": "user", "content": "p"}]), ("a", "b"), ranks=(1, 0), labels=(False, True))
SAMPLED = Group(Prompt("q"), ("x", "y"))
GROUPS = [RANKED, CHAT, SAMPLED]


def turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_pairs() -> None:
    assert list(to_trl_rows(GROUPS)) == [
        {"prompt": "p", "chosen": "b", "rejected": "a"},
        {"prompt": "p", "chosen": "b", "rejected": "c"},
        {"prompt": [{"role": "user", "content": "p"}], "chosen": turn("b"), "rejected": turn("a")},
    ]


def test_best_against_worst() -> None:
    three = Group(Prompt("p"), ("a", "b", "c"), ranks=(1, 2, 0))
    tied = Group(Prompt("p"), ("a", "b"), ranks=(0, 0))
    assert list(to_trl_rows([three, tied, SAMPLED], "best-worst")) == [{"prompt": "p", "chosen": "c", "rejected": "b"}]


def test_labels() -> None:
    prompt = [{"role": "user", "content": "p"}]
    assert list(to_trl_rows(GROUPS, "labels")) == [
        {"prompt": prompt, "completion": turn("a"), "label": False},
        {"prompt": prompt, "completion": turn("b"), "label": True},
    ]


def test_demonstrations() -> None:
    rows = list(to_trl_rows(GROUPS, "demonstrations"))
    assert [row["completion"] for row in rows] == ["b", turn("b"), "x", "y"]


@pytest.mark.parametrize("group", [RANKED, CHAT])
def test_parquet(tmp_path: Path, group: Group) -> None:
    path = tmp_path / "new" / "pairs.parquet"
    rows = list(to_trl_rows([group]))
    assert write_parquet(path, rows) == len(rows)
    assert [file.name for file in path.parent.iterdir()] == ["pairs.parquet"]
    read = Dataset(DatasetOptions(path=str(path))).groups()
    assert [pair.prompt for pair in read] == [group.prompt] * len(rows)
    assert [pair.responses for pair in read] == [(group.responses[i], group.responses[j]) for i, j in
                                                 group.preferred_pairs()]  # fmt: skip


def test_parquet_of_groups_with_different_fields(tmp_path: Path) -> None:
    groups = [RANKED, Group(Prompt("q"), ("x",), scores=(0.5,), source="people")]
    path = tmp_path / "groups.parquet"
    write_parquet(path, (group.to_json() for group in groups))
    read = Dataset(DatasetOptions(path=str(path))).groups()
    assert [(group.prompt, group.responses, group.ranks, group.scores, group.source) for group in read] == [
        (Prompt("p"), ("a", "b", "c"), (1, 0, 1), None, "groups.parquet"),
        (Prompt("q"), ("x",), None, (0.5,), "people"),
    ]


def test_nothing_is_left_of_a_failed_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="values of several types"):
        write_parquet(tmp_path / "mixed.parquet", to_trl_rows([RANKED, CHAT]))
    assert not list(tmp_path.iterdir())
