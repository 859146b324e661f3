"""The plots of a report: their ticks, curves, colours and labels."""

from __future__ import annotations

import json
import re

import pytest
from alignkit_report.pages import (
    charts,
    colours,
    numbers,
    overopt,
    plain,
    series,
)


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (-0.0004, 3, "0.000"),
        (-0.0005001, 3, "\u22120.001"),
        (1234.5, 1, "1,234.5"),
        (-2.0, 0, "\u22122"),
        (0.0, 2, "0.00"),
    ],
)
def test_no_zero_has_a_sign(value: float, digits: int, shown: str) -> None:
    assert numbers.number(value, digits) == shown


def test_ticks_are_round_numbers() -> None:
    assert [text for _, text in plain.ticks(-3.0, 7.0)] == ["\u22122", "0", "2", "4", "6"]
    assert [value for value, _ in plain.ticks(0, 240, 4)] == [0, 100, 200]


def test_a_curve_is_the_mean_over_seeds_between_the_lowest_and_the_highest() -> None:
    seeds = [[{"stage": "policy", "step": step, "kl": step * factor} for step in (1, 2, 3)] for factor in (1.0, 3.0)]
    seeds[0].append({"stage": "policy", "step": 4, "kl": 8.0})
    seeds[0].append({"stage": "sft", "step": 4, "kl": 99.0})
    assert series.line(seeds, "policy", "kl") == [(1, 2, 1, 3), (2, 4, 2, 6), (3, 6, 3, 9), (4, 8, 8, 8)]
    long = [[{"stage": "policy", "step": step, "kl": float(step)} for step in range(1, 1001)]]
    points = series.line(long, "policy", "kl")
    assert len(points) == series.POINTS
    assert points[0] == (10, 5.5, 5.5, 5.5)
    assert points[-1] == (1000, 995.5, 995.5, 995.5)


def test_rollouts_figures_that_repeat_at_every_step_are_one_point() -> None:
    run = [{"stage": "policy", "step": step, "kl": kl} for step, kl in enumerate([1.0, 1.0, 1.0, 2.0, 2.0], start=1)]
    assert [point[:2] for point in series.line([run], "policy", "kl")] == [(1, 1.0), (4, 2.0), (5, 2.0)]


def test_sixty_four_policies_look_different() -> None:
    looks = [(colours.colour_of(number), colours.mark_of(number)) for number in range(65)]
    assert looks[0] == (0, 0)
    assert len(set(looks)) == 65
    assert looks[1:9] == [(place, place) for place in range(1, 9)]


def test_the_laws_of_gao() -> None:
    assert overopt.gain({"kind": "best-of-n", "alpha": 2.0, "beta": 0.5}, 3.0) == pytest.approx(3 * (2 - 1.5))
    assert overopt.gain({"kind": "rl", "alpha": 2.0, "beta": 0.5}, 3.0) == pytest.approx(
        3 * (2 - 0.5 * 1.0986123), abs=1e-6
    )
    assert overopt.gain({"kind": "rl", "alpha": 2.0, "beta": 0.5}, 0.0) == 0.0


def test_names_of_points_that_are_close_don_t_overlap() -> None:
    rows = [{"policy": name, "x": 1.0 + far, "y": 1.0, "pareto": True} for name, far in (("a", 0), ("b", 0), ("c", 9))]
    drawn = json.dumps(charts.tradeoff(rows, {"a": 1, "b": 2, "c": 3}, ("x", "y"), charts.NARROW).to_dict())
    heights = sorted(float(y) for y in re.findall(r'"py": ([\d.]+)', drawn))
    assert [round(one - heights[0]) for one in heights] == [0, 0, charts.LABEL_HEIGHT]
    assert '"domain": [-0.6, 10.6]' in drawn, "both ends have room, and a price of 0 is shown"
