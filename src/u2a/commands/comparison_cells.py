"""Which cells a comparison still lacks, and what the finished ones say."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from u2a.commands.comparison_plan import Plan
from u2a.compare.cells import Cell, CellStore
from u2a.compare.plan import CellName, Entry, finals, grid, pick
from u2a.types import GuardStop

log = logging.getLogger("u2a")


def picked(entry: Entry, plan: Plan, store: CellStore, values: Mapping[str, Any]) -> float:
    """The entry's learning rate, when its grid is there; 0 where it has none."""
    if not entry.has_rate or entry.rate:
        return entry.rate
    cells = {name.rate: store.read(name) for name in grid(entry, plan.rates, plan.seeds[0])}
    usable = {rate: cell for rate, cell in cells.items() if cell and "failed" not in cell}
    if not usable:
        return plan.rates[0]
    start = next(iter(usable.values()))["start"]
    return pick(usable, start, values["nll_rise"], values["max_nll_rise"], values["max_repetition_rise"])


def missing(plan: Plan, store: CellStore, values: Mapping[str, Any]) -> list[tuple[Entry, CellName]]:
    """The cells that can be made now: an entry's final ones once its rate is picked."""
    found = []
    for entry in plan.entries:
        cells = grid(entry, plan.rates, plan.seeds[0])
        still = [name for name in cells if store.read(name) is None]
        if not still:
            rate = picked(entry, plan, store, values)
            still = [name for name in finals(entry, rate, plan.seeds) if store.read(name) is None]
        found += [(entry, name) for name in still]
    return found


def say_models_not_made(folder: Path, plan: Plan, store: CellStore, values: Mapping[str, Any]) -> None:
    """Warns of final cells that are there already without their models: they are not made again."""
    names = [n for e in plan.entries for n in finals(e, picked(e, plan, store, values), plan.seeds)]
    made = [name for name in names if (cell := store.read(name)) and "failed" not in cell]
    stems = [name.file.removesuffix(".json") for name in made]
    bare = [stem for stem in stems if not (folder / stem).is_dir()]
    if bare:
        log.warning(
            "--keep-models: no model is kept of %s, whose runs are in %s already; to have them, delete those "
            "files or name another --cells",
            ", ".join(bare),
            store.folder,
        )


def finished(plan: Plan, store: CellStore) -> Iterator[tuple[CellName, Cell]]:
    """Every cell of the plan's that is there, at whatever rate; failed ones too."""
    for entry in plan.entries:
        rates = {0.0, entry.rate, *plan.rates}
        names = {name for rate in rates for name in finals(entry, rate, plan.seeds)}
        for name in (*grid(entry, plan.rates, plan.seeds[0]), *names):
            if cell := store.read(name):
                yield name, cell


def unsure(plan: Plan, store: CellStore) -> list[tuple[CellName, Cell]]:
    """Cells that have another mark of the original model, or none: only what they began at can tell whether
    it is the same."""
    cells = finished(plan, store)
    return [(name, cell) for name, cell in cells if "start" in cell and cell.get("model") != store.model]


def forget_failed(plan: Plan, store: CellStore) -> None:
    """Removes the cells of methods that could not do their work: a scorer that was down may be up again."""
    for name, cell in finished(plan, store):
        if "failed" in cell:
            store.remove(name)


def collected(
    plan: Plan, store: CellStore, values: Mapping[str, Any]
) -> tuple[dict[str, list[Cell]], dict[str, str]]:
    """By method: its final cells, or why it could not do its work.

    Raises:
        GuardStop: the original model could not be measured, so that there is nothing to compare with.
    """
    cells: dict[str, list[Cell]] = {}
    failed: dict[str, str] = {}
    for entry in plan.entries:
        rate = picked(entry, plan, store, values)
        found = [cell for name in finals(entry, rate, plan.seeds) if (cell := store.read(name))]
        why = next((cell["failed"] for cell in found if "failed" in cell), None)
        if why is None and len(found) < len(finals(entry, rate, plan.seeds)):
            why = "another process makes it again; the same command with --resume has it then"
        if why is None:
            cells[entry.name] = found
        elif entry.kind == "original":
            raise GuardStop(f"the original model could not be measured: {why}")
        else:
            failed[entry.name] = why
    return cells, failed
