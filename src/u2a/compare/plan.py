"""What is compared: methods with their options, learning rates, seeds; and the cells that make that up."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from u2a.baselines import METHODS, UNLEARNING
from u2a.compare.outcome import at_rise
from u2a.losses import resolve_loss
from u2a.types import UserError, shown

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 +._-]{0,59}")


@dataclass(frozen=True)
class Entry:
    """One method of a comparison: `name` in the tables, `kind` in `METHODS`, its unlearning loss, the method
    itself with its options, and its learning rate (0 = picked from the grid)."""

    name: str
    kind: str
    loss: str
    method: Any
    rate: float = 0.0

    @property
    def has_rate(self) -> bool:
        """Whether it trains at a learning rate of the comparison's."""
        return self.kind != "original" and not getattr(self.method, "fixed_rate", False)

    @property
    def takes_loss(self) -> bool:
        """Whether it unlearns, or scores, by an unlearning loss."""
        return takes_loss(self.kind, self.method)

    @property
    def settings(self) -> dict[str, Any]:
        """What shapes its cells."""
        loss = {"loss": self.loss} if self.takes_loss else {}
        return {"kind": self.kind, **loss, **dataclasses.asdict(self.method)}

    @property
    def defaults(self) -> dict[str, Any]:
        """The method's options as they are where nothing is said."""
        return {f.name: f.default for f in dataclasses.fields(self.method)}


def takes_loss(kind: str, method: Any) -> bool:
    """Whether a method unlearns, or scores, by an unlearning loss."""
    return kind in UNLEARNING or bool(getattr(method, "weighted", False))


@dataclass(frozen=True)
class CellName:
    """One run: a method at a learning rate and a seed. `final` ones read the held-out pairs; the others are
    for picking the rate and never see them."""

    entry: str
    rate: float
    seed: int
    final: bool

    @property
    def file(self) -> str:
        """`u2a npo-0.0002-seed-1.json`, `… -grid.json`."""
        return f"{self.entry}-{self.rate:g}-{f'seed-{self.seed}' if self.final else 'grid'}.json"


def parse_methods(given: Sequence[Any], loss: str) -> list[Entry]:
    """The methods of a configuration, `original` among them, first.

    Args:
        given: names of `METHODS`, or mappings with `method`, optionally `name`, `loss` and `rate` (a learning
            rate that is known already: no grid), and the method's own options.
        loss: of those that name none.

    Raises:
        UserError: an unknown method, option or loss, a value of another type or out of its bounds, or a name
            that is there twice.
    """
    entries = [_entry(one, loss) for one in given]
    if not any(entry.kind == "original" for entry in entries):
        entries.insert(0, Entry("original", "original", loss, METHODS["original"]()))
    names = [entry.name for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"methods: two are called {twice!r}; give one of them a `name`")
    return sorted(entries, key=lambda entry: entry.kind != "original")


def _entry(given: Any, loss: str) -> Entry:
    if isinstance(given, str):
        given = {"method": given}
    if not isinstance(given, Mapping) or not isinstance(given.get("method"), str):
        raise UserError(f"methods: {shown(given)} is neither a name nor a mapping with the key `method`")
    options = dict(given)
    kind, own_loss = options.pop("method"), options.pop("loss", loss)
    if kind not in METHODS:
        raise UserError(f"methods: {shown(kind)} is unknown; take some of {', '.join(METHODS)}")
    name = options.pop("name", kind)
    name = str(name) if type(name) is int and abs(name) < 10**9 else name
    if not isinstance(name, str) or not _NAME.fullmatch(name):  # it becomes the name of a file
        raise UserError(f"methods: the name {shown(name)} may have letters, digits, spaces and + . _ - only")
    if not isinstance(own_loss, str):
        raise UserError(f"methods: the loss of {name} is {shown(own_loss)}; it must be a name")
    resolve_loss(own_loss, None)
    # others have a rate of their own, or none
    gridded = Entry(name, kind, own_loss, METHODS[kind]()).has_rate
    rate = _rate(name, options.pop("rate", 0.0)) if gridded else 0.0
    options = _checked(kind, options)
    try:
        method = METHODS[kind](**options)
    except UserError as error:
        raise UserError(f"methods: {name}: {error}") from None
    if "loss" in given and not takes_loss(kind, method):
        raise UserError(f"methods: {name}: {kind} does not unlearn by a `loss`; leave it out")
    return Entry(name, kind, own_loss, method, rate)


def _rate(name: str, given: Any) -> float:
    try:
        rate = -1.0 if isinstance(given, bool) else float(given)  # YAML reads 2e-4 as a text
    except (TypeError, ValueError):
        rate = -1.0
    if not 0 <= rate < float("inf"):
        raise UserError(f"methods: rate of {name} is {given!r}; it must be a learning rate such as 2.0e-4")
    return rate


def _checked(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(METHODS[kind])}
    found = {}
    for key, value in options.items():
        if key not in fields:
            known = ", ".join(fields) or "none"
            raise UserError(f"methods: {kind} has no option {shown(key)}; it has: {known}")
        default = fields[key].default
        whole = isinstance(value, int) and not isinstance(value, bool)
        with suppress(ValueError, OverflowError):  # a number too large stays one, and is refused
            if isinstance(default, str) and whole:  # `select: 200`
                value = str(value)
            if isinstance(default, float) and whole:
                value = float(value)
        if type(value) is not type(default):
            raise UserError(
                f"methods: {key} of {kind} is {shown(value)}; it must be a {type(default).__name__}, "
                f"such as {default!r}"
            )
        found[key] = value
    return found


def grid(entry: Entry, rates: Sequence[float], seed: int) -> list[CellName]:
    """The cells that pick the entry's rate, none where there is nothing to pick."""
    if not entry.has_rate or entry.rate or len(rates) == 1:
        return []
    return [CellName(entry.name, rate, seed, final=False) for rate in rates]


def finals(entry: Entry, rate: float, seeds: Sequence[int]) -> list[CellName]:
    """The cells that go into the tables. The original model is the same with every seed."""
    kept = seeds[:1] if entry.kind == "original" else seeds
    return [CellName(entry.name, rate, seed, final=True) for seed in kept]


def pick(
    cells: Mapping[float, Mapping[str, Any]],
    start: Mapping[str, float],
    nll_rise: float,
    max_nll_rise: float,
    max_repetition_rise: float = 1.0,
) -> float:
    """The rate of the largest validation J where margins are compared: where the retain NLL has risen by
    `nll_rise`, or at the end. Those that raised it by more than `max_nll_rise` at the end are left out, and
    those whose answers repeat themselves there by more than `max_repetition_rise`.

    Where all did, the smallest: it did the least harm.

    Args:
        cells: rate -> cell; those of before repetition was measured count as if it had not risen.
        start: `objective` and `utility` of the original model.
    """
    gains = {}
    for rate, cell in cells.items():
        run = [(start["utility"] - p["utility"], p["objective"] - start["objective"]) for p in cell["points"]]
        if run[-1][0] <= max_nll_rise and cell.get("repetition_rise", 0.0) <= max_repetition_rise:
            gains[rate] = float(at_rise([(rise, np.array([gain])) for rise, gain in run], nll_rise)[0])
    return max(gains, key=lambda rate: gains[rate]) if gains else min(cells)


def edge(entry: Entry, rate: float, rates: Sequence[float]) -> str:
    """`largest` or `smallest` where the picked rate is that of the grid, so that one beyond it might have
    been picked; else empty, as where nothing was picked."""
    if not grid(entry, rates, 0):
        return ""
    return {min(rates): "smallest", max(rates): "largest"}.get(rate, "")
