"""Over-optimisation: gold against the root of the KL, along training and along best of n, with the fits of Gao et al.
(arXiv:2210.10760)."""

from __future__ import annotations

from collections import defaultdict
from math import log, sqrt
from statistics import fmean
from typing import TYPE_CHECKING, Any

from alignkit_report.pages import charts
from alignkit_report.pages.document import NUMBER, Column, Plot, Section, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Rows = list[dict[str, Any]]

POINTS, FIT_POINTS = 40, 40
"""Points of a curve along training (each a mean of neighbours), and of a fit."""
LEAD = (
    "Coloured and solid: gold. Grey and dashed: the learned reward, which was optimised. Dotted: the fit of Gao et al. "
    "Upright: the fit's peak, with its 95% interval. Where the learned reward rises and gold falls, the policy "
    "exploits the reward model."
)
TITLES = ("root of the KL, in nats", "reward of a reply")
BEST_OF_N = "best-of-n"


def section(found: Mapping[str, Any], numbers: Mapping[str, int]) -> Section:
    """Gold and the learned reward of each variant, and the fits; empty where gold was not measured along the way."""
    fits = found.get("fits", {})
    plots = [
        _plot(f"{name}: along training", along_training(points), fits.get(name), numbers.get(name, 1))
        for name, points in found.get("curves", {}).items()
        if sum("gold" in point for point in points) > 1
    ]
    plots += [
        _plot(f"{name}: along best of n", along_best_of(points), fits.get(name), numbers.get(name, 1))
        for name, points in found.get("best_of_n", {}).items()
        if len(points) > 1
    ]
    return Section("Over-optimisation", LEAD, [_fits(fits)] if fits else (), plots)


def along_training(points: Sequence[Mapping[str, Any]]) -> Rows:
    """Means of neighbouring points by their KL: of gold and of the learned reward."""
    ordered = sorted((point for point in points if "kl" in point), key=lambda point: point["kl"])
    rows: Rows = []
    for kind, name in (("gold", "gold"), ("learned", "reward")):
        known = [point for point in ordered if name in point]
        bins: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for place, point in enumerate(known):
            bins[place * POINTS // max(len(known), POINTS)].append(point)
        for near in bins.values():
            y = fmean(point[name] for point in near)
            rows.append({"kind": kind, "x": sqrt(max(0.0, fmean(p["kl"] for p in near))), "y": y, "low": y, "high": y})
    return rows


def along_best_of(points: Sequence[Mapping[str, Any]]) -> Rows:
    """Gold with its interval, and the learned reward, of the best of each n."""
    rows: Rows = []
    for point in points:
        x = sqrt(max(0.0, point["kl"]))
        gold, learned = point["gold"], point["reward"]
        ends = {"low": point.get("low", gold), "high": point.get("high", gold)}
        rows.append({"kind": "gold", "x": x, "y": gold, **ends})
        rows.append({"kind": "learned", "x": x, "y": learned, "low": learned, "high": learned})
    return rows


def gain(fit: Mapping[str, Any], d: float) -> float:
    """What the fitted law says of gold above the start's, at a root of the KL."""
    if fit["kind"] == BEST_OF_N:
        return float(d * (fit["alpha"] - fit["beta"] * d))
    return float(d * (fit["alpha"] - fit["beta"] * log(d))) if d > 0 else 0.0


def _plot(heading: str, rows: Rows, fit: Mapping[str, Any] | None, number: int) -> Plot:
    furthest = max(row["x"] for row in rows)
    drawn, peak = list(rows), None
    if fit and {"start", "alpha", "beta"} <= fit.keys():
        for place in range(FIT_POINTS + 1):
            x = furthest * place / FIT_POINTS
            y = fit["start"] + gain(fit, x)
            drawn.append({"kind": "fit", "x": x, "y": y, "low": y, "high": y})
    if fit and fit.get("peak_kl") is not None and sqrt(fit["peak_kl"]) <= furthest:
        ends = {end: min(sqrt(fit[end]), furthest) for end in ("low", "high") if fit.get(end) is not None}
        peak = {"x": sqrt(fit["peak_kl"]), **ends}
    kinds = [kind for kind in ("gold", "learned") if any(row["kind"] == kind for row in rows)]
    at = {kind: {row["x"]: row["y"] for row in rows if row["kind"] == kind} for kind in kinds}
    xs = sorted({row["x"] for row in rows})[:: max(1, len(rows) // 16)]
    shown = [[x, *(of_kind.get(x) for of_kind in at.values())] for x in xs]
    slug = "-".join(heading.replace(":", "").split())
    table = Table(slug, [Column(TITLES[0], NUMBER, digits=2), *(Column(kind, NUMBER) for kind in kinds)], shown)
    caption = str(fit["verdict"]) if fit and fit.get("verdict") else ""
    return Plot(slug, heading, caption, table, lambda width: charts.shapes_of_gold(drawn, TITLES, width, peak, number))


def _fits(fits: Mapping[str, Mapping[str, Any]]) -> Table:
    names = {"alpha": "alpha", "beta": "beta", "peak_kl": "KL of the peak", "peak_gold": "gold there"}
    columns = [Column("policy"), Column("law"), *(Column(title, NUMBER) for title in names.values()), Column("verdict")]
    rows = []
    for name, fit in fits.items():
        peak = fit.get("peak_kl")
        known = peak is not None and fit.get("low") is not None and fit.get("high") is not None
        figures = {**fit, "peak_kl": {"value": peak, "low": fit["low"], "high": fit["high"]} if known else peak}
        rows.append([name, fit.get("kind"), *(figures.get(key) for key in names), fit.get("verdict")])
    return Table("fits", columns, rows)
