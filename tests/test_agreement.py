"""Shares, most frequent verdicts, and agreement of AIs with people, by hand."""

from __future__ import annotations

import pytest

from alignkit.preferences.agreement import Share, most_frequent


def test_wilson_interval() -> None:
    """Wilson's bounds are the p with (p - 0.8)**2 = z**2 * p * (1 - p) / 10."""
    low, high = Share(8, 10).interval
    for bound in (low, high):
        assert (bound - 0.8) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / 10, abs=1e-9)
    assert low < 0.8 < high
    assert Share(0, 0).to_json() is None
    assert Share(0, 5).interval[0] == 0.0


def test_the_most_frequent_verdict() -> None:
    assert most_frequent([1, 2, 2, None]) == 2
    assert most_frequent([1, 2, 0]) is None
    assert most_frequent([None]) is None
    assert most_frequent([0, None, 0, 1]) == 0
