"""The plots of a report, as Altair charts. Every one names its axes with their units; policies differ by colour and by
mark or dash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignkit_report.pages.colours import DASHES, INK, MUTED, PALETTE, SHAPES, colour_of, mark_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import altair as alt

    Row = Mapping[str, Any]
    Rows = Sequence[Row]
    Policies = Mapping[str, int]

NARROW, WIDE = 330, 700
"""Widths of drawings, in pixels: of a phone's screen, and of the page."""
AXES = 56
"""Pixels that a vertical axis takes from a drawing's width."""
LABEL_HEIGHT, LABEL_LETTER = 14, 6.6
SPARE = 0.06
"""Share of a range that is left free on both sides."""


def data(rows: Rows) -> Any:
    """Rows as a chart takes them."""
    import altair as alt

    make: Any = alt.Data
    return make(values=[dict(row) for row in rows])


def colour(policies: Policies) -> alt.Color:
    """Each policy's colour."""
    import altair as alt

    colours = [PALETTE[colour_of(number)] for number in policies.values()]
    return alt.Color("policy:N", legend=None, scale=alt.Scale(domain=list(policies), range=colours))


def shape(policies: Policies) -> alt.Shape:
    """Each policy's mark."""
    import altair as alt

    shapes = [SHAPES[mark_of(number)] for number in policies.values()]
    return alt.Shape("policy:N", legend=None, scale=alt.Scale(domain=list(policies), range=shapes))


def dash(policies: Policies) -> alt.StrokeDash:
    """Each policy's dash."""
    import altair as alt

    dashes = [list(DASHES[mark_of(number)]) for number in policies.values()]
    return alt.StrokeDash("policy:N", legend=None, scale=alt.Scale(domain=list(policies), range=dashes))


def _axis(channel: Any, title: str, axis: Any = None, **scale: Any) -> Callable[[str], Any]:
    """A field's place on an axis; all layers of a plot share its title and scale."""
    import altair as alt

    settings = {} if axis is None else {"axis": axis}
    return lambda field: channel(f"{field}:Q", title=title, scale=alt.Scale(**scale), **settings)


def _numbers(form: str) -> Any:
    """An axis whose numbers are written in a form of d3; empty: as Vega-Lite likes."""
    import altair as alt

    return alt.Axis(format=form, grid=True) if form else alt.Axis(grid=True)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """A scale's ends: those of the values, and some room."""
    low, high = min(values), max(values)
    room = SPARE * (high - low) or 0.5
    return low - room, high + room


def tradeoff(
    rows: Rows, policies: Policies, titles: tuple[str, str], width: int, runs: Rows = (), form: str = ""
) -> Any:
    """What each policy gains (y) at which price (x), with intervals; the best at each price are joined.

    Args:
        rows: `policy`, `x`, `y`, `pareto`, and where known `x_low`, `x_high`, `low`, `high`.
        titles: of the axes.
        runs: `policy`, `x`, `y` of single runs or checkpoints, drawn small.
        form: of the vertical axis' numbers, in d3's language: `%` for shares.
    """
    import altair as alt

    height, plot = round(min(0.62 * width, 400)), width - AXES
    full = [{**row, **{end: row.get(end, row[end[0] if end[0] == "x" else "y"]) for end in ENDS}} for row in rows]
    xs = spread([0.0, *(row[name] for row in full for name in ("x_low", "x_high")), *(run["x"] for run in runs)])
    ys = spread([row[name] for row in full for name in ("low", "high")] + [run["y"] for run in runs])
    x = _axis(alt.X, titles[0], domain=xs, nice=False)
    y = _axis(alt.Y, titles[1], _numbers(form), domain=ys, nice=False)
    base = alt.Chart(data(full)).encode(color=colour(policies))
    best = alt.Chart(data(sorted((row for row in full if row["pareto"]), key=lambda row: row["x"])))
    layers = [
        best.mark_line(color=MUTED, strokeDash=[3, 3], strokeWidth=1).encode(x=x("x"), y=y("y")),
        base.mark_rule(strokeWidth=1.5, opacity=0.55).encode(x=x("x_low"), x2="x_high:Q", y=y("y")),
        base.mark_rule(strokeWidth=1.5, opacity=0.55).encode(x=x("x"), y=y("low"), y2="high:Q"),
        base.mark_point(size=95, filled=True, opacity=1).encode(x=x("x"), y=y("y"), shape=shape(policies)),
    ]
    if runs:
        small = alt.Chart(data(runs)).mark_point(size=22, filled=True, opacity=0.45)
        layers.insert(1, small.encode(x=x("x"), y=y("y"), color=colour(policies), shape=shape(policies)))
    return alt.layer(*layers, *_labels(full, (xs, ys), (plot, height))).properties(width=plot, height=height)


ENDS = ("x_low", "x_high", "low", "high")


def _labels(rows: Rows, ends: tuple[tuple[float, float], tuple[float, float]], size: tuple[int, int]) -> list[Any]:
    """Names beside the points, moved apart where they would overlap."""
    import altair as alt

    (left, right), (bottom, top) = ends
    placed: list[tuple[float, float, float]] = []
    labels: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for row in sorted(rows, key=lambda row: -row["y"]):
        x = (row["x"] - left) / (right - left) * size[0]
        y = (top - row["y"]) / (top - bottom) * size[1] - LABEL_HEIGHT / 2
        length = LABEL_LETTER * len(row["policy"]) + 12
        turned = x + length > size[0]
        start = x - length if turned else x
        while any(
            abs(y - other) < LABEL_HEIGHT and start < end and begin < start + length for begin, end, other in placed
        ):
            y += 1
        placed.append((start, start + length, y))
        labels[turned].append({"policy": row["policy"], "px": x, "py": y})
    return [
        alt.Chart(data(found))
        .mark_text(align="right" if turned else "left", dx=-9 if turned else 9, baseline="middle", fontWeight=500)
        .encode(x=alt.X("px:Q", scale=None), y=alt.Y("py:Q", scale=None), text="policy:N", color=alt.value(INK))
        for turned, found in labels.items()
        if found
    ]


def curves(rows: Rows, policies: Policies, titles: tuple[str, str], width: int, *, zero: bool = False) -> Any:
    """A figure along training: the mean over seeds as a line, their range as a band.

    Args:
        rows: `policy`, `x`, `y`, `low`, `high`.
    """
    import altair as alt

    x, y = _axis(alt.X, titles[0], nice=False, zero=False)("x"), _axis(alt.Y, titles[1], zero=zero)
    base = alt.Chart(data(rows)).encode(x=x, color=colour(policies))
    layers = [base.mark_line(strokeWidth=1.8).encode(y=y("y"), strokeDash=dash(policies))]
    if any(row["low"] < row["high"] for row in rows):
        layers.insert(0, base.mark_area(opacity=0.16).encode(y=y("low"), y2="high:Q"))
    return alt.layer(*layers).properties(width=width - AXES, height=180)


def shapes_of_gold(rows: Rows, titles: tuple[str, str], width: int, peak: Row | None = None, number: int = 1) -> Any:
    """Gold (solid) and the learned reward (dashed) of one policy against the root of the KL, and the fit's peak.

    Args:
        rows: `kind` (gold, learned, fit), `x`, `y`, `low`, `high`.
        peak: `x`, and where known `low` and `high`.
        number: of the policy's colour.
    """
    import altair as alt

    kinds = {"gold": (PALETTE[colour_of(number)], [1, 0]), "learned": (MUTED, [5, 3]), "fit": (INK, [1, 3])}
    x, y = _axis(alt.X, titles[0], nice=False)("x"), _axis(alt.Y, titles[1], zero=False)
    colours = alt.Scale(domain=list(kinds), range=[colour for colour, _ in kinds.values()])
    dashes = alt.Scale(domain=list(kinds), range=[line for _, line in kinds.values()])
    base = alt.Chart(data(rows)).encode(x=x, color=alt.Color("kind:N", legend=None, scale=colours))
    layers = [
        base.mark_area(opacity=0.16).encode(y=y("low"), y2="high:Q"),
        base.mark_line(strokeWidth=1.8).encode(
            y=y("y"), strokeDash=alt.StrokeDash("kind:N", legend=None, scale=dashes)
        ),
    ]
    if peak:
        at = alt.Chart(data([peak]))
        layers.append(at.mark_rule(color=INK, strokeDash=[2, 2]).encode(x="x:Q"))
        if {"low", "high"} <= peak.keys():
            layers.insert(0, at.mark_rect(color=MUTED, opacity=0.12).encode(x="low:Q", x2="high:Q"))
    return alt.layer(*layers).properties(width=width - AXES, height=200)


def intervals(rows: Rows, policies: Policies, title: str, width: int, at: float | None = None, form: str = "") -> Any:
    """A figure of each policy as a point with its interval, and a line where there is no difference.

    Args:
        rows: `policy`, `value`, `low`, `high`, in order.
        at: no difference.
        form: of the numbers, in d3's language: `%` for shares.
    """
    import altair as alt

    base = alt.Chart(data(rows)).encode(y=_names(rows), color=colour(policies))
    x = _axis(alt.X, title, _numbers(form), zero=False)
    layers = [
        base.mark_rule(strokeWidth=2).encode(x=x("low"), x2="high:Q"),
        base.mark_point(size=85, filled=True, opacity=1).encode(x=x("value"), shape=shape(policies)),
    ]
    if at is not None:
        layers.insert(0, alt.Chart(data([{"at": at}])).mark_rule(color=MUTED, strokeDash=[3, 3]).encode(x="at:Q"))
    return alt.layer(*layers).properties(width=width - _names_width(rows), height=alt.Step(26))


def _names(rows: Rows) -> Any:
    """The policies below each other, in the order of the rows."""
    import altair as alt

    return alt.Y("policy:N", title=None, sort=[row["policy"] for row in rows], axis=alt.Axis(labelColor=INK))


def _names_width(rows: Rows) -> int:
    """Pixels that the policies' names take from a drawing's width."""
    return 24 + round(min(180, max(LABEL_LETTER * len(row["policy"]) for row in rows)))


def strips(rows: Rows, policies: Policies, title: str, width: int) -> Any:
    """How a figure of single replies is distributed: the middle 90% as a line, half as a bar, the median as a tick.

    Args:
        rows: `policy`, `p5`, `p25`, `p50`, `p75`, `p95`, in order.
    """
    import altair as alt

    x = _axis(alt.X, title, _numbers(""), zero=False)
    base = alt.Chart(data(rows)).encode(y=_names(rows), color=colour(policies))
    return alt.layer(
        base.mark_rule(strokeWidth=1.2).encode(x=x("p5"), x2="p95:Q"),
        base.mark_bar(height=9, opacity=0.75).encode(x=x("p25"), x2="p75:Q"),
        base.mark_tick(thickness=2.5, size=17, color=INK).encode(x=x("p50"), color=alt.value(INK)),
    ).properties(width=width - _names_width(rows), height=alt.Step(26))


def histogram(rows: Rows, policies: Policies, title: str, width: int) -> Any:
    """How a figure of single replies is distributed: the share of replies in each bin, an outline per policy.

    Args:
        rows: `policy`, `x` (a bin's lower end), `share`.
    """
    import altair as alt

    x = alt.X("x:Q", title=title, scale=alt.Scale(nice=False, zero=False))
    y = alt.Y("share:Q", title="share of replies", axis=alt.Axis(format="%", tickCount=4))
    base = alt.Chart(data(rows)).encode(x=x, y=y, color=colour(policies))
    return alt.layer(
        base.mark_area(interpolate="step-after", opacity=0.14).encode(y=y.stack(None)),
        base.mark_line(interpolate="step-after", strokeWidth=1.8).encode(strokeDash=dash(policies)),
    ).properties(width=width - AXES, height=170)


def scatter(rows: Rows, policies: Policies, titles: tuple[str, str], width: int) -> Any:
    """Two figures of single replies.

    Args:
        rows: `policy`, `x`, `y`.
    """
    import altair as alt

    x, y = (_axis(*one, zero=False) for one in ((alt.X, titles[0]), (alt.Y, titles[1])))
    points = alt.Chart(data(rows)).mark_point(size=14, filled=True, opacity=0.5)
    return points.encode(x=x("x"), y=y("y"), color=colour(policies), shape=shape(policies)).properties(
        width=width - AXES, height=200
    )


def calibration(rows: Rows, titles: tuple[str, str], width: int) -> Any:
    """How often a reward model is right when it is so sure; on the diagonal it is exactly as sure as it should be.

    Args:
        rows: `x`, `y`, and where known `low`, `high`.
    """
    import altair as alt

    full = [{"low": row["y"], "high": row["y"], **row} for row in rows]
    least = min([0.5, *(row["x"] for row in rows)])
    share = alt.Axis(format="%", tickCount=5)
    x = _axis(alt.X, titles[0], share, domain=[least, 1])("x")
    y = _axis(alt.Y, titles[1], share, zero=False)
    base = alt.Chart(data(full)).encode(x=x)
    ends = [{"x": least, "y": least}, {"x": 1, "y": 1}]
    return alt.layer(
        alt.Chart(data(ends)).mark_line(color=MUTED, strokeDash=[3, 3], strokeWidth=1).encode(x=x, y=y("y")),
        base.mark_rule(color=PALETTE[1], strokeWidth=1.5).encode(y=y("low"), y2="high:Q"),
        base.mark_line(color=PALETTE[1], strokeWidth=1.5).encode(y=y("y")),
        base.mark_point(color=PALETTE[1], filled=True, size=60, opacity=1).encode(y=y("y")),
    ).properties(width=width - AXES, height=200)
