"""The calibration of a reward by hand and where it is known; RewardBench's sections."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from alignkit_report.measures.calibration import Pairs, of_reward

from alignkit import Group, Prompt


def logit(chance: float) -> float:
    return log(chance / (1 - chance))


def scored(prompt: str, margin: float | None, **meta: str) -> Group:
    """A pair whose second response is the better one, and scores that much more."""
    scores = (1.0, None if margin is None else 1.0 + margin)
    return Group(Prompt.of(prompt, meta=meta) if meta else Prompt.of(prompt), ("a", "b"), (1, 0), scores=scores)


def test_calibration_by_hand() -> None:
    margins = [logit(0.77), -logit(0.77), logit(0.93), logit(0.93), None]
    groups = [scored(f"p{place}", margin) for place, margin in enumerate(margins)]
    found = of_reward(Pairs.of(groups))
    assert found["pairs"] == found["accuracy"]["n"] == 4
    assert found["accuracy"]["value"] == 0.75
    assert found["brier"]["value"] == pytest.approx((0.23**2 + 0.77**2 + 2 * 0.07**2) / 4, abs=1e-4)
    assert found["calibration_error"]["value"] == pytest.approx((2 * 0.27 + 2 * 0.07) / 4, abs=1e-4)
    assert found["reliability"] == [
        {"from": 0.75, "to": 0.8, "n": 2, "said": 0.77, "right": 0.5},
        {"from": 0.9, "to": 0.95, "n": 2, "said": 0.93, "right": 1.0},
    ]
    assert "categories" not in found
    assert of_reward(Pairs.of([scored("p", None)])) == {}


def test_equal_scores_are_half_right() -> None:
    found = of_reward(Pairs.of([scored("a", 0.0), scored("b", 0.0)]))
    assert found["accuracy"]["value"] == 0.5
    assert found["brier"]["value"] == 0.25
    assert found["calibration_error"]["value"] == 0.0


def test_margins_that_are_log_odds_are_calibrated_and_larger_ones_are_not() -> None:
    draw = np.random.default_rng(0)
    odds = draw.normal(0, 2, size=1500)
    right = draw.random(1500) < 1 / (1 + np.exp(-odds))
    margins = np.where(right, odds, -odds)
    clusters = list(range(1500))
    true = of_reward(Pairs(margins, clusters, [""] * 1500))
    sure = of_reward(Pairs(3 * margins, clusters, [""] * 1500))
    assert true["calibration_error"]["value"] < 0.05
    assert sure["calibration_error"]["low"] > 0.1
    assert sure["brier"]["value"] > true["brier"]["value"] + 0.01
    assert sure["accuracy"]["value"] == true["accuracy"]["value"] == pytest.approx((margins > 0).mean(), abs=1e-4)
    inside = [abs(row["said"] - row["right"]) < 4 * (0.25 / row["n"]) ** 0.5 for row in true["reliability"]]
    assert len(inside) == 10
    assert all(inside)


def test_intervals_are_over_prompts() -> None:
    """Fifty copies of the pairs of a prompt add nothing to what is known."""
    few = of_reward(Pairs(np.array([1.0, 1.0, -1.0]), [0, 1, 2], [""] * 3))
    many = of_reward(Pairs(np.repeat([1.0, 1.0, -1.0], 50), [p for p in range(3) for _ in range(50)], [""] * 150))
    for name in ("accuracy", "brier", "calibration_error"):
        assert {**many[name], "n": 3} == few[name]
    alone = of_reward(Pairs(np.array([1.0]), [0], [""]))
    assert alone["accuracy"] == {"value": 1.0, "low": None, "high": None, "n": 1}


def subset(name: str, right: int, wrong: int) -> list[Group]:
    return [scored(f"{name} {place}", 1.0 if place < right else -1.0, subset=name) for place in range(right + wrong)]


def test_sections_are_rewardbench_s() -> None:
    groups = [
        *subset("alpacaeval-easy", 3, 1),
        *subset("mt-bench-med", 0, 2),
        *subset("donotanswer", 1, 1),
        *subset("math-prm", 2, 2),
        *subset("hep-cpp", 2, 0),
        *subset("hep-go", 0, 6),
    ]
    found = of_reward(Pairs.of(groups, "subset"))
    assert found["categories"]["hep-go"]["accuracy"]["value"] == 0.0
    assert found["categories"]["alpacaeval-easy"]["pairs"] == 4
    # Reasoning: the code subsets have 8 pairs, so math counts for 8: (8 / 2 + 2 + 0) / 16.
    assert found["sections"] == {"Chat": 0.5, "Safety": 0.5, "Reasoning": 0.375}
    assert found["mean_of_sections"] == pytest.approx((0.5 + 0.5 + 0.375) / 3, abs=1e-4)
    alone = of_reward(Pairs.of(subset("math-prm", 1, 3), "subset"))
    assert alone["sections"] == {"Reasoning": 0.25}
    strange = of_reward(Pairs.of([*groups, *subset("mine", 1, 1)], "subset"))
    assert "sections" not in strange
    assert strange["categories"]["mine"]["accuracy"]["value"] == 0.5
