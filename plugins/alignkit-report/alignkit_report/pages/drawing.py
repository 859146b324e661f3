"""Charts as SVG for a page, in the reader's light or dark colours, and as PNG; vl-convert renders both without a
browser, so no page carries a plotting library."""

from __future__ import annotations

import json
import re
from typing import Any

from alignkit import visible
from alignkit_report.pages.colours import INK, MUTED, PAPER, RULE, VARIABLES

FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif"
PNG_SCALE = 2
AXIS = {
    "domain": False,
    "ticks": False,
    "gridColor": RULE,
    "labelColor": MUTED,
    "titleColor": MUTED,
    "labelFontSize": 11.5,
    "titleFontSize": 11.5,
    "titleFontWeight": "normal",
    "labelPadding": 6,
    "titlePadding": 8,
    "tickCount": 5,
    "labelLimit": 180,
    "labelSeparation": 8,
}
CONFIG = {
    "background": None,
    "font": FONT,
    "view": {"stroke": None},
    "axis": AXIS,
    "axisX": {"grid": False, "domain": True, "domainColor": RULE},
    "axisYQuantitative": {
        "minExtent": 38,
        "titleAngle": 0,
        "titleAlign": "left",
        "titleBaseline": "bottom",
        "titleX": -38,
        "titleY": -13,
    },
    "text": {"fontSize": 11.5, "color": INK},
}
"""Vega-Lite's configuration of every chart."""
TOO_MUCH = re.compile(r'(\.\d\d)\d+| (?:role|aria-[a-z]+)="[^"]*"')
"""In a tag: digits that nobody sees, and roles of lines. The figure's own label says what it shows."""
TAG = re.compile("<[^>]*>")


def svg(chart: Any) -> str:
    """The chart as an SVG element whose colours are the page's variables."""
    import vl_convert

    drawn = vl_convert.vegalite_to_svg(_spec(chart))
    colours = re.compile("|".join(map(re.escape, VARIABLES)), re.IGNORECASE)
    themed = colours.sub(lambda found: VARIABLES[found[0].lower()], drawn[drawn.index("<svg") :])
    return visible(TAG.sub(lambda tag: TOO_MUCH.sub(r"\1", tag[0]), themed))


def png(chart: Any) -> bytes:
    """The chart as a PNG on a light ground."""
    import vl_convert

    spec = _spec(chart)
    spec["config"] |= {"background": PAPER, "font": "sans-serif"}
    return bytes(vl_convert.vegalite_to_png(spec, scale=PNG_SCALE))


def _spec(chart: Any) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(json.dumps(chart.to_dict(validate=False)))
    return {**spec, "padding": 4, "config": CONFIG | {}}
