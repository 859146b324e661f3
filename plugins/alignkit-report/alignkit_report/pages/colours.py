"""Colours, marks and dashes of policies: the palette of Okabe and Ito (2008), which colour-blind readers tell apart.

On a page the browser replaces them by variables of the style sheet, so that one drawing serves light and dark.
"""

from __future__ import annotations

START = 0
"""The number of the policy that training started from."""

INK, MUTED, RULE, PAPER = "#1c1c1f", "#5b5c63", "#e2e1dc", "#fdfdfb"
PALETTE = (MUTED, "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#857a00", "#2b2b2f")
"""Of the start, then of the others, again from the second one where they are more."""
SHAPES = (
    "circle",
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "triangle-down",
    "cross",
    "triangle-right",
    "triangle-left",
)
DASHES = ((2, 3), (1, 0), (6, 2), (2, 2), (8, 2, 2, 2), (10, 3), (4, 1), (1, 3), (8, 2, 2, 2, 2, 2))

VARIABLES = {
    INK: "currentColor",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    **{colour: f"var(--c{number})" for number, colour in enumerate(PALETTE)},
}


def colour_of(policy: int) -> int:
    """The place in PALETTE of a policy's number."""
    return policy and 1 + (policy - 1) % (len(PALETTE) - 1)


def mark_of(policy: int) -> int:
    """The place in SHAPES and DASHES of a policy's number; policies of one colour have different marks."""
    others = len(SHAPES) - 1
    return policy and 1 + (policy - 1 + (policy - 1) // others) % others
