"""The table of negatives: all of them for the page's browser, and the extremes for pages without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from u2a.report.figure import plain, short
from u2a.report.scores import Array, Scores
from u2a.report.wording import NOTHING, excerpt, number, shortened, visible

MOST_ROWS = 20_000
"""Most negatives that one run's table holds; of more, half are those of largest, half of smallest impact."""
EXTREMES = 20
"""Most negatives in each of the two tables of extremes."""
ID_LENGTH = 80
"""Most characters of an id on the page."""

Texts = Mapping[int, tuple[str, str]]
"""Prompt and response by position in `impact.parquet`."""


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


def table_positions(scores: Scores) -> Array:
    """Positions of the negatives in the table: by impact from the largest down, then those without one."""
    order = scores.order
    unknown = np.setdiff1d(np.arange(len(scores.row)), order)
    if len(order) > MOST_ROWS:
        half = MOST_ROWS // 2
        order = np.concatenate([order[:half], order[-half:]])
    return np.concatenate([order, unknown[: MOST_ROWS - len(order)]]).astype(np.int64)


def table_data(scores: Scores, texts: Texts | None, length: int) -> dict[str, list[Any]]:
    """What the page's table is made of: a list a column, all of one length; None = not known.

    Args:
        texts: of every position in `table_positions`; None leaves the columns of text out.
        length: most characters of a text; 0 leaves them out too.
    """
    shown = table_positions(scores)
    columns: dict[str, list[Any]] = {
        "row": scores.row[shown].tolist(),
        "id": [visible(excerpt(scores.ids[i], ID_LENGTH)) for i in shown.tolist()],
        "impact": short(scores.impact[shown]),
        "cost": short(scores.cost[shown]),
        "tokens": short(scores.n_tokens[shown]),
    }
    if np.isfinite(scores.se[shown]).any():
        columns["error"] = [plain(float(f"{se:.3g}")) for se in scores.se[shown].tolist()]
    if scores.weight is not None and scores.selected is not None:
        columns["weight"] = short(scores.weight[shown])
        columns["selected"] = [int(one) for one in scores.selected[shown]]
    if texts is not None and length:
        for at, name in enumerate(("prompt", "response")):
            columns[name] = [visible(shortened(texts[i][at], length)) for i in shown.tolist()]
    return columns


def extremes(scores: Scores) -> tuple[list[int], list[int]]:
    """Positions of the negatives with the largest and with the smallest impact; no negative is in both.

    Returns:
        at most `EXTREMES` each, the first list from the largest impact down, the second from the smallest up.
    """
    order = scores.order
    best = order[: min(EXTREMES, (len(order) + 1) // 2)]
    worst = order[len(best) :][::-1][:EXTREMES]
    return best.tolist(), worst.tolist()


def extreme_tables(scores: Scores, texts: Texts) -> list[tuple[str, list[Negative]]]:
    """The two tables of extremes with their titles; without text where `texts` has none."""
    best, worst = extremes(scores)
    return [
        ("Most worthwhile to unlearn", [_negative(scores, position, texts) for position in best]),
        ("Least worthwhile to unlearn", [_negative(scores, position, texts) for position in worst]),
    ]


def _negative(scores: Scores, position: int, texts: Texts) -> Negative:
    prompt, response = texts.get(position, ("", ""))
    return Negative(
        row=int(scores.row[position]),
        id=excerpt(scores.ids[position], ID_LENGTH),
        impact=number(scores.impact[position], digits=3),
        error=number(scores.se[position], digits=2) if np.isfinite(scores.se[position]) else "",
        cost=number(scores.cost[position], digits=3),
        weight=NOTHING if scores.weight is None else number(scores.weight[position], digits=3),
        tokens=number(scores.n_tokens[position]),
        prompt=prompt,
        response=response,
    )
