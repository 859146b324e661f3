"""Agreement of annotators against published examples, and its intervals."""

from __future__ import annotations

import random

import pytest
from alignkit_report.agreement import krippendorff_alpha, ordinal, raw_agreement


def units(*rows: str) -> list[list[str | None]]:
    """Columns of a reliability matrix: one row an annotator, `.` where a value is missing."""
    return [[None if value == "." else value for value in column] for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    ("rows", "alpha"),
    [
        # Krippendorff (2011), sections A to C.
        (("0100000010", "1110010000"), 0.095),
        (("aabbdcccedda", "babbbccceddd"), 0.692),
        (("123321412...", "1233224125.3", ".3332342251.", "12332441251."), 0.743),
    ],
)
def test_alpha_of_krippendorffs_own_examples(rows: tuple[str, ...], alpha: float) -> None:
    found = krippendorff_alpha(units(*rows))
    assert found is not None
    assert found.value == pytest.approx(alpha, abs=0.0005)


def test_ordinal_alpha_of_krippendorffs_own_example() -> None:
    """The same paper, section D: four observers, five ordered values, missing data."""
    found = krippendorff_alpha(units("123321412...", "1233224125.3", ".3332342251.", "12332441251."), distance=ordinal)
    assert found is not None
    assert found.value == pytest.approx(0.815, abs=0.0005)


def test_alpha_where_it_is_not_defined() -> None:
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha([[1, None], [None, 2]]) is None
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    full = krippendorff_alpha([[1, 1], [2, 2]])
    assert full is not None
    assert full.value == 1


def test_cohens_kappa_by_hand() -> None:
    """50 cases: both yes 20, both no 15, 5 and 10 apart. By chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5; (0.7 - 0.5) / 0.5."""
    cases = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    found = raw_agreement(cases)
    assert found is not None
    assert (found.n, found.observed, found.kappa) == (50, 0.7, pytest.approx(0.4, abs=1e-12))


def test_kappa_of_three_verdicts_by_hand() -> None:
    """Rows of one, columns of the other: [[3, 1, 0], [1, 2, 1], [0, 0, 2]]. Observed 7 / 10, expected
    (4 * 4 + 4 * 3 + 2 * 3) / 100."""
    table = [[3, 1, 0], [1, 2, 1], [0, 0, 2]]
    cases = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    found = raw_agreement(cases)
    assert found is not None
    assert found.kappa == pytest.approx((0.7 - 0.34) / 0.66, abs=1e-12)


def test_agreement_where_nothing_can_be_said() -> None:
    assert raw_agreement([]) is None
    found = raw_agreement([(1, 1), (1, 1)])
    assert found is not None
    assert (found.observed, found.kappa) == (1.0, None)


def test_the_interval_of_an_agreement_is_that_of_a_share() -> None:
    """400 independent cases, 80% alike: the normal interval is 0.8 +- 1.96 * 0.02."""
    found = raw_agreement([(1, 1)] * 160 + [(2, 2)] * 160 + [(1, 2)] * 40 + [(2, 1)] * 40)
    assert found is not None
    assert found.observed_interval == pytest.approx((0.7608, 0.8392), abs=0.006)
    # The kappa of two balanced annotators is 2 * observed - 1.
    assert found.kappa_interval == pytest.approx((0.5216, 0.6784), abs=0.012)


def test_cases_of_one_prompt_count_as_one() -> None:
    """100 cases in 100 prompts or in 4: the interval of 4 prompts that are all alike or all different is far wider."""
    cases = [(1, 1)] * 50 + [(1, 2)] * 25 + [(2, 2)] * 25
    alone = raw_agreement(cases)
    few = raw_agreement(cases, [number // 25 for number in range(100)])
    assert alone is not None
    assert few is not None
    assert alone.observed == few.observed == 0.75
    assert alone.observed_interval == pytest.approx((0.665, 0.835), abs=0.02)
    assert few.observed_interval == (0.25, 1.0)
    one = raw_agreement(cases, ["p"] * 100)
    assert one is not None
    assert one.observed_interval is None


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Simulated: two annotators who agree in 70% of cases, 60 cases each time; 95% of 200 intervals, give or take."""
    draw = random.Random(3)
    hits = 0
    for _ in range(200):
        found = raw_agreement([(1, 1 if draw.random() < 0.7 else 2) for _ in range(60)])
        assert found is not None
        assert found.observed_interval is not None
        hits += found.observed_interval[0] <= 0.7 <= found.observed_interval[1]
    assert 180 <= hits <= 200
