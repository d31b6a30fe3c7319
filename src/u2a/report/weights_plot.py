"""The figure of a run's weights: how they moved from one outer step to the next."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from u2a.report.figure import Cell, Plot, figure, horizontal, short, word
from u2a.report.scores import Array, Scores

MOVERS = 12
"""Most negatives with a line of their own: those whose weight moved most."""
RANKS = 400
"""Most points of the curve by rank."""
_COLOURS = ("--accent", "--good", "--bad", "--quiet")
_DASHES = ("solid", "dash", "dot")


def weights_plot(scores: Scores) -> Plot | None:
    """Weights of the selected over outer steps, or of the only one by rank; None where nothing was selected.

    A weight of 0 is a negative that is not selected. The mean over the selected is 1 in every step.
    """
    history = [np.nan_to_num(step) for step in scores.history]
    if not any(step.any() for step in history):
        return None
    if len(history) == 1:
        return _by_rank(scores, history[0])
    steps = list(range(1, len(history) + 1))
    traces = [*_band(history, steps), *_movers(scores, history, steps)]
    drawn = figure(traces, "outer step", "weight", height=380)
    drawn["layout"]["xaxis"] |= {"tickmode": "array", "tickvals": steps}
    rows = [_row(k, history) for k in range(len(history))]
    return Plot(
        "weights",
        "Weights over outer steps",
        "Shaded: the middle half of the selected negatives. Lines: the "
        f"{len(traces) - 2} whose weight moved most; 0 is not selected. "
        f"Selected in the first step {rows[0][1]:,}, in the last {rows[-1][1]:,}.",
        drawn,
        ["outer step", "selected", "entered", "left", "smallest weight", "median", "largest"],
        rows,
    )


def _by_rank(scores: Scores, weights: Array) -> Plot:
    ranked = scores.order[weights[scores.order] > 0]
    chosen = ranked[np.unique(np.linspace(0, len(ranked) - 1, min(len(ranked), RANKS)).round().astype(int))]
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": (1 + np.flatnonzero(np.isin(ranked, chosen))).tolist(),
        "y": short(weights[chosen]),
        "text": [word(f"row {scores.row[i]}, id {scores.ids[i]}") for i in chosen.tolist()],
        "line": {"color": "--accent", "width": 1.5},
        "marker": {"color": "--accent", "size": 5},
        "hovertemplate": "%{text}: weight %{y}<extra></extra>",
    }
    drawn = figure([line], "selected negatives, largest impact first", "weight")
    drawn["layout"]["shapes"] = [horizontal(1.0, "--quiet", "y", dash="dot")]
    return Plot(
        "weights",
        "Weights of the selected",
        "There was one outer step. Every selected negative began at weight 1 (dotted) and ended here; "
        "the mean stays 1.",
        drawn,
        ["outer step", "selected", "entered", "left", "smallest weight", "median", "largest"],
        [_row(0, [weights])],
    )


def _band(history: list[Array], steps: list[int]) -> list[dict[str, Any]]:
    """The quartiles of the selected in each step, the upper filled down to the lower."""
    selected = [step[step > 0] for step in history]
    lower, upper = (
        np.array([np.percentile(step, q) if len(step) else math.nan for step in selected]) for q in (25, 75)
    )
    edge = {"type": "scatter", "mode": "lines", "x": steps, "line": {"width": 0, "color": "--line"}}
    edge |= {"hoverinfo": "skip"}
    return [edge | {"y": short(lower)}, edge | {"y": short(upper), "fill": "tonexty", "fillcolor": "--line"}]


def _movers(scores: Scores, history: list[Array], steps: list[int]) -> list[dict[str, Any]]:
    spread = np.ptp(np.stack(history), axis=0)  # [N]
    moved = np.argsort(-spread, kind="stable")[:MOVERS]
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": word(f"row {scores.row[i]}, id {scores.ids[i]}"),
            "x": steps,
            "y": short(np.array([step[i] for step in history])),
            "line": {"color": _COLOURS[n % 4], "dash": _DASHES[n // 4], "width": 1.5},
            "marker": {"color": _COLOURS[n % 4], "size": 6},
            "hovertemplate": "%{fullData.name}: weight %{y} in step %{x}<extra></extra>",
        }
        for n, i in enumerate(moved.tolist())
        if spread[i] > 0
    ]


def _row(k: int, history: list[Array]) -> list[Cell]:
    now, before = history[k] > 0, history[max(0, k - 1)] > 0
    weights = history[k][now]
    least, median, most = (
        (float(weights.min()), float(np.median(weights)), float(weights.max()))
        if len(weights)
        else (math.nan,) * 3
    )
    return [
        k + 1,
        int(now.sum()),
        int((now & ~before).sum()),
        int((before & ~now).sum()),
        least,
        median,
        most,
    ]
