"""What every figure of the report is made of.

Figures are plain plotly dictionaries. A colour is the name of a CSS variable (`--accent`), which the page
replaces by its value, so that one figure serves light and dark. Every figure also carries its numbers as a
small table: for screen readers, and for pages without scripts. `static_plots` draws the same on paper.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

from u2a.report.scores import Array
from u2a.report.wording import excerpt, visible

Cell = float | int | str

_AXIS = {"automargin": True, "zeroline": True, "nticks": 6, "separatethousands": True} | {
    "exponentformat": "none",
    "gridcolor": "--line",
    "linecolor": "--line",
    "zerolinecolor": "--quiet",
}
_LAYOUT = {
    "height": 340,
    "margin": {"l": 8, "r": 8, "t": 12, "b": 8},
    "showlegend": False,
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "--text"},
    "hoverlabel": {"align": "left", "bgcolor": "--surface", "bordercolor": "--line"},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
}


@dataclass(frozen=True)
class Plot:
    """One figure of the page: `figure` for plotly, and the same numbers as `header` and `rows`."""

    key: str
    title: str
    caption: str
    figure: dict[str, Any]
    header: list[str]
    rows: list[list[Cell]]


def figure(traces: list[dict[str, Any]], x: str, y: str, **layout: Any) -> dict[str, Any]:
    """A plotly figure with these traces and titles of axes; `layout` overrides the report's own."""
    axes = {f"{name}axis": axis(title) | _digits(traces, name) for name, title in (("x", x), ("y", y))}
    return {"data": traces, "layout": _LAYOUT | axes | layout}


def _digits(traces: list[dict[str, Any]], name: str) -> dict[str, str]:
    """Powers of ten for an axis whose numbers would be long; else they are written out."""
    values = [abs(v) for trace in traces for v in trace.get(name, ()) if isinstance(v, (int, float)) and v]
    return {"exponentformat": "power"} if values and not 1e-4 <= max(values) < 1e7 else {}


def named_bars(bars: dict[str, Any], x: str, height: int) -> dict[str, Any]:
    """A figure of horizontal bars with names at their left, every one of them shown."""
    drawn = figure([bars], x, "", height=height)
    drawn["layout"]["yaxis"] |= {"tickmode": "linear", "dtick": 1}
    return drawn


def axis(title: str) -> dict[str, Any]:
    """An axis in the report's look."""
    return _AXIS | {"title": {"text": title, "standoff": 8}}


def vertical(x: float, colour: str, dash: str = "dash") -> dict[str, Any]:
    """A line over the whole height at `x`."""
    line = {"color": colour, "width": 2, "dash": dash}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def horizontal(y: float, colour: str, yref: str, dash: str = "dash") -> dict[str, Any]:
    """A line over the whole width at `y` of the axis `yref`, not seen where the axis ends before it."""
    line = {"color": colour, "width": 2, "dash": dash}
    return {"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": y, "y1": y, "yref": yref, "line": line}


def label(x: float, text: str, *, at_left: bool) -> dict[str, Any]:
    """Words beside a vertical line."""
    side = {"xanchor": "right", "xshift": -5} if at_left else {"xanchor": "left", "xshift": 5}
    return {"text": text, "showarrow": False, "x": x, "y": 0.1, "yref": "paper", "yanchor": "bottom"} | side


def plain(value: float) -> float | None:
    """Six significant digits; None for what is not finite: JSON has no NaN, and plotly leaves null out."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def short(values: Array) -> list[float | None]:
    """`plain` of each."""
    return [plain(float(value)) for value in values]


def word(name: str, length: int = 40) -> str:
    """A name of at most `length` characters as plotly may show it."""
    return inert(excerpt(name, length))


def inert(text: str) -> str:
    """Plotly reads tags in labels and formulas between dollars, so what users wrote is escaped for it."""
    return html.escape(visible(text), quote=False).replace("$", "&#36;")
