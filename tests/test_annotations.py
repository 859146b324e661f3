"""Single verdicts on a record: there and back, by response, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alignkit.preferences.annotations import Annotation, annotations_of, with_annotations
from alignkit.records import Group, Prompt

TWO = [
    Annotation("anna", (1, 0, 1), "human", order=(2, 0, 1), seconds=4.5),
    Annotation("judge", None, "ai", reason="no verdict"),
]


def group(**fields: Any) -> Group:
    return Group(Prompt.of("p"), ("a", "b", "c"), **fields)


def test_they_survive_the_file() -> None:
    written = json.loads(json.dumps(with_annotations(group(ranks=(1, 0, 1)), TWO).to_json()))
    assert written["meta"]["annotations"] == [
        {"annotator": "anna", "ranks": [1, 0, 1], "kind": "human", "order": [2, 0, 1], "seconds": 4.5},
        {"annotator": "judge", "ranks": None, "kind": "ai", "reason": "no verdict"},
    ]
    assert annotations_of(Group.from_json(written)) == TWO


def test_ranks_without_annotations_are_the_sources() -> None:
    assert annotations_of(group(ranks=(0, 1, 2), source="file")) == [Annotation("file", (0, 1, 2))]
    assert annotations_of(group(ranks=(0, 1, 2))) == []
    assert annotations_of(group(source="file")) == []


def test_a_verdict_on_two_of_the_responses() -> None:
    assert [TWO[0].verdict(*pair) for pair in ((0, 1), (1, 2), (0, 2), (1, 0))] == [2, 1, 0, 1]
    assert TWO[1].verdict(0, 1) is None


def test_responses_that_are_taken_out_take_their_verdicts_with_them() -> None:
    anna, judge = annotations_of(with_annotations(group(ranks=(1, 0, 1)), TWO).choose([2, 1]))
    assert (anna.ranks, anna.order) == ((1, 0), (0, 1))
    assert judge.ranks is None


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ([{"annotator": "a", "ranks": [0, 1]}], "2 ranks by a for 3"),
        ([{"annotator": "a", "ranks": [0, 1, 2], "order": [0, 1]}], "2 order by a"),
        ([{"annotator": "a", "ranks": [0, 1, 2], "order": [0, 1, 1]}], "each response once"),
        ([{"annotator": "a", "ranks": [0.5, 1, 2]}], "integers from 0"),
        ([{"annotator": "a", "ranks": [0, 1, 2], "kind": "dog"}], "kind"),
        ([{"ranks": [0, 1, 2]}], "not a list of"),
        ({"a": 1}, "not a list of"),
    ],
)
def test_what_is_no_annotation(field: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        annotations_of(group(meta={"annotations": field}))
