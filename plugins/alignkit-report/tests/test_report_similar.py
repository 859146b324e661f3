"""Texts that are nearly the same are found among many."""

from __future__ import annotations

import pytest
from alignkit_report.similar import SimilarTexts


def test_a_text_is_found_among_others() -> None:
    texts = SimilarTexts(["w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12", "hello there"])
    assert texts.match("Hello, there!") == 1.0
    assert texts.match("w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 x") == pytest.approx(9 / 11)
    assert texts.match("w1 w2 w3 w4 w5 w6 x w8 w9 w10 w11 w12") == 0.0
    assert texts.match("something else") == 0.0
