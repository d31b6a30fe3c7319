"""The figures of a `verify` run: predicted against measured, and estimators beside controls."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from u2a.report.figure import Cell, Plot, figure, named_bars, plain, short, vertical, word
from u2a.report.record import parsed, read_file
from u2a.report.wording import NOTHING, number
from u2a.types import UserError

_SCOPES = (("validation", "objective_change", "--accent"), ("held-out", "held_out_change", "--quiet"))


def verify_plots(run: Path) -> list[Plot]:
    """The two figures, none when the run folder is not one of `verify`.

    Raises:
        UserError: `verify.json` or `subsets.parquet` is missing or not what a run writes.
    """
    path = run / "verify.json"
    if not path.exists():
        return []
    try:
        figures = parsed(read_file(path))
        chosen = str(figures["chosen"])
        rows = _rows(run / "subsets.parquet", chosen, figures["seeds"])
        return [_scatter(rows, chosen), _bars(figures)]
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: not what a run writes ({error!r}); write the run again") from None


def _rows(path: Path, chosen: str, seeds: list[int]) -> dict[int, list[float]]:
    """Of every subset (single negatives left out): predicted, measured on validation and on held-out pairs,
    mean over `seeds`, as the LDS takes them; NaN = not measured."""
    predicted = f"predicted_{chosen}"
    names = ["subset", "seed", "single", predicted, "objective_change", "held_out_change"]
    try:
        table = pq.read_table(path, columns=names)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: not readable ({error}); write the run again") from None
    subset, seed, single, *values = (table[name].to_pylist() for name in names)
    numbers = np.array(values, np.float64).T  # null -> NaN
    kept = ~np.array(single, bool) & np.isin(seed, seeds)
    return {
        int(index): numbers[kept & (np.array(subset) == index)].mean(axis=0).tolist()
        for index in np.unique(np.array(subset)[kept])
    }


def _scatter(rows: dict[int, list[float]], chosen: str) -> Plot:
    traces = []
    for column, (name, _, colour) in enumerate(_SCOPES, start=1):
        points = [(subset, row[0], row[column]) for subset, row in rows.items() if math.isfinite(row[column])]
        if points:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name,
                    "x": [plain(point[1]) for point in points],
                    "y": [plain(point[2]) for point in points],
                    "text": [f"subset {point[0]}" for point in points],
                    "marker": {"color": colour, "size": 8, "line": {"width": 0}},
                    "hovertemplate": "%{text}: predicted %{x}, measured %{y}<extra></extra>",
                }
            )
    drawn = figure(traces, f"sum of predicted impacts ({word(chosen)})", "measured change of J")
    drawn["layout"]["showlegend"] = len(traces) > 1
    cells: list[list[Cell]] = [[subset, *row] for subset, row in rows.items()]
    return Plot(
        "truth",
        "Predicted against measured",
        f"One point a subset of negatives, unlearned for real ({len(rows)} subsets). The better they follow "
        "a rising line, the more the scores may be trusted.",
        drawn,
        ["subset", "predicted sum", "ΔJ on validation", "ΔJ on held-out pairs"],
        cells,
    )


def _bars(figures: dict[str, Any]) -> Plot:
    """LDS of every estimator and control, on validation pairs, with intervals; all the rest in the table."""
    kinds = (("estimator", figures["estimators"]), ("control", figures["controls"]))
    entries = [(kind, name, found) for kind, group in kinds for name, found in group.items()]
    shown = [(kind, name, found["validation"]["J"]) for kind, name, found in entries]
    known = [each for each in shown if each[2]["lds"] is not None][::-1]  # plotly draws upwards
    lds = np.array([found["lds"] for _, _, found in known], np.float64)
    low, high = (np.array([found["interval"][end] for _, _, found in known], np.float64) for end in (0, 1))
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": short(lds),
        "y": [word(name) for _, name, _ in known],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": short(np.maximum(high - lds, 0)),
            "arrayminus": short(np.maximum(lds - low, 0)),
            "color": "--text",
        },
        "marker": {"color": ["--accent" if kind == "estimator" else "--quiet" for kind, _, _ in known]},
        "hovertemplate": "%{y}: %{x}<extra></extra>",
    }
    drawn = named_bars(bars, "LDS on validation pairs", 120 + 26 * len(known))
    ceiling = figures["noise_ceiling"]["validation"]["J"]["lds"]
    caption = (
        "Spearman correlation of predicted sums and measured changes over subsets, with 95 % intervals: "
        "estimators in colour, what could be used instead of them in grey."
    )
    if ceiling is not None:
        drawn["layout"]["shapes"] = [vertical(ceiling, "--good")]
        caption += f" The line: what noise allows ({number(ceiling, digits=2)})."
    header = ["score", "kind", "LDS", "95 % interval", "Pearson", "slope", "LDS held-out", "LDS of U"]
    return Plot("agreement", "Estimators and controls", caption, drawn, header, [_row(*e) for e in entries])


def _row(kind: str, name: str, found: dict[str, Any]) -> list[Cell]:
    validation = found["validation"]
    j, u = validation["J"], validation.get("U", {})
    held_out = found.get("held_out", {}).get("J", {})
    low, high = j["interval"]
    interval = NOTHING if low is None else f"{number(low, digits=2)} to {number(high, digits=2)}"
    # a float renders as a number, NaN as a dash
    rest = [math.nan if v is None else float(v) for v in (held_out.get("lds"), u.get("lds"))]
    figures = [math.nan if j[key] is None else float(j[key]) for key in ("lds", "pearson", "slope")]
    return [name, kind, figures[0], interval, *figures[1:], *rest]
