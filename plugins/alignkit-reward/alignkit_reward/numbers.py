"""Reads a number as people write it: 1,234.50 or 1.234,50 or 1 234.5, -$5, 1/2, 4.2e1, **42**, 42 apples."""

from __future__ import annotations

import math
import re

_MINUS = str.maketrans(dict.fromkeys("−–—‐‑﹣－", "-") | dict.fromkeys("\u00a0\u2007\u2009\u202f", " "))  # noqa: RUF001
_LATEX = re.compile(r"\\[,!;: ]|(?<=\d)\{(?=,\})|(?<=\d\{,)\}|\\(?=[$%])")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_BEFORE = r"[\s*_`~\"'(\[{=]*"
_DIGITS = r"(?:\d{1,3}(?:[ '’]\d{3})+(?!\d)(?:[.,]\d+)?|\d(?:[\d.,]*\d)?|[.,]\d+)(?:[eE][-+]?\d+)?"  # noqa: RUF001
_NUMBER = re.compile(
    rf"{_BEFORE}(?P<sign>[-+]?)\s*[$€£¥]?\s*(?P<second>[-+]?)\s*"
    rf"(?:(?P<whole>\d+) +(?=\d+/\d))?(?P<top>{_DIGITS})(?:\s*/\s*(?P<bottom>{_DIGITS}))?"
)
_GOES_ON = re.compile(r"\s*[-+*/^×÷·,;]+\s*[\d(.\\]")  # noqa: RUF001


def number(text: str) -> float | None:
    """The number that a text begins with; None if it begins with none, with several, or with a sum such as 42+1."""
    text = _FRACTION.sub(r"\1/\2", _LATEX.sub("", text.translate(_MINUS)))
    found = _NUMBER.match(text)
    if found is None or (found["sign"] and found["second"]) or _GOES_ON.match(text, found.end()):
        return None
    parts = [_decimal(found[name]) for name in ("top", "bottom") if found[name] is not None]
    if None in parts or parts[1:] == [0.0]:
        return None
    value = float(found["whole"] or 0) + (parts[0] / parts[1] if parts[1:] else parts[0])  # type: ignore[operator]
    return (-value if "-" in (found["sign"], found["second"]) else value) if math.isfinite(value) else None


def _decimal(text: str) -> float | None:
    """Digits with separators. The last of two kinds marks the decimals; a comma before three digits does not."""
    digits, _, exponent = text.lower().partition("e")
    digits = re.sub("[ '’]", "", digits)  # noqa: RUF001
    comma, dot = digits.rfind(","), digits.rfind(".")
    mark = "," if comma > dot else "."
    whole, _, rest = digits.rpartition(mark) if mark in digits else (digits, "", "")
    if comma >= 0 <= dot:
        other = "." if mark == "," else ","
        if not _in_thousands(whole, other):
            return None
    elif digits.count(mark) > 1 or (mark == "," and _in_thousands(digits, ",")):
        if not _in_thousands(digits, mark):
            return None
        whole, rest = digits, ""
    plain = re.sub("[.,]", "", whole) or "0"
    return float(f"{plain}.{rest or 0}" + (f"e{exponent}" if exponent else ""))


def _in_thousands(digits: str, mark: str) -> bool:
    """Whether the digits are grouped: 1,234,567, or 12,34,567 as in India."""
    first, *others = digits.split(mark)
    middle_fits = all(re.fullmatch(r"\d{2,3}", group) for group in others[:-1])
    return bool(others and re.fullmatch(r"[1-9]\d{0,2}", first) and middle_fits and re.fullmatch(r"\d{3}", others[-1]))
