"""Tables with a row for each policy: the main figures, then what else was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alignkit_report.pages.document import NUMBER, PERCENT, Column, Table
from alignkit_report.pages.numbers import is_number

if TYPE_CHECKING:
    from collections.abc import Sequence

MEASURES = "measures"
SHARES = ("win_rate", "finished", "cut_off", "distinct", "repetition", "self_bleu", "pass@", "abstained")
"""Parts of the names of figures from 0 to 1."""
TITLES = {
    "win_rate": "wins over the start",
    "win_rate_same_length": "wins at the same length",
    "kl": "KL",
    "kl_bound": "KL, at most",
    "kl_sampled": "KL, sampled",
    "self_bleu": "self-BLEU",
}
NOTES = {
    "kl": "KL: to the start, in nats per reply.",
    "kl_bound": "KL, at most: of best of n, an upper bound.",
    "finished": "finished: share of replies that end before the limit.",
    "perplexity": "perplexity: on held-out text; a rise is forgetting.",
}


def figures_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """Every number of a policy; those below `measures` among them."""
    more = said.get(MEASURES, {})
    every = {**said, **(more if isinstance(more, Mapping) else {})}
    return {name: value for name, value in every.items() if is_number(value)}


def tables(
    name: str, rows: Mapping[str, Mapping[str, Any]], main: Sequence[str], numbers: Mapping[str, int]
) -> list[Table]:
    """A table of the main figures in their order, and one of all others.

    Args:
        rows: policy -> figure -> value.
    """
    known = dict.fromkeys(figure for figures in rows.values() for figure in figures)
    parts = {name: [figure for figure in main if figure in known], MEASURES: [f for f in known if f not in main]}
    return [
        Table(
            part,
            [Column("policy"), *map(column_of, figures)],
            [[policy, *(of.get(figure) for figure in figures)] for policy, of in rows.items()],
            numbers,
            sortable=True,
        )
        for part, figures in parts.items()
        if figures
    ]


def column_of(name: str) -> Column:
    """The column of a figure by its name."""
    kind = PERCENT if any(share in name for share in SHARES) else NUMBER
    figure, slash, of = name.partition("/")
    title = TITLES.get(figure, figure.replace("_", " ")) + (f" by {of}" if slash else "")
    return Column(title, kind, NOTES.get(name, ""))
