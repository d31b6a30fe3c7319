"""The figures of a `compare` run: methods by margin at equal cost, alignment against utility, cost, and every
metric's change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from u2a.report.evaluate_plot import beyond, change_row, colour_of_change, in_words
from u2a.report.figure import Cell, Plot, figure, named_bars, plain, vertical, word
from u2a.report.record import parsed, read_file
from u2a.types import UserError

_COLOURS = {"u2a": "--accent", "original": "--text"}
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")

Methods = Mapping[str, Mapping[str, Any]]


def compare_plots(run: Path) -> list[Plot]:
    """The figures (of metrics only where some changed), none when the run folder is not one of `compare`.

    Raises:
        UserError: `comparison.json` is not what a run writes.
    """
    path = run / "comparison.json"
    if not path.exists():
        return []
    try:
        found = parsed(read_file(path))
        methods: Methods = found["methods"]
        rise = float(found["nll_rise"])
        return [_bars(methods, rise), _pareto(methods, rise), _cost(methods), *_metrics(methods)]
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: not what a run writes ({error!r}); write the run again") from None


def _bars(methods: Methods, rise: float) -> Plot:
    order = sorted(methods, key=lambda name: float(methods[name]["margin_at_cost"]["value"]))
    shown = [methods[name]["margin_at_cost"] for name in order]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [plain(one["value"]) for one in shown],
        "y": [word(name) for name in order],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [_reach(one, "high") for one in shown],
            "arrayminus": [_reach(one, "low") for one in shown],
            "color": "--text",
        },
        "marker": {"color": [_colour(methods[name]) for name in order]},
        "hovertemplate": "%{y}: %{x}<extra></extra>",
    }
    drawn = named_bars(bars, "gain of the held-out margin, nats", 120 + 26 * len(order))
    drawn["layout"]["shapes"] = [vertical(0.0, "--quiet")]
    rows: list[list[Cell]] = [
        [
            name,
            float(methods[name]["margin_at_cost"]["value"]),
            *(_end(methods[name]["margin_at_cost"][key]) for key in ("low", "high")),
            "yes" if methods[name]["reached"] else "no, taken at its end",
            str(methods[name]["seeds"]),
        ]
        for name in reversed(order)
    ]
    return Plot(
        "methods",
        "Methods at equal cost in usefulness",
        f"Gain of the margin on held-out pairs where the retain NLL has risen by {rise:g} nats per token, "
        "with 95 % intervals over seeds and pairs; u2a in colour.",
        drawn,
        ["method", "margin gain", "from", "to", "reached that cost", "seeds"],
        rows,
    )


def _reach(one: Mapping[str, float | None], end: str) -> float | None:
    """Length of the interval's bar; None where there is no interval."""
    value, limit = one["value"], one[end]
    return None if value is None or limit is None else plain(abs(limit - value))


def _end(limit: float | None) -> Cell:
    return "none" if limit is None else float(limit)


def _pareto(methods: Methods, rise: float) -> Plot:
    """Each method's way from the original model, by what it gained and what it cost."""
    traces: list[dict[str, Any]] = []
    rows: list[list[Cell]] = []
    for number, (name, one) in enumerate(methods.items()):
        way = [(0.0, 0.0), *((float(r), float(m)) for r, m, _ in one["curve"])]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": word(name),
                "x": [plain(r) for r, _ in way],
                "y": [plain(m) for _, m in way],
                "marker": {"symbol": _SYMBOLS[number % len(_SYMBOLS)], "size": 8},
                "line": {"dash": "solid" if one["method"] == "u2a" else "dot"},
                "hovertemplate": "%{fullData.name}: NLL %{x}, margin %{y}<extra></extra>",
            }
        )
        rows += [[name, look, r, m] for look, (r, m) in enumerate(way)]
    drawn = figure(traces, "rise of the retain NLL, nats per token", "gain of the held-out margin, nats")
    drawn["layout"] |= {"showlegend": True, "height": 460, "shapes": [vertical(rise, "--quiet")]}
    return Plot(
        "pareto",
        "Alignment against usefulness",
        "Each method from the original model (0, 0) on, mean over seeds; up and to the left is better. "
        "The dashed line: where methods are compared.",
        drawn,
        ["method", "look", "NLL rise", "margin gain"],
        rows,
    )


def _cost(methods: Methods) -> Plot:
    names = [name for name in methods if methods[name]["method"] != "original"]
    points = {
        "type": "scatter",
        "mode": "markers+text",
        "x": [plain(methods[name]["seconds"]) for name in names],
        "y": [plain(methods[name]["margin_at_cost"]["value"]) for name in names],
        "text": [word(name) for name in names],
        "textposition": "top center",
        "marker": {"size": 10, "color": [_colour(methods[name]) for name in names]},
        "hovertemplate": "%{text}: %{x} s, margin %{y}<extra></extra>",
    }
    drawn = figure([points], "seconds, scoring and sampling counted", "gain of the held-out margin, nats")
    drawn["layout"]["height"] = 420
    keys = ("seconds", "forward_tokens", "trained_tokens")
    rows: list[list[Cell]] = [[name, *(float(methods[name][key]) for key in keys)] for name in names]
    return Plot(
        "price",
        "What it costs to get there",
        "Margin at equal cost in usefulness, mean over seeds, against the time that the method took, median "
        "over seeds.",
        drawn,
        ["method", "seconds", "tokens without a gradient", "tokens with one"],
        rows,
    )


def _metrics(methods: Methods) -> list[Plot]:
    """Methods × metrics at the end: which changes from the original model are beyond noise."""
    figures: Methods = {name: one.get("figures", {}) for name, one in methods.items()}
    original: Mapping[str, Any] = next(
        (figures[name] for name, one in methods.items() if one["method"] == "original"), {}
    )
    changed = {
        (name, key): one
        for name in figures
        for key, one in figures[name].items()
        if key in original and one["change"] is not None
    }
    if not any(beyond(one["change"]) is not None for one in changed.values()):
        return []
    return [
        Plot(
            "metrics",
            "What else changed",
            "Every metric at the end of each method's run against the original model: up or down, large "
            "where the change is beyond the noise of seeds and examples. Green is for the better, red for "
            "the worse, grey has no better direction or is within noise.",
            _map(changed),
            ["method", "figure", "better", "unit", "original", "method's", "change", "95 % interval", "n"],
            [[name, *change_row(key, one, original[key])] for (name, key), one in changed.items()],
        )
    ]


def _map(changed: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[str, Any]:
    """A mark for each method's change of a figure; those without an interval have none."""
    sizes = {at: size for at, one in changed.items() if (size := beyond(one["change"])) is not None}
    names = list(dict.fromkeys(name for name, _ in sizes))[::-1]  # plotly draws upwards
    keys = list(dict.fromkeys(key for _, key in sizes))
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": [keys.index(key) for _, key in sizes],
        "y": [names.index(name) for name, _ in sizes],
        "text": [word(f"{name}, {in_words(key)}", 90) for name, key in sizes],
        "marker": {
            "symbol": ["triangle-up" if size > 0 else "triangle-down" for size in sizes.values()],
            "size": [13 if abs(size) > 1 else 6 for size in sizes.values()],
            "color": [colour_of_change(at[1], changed[at]["better"], size) for at, size in sizes.items()],
        },
        "hovertemplate": "%{text}<extra></extra>",
    }
    drawn = figure([points], "", "", height=220 + 26 * len(names))
    for axis, words in (("xaxis", [in_words(key) for key in keys]), ("yaxis", names)):
        drawn["layout"][axis] |= {
            "tickvals": list(range(len(words))),
            "ticktext": [word(each) for each in words],
            "range": [-0.5, len(words) - 0.5],
            "zeroline": False,
        }
    drawn["layout"]["xaxis"]["tickangle"] = -45
    return drawn


def _colour(one: Mapping[str, Any]) -> str:
    return _COLOURS.get(str(one["method"]), "--quiet")
