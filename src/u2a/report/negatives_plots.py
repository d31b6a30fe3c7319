"""The figures of a run's negatives: how impact is spread, what unlearning more brings, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from u2a.report.figure import Cell, Plot, figure, inert, label, short, vertical
from u2a.report.scores import Array, Scores
from u2a.report.wording import excerpt, number

CURVE_POINTS = 400
SCATTER_POINTS = 1000
"""Most points drawn, evenly spaced in the order of impact: more would only make the page heavy."""
BINS = 40
"""Most bars of the histogram."""


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
        "x": short(centres),
        "y": counts.tolist(),
        "width": short(np.diff(edges)),
        "marker": {"color": ["--good" if centre > 0 else "--bad" for centre in centres]},
        "hovertemplate": "%{y} negatives, impact about %{x}<extra></extra>",
    }
    return Plot(
        "impact",
        "Impact of the negatives",
        f"Right of zero, unlearning raises alignment ({helpful:,} of {len(impact):,} negatives); left of it, "
        f"unlearning lowers it or changes nothing ({len(impact) - helpful:,})."
        + (f" {beyond:,} further out are counted in the outermost bars." if beyond else "")
        + " The scale follows the curvature: compare negatives with each other, not with J.",
        figure([bars], "impact (gain of J per unit of weight)", "negatives", bargap=0.05),
        ["impact from", "to", "negatives"],
        [[float(a), float(b), int(n)] for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True) if n],
    )


def cumulative_gain(scores: Scores, cut: int | None) -> Plot:
    """Σ of the k largest impacts against k: where unlearning more stops paying, to first order.

    Drawn in per cent of the largest sum, since only the shape can be relied upon; without a gain, as it is.

    Args:
        cut: how many negatives were chosen, drawn as a line; None = nothing was chosen.
    """
    gain = np.cumsum(scores.impact[scores.order])
    total = len(gain)
    shown = np.unique(np.linspace(0, total - 1, min(total, CURVE_POINTS)).round().astype(int))
    peak = int(gain.argmax()) + 1 if gain.max() > 0 else 0
    share = 100 * gain / gain[peak - 1] if peak else gain
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": [0, *(shown + 1).tolist()],
        "y": [0.0, *short(share[shown])],
        "line": {"color": "--accent", "width": 2},
        "hovertemplate": f"the best %{{x}} negatives: %{{y:.3g}}{' %' if peak else ''}<extra></extra>",
    }
    title = "gain of J, % of the most" if peak else "predicted gain of J"
    drawn = figure([line], "negatives unlearned, best first", title)
    caption = "Predicted to first order, at weight 1 each: read the shape, not the height. " + (
        f"It is largest with the best {peak:,} of {total:,} negatives." if peak else "No negative is a gain."
    )
    if cut is not None:
        drawn["layout"]["shapes"] = [vertical(cut, "--good")]
        drawn["layout"]["annotations"] = [label(cut, f"chosen: {cut:,}", at_left=cut > total / 2)]
        caption += f" Chosen for unlearning: {cut:,}" + (
            f", which is {share[min(cut, total) - 1]:.0f} % of it." if peak and cut else "."
        )
    marks = {round(total * tenth / 10) for tenth in range(1, 11)} | {peak, min(cut or 0, total)}
    return Plot(
        "cumulative",
        "Predicted gain against number of negatives",
        caption,
        drawn,
        ["best negatives", "predicted gain of J", "% of the most"],
        [[k, float(gain[k - 1]), float(share[k - 1]) if peak else math.nan] for k in sorted(marks) if k],
    )


def scatter_positions(scores: Scores) -> Array:
    """Positions of the negatives that the scatter draws: at most `SCATTER_POINTS`, largest impact first, and
    those at the corners of the Pareto front."""
    usable = scores.order[np.isfinite(scores.cost[scores.order])]
    if len(usable) <= SCATTER_POINTS:
        return usable
    drawn = usable[np.linspace(0, len(usable) - 1, SCATTER_POINTS).round().astype(int)]
    return np.concatenate([drawn, np.setdiff1d(_corners(scores), drawn)])


def _corners(scores: Scores) -> Array:
    """The Pareto front, or so much of it as is drawn, evenly."""
    front = pareto_front(scores)
    return front[np.unique(np.linspace(0, len(front) - 1, min(len(front), CURVE_POINTS)).astype(int))]


def pareto_front(scores: Scores) -> Array:
    """Positions of the negatives that no other beats in impact without costing more, cheapest first.

    Of negatives of one cost only the one of the largest impact is in it; so both rise along the front.
    """
    usable = np.flatnonzero(np.isfinite(scores.impact) & np.isfinite(scores.cost))
    ordered = usable[np.lexsort((-scores.impact[usable], scores.cost[usable]))]
    gains = scores.impact[ordered]
    before = np.maximum.accumulate(np.concatenate([[-math.inf], gains]))[:-1]
    return ordered[gains > before]


def gain_and_cost(scores: Scores, texts: Mapping[int, str]) -> Plot:
    """Impact against utility cost, the selected negatives marked, with the Pareto front.

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
                "x": short(scores.cost[part]),
                "y": short(scores.impact[part]),
                "text": [_hover(scores, position, texts) for position in part.tolist()],
                "marker": look | {"size": 7, "line": {"width": 0}},
                "hovertemplate": "%{text}<br>impact %{y}, cost %{x}<extra></extra>",
            }
            traces.append(points)
    front = pareto_front(scores)
    if len(front):
        traces.append(_front(scores))
    drawn = figure(traces, "utility cost (loss of U)", "impact (gain of J)")
    drawn["layout"]["showlegend"] = len(traces) > 1
    rows: list[list[Cell]] = []
    for gain, gains in (("raises J", scores.impact > 0), ("does not raise J", scores.impact <= 0)):
        for cost, costs in (("lowers U", scores.cost > 0), ("does not lower U", scores.cost <= 0)):
            rows.append([gain, cost, int((gains & costs).sum()), int((gains & costs & chosen).sum())])
    fewer = f" {len(shown):,} of {len(scores.row):,} are drawn." if len(shown) < len(scores.row) else ""
    return Plot(
        "cost",
        "Gain against utility cost",
        "Top left is best: alignment gained, usefulness kept. Top right is a gain at a price. "
        f"{_beaten(scores, front)}{fewer}",
        drawn,
        ["unlearning it", "and", "negatives", "of them selected"],
        rows,
    )


def _front(scores: Scores) -> dict[str, Any]:
    corners = _corners(scores)
    return {
        "type": "scatter",
        "mode": "markers" if len(corners) == 1 else "lines",
        "name": "Pareto front",
        "x": short(scores.cost[corners]),
        "y": short(scores.impact[corners]),
        "line": {"color": "--good", "width": 2, "shape": "hv"},
        "marker": {"color": "--good", "symbol": "star", "size": 11},
        "hoverinfo": "skip",
    }


def _beaten(scores: Scores, front: Array) -> str:
    if not len(front):
        return "None has both figures."
    if len(front) == 1:
        return f"The star, row {scores.row[front[0]]}, is best in both."
    return (
        f"None is better in one than the {len(front):,} on the Pareto front without being worse in the other."
    )


def _hover(scores: Scores, position: int, texts: Mapping[int, str]) -> str:
    words = f"row {scores.row[position]}, id {excerpt(scores.ids[position], 40)}"
    if scores.weight is not None:
        words += f", weight {number(scores.weight[position])}"
    if position in texts:
        words += f": {excerpt(texts[position], 40)}"
    return inert(words)
