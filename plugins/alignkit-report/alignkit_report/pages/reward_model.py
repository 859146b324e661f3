"""What is known about a reward model: accuracy, also by category, and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit_report.pages import charts
from alignkit_report.pages.document import NUMBER, PERCENT, Column, Plot, Section, Table
from alignkit_report.pages.numbers import is_number

LABELLED = "Share of ranked pairs that it orders as their labels do, on {on}."
BY_AI = "Share of ranked pairs that it orders as the AI that ranked them, which is no accuracy, on {on}."
SURE, RIGHT = ("said", "predicted", "confidence"), ("right", "observed", "accuracy")
"""What the two figures of a bin of the calibration may be called."""


def of_stage(said: Mapping[str, Any], more: Sequence[Plot] = ()) -> Section:
    """The section of a run's reward stage, with more plots."""
    name = "accuracy" if "accuracy" in said else "agreement_with_ai"
    if name not in said:
        return Section("Reward model", plots=more, legend=_names(more))
    lead = (LABELLED if name == "accuracy" else BY_AI).format(on=said.get("on", "prompts of unknown history"))
    columns = [Column(""), Column(name.replace("_ai", " the AI").replace("_", " "), PERCENT)]
    rows = [["reward model", said[name]]]
    rows += [["the shorter reply wins", said["shorter_wins"]]] if "shorter_wins" in said else []
    tables = [Table("reward-model", columns, rows), *_categories(said)]
    return Section("Reward model", lead, tables, [*_calibration(said), *more], legend=_names(more))


def of_comparison(models: Mapping[str, Mapping[str, Any]], more: Sequence[Plot]) -> Section:
    """The section of a comparison's reward models, with more plots."""
    columns = [Column("reward model"), Column("accuracy", PERCENT)]
    rows = [[name, said.get("accuracy")] for name, said in models.items()]
    tables = [Table("reward-models", columns, rows)] if any(row[1] for row in rows) else []
    tables += [table for name, said in models.items() for table in _categories(said, name)]
    plots = [plot for name, said in models.items() for plot in _calibration(said, name)]
    lead = LABELLED.format(on="held-out pairs") if tables else ""
    return Section("Reward model", lead, tables, [*plots, *more], legend=_names(more))


def _names(plots: Sequence[Plot]) -> list[str]:
    return list(dict.fromkeys(name for plot in plots for name in plot.table.swatches))


def _categories(said: Mapping[str, Any], name: str = "") -> list[Table]:
    found = said.get("categories") or said.get("by_category")
    if not isinstance(found, Mapping) or not found:
        return []
    title = f"{name}: category" if name else "category"
    figures = {category: value if is_number(value) else value.get("accuracy") for category, value in found.items()}
    rows = [[category, value] for category, value in figures.items() if value]
    return [Table(_slug("categories", name), [Column(title), Column("accuracy", PERCENT)], rows, sortable=True)]


def _calibration(said: Mapping[str, Any], name: str = "") -> list[Plot]:
    bins = said.get("reliability") or said.get("calibration")
    rows = []
    for one in bins if isinstance(bins, Sequence) and not isinstance(bins, str) else ():
        x, y = (next((one[key] for key in keys if key in one), None) for keys in (SURE, RIGHT))
        if x is None or y is None:
            continue
        interval = y if isinstance(y, Mapping) else one
        ends = {end: interval[end] for end in ("low", "high") if end in interval}
        rows.append({"x": x, "y": y["value"] if isinstance(y, Mapping) else y, **ends, "n": interval.get("n")})
    if len(rows) < 2:
        return []
    titles = ("how sure it is", "how often it is right")
    columns = [Column("how sure", PERCENT), Column("how often right", PERCENT), Column("pairs", NUMBER)]
    shown = [[row["x"], {"value": row["y"], **{"low": row["y"], "high": row["y"]} | row}, row["n"]] for row in rows]
    table = Table(_slug("calibration", name), columns, shown)
    caption = "How often it is right where it is so sure. On the dashed line it is as sure as it should be."
    heading = f"Calibration of {name}" if name else "Calibration"
    return [Plot(table.name, heading, caption, table, lambda width: charts.calibration(rows, titles, width))]


def _slug(what: str, name: str) -> str:
    return f"{what}-{name}".rstrip("-").replace("/", "-").replace(" ", "-")
