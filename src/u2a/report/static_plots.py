"""The report's figures as PNG or SVG files for a paper: the same plotly dictionaries, drawn by matplotlib.

Only what our figures use of plotly is read: bars, lines and markers, error bars, straight lines over the
whole plot, several vertical axes below each other. No text of negatives is in them.
"""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from u2a.report.figure import Plot
from u2a.report.run_view import read_run
from u2a.report.runs_table import run_names
from u2a.storage.files import whole_file
from u2a.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.5
"""Inches, a paper's column; heights are in proportion to the page's."""
PIXELS = 96
"""Of the page in an inch of the paper."""
DOTS_PER_INCH = 300

_COLOURS = {
    "--accent": "#2456b3",
    "--good": "#0b7253",
    "--bad": "#b3361f",
    "--quiet": "#5c6675",
    "--line": "#d9dde3",
    "--text": "#1b1f24",
}
_MARKERS = {"circle": "o", "star": "*", "x": "x", "diamond": "D", "square": "s"} | {
    "triangle-up": "^",
    "triangle-down": "v",
    "cross": "P",
}
_DASHES = {"solid": "-", "dash": "--", "dot": ":"}


def check_plots(folder: Path) -> None:
    """Refuses what would make `write_plots` fail, before anything is written.

    Raises:
        UserError: matplotlib is missing, or the folder is a file or not empty.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("--plots needs matplotlib: pip install 'u2a[plots]'") from None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--plots {folder} is a file or not empty; name a new folder")


def write_plots(runs: Sequence[Path], folder: Path, ending: str) -> list[Path]:
    """Draws every figure of the runs' report into a new folder, one file each, and returns their paths.

    Args:
        ending: `png` or `svg`.

    Raises:
        UserError: as `check_plots`; or a run folder or one of its files is missing or broken.
    """
    check_plots(folder)
    views = [read_run(run, with_text=False) for run in runs]
    written = []
    for view, name in zip(views, run_names(views), strict=True):
        before = "" if len(views) == 1 else re.sub(r"[^\w.-]+", "_", name) + "-"
        for plot in view.all_plots:
            path = folder / f"{before}{plot.key}.{ending}"
            with whole_file(path) as temporary:
                _save(plot, temporary, ending)
            written.append(path)
    return written


def _save(plot: Plot, path: Path, ending: str) -> None:
    import matplotlib as mpl

    # an svg with words as words, and the same bytes for the same figure
    look = mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.key, "font.size": 9})
    with look, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in letters that the font lacks
        drawn = draw(plot)
        metadata = {"Date": None} if ending == "svg" else {}
        drawn.savefig(path, format=ending, dpi=DOTS_PER_INCH, metadata=metadata)


def draw(plot: Plot) -> Figure:
    """The figure on paper: light, without a title, which a paper's caption is for."""
    from matplotlib.figure import Figure

    layout = plot.figure["layout"]
    names = (
        ["y"]
        if not plot.figure["data"]
        else sorted(
            {trace.get("yaxis", "y") for trace in plot.figure["data"]}, key=lambda name: int(name[1:] or 1)
        )
    )
    drawn = Figure(figsize=(WIDTH, layout["height"] / PIXELS), layout="constrained")
    panels = drawn.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    axes: dict[str, Axes] = dict(zip(names, panels, strict=True))
    for name, panel in axes.items():
        _look(panel, layout["yaxis" + name[1:]]["title"]["text"])
    _words(panels[-1].set_xlabel(layout["xaxis"]["title"]["text"]))
    for trace in plot.figure["data"]:
        _trace(axes[trace.get("yaxis", "y")], trace)
    _ticks(panels[-1], layout)
    for shape in layout.get("shapes", []):
        _shape(axes, shape)
    for note in layout.get("annotations", []):
        side = {"left": 4, "right": -4}[note["xanchor"]]
        _words(
            panels[0].annotate(
                note["text"],
                (note["x"], note["y"]),
                xycoords=("data", "axes fraction"),
                xytext=(side, 0),
                textcoords="offset points",
                ha=note["xanchor"],
            )
        )
    if layout.get("showlegend"):
        for words in panels[0].legend(fontsize=7, frameon=False).get_texts():
            _words(words)
    return drawn


def _ticks(panel: Axes, layout: Mapping[str, Any]) -> None:
    """Those that the figure asks for, and its limits; names below stand upright, so that many have room."""
    for name, axis in (("x", panel.xaxis), ("y", panel.yaxis)):
        own = layout[f"{name}axis"]
        if "tickvals" in own:
            shown = own.get("ticktext")
            axis.set_ticks(own["tickvals"], shown and [html.unescape(each) for each in shown])
            for words in axis.get_ticklabels() if shown else []:
                words.set_parse_math(False)
                words.set_rotation(90 if name == "x" else 0)
        if "range" in own:
            panel.set(**{f"{name}lim": own["range"]})


def _look(panel: Axes, title: str) -> None:
    _words(panel.set_ylabel(title.replace("<br>", "\n")))
    panel.grid(color=_COLOURS["--line"], linewidth=0.5)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _words(text: Any) -> None:
    """Names of users' methods and models are shown as they are: no entity, no formula."""
    text.set_parse_math(False)
    text.set_text(html.unescape(text.get_text()))


def _trace(panel: Axes, trace: Mapping[str, Any]) -> None:
    if trace["type"] == "bar":
        _bars(panel, trace)
    elif trace.get("fill"):
        below = panel.get_lines()[-1]
        x, y = _numbers(trace["x"]), _numbers(trace["y"])
        panel.fill_between(x, np.asarray(below.get_ydata(), float), y, color=_colour(trace["fillcolor"]))
    else:
        _points(panel, trace)


def _bars(panel: Axes, trace: Mapping[str, Any]) -> None:
    colours = _colours(trace)
    if trace.get("orientation") != "h":
        panel.bar(_numbers(trace["x"]), trace["y"], width=trace["width"], color=colours, edgecolor="white")
        return
    places = range(len(trace["y"]))
    panel.barh(places, _numbers(trace["x"]), color=colours)
    panel.set_yticks(places, [html.unescape(name) for name in trace["y"]])
    for words in panel.get_yticklabels():
        _words(words)
    if error := trace.get("error_x"):
        ends = np.stack([_numbers(error["arrayminus"]), _numbers(error["array"])])
        look: dict[str, Any] = {
            "fmt": "none",
            "ecolor": _colour(error["color"]),
            "elinewidth": 1,
            "capsize": 2,
        }
        panel.errorbar(_numbers(trace["x"]), places, xerr=ends, **look)


def _points(panel: Axes, trace: Mapping[str, Any]) -> None:
    x, y = _numbers(trace["x"]), _numbers(trace["y"])
    name = html.unescape(trace.get("name", "_nolegend_"))
    line, marker = trace.get("line", {}), trace.get("marker", {})
    if "lines" in trace["mode"]:
        style = "steps-post" if line.get("shape") == "hv" else "default"
        look: dict[str, Any] = {
            "linestyle": _DASHES[line.get("dash", "solid")],
            "linewidth": 0.75 * line.get("width", 2),
        }
        if "markers" in trace["mode"]:
            look |= {"marker": _MARKERS[marker.get("symbol", "circle")], "markersize": 4}
        panel.plot(x, y, drawstyle=style, color=_colour(line.get("color")), label=name, **look)
        return
    symbols = _each(marker.get("symbol", "circle"), len(x))
    sizes = _each(marker["size"], len(x))
    colours = _colours(trace)
    for symbol in dict.fromkeys(symbols):  # matplotlib draws one kind of marker at a time
        at = [i for i, each in enumerate(symbols) if each == symbol]
        panel.scatter(
            x[at],
            y[at],
            s=[(0.7 * sizes[i]) ** 2 for i in at],
            c=[colours[i] for i in at],
            marker=_MARKERS[symbol],
            linewidths=1 if symbol == "x" else 0,
            alpha=marker.get("opacity"),
            label=name if len(set(symbols)) == 1 else "_nolegend_",
            zorder=3,
        )
    if error := trace.get("error_y"):
        panel.errorbar(x, y, yerr=_numbers(error["array"]), fmt="none", ecolor=_colour(error["color"]))
    if "text" in trace["mode"]:
        for i, words in enumerate(trace["text"]):
            _words(
                panel.annotate(
                    words, (x[i], y[i]), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=7
                )
            )


def _shape(axes: Mapping[str, Axes], shape: Mapping[str, Any]) -> None:
    line = shape["line"]
    look: dict[str, Any] = {"color": _colour(line["color"]), "linewidth": 1}
    look["linestyle"] = _DASHES[line["dash"]]
    if shape["yref"] == "paper":
        for panel in axes.values():
            panel.axvline(shape["x0"], **look)
        return
    axes[shape["yref"]].axhline(shape["y0"], **look)


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


def _each(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * count


def _colours(trace: Mapping[str, Any]) -> list[str]:
    return [_colour(each) or "C0" for each in _each(trace["marker"].get("color"), len(trace["x"]))]


def _colour(value: str | None) -> str | None:
    """None lets matplotlib choose the next."""
    return None if value is None else _COLOURS.get(value, value)
