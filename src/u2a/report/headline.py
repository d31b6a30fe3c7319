"""The first thing on a run's page: did it help, and at what cost, in a sentence and a few large figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from u2a.report.record import DISTANCE, Record, Row
from u2a.report.wording import number

_SHOWN = (
    ("Alignment gained", ("held-out margin, summed", "J on validation")),
    ("Pairs ranked right", ("held-out accuracy, summed",)),
    ("Usefulness lost", ("retain NLL", "perplexity of retain texts")),
    ("Moved from the original", (DISTANCE,)),
)
"""What a person asks, and the figure that answers it: the first of these that was measured."""


@dataclass(frozen=True)
class Tile:
    """One large figure: the `change`, what it is a change of, from where to where, and how sure it is."""

    title: str
    change: str
    metric: str
    detail: str
    verdict: str


def headline(record: Record) -> tuple[str, str]:
    """The sentence that says how the run ended, and the rest of the outcome; the rest may be empty."""
    return (record.end, record.outcome) if record.end else (record.outcome, "")


def tiles(record: Record, rows: Sequence[Row]) -> list[Tile]:
    """The large figures of a run that made a model; none of one that did not."""
    by_name = {row.metric: row for row in rows if math.isfinite(row.change)}
    found = []
    for title, names in _SHOWN:
        row = next((by_name[name] for name in names if name in by_name), None)
        if row is not None:
            found.append(_tile(title, row, record))
    return found


def _tile(title: str, row: Row, record: Record) -> Tile:
    if row.metric == DISTANCE:
        budget = record.config.get("kl_budget")
        bounded = isinstance(budget, (int, float)) and not isinstance(budget, bool) and 0 < budget < math.inf
        allowed = f"{row.unit}; the budget is {number(budget)}" if bounded else row.unit
        return Tile(title, number(row.aligned, digits=3), row.metric, allowed, "")
    if row.unit == "share":
        points = f"{100 * row.change:+.1f} points" if row.change else "no change"
        before, after = (f"{100 * value:.1f} %" for value in (row.original, row.aligned))
        return Tile(title, after, row.metric, f"{points}, from {before}", row.verdict)
    ends = row.change_interval
    between = f"[{number(ends[0], digits=3)}, {number(ends[1], digits=3)}] " if ends else ""
    detail = f"{between}{row.unit}, from {number(row.original)} to {number(row.aligned)}"
    return Tile(title, number(row.change, digits=3, signed=True), row.metric, detail, row.verdict)
