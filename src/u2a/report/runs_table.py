"""Several runs beside each other: what each gained, what it cost, and in which settings they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from u2a.report.record import Row
from u2a.report.run_view import RunView
from u2a.report.wording import NOTHING, counted, duration, memory, number, shown_settings

NOT_COMPARED = ("output", "resume", "models")
"""Settings that differ between any two runs and say nothing."""


@dataclass(frozen=True)
class Line:
    """One line of the table, a cell a run; a cell with a verdict (`better`, `worse`) is coloured by it."""

    label: str
    note: str
    cells: list[tuple[str, str]]


def run_names(views: Sequence[RunView]) -> list[str]:
    """The folders' own names, numbered where several are called alike: no more of a path is given away."""
    names = [view.record.name for view in views]
    return [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def compared(views: Sequence[RunView], *, public: bool) -> list[tuple[str, list[Line]]]:
    """The groups of the table: figures (original → result), counts and cost, settings that differ."""
    groups = [
        ("Original → result", _figures(views)),
        ("Size and cost", _costs(views)),
        ("Settings that differ", _settings(views, public)),
    ]
    return [(title, lines) for title, lines in groups if lines]


def _figures(views: Sequence[RunView]) -> list[Line]:
    """By metric, in order of appearance. A run of several models has a line for each of them."""
    found: list[dict[tuple[str, str], Row]] = [
        {
            (row.metric, model if len(view.tables) > 1 else ""): row
            for model, rows in view.tables
            for row in rows
        }
        for view in views
    ]
    keys = list(dict.fromkeys(key for rows in found for key in rows))
    lines = []
    for metric, model in keys:
        row = next(rows[metric, model] for rows in found if (metric, model) in rows)
        arrow = {"higher": " ↑", "lower": " ↓", "": ""}[row.better]
        note = ", ".join(part for part in (row.unit, model) if part)
        lines.append(Line(f"{metric}{arrow}", note, [_figure(rows.get((metric, model))) for rows in found]))
    return [line for line in lines if any(words != NOTHING for words, _ in line.cells)]


def _figure(row: Row | None) -> tuple[str, str]:
    if row is None:
        return NOTHING, ""
    if row.aligned != row.aligned:  # only the original was measured
        return number(row.original), ""
    words = f"{number(row.original)} → {number(row.aligned)} ({number(row.change, signed=True)})"
    return words, row.verdict


def _costs(views: Sequence[RunView]) -> list[Line]:
    names = dict.fromkeys(name for view in views for name in view.record.counts)
    lines = [
        Line(counted(name), "", [(number(view.record.counts.get(name)), "") for view in views])
        for name in names
    ]
    lines.append(Line("time", "", [(duration(view.record.seconds), "") for view in views]))
    lines.append(Line("peak memory", "", [(memory(view.record.peak_bytes), "") for view in views]))
    return lines


def _settings(views: Sequence[RunView], public: bool) -> list[Line]:
    """Those that several runs have, each with a value of its own; other commands have other settings."""
    found = [shown_settings(view.record.config, public=public) for view in views]
    keys = dict.fromkeys(key for each in found for key in each if key not in NOT_COMPARED)
    return [
        Line(key, "", [(each.get(key, NOTHING), "") for each in found])
        for key in keys
        if len({each[key] for each in found if key in each}) > 1
    ]
