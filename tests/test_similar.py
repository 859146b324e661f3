"""Nearly the same texts."""

from __future__ import annotations

import pytest

from alignkit.preferences.similar import distinct, likeness, normalized


def test_likeness_by_hand() -> None:
    """Runs of the first: abc bcd cde def; of the second: abc bcd cdx: two of five are shared."""
    assert likeness("a b c d e f", "A, b: c d x") == pytest.approx(2 / 5)
    assert likeness("yes", "Yes!") == 1.0
    assert likeness("yes", "no") == 0.0
    assert likeness("!!", "??") == 0.0


def test_words_alone_count() -> None:
    assert normalized("  The\nCat, sat. ") == "the cat sat"
    assert normalized(" :-) ") == ":-)"


def test_the_first_of_similar_texts_is_kept() -> None:
    texts = ["one two three four five six", "ONE two three four five six!", "seven eight", "one two three four nine"]
    assert distinct(texts) == [0, 2, 3]
    assert distinct(texts, near=0.3) == [0, 2]
