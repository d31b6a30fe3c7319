"""`report.html`: one self-contained page of a run that works offline and sends nothing anywhere.

What people wrote reaches the page only through autoescaping, with misleading characters made visible. As a
second wall, the page's content security policy forbids every request and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from u2a.report.compare_plot import compare_plots
from u2a.report.evaluate_plot import evaluate_plots
from u2a.report.plots import (
    Plot,
    cumulative_gain,
    gain_and_cost,
    impact_histogram,
    progress,
    scatter_positions,
)
from u2a.report.record import Record, read_record
from u2a.report.scores import Measured, Scores, read_measurements, read_scores, read_texts
from u2a.report.verify_plot import verify_plots
from u2a.report.wording import NOTHING, excerpt, memory, number, settings, visible
from u2a.runs import write_text

PAGE_BYTES = 5 * 2**20
"""Largest page. Where plotly.js does not fit into it, figures are shown as tables of their numbers."""
EXTREMES = 20
"""Most negatives in each of the two tables of extremes."""
TEXT_LENGTH = 1200
"""Most characters of a prompt or a response on the page."""


@dataclass(frozen=True)
class Negative:
    """One negative as the tables of extremes show it; `prompt` and `response` are empty without text."""

    row: int
    id: str
    impact: str
    error: str
    cost: str
    weight: str
    tokens: str
    prompt: str = ""
    response: str = ""


def write_report(run: Path, *, with_text: bool = True) -> Path:
    """Writes `report.html` into a run folder, whole, and returns its path.

    Args:
        run: folder of an `align`, `impact`, `verify`, `compare` or `evaluate` run.
        with_text: show prompts and responses of negatives, and settings with their full paths. Without it
            the page can be passed on: negatives appear by row and id, paths as bare names.

    Raises:
        UserError: the folder or one of its files is missing or broken; names it.
    """
    record = read_record(run)
    scores = read_scores(run) if record.scores_negatives else Scores.none()
    points = read_measurements(run)
    best, worst = extremes(scores)
    texts: dict[int, tuple[str, str]] = {}
    if with_text and record.scores_negatives:
        texts = read_texts(run, {*best, *worst, *scatter_positions(scores).tolist()})
    plots = _plots(record, scores, points, {position: response for position, (_, response) in texts.items()})
    content = {
        "record": record,
        "plots": plots,
        "extremes": [
            ("Most worthwhile to unlearn", [_negative(scores, position, texts) for position in best]),
            ("Least worthwhile to unlearn", [_negative(scores, position, texts) for position in worst]),
        ],
        "weighted": scores.weight is not None,
        "with_text": with_text,
        "settings": settings(record.config, public=not with_text),
        "plot_data": htmlsafe_json_dumps({plot.key: plot.figure for plot in plots}, allow_nan=False),
    }
    path = run / "report.html"
    write_text(path, _page(content))
    return path


def extremes(scores: Scores) -> tuple[list[int], list[int]]:
    """Positions of the negatives with the largest and with the smallest impact; no negative is in both.

    Returns:
        at most `EXTREMES` each, the first list from the largest impact down, the second from the smallest up.
    """
    order = scores.order
    best = order[: min(EXTREMES, (len(order) + 1) // 2)]
    worst = order[len(best) :][::-1][:EXTREMES]
    return best.tolist(), worst.tolist()


def _plots(record: Record, scores: Scores, points: list[Measured], responses: dict[int, str]) -> list[Plot]:
    plots = [*verify_plots(record.path), *compare_plots(record.path), *evaluate_plots(record.path)]
    if len(scores.order):
        plots.append(impact_histogram(scores))
        plots.append(cumulative_gain(scores, record.counts.get("selected")))
        plots.append(gain_and_cost(scores, responses))
    if points:
        plots.append(progress(points, restart=record.config.get("restart") is True))
    return plots


def _negative(scores: Scores, position: int, texts: dict[int, tuple[str, str]]) -> Negative:
    prompt, response = texts.get(position, ("", ""))
    return Negative(
        row=int(scores.row[position]),
        id=excerpt(scores.ids[position], 80),
        impact=number(scores.impact[position], digits=3),
        error=number(scores.se[position], digits=2) if np.isfinite(scores.se[position]) else "",
        cost=number(scores.cost[position], digits=3),
        weight=NOTHING if scores.weight is None else number(scores.weight[position], digits=3),
        tokens=number(scores.n_tokens[position]),
        prompt=_cut(prompt),
        response=_cut(response),
    )


def _cut(text: str) -> str:
    more = len(text) - TEXT_LENGTH
    return text if more <= 0 else f"{text[:TEXT_LENGTH]}… ({more:,} more characters)"


def _page(content: dict[str, Any]) -> str:
    """The page with plotly.js in it, or without where that would make it too large."""
    template = _environment().get_template("report.html.j2")
    plotly = Markup(get_plotlyjs()) if content["plots"] else Markup("")
    page = template.render(content, plotly=plotly)
    return page if len(page.encode()) <= PAGE_BYTES else template.render(content, plotly=Markup(""))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("u2a.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_harmless,
    )
    environment.filters |= {
        "number": number,
        "signed": lambda value: number(value, signed=True),
        "memory": memory,
        "excerpt": excerpt,
        "cell": lambda value: value if isinstance(value, str) else number(value),
        "csp_hashes": _csp_hashes,
    }
    return environment


def _harmless(value: Any) -> Any:
    """Every piece of text that the template puts out passes here, before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _csp_hashes(scripts: Iterable[str]) -> str:
    """Sources of a content security policy that let exactly these inline scripts run."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts if script)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
