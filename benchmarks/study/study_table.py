"""Writes the study's section of docs/results.md from the committed cells. Called by study.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sections import machine, write_section
from study import LOSSES, SETTINGS, TEST, VALIDATION, methods
from u2a.compare.outcome import Outcome, difference, interval, outcome
from u2a.compare.plan import Entry, finals, grid, parse_methods, pick

RISE = float(SETTINGS["nll_rise"])
RATES = [float(rate) for rate in SETTINGS["rates"].split(",")]
SEEDS = list(range(SETTINGS["seeds"]))
DIFFERENCES = [
    *((f"u2a {loss}", f"{other} {loss}") for loss in LOSSES for other in ("uniform", "random-k")),
    *(("u2a joint", other) for other in ("u2a npo", "dpo validation", "kto validation", "climb")),
    ("kto weighted", "kto validation"),
    *(("u2a npo", other) for other in ("selected", "weights", "cosine", "static", "dpo", "kto", "sft")),
]
"""Pairs of methods whose difference is asked for."""


def write_table(folder: Path) -> None:
    """Methods that have all their final cells; the others are named."""
    entries = parse_methods(methods("demo"), SETTINGS["loss"])
    cells = {entry.name: final_cells(folder, entry) for entry in entries}
    original = cells["original"]
    if not original:
        raise SystemExit("no cell of the original model yet: run study.py first")
    outcomes = {
        entry.name: outcome(entry.name, entry.kind, cells[entry.name], original[0], RISE)
        for entry in entries
        if cells[entry.name]
    }
    missing = [entry.name for entry in entries if entry.name not in outcomes]
    lines = [
        "## The study: against what a user would have done instead",
        "",
        f"Command: `python benchmarks/study/study.py --data …/hh_harmless.jsonl` ({machine()}). What it is "
        "stands at its head; definitions in docs/comparison.md. "
        f"{VALIDATION} validation and {TEST} held-out pairs, {SETTINGS['steps']} optimiser steps of "
        f"{SETTINGS['batch_size']} answers. Gains of the held-out margin over the original model in nats, "
        "with 95 % intervals over seeds and pairs.",
        "",
        f"| method | rate | seeds | margin where NLL +{RISE:g} | margin at the end | accuracy | NLL | KL | "
        "seconds |",
        "|" + "---|" * 9,
        *(row(one) for one in sorted(outcomes.values(), key=lambda o: -float(o.at_cost.mean()))),
        "",
        f"\\* never rose by {RISE:g}: taken at its end. Seconds are the method's own, scoring and sampling "
        "counted, on one thread of two busy cores.",
        "",
        "Differences at equal cost in usefulness:",
        "",
        "| | margin | |",
        "|---|---|---|",
        *(
            comparison(outcomes[one], outcomes[other])
            for one, other in DIFFERENCES
            if one in outcomes and other in outcomes
        ),
    ]
    if missing:
        lines += ["", f"Not finished: {', '.join(missing)}."]
    write_section("study", lines)


def final_cells(folder: Path, entry: Entry) -> list[dict[str, Any]]:
    """The entry's final cells at its picked rate, none unless every seed has one."""

    def read(name: Any) -> dict[str, Any] | None:
        path = folder / name.file
        return json.loads(path.read_text()) if path.is_file() else None

    rate = 0.0
    if entry.has_rate:
        picking = {name.rate: read(name) for name in grid(entry, RATES, SEEDS[0])}
        usable = {r: cell for r, cell in picking.items() if cell and "failed" not in cell}
        if not usable:
            return []
        rate = pick(usable, next(iter(usable.values()))["start"], SETTINGS["max_nll_rise"])
    found = [read(name) for name in finals(entry, rate, SEEDS)]
    whole = [cell for cell in found if cell and "failed" not in cell]
    return whole if len(whole) == len(found) else []


def row(one: Outcome) -> str:
    """A line of the main table."""
    mark = "" if one.reached else " *"
    return (
        f"| {one.name} | {f'{one.rate:g}' if one.rate else '–'} | {one.seeds} | {shown(one.at_cost)}{mark} | "
        f"{shown(one.margins)} | {interval(one.accuracy).value:.3f} | {one.rises.mean():+.3f} | "
        f"{one.kl.mean():.3f} | {one.seconds:.0f} |"
    )


def comparison(one: Outcome, other: Outcome) -> str:
    """A line of the differences."""
    found = difference(one.at_cost, other.at_cost)
    words = {1: "better", 0: "not to be told apart", -1: "worse"}[found.sign]
    value = f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    return f"| {one.name} − {other.name} | {value} | {words} |"


def shown(values: Any) -> str:
    """`mean [low, high]`."""
    found = interval(values)
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
