"""The figure of a run's measured points: J, U, KL and what else was guarded, over optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from u2a.report.figure import Plot, axis, figure, horizontal, inert, plain, vertical
from u2a.report.scores import Measured

TABLE_ROWS = 60
"""About how many measured points the table under the curves holds."""
PANEL = 165
"""Height of one curve in pixels."""

_FIELDS = {
    "J": "objective",
    "U": "utility",
    "KL": "kl",
    "log-prob of the negatives": "negative_logprob",
    "repetition": "repetition",
}
_UNITS = {"J": "nats", "U": "nats/token", "KL": "nats/token", "log-prob": "nats/token", "repetition": "share"}
_ALWAYS = ("J", "U", "KL")
_LOOKS: dict[str, dict[str, Any]] = {
    "best": {"symbol": "star", "color": "--good", "size": 13},
    "past a budget": {"symbol": "x", "color": "--bad", "size": 9},
    "": {"symbol": "circle", "color": "--accent", "size": 7},
}


def budgets(config: Mapping[str, Any], start: Measured) -> dict[str, float]:
    """Bounds of the run's guards by curve: KL and repetition must stay below theirs, U above its.

    Args:
        config: the run's settings; start: the measured point of the original model.
    """

    def setting(name: str) -> float:
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            return math.nan
        return float(value)

    falls = [fall for fall in (setting("max_nll_rise"), setting("utility_budget")) if not math.isnan(fall)]
    rise = config.get("max_repetition_rise")
    rise = None if isinstance(rise, bool) or not isinstance(rise, (int, float)) else rise  # 0 is a limit too
    found = {
        "KL": setting("kl_budget"),
        "U": start.utility - min(falls) if falls else math.nan,
        "repetition": start.repetition + rise if rise is not None and rise < 1 else math.nan,
    }
    return {name: bound for name, bound in found.items() if math.isfinite(bound)}


def progress(
    points: list[Measured],
    *,
    restart: bool,
    bounds: Mapping[str, float] | None = None,
    units: Mapping[str, str] | None = None,
) -> Plot:
    """J, U, KL and other figures that were measured, one below the other, over optimiser steps.

    Args:
        points: at least one, in order of outer step; `step` counts within its outer step.
        restart: every outer step began at the original model instead of at the best point so far.
        bounds: of guards, from `budgets`, drawn as lines.
        units: of curves by name, where they are not the usual ones.
    """
    offsets, total = {}, 0
    for outer in sorted({point.outer_step for point in points}):
        offsets[outer] = total
        total += max(point.step for point in points if point.outer_step == outer)
    shown = {
        name: field
        for name, field in _FIELDS.items()
        if name in _ALWAYS or sum(math.isfinite(getattr(point, field)) for point in points) > 1
    }
    traces: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    shapes = [vertical(x, "--quiet", dash="dot") for outer, x in offsets.items() if outer > 1]
    for n, (name, field) in enumerate(shown.items(), start=1):
        reference = f"y{n}" if n > 1 else "y"  # plotly's name for the first axis has no number
        both = (_lines(points, offsets, field, restart), _dots(points, offsets, field, name))
        traces += [trace | {"yaxis": reference} for trace in both]
        top = 1 - (n - 1) / len(shown)
        title = "log-prob" if name == "log-prob of the negatives" else name
        unit = (units or {}).get(title, _UNITS[title])
        axes[f"yaxis{n if n > 1 else ''}"] = axis(f"{title}<br>{inert(unit)}") | {
            "domain": [top - 0.9 / len(shown), top]
        }
        if bounds and name in bounds and _near(bounds[name], points, field):
            shapes.append(horizontal(bounds[name], "--bad", reference))
    drawn = figure(traces, "optimiser steps", "")
    drawn["layout"] |= axes | {"height": 65 + PANEL * len(shown), "shapes": shapes}
    drawn["layout"]["xaxis"] |= {"anchor": f"y{len(shown)}"}
    return Plot(
        "progress",
        f"{', '.join(list(shown)[:-1])} and {list(shown)[-1]} while unlearning",
        _caption(points, restart, bounds or {}),
        drawn,
        ["outer step", "step", *shown, "state"],
        [
            [p.outer_step, p.step, *(getattr(p, field) for field in shown.values()), _state(p)]
            for p in _thinned(points)
        ],
    )


def _near(bound: float, points: list[Measured], field: str) -> bool:
    """Whether a bound may be drawn without flattening the curve."""
    values = [value for point in points if math.isfinite(value := getattr(point, field))]
    if not values:
        return False
    low, high = min(values), max(values)
    return 2 * low - high <= bound <= 2 * high - low


def _caption(points: list[Measured], restart: bool, bounds: Mapping[str, float]) -> str:
    outside = sum(not point.admissible for point in points)
    past = (
        f"a cross is past a budget ({outside} of {len(points)})" if outside else "no point is past a budget"
    )
    begin = "original model" if restart else "best point so far"
    guards = ", ".join(
        f"{name} {'above' if name == 'U' else 'below'} {bound:.4g}{' but for noise' * (name == 'repetition')}"
        for name, bound in bounds.items()
    )
    return f"A star is a new best point; {past}. Dotted: a new outer step begins, at the {begin}." + (
        f" Guards: {guards}; dashed where the curve comes near." if guards else ""
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
            y += [None, plain(getattr(origin, field))]
        x.append(offsets[point.outer_step] + point.step)
        y.append(plain(getattr(point, field)))
        best, before = (point if point.best else best), point
    look = {"line": {"color": "--accent", "width": 2}, "hoverinfo": "skip"}
    return {"type": "scatter", "mode": "lines", "x": x, "y": y} | look


def _dots(points: list[Measured], offsets: dict[int, int], field: str, name: str) -> dict[str, Any]:
    looks = [_LOOKS[_state(point)] for point in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [offsets[point.outer_step] + point.step for point in points],
        "y": [plain(getattr(point, field)) for point in points],
        "text": [f"outer step {point.outer_step}, step {point.step}" for point in points],
        **_errors(points, field),
        "marker": {key: [look[key] for look in looks] for key in ("symbol", "color", "size")}
        | {"line": {"width": 0}, "opacity": 1},
        "hovertemplate": f"%{{text}}: {name} %{{y}}<extra></extra>",
    }


def _state(point: Measured) -> str:
    return "best" if point.best else "" if point.admissible else "past a budget"


def _thinned(points: list[Measured]) -> list[Measured]:
    every = math.ceil(len(points) / TABLE_ROWS)
    return [point for i, point in enumerate(points) if i % every == 0 or point.best or point is points[-1]]


def _errors(points: list[Measured], field: str) -> dict[str, Any]:
    """Standard errors of J, where it was measured on drawn responses."""
    errors = [plain(point.objective_se) for point in points]
    if field != "objective" or not any(errors):
        return {}
    return {"error_y": {"type": "data", "array": errors, "color": "--quiet", "thickness": 1}}
