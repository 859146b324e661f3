"""What AIs' labels are worth, in a run's summary and on its page, and what a reward model's figure is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from alignkit_report.run_report import write_report

from alignkit import Group, Prompt, RewardSource
from alignkit.preferences import (
    Annotation,
    agreement_with_people,
    panel_verdict,
    random_person,
    ranked_by_ai,
    with_annotations,
)
from alignkit.runs.history import History
from alignkit.runs.results import Run, worth_of_labels
from alignkit.runs.stages import ranking_report

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RANKS = {0: (0, 0), 1: (0, 1), 2: (1, 0), None: None}


def judged(prompt: str, *said: tuple[str, Any], **meta: Any) -> Group:
    """(name, verdict) of people (h...) and AIs (a...)."""
    kinds: dict[str, Any] = {"h": "human", "a": "ai"}
    notes = [Annotation(name, RANKS[verdict], kinds[name[0]]) for name, verdict in said]
    return with_annotations(Group(Prompt.of(prompt), ("xx", "y"), (0, 1), meta=meta), notes)


@pytest.mark.parametrize(
    ("looks", "verdict"),
    [
        ([[1]], 1),
        ([[1, 1]], 1),
        ([[1, 2]], 0),
        ([[1, 0]], 0),
        ([[1, None]], None),
        ([[1, 1], [1], [2]], 1),
        ([[1], [2]], 0),
        ([[1, None], [2]], 2),
        ([], None),
        ([[], [2, 2]], 2),
    ],
)
def test_the_verdict_of_a_panel(looks: list[list[int | None]], verdict: int | None) -> None:
    assert panel_verdict(looks) == verdict


def test_agreement_with_a_random_person_by_hand() -> None:
    """1 of 1; 1 of 2; a tie by disagreement, 0 of 1; an abstention, 0 of 1; nobody; no AI."""
    groups = [
        judged("a", ("a", 1), ("h1", 1)),
        judged("b", ("a", 1), ("h1", 1), ("h2", 2)),
        judged("c", ("a", 1), ("a", 2), ("h1", 1)),
        judged("d", ("a", None), ("h1", 1)),
        judged("e", ("a", 1), ("h1", None)),
        judged("f", ("h1", 1)),
        Group(Prompt.of("g"), ("xx", "y"), meta={"annotations": "of another kind"}),
    ]
    found = agreement_with_people(groups)
    assert (found.hits, found.n) == (1.5, 4)
    # Wilson: (0.375 + 0.480 +- 1.96 * sqrt(0.375 * 0.625 / 4 + 3.841 / 64)) / 1.960.
    assert str(found) == "38% of 4 [9, 78]"
    assert random_person(None, [1]) == 0


def test_who_ranked() -> None:
    assert ranked_by_ai(judged("a", ("a", 1)))
    assert not ranked_by_ai(judged("a", ("a", 1), ("h1", 1)))
    assert ranked_by_ai(judged("a", ("a", 1), ("h1", 1), ranks_by="ai"))
    assert not ranked_by_ai(Group(Prompt.of("a"), ("x", "y"), (0, 1), source="pairs"))
    assert not ranked_by_ai(Group(Prompt.of("a"), ("x", "y"), (0, 1), meta={"annotations": 3}))


class Longer(RewardSource[Any]):
    """The longer response is better."""

    def score(self, groups: Sequence[Group]) -> list[list[float | None]]:
        return [[float(len(text)) for text in group.responses] for group in groups]


def test_a_reward_model_that_only_an_ai_taught_has_no_accuracy(tmp_path: Path) -> None:
    by_ai = [judged(name, ("a", 1)) for name in "abcd"]
    alone = ranking_report(Longer(), by_ai, History())
    assert alone["agreement_with_ai"]["value"] == 1.0
    assert "accuracy" not in alone
    mixed = ranking_report(Longer(), [*by_ai, judged("e", ("h1", 1))], History())
    assert mixed["accuracy"]["value"] == 1.0
    assert "agreement_with_ai" not in mixed
    (tmp_path / "recipe.toml").write_text("")
    summary: dict[str, Any] = {"preferences": {"worth": "nobody has checked <these>"}, "reward": alone}
    said = worth_of_labels(summary)
    assert said == (
        "preferences: nobody has checked <these>. The reward model agrees with the AI on 100.0% of its pairs, which is"
        " no accuracy"
    )
    page = write_report(Run(tmp_path, stages=summary)).read_text(encoding="utf-8")
    assert "nobody has checked &lt;these&gt;" in page
    assert ">agreement with the AI</th>" in page
    assert "the AI that ranked them, which is no accuracy" in page
    page = write_report(Run(tmp_path, stages={"reward": mixed})).read_text(encoding="utf-8")
    assert ">accuracy</th>" in page
    assert worth_of_labels({"reward": mixed, "sft": {}}) == ""
