"""What a report consists of, whatever it is written as: the answer, key figures, alarms, and sections of tables, plots,
samples and listings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alignkit_report.pages.numbers import digits_of, interval, is_number, number, percent, point

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TEXT, NUMBER, PERCENT = "text", "number", "percent"


@dataclass(frozen=True)
class Column:
    """A table's column.

    Attributes:
        kind: TEXT, NUMBER or PERCENT (of a share from 0 to 1).
        note: what it means, shown under the table.
        digits: after the point; None: as many as the figures support.
    """

    title: str
    kind: str = TEXT
    note: str = ""
    digits: int | None = None


@dataclass(frozen=True)
class Cell:
    """A figure as it is shown.

    Attributes:
        order: to sort by; None sorts last.
        swatch: number of the variant whose colour and mark stand before it.
    """

    text: str
    interval: str = ""
    order: float | None = None
    swatch: int | None = None

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".strip()


@dataclass(frozen=True)
class Table:
    """Rows of figures; a figure is a number, an estimate (`value`, `low`, `high`), a text or None.

    Attributes:
        name: of its file, as a slug.
        swatches: of the first column's texts.
        sortable: whether a reader may sort it.
    """

    name: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    swatches: Mapping[str, int] = field(default_factory=dict)
    sortable: bool = False

    def cells(self) -> list[list[Cell]]:
        """Every figure as it is shown."""
        digits = [
            column.digits if column.digits is not None else digits_of(row[place] for row in self.rows)
            for place, column in enumerate(self.columns)
        ]
        rows = [
            [_cell(value, column.kind, many) for value, column, many in zip(row, self.columns, digits, strict=True)]
            for row in self.rows
        ]
        for row in rows:
            if row and row[0].text in self.swatches:
                row[0] = Cell(row[0].text, swatch=self.swatches[row[0].text])
        return rows


def _cell(value: Any, kind: str, digits: int) -> Cell:
    if not is_number(value):
        return Cell("" if value is None else str(value))
    if kind == PERCENT:
        return Cell(percent(point(value)), interval(value, 0, as_percent=True), point(value))
    return Cell(number(point(value), digits), interval(value, digits), point(value))


@dataclass(frozen=True)
class Plot:
    """A plot and the figures that it shows.

    Attributes:
        name: of its file, as a slug.
        caption: how to read it.
        draw: makes an Altair chart of a width.
        wide: whether it fills the page; it is then drawn a second time for narrow screens.
        lines: of a learning curve, for a page that is made without Altair.
        minor: whether it is shown only when asked for.
    """

    name: str
    title: str
    caption: str
    table: Table
    draw: Callable[[int], Any]
    wide: bool = False
    lines: Lines | None = None
    minor: bool = False


@dataclass(frozen=True)
class Lines:
    """Curves of policies over training steps.

    Attributes:
        unit: of the vertical axis.
        points: policy -> (step, mean, lowest, highest over seeds).
        numbers: of the policies' colours.
    """

    unit: str
    points: Mapping[str, Sequence[tuple[float, float, float, float]]]
    numbers: Mapping[str, int]


@dataclass(frozen=True)
class Reply:
    """A policy's reply to a prompt.

    Attributes:
        figures: rewards and KL, by name.
    """

    policy: str
    text: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """The replies of several policies to one prompt.

    Attributes:
        spread: how far the policies disagree on it.
    """

    prompt: str
    replies: Sequence[Reply]
    spread: float


@dataclass(frozen=True)
class Listing:
    """A text in a fixed-width font: a recipe, a command.

    Attributes:
        folded: whether it is shown only when asked for.
    """

    title: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the report under a heading; one without content is left out.

    Attributes:
        legend: policies whose colours its plots don't name.
    """

    title: str
    lead: str = ""
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    samples: Sequence[Sample] = ()
    listings: Sequence[Listing] = ()
    legend: Sequence[str] = ()

    @property
    def slug(self) -> str:
        return "-".join(self.title.lower().replace("'", "").split())

    def __bool__(self) -> bool:
        return any((self.tables, self.plots, self.samples, self.listings))


@dataclass(frozen=True)
class KeyFigure:
    """One of the few numbers under the answer."""

    title: str
    value: str
    interval: str = ""
    note: str = ""


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        answer: sentences, the most important first.
        alarms: (where, what) of each.
        policies: name -> number of its colour and mark; 0 is what training started from.
    """

    kind: str
    title: str
    answer: Sequence[str]
    figures: Sequence[KeyFigure] = ()
    alarms: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = ()
    policies: Mapping[str, int] = field(default_factory=dict)

    @property
    def parts(self) -> list[Section]:
        """The sections that hold something."""
        return [section for section in self.sections if section]
