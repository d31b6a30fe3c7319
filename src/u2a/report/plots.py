"""The figures of the report, made of scores and measured points.

Figures are plain plotly dictionaries. A colour is the name of a CSS variable (`--accent`), which the page
replaces by its value, so that one figure serves light and dark. Every figure also carries its numbers as a
small table: for screen readers, and for pages without scripts.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from u2a.report.scores import Array, Measured, Scores
from u2a.report.wording import excerpt, number, visible

CURVE_POINTS = 400
SCATTER_POINTS = 1000
"""Most points drawn, evenly spaced in the order of impact: more would only make the page heavy."""
BINS = 40
"""Most bars of the histogram."""
TABLE_ROWS = 60
"""About how many measured points the table under the curves holds."""

Cell = float | int | str

_AXIS = {"automargin": True, "zeroline": True, "nticks": 6} | {
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
_LOOKS: dict[str, dict[str, Any]] = {
    "best": {"symbol": "star", "color": "--good", "size": 13},
    "past a budget": {"symbol": "x", "color": "--bad", "size": 9},
    "": {"symbol": "circle", "color": "--accent", "size": 7},
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


def impact_histogram(scores: Scores) -> Plot:
    """How many negatives have which impact. A long tail is gathered in the outermost bars."""
    impact = scores.impact[scores.order]
    low, high = np.percentile(impact, [0.5, 99.5]) if len(impact) >= 200 else (impact.min(), impact.max())
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    width = (high - low) / min(BINS, 10 + len(impact) // 5) or 1.0
    first = min(math.floor(low / width), -1 if impact.min() <= 0 else 0)
    edges = width * np.arange(first, math.ceil(high / width) + 1)  # 0 is an edge: no bar holds both signs
    # numpy's bars hold their left edge; mirrored, they hold their right one, so that 0 falls left of zero
    counts = np.histogram(-np.clip(impact, edges[0], edges[-1]), -edges[::-1])[0][::-1]
    centres = (edges[:-1] + edges[1:]) / 2
    beyond = int(((impact < edges[0]) | (impact > edges[-1])).sum())
    helpful = int((impact > 0).sum())
    bars = {
        "type": "bar",
        "x": _short(centres),
        "y": counts.tolist(),
        "width": _short(np.diff(edges)),
        "marker": {"color": ["--good" if centre > 0 else "--bad" for centre in centres]},
        "hovertemplate": "%{y} negatives, impact about %{x}<extra></extra>",
    }
    return Plot(
        "impact",
        "Impact of the negatives",
        f"Right of zero, unlearning raises alignment ({helpful:,} of {len(impact):,} negatives); left of it, "
        f"unlearning lowers it or changes nothing ({len(impact) - helpful:,})."
        + (f" {beyond:,} further out are counted in the outermost bars." if beyond else ""),
        _figure([bars], "impact (gain of J per unit of weight)", "negatives", bargap=0.05),
        ["impact from", "to", "negatives"],
        [[float(a), float(b), int(n)] for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True) if n],
    )


def cumulative_gain(scores: Scores, cut: int | None) -> Plot:
    """Σ of the k largest impacts against k: where unlearning more stops paying, to first order.

    Args:
        cut: how many negatives were chosen, drawn as a line; None = nothing was chosen.
    """
    gain = np.cumsum(scores.impact[scores.order])
    total = len(gain)
    shown = np.unique(np.linspace(0, total - 1, min(total, CURVE_POINTS)).round().astype(int))
    peak = int(gain.argmax()) + 1 if gain.max() > 0 else 0
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": [0, *(shown + 1).tolist()],
        "y": [0.0, *_short(gain[shown])],
        "line": {"color": "--accent", "width": 2},
        "hovertemplate": "the best %{x} negatives: %{y}<extra></extra>",
    }
    figure = _figure([line], "negatives unlearned, best first", "predicted gain of J")
    caption = "Predicted to first order, at weight 1 each. " + (
        f"It is largest with the best {peak:,} of {total:,} negatives." if peak else "No negative is a gain."
    )
    if cut is not None:
        figure["layout"]["shapes"] = [_vertical(cut, "--good")]
        figure["layout"]["annotations"] = [_label(cut, f"chosen: {cut:,}", at_left=cut > total / 2)]
        caption += f" Chosen for unlearning: {cut:,}."
    marks = {round(total * tenth / 10) for tenth in range(1, 11)} | {peak, min(cut or 0, total)}
    return Plot(
        "cumulative",
        "Predicted gain against number of negatives",
        caption,
        figure,
        ["best negatives", "predicted gain of J"],
        [[k, float(gain[k - 1])] for k in sorted(marks) if k],
    )


def scatter_positions(scores: Scores) -> Array:
    """Positions of the negatives that the scatter draws, at most `SCATTER_POINTS`, largest impact first."""
    usable = scores.order[np.isfinite(scores.cost[scores.order])]
    if len(usable) <= SCATTER_POINTS:
        return usable
    return usable[np.linspace(0, len(usable) - 1, SCATTER_POINTS).round().astype(int)]


def gain_and_cost(scores: Scores, texts: Mapping[int, str]) -> Plot:
    """Impact against utility cost, the selected negatives marked.

    Args:
        texts: text by position, an excerpt of which is shown when a point is pointed at; may be empty.
    """
    shown = scatter_positions(scores)
    chosen = scores.selected if scores.selected is not None else np.zeros(len(scores.row), bool)
    rest, colour = ("not selected", "--quiet") if chosen.any() else ("negatives", "--accent")
    traces = []
    for name, part, look in (
        (rest, shown[~chosen[shown]], {"color": colour, "symbol": "circle", "opacity": 0.55}),
        ("selected", shown[chosen[shown]], {"color": "--accent", "symbol": "diamond"}),
    ):
        if len(part):
            points = {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": _short(scores.cost[part]),
                "y": _short(scores.impact[part]),
                "text": [_hover(scores, position, texts) for position in part.tolist()],
                "marker": look | {"size": 7, "line": {"width": 0}},
                "hovertemplate": "%{text}<br>impact %{y}, cost %{x}<extra></extra>",
            }
            traces.append(points)
    figure = _figure(traces, "utility cost (loss of U per unit of weight)", "impact (gain of J)")
    figure["layout"]["showlegend"] = len(traces) > 1
    rows: list[list[Cell]] = []
    for gain, gains in (("raises J", scores.impact > 0), ("does not raise J", scores.impact <= 0)):
        for cost, costs in (("lowers U", scores.cost > 0), ("does not lower U", scores.cost <= 0)):
            rows.append([gain, cost, int((gains & costs).sum()), int((gains & costs & chosen).sum())])
    fewer = f" {len(shown):,} of {len(scores.row):,} are drawn." if len(shown) < len(scores.row) else ""
    return Plot(
        "cost",
        "Gain against utility cost",
        f"Top left is best: alignment gained, usefulness kept. Top right is a gain at a price.{fewer}",
        figure,
        ["unlearning it", "and", "negatives", "of them selected"],
        rows,
    )


def progress(points: list[Measured], *, restart: bool) -> Plot:
    """J, U and KL over optimiser steps, one below the other, with the beginnings of outer steps marked.

    Args:
        points: at least one, in order of outer step; `step` counts within its outer step.
        restart: every outer step began at the original model instead of at the best point so far.
    """
    offsets, total = {}, 0
    for outer in sorted({point.outer_step for point in points}):
        offsets[outer] = total
        total += max(point.step for point in points if point.outer_step == outer)
    traces: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    for n, (name, field) in enumerate((("J", "objective"), ("U", "utility"), ("KL", "kl")), start=1):
        both = (_lines(points, offsets, field, restart), _dots(points, offsets, field, name))
        traces += [trace | {"yaxis": f"y{n}"} for trace in both]
        axes[f"yaxis{n}"] = _axis(name) | {"domain": [1.03 - n / 3, 1.30 - n / 3]}
    figure = _figure(traces, "optimiser steps", "")
    axes["yaxis"] = axes.pop("yaxis1")  # plotly's name for the first axis
    figure["layout"] |= axes | {"height": 560}
    figure["layout"]["xaxis"] |= {"anchor": "y3"}
    starts = [x for outer, x in offsets.items() if outer > 1]
    figure["layout"]["shapes"] = [_vertical(x, "--quiet", dash="dot") for x in starts]
    outside = sum(not point.admissible for point in points)
    past = (
        f"a cross is past a budget ({outside} of {len(points)})" if outside else "no point is past a budget"
    )
    begin = "original model" if restart else "best point so far"
    return Plot(
        "progress",
        "J, U and KL while unlearning",
        f"A star is a new best point; {past}. Dotted: a new outer step begins, at the {begin}.",
        figure,
        ["outer step", "step", "J", "U", "KL", "state"],
        [[p.outer_step, p.step, p.objective, p.utility, p.kl, _state(p)] for p in _thinned(points)],
    )


def _lines(points: list[Measured], offsets: dict[int, int], field: str, restart: bool) -> dict[str, Any]:
    """Lines with gaps (None). Each inner run, repeated ones too, is drawn from the point it went on from."""
    x: list[Any] = []
    y: list[Any] = []
    origin = best = before = points[0]
    for point in points:
        new_outer = point.outer_step != before.outer_step
        if new_outer:
            origin = points[0] if restart else best
        if new_outer or (x and point.step <= before.step):
            x += [None, offsets[point.outer_step]]
            y += [None, _plain(getattr(origin, field))]
        x.append(offsets[point.outer_step] + point.step)
        y.append(_plain(getattr(point, field)))
        best, before = (point if point.best else best), point
    look = {"line": {"color": "--accent", "width": 2}, "hoverinfo": "skip"}
    return {"type": "scatter", "mode": "lines", "x": x, "y": y} | look


def _dots(points: list[Measured], offsets: dict[int, int], field: str, name: str) -> dict[str, Any]:
    looks = [_LOOKS[_state(point)] for point in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [offsets[point.outer_step] + point.step for point in points],
        "y": [_plain(getattr(point, field)) for point in points],
        "text": [f"outer step {point.outer_step}, step {point.step}" for point in points],
        "marker": {key: [look[key] for look in looks] for key in ("symbol", "color", "size")}
        | {"line": {"width": 0}, "opacity": 1},
        "hovertemplate": f"%{{text}}: {name} %{{y}}<extra></extra>",
    }


def _state(point: Measured) -> str:
    return "best" if point.best else "" if point.admissible else "past a budget"


def _thinned(points: list[Measured]) -> list[Measured]:
    every = math.ceil(len(points) / TABLE_ROWS)
    return [point for i, point in enumerate(points) if i % every == 0 or point.best or point is points[-1]]


def _hover(scores: Scores, position: int, texts: Mapping[int, str]) -> str:
    """Plotly reads tags in hover texts, so what users wrote is escaped for it."""
    words = f"row {scores.row[position]}, id {excerpt(scores.ids[position], 40)}"
    if scores.weight is not None:
        words += f", weight {number(scores.weight[position])}"
    if position in texts:
        words += f": {excerpt(texts[position], 40)}"
    return html.escape(visible(words), quote=False)


def _figure(traces: list[dict[str, Any]], x: str, y: str, **layout: Any) -> dict[str, Any]:
    return {"data": traces, "layout": _LAYOUT | {"xaxis": _axis(x), "yaxis": _axis(y)} | layout}


def _axis(title: str) -> dict[str, Any]:
    return _AXIS | {"title": {"text": title, "standoff": 8}}


def _vertical(x: float, colour: str, dash: str = "dash") -> dict[str, Any]:
    line = {"color": colour, "width": 2, "dash": dash}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def _label(x: float, text: str, *, at_left: bool) -> dict[str, Any]:
    side = {"xanchor": "right", "xshift": -5} if at_left else {"xanchor": "left", "xshift": 5}
    return {"text": text, "showarrow": False, "x": x, "y": 0.1, "yref": "paper", "yanchor": "bottom"} | side


def _plain(value: float) -> float | None:
    """JSON has no NaN; plotly leaves null out."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _short(values: Array) -> list[float | None]:
    return [_plain(float(value)) for value in values]
