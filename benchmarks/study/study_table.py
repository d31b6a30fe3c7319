"""Writes the study's section of docs/results.md from the committed cells. Called by study.py."""

from __future__ import annotations

import json
import math
from itertools import takewhile
from pathlib import Path
from typing import Any

from cases import CASES, EVEN, GENTLE, JOINT, LOSSES, SETTINGS, TEST, VALIDATION, Case, every_method
from sections import machine, write_section
from u2a.compare.outcome import Outcome, difference, interval, outcome
from u2a.compare.plan import Entry, finals, grid, parse_methods, pick
from u2a.config import MOST_REPETITION_RISE

RISE = float(SETTINGS["nll_rise"])
BY_END = (
    "† the rate of the largest J at the end, as it was picked when these runs were made; J at equal cost, by "
    "which it is picked now, takes another, of which not as many seeds are done."
)
TOLD = ("dpo validation", "kto validation", "climb")
"""Those that see what joint sees."""
DIFFERENCES = [
    *((f"u2a {loss}", f"{other} {loss}") for loss in LOSSES for other in ("uniform", "random-k")),
    *((each["name"], other) for each in (JOINT, EVEN) for other in ("u2a npo", *TOLD)),
    (EVEN["name"], JOINT["name"]),
    *((EVEN["name"], other) for other in ("uniform npo", "dpo", "kto", "sft")),
    ("kto weighted", "kto validation"),
    *(("u2a npo", other) for other in ("selected", "weights", "cosine", "static")),
    ("cosine", "uniform npo"),
    *(("u2a npo", f"{other} validation") for other in ("dpo", "kto", "sft")),
    *(("u2a npo", other) for other in ("dpo", "kto", "sft")),
    *((GENTLE["name"], other) for other in ("uniform npo", "random-k npo", *TOLD)),
    ("u2a npo", "d2o"),
    ("u2a npo", "rloo"),
    ("u2a npo", "retrain"),
]
"""Pairs of methods whose difference is asked for."""


def write_tables(folder: Path) -> None:
    """The cases that have cells, of each the methods that have a final one; the others are named."""
    lines = [
        "## The study: against what a user would have done instead",
        "",
        f"Command: `python benchmarks/study/study.py --data … [--case …]` ({machine()}). What each case is "
        f"stands at its head and in `cases.py`; definitions in docs/comparison.md. {TEST} held-out pairs, "
        f"{VALIDATION} validation pairs unless the case says otherwise, {SETTINGS['steps']} optimiser steps "
        f"of {SETTINGS['batch_size']} answers. Gains of the held-out margin over the original model in nats, "
        "with 95 % intervals over seeds and pairs.",
    ]
    found = {name: of_case(folder, name, case) for name, case in CASES.items()}
    if not found["hh_harmless"]:
        raise SystemExit("no cell of the main case yet: run study.py first")
    for name, outcomes in found.items():
        if outcomes:
            lines += [
                "",
                f"### {name}",
                "",
                *table(outcomes, CASES[name], at_the_end(folder, name, outcomes)),
            ]
    if not_begun := [name for name, outcomes in found.items() if not outcomes]:
        lines += ["", f"Not begun: {', '.join(not_begun)}."]
    write_section("study", lines)


def of_case(folder: Path, name: str, case: Case) -> dict[str, Outcome]:
    """Outcomes by method, of those that have a final cell; empty without the original model."""
    entries = parse_methods(case.methods, SETTINGS["loss"])
    cells = {entry.name: final_cells(folder, name, entry, range(case.seeds)) for entry in entries}
    original = cells["original"]
    if not original:
        return {}
    return {
        entry.name: outcome(entry.name, entry.kind, cells[entry.name], original[0], RISE)
        for entry in entries
        if cells[entry.name]
    }


def at_the_end(folder: Path, case: str, outcomes: dict[str, Outcome]) -> set[str]:
    """Methods that stand in the table at the rate that J at the end picks, and not J at equal cost."""
    entries = parse_methods(CASES[case].methods, SETTINGS["loss"])
    wanted = {e.name: rates_of(folder, case, e)[0] for e in entries if e.has_rate and e.name in outcomes}
    return {name for name, rate in wanted.items() if outcomes[name].rate != rate}


def table(outcomes: dict[str, Outcome], case: Case, by_end: set[str]) -> list[str]:
    """Methods, best first, and the differences that are asked for; those of `by_end` are marked."""
    missing = [e.name for e in parse_methods(case.methods, SETTINGS["loss"]) if e.name not in outcomes]
    lines = [
        f"| method | rate | seeds | margin where NLL +{RISE:g} | margin at the end | accuracy | NLL | KL | "
        "repetition | seconds |",
        "|" + "---|" * 10,
        *(
            row(one, one.name in by_end)
            for one in sorted(outcomes.values(), key=lambda o: -float(o.at_cost.mean()))
        ),
        "",
        f"\\* never rose by {RISE:g}: taken at its end. Seconds are the method's own, median over seeds, "
        "scoring and sampling counted, on one thread of two cores with other work beside it: an upper bound. "
        "Repetition: share of 4-grams in greedy answers that stood in them before, not measured at first.",
        *([BY_END] if by_end else []),
        "",
        "| difference at equal cost in usefulness | margin | |",
        "|---|---|---|",
        *(
            comparison(outcomes[one], outcomes[other])
            for one, other in DIFFERENCES
            if one in outcomes and other in outcomes
        ),
    ]
    few = [
        f"{one.name} ({one.seeds})"
        for one in outcomes.values()
        if one.kind != "original" and one.seeds < case.seeds
    ]
    missing += [f"{case.seeds} seeds of {', '.join(few)}"] if few else []
    return [*lines, "", f"Not finished: {', '.join(missing)}."] if missing else lines


def picked_rate(folder: Path, method: str, rise: float = RISE) -> float:
    """The learning rate that the main case gave a method, or its grid picked where the retain NLL has risen
    by `rise`; 0 while that is not whole."""
    entry = next(e for e in parse_methods(every_method(), SETTINGS["loss"]) if e.name == method)
    return entry.rate or _picked(folder, entry, CASES["hh_harmless"], rise)


def _picked(folder: Path, entry: Entry, case: Case, rise: float) -> float:
    rates = [float(rate) for rate in {**SETTINGS, **case.settings}["rates"].split(",")]
    cells = {name.rate: _read(folder / name.file) for name in grid(entry, rates, 0)}
    usable = {rate: cell for rate, cell in cells.items() if cell and "failed" not in cell}
    if not usable or None in cells.values():
        return 0.0
    start = next(iter(usable.values()))["start"]
    return pick(usable, start, rise, SETTINGS["max_nll_rise"], MOST_REPETITION_RISE)


def final_cells(folder: Path, case: str, entry: Entry, seeds: range) -> list[dict[str, Any]]:
    """The entry's final cells at its picked rate, seed by seed up to the first that is missing or failed; at
    the rate of the largest J at the end while more seeds are there of that: what `u2a compare` picked by
    when they were made."""
    best: list[dict[str, Any]] = []
    for rate in rates_of(folder, case, entry) if entry.has_rate else [0.0]:
        cells = [_read(folder / case / name.file) for name in finals(entry, rate, list(seeds))]
        found = list(takewhile(lambda cell: cell and "failed" not in cell, cells))
        best = found if len(found) > len(best) else best
    return best


def rates_of(folder: Path, case: str, entry: Entry) -> list[float]:
    """The entry's rate of the grid's by J at equal cost, and that by J at the end; those that are known."""
    if entry.rate:
        return [entry.rate]
    if CASES[case].own_rates:
        found = [_picked(folder / case, entry, CASES[case], rise) for rise in (RISE, math.inf)]
    else:
        found = [picked_rate(folder / "hh_harmless", entry.name, rise) for rise in (RISE, math.inf)]
    return [rate for rate in found if rate]


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def row(one: Outcome, by_end: bool) -> str:
    """A line of the main table."""
    mark = "" if one.reached else " *"
    rate = f"{one.rate:g}" if one.rate else "–"
    repeats = one.repetition.mean()
    repetition = "" if math.isnan(repeats) else f"{repeats:.3f}"
    return (
        f"| {one.name} | {rate}{' †' if by_end else ''} | {one.seeds} | {shown(one.at_cost)}{mark} | "
        f"{shown(one.margins)} | {interval(one.accuracy).value:.3f} | {one.rises.mean():+.3f} | "
        f"{one.kl.mean():.3f} | {repetition} | {one.seconds:.0f} |"
    )


def comparison(one: Outcome, other: Outcome) -> str:
    """A line of the differences."""
    found = difference(one.at_cost, other.at_cost)
    words = {1: "better", 0: "no significant difference", -1: "worse"}[found.sign]
    value = f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    return f"| {one.name} − {other.name} | {value} | {words} |"


def shown(values: Any) -> str:
    """`mean [low, high]`."""
    found = interval(values)
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
