"""Nearly the same texts."""

from __future__ import annotations

import pytest

from alignkit.preferences.similar import SimilarTexts, distinct, likeness, normalized


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


def test_a_text_is_found_among_others() -> None:
    texts = SimilarTexts(["w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12", "hello there"])
    assert texts.match("Hello, there!") == 1.0
    assert texts.match("w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 x") == pytest.approx(9 / 11)
    assert texts.match("w1 w2 w3 w4 w5 w6 x w8 w9 w10 w11 w12") == 0.0
    assert texts.match("something else") == 0.0
