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
    assert found == pytest.approx(alpha, abs=0.0005)


def test_alpha_where_it_is_not_defined() -> None:
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha([[1, None], [None, 2]]) is None
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1, 1], [2, 2]]) == 1


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


