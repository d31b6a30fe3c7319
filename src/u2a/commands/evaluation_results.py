"""What `u2a evaluate` writes and shows: figures with intervals, and paired differences to the original."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from u2a.evaluation.readings import ORIGINAL, Reading

if TYPE_CHECKING:
    from u2a.evaluation.figure import Estimate


def document(
    figures: Mapping[str, Mapping[str, Reading]],
    sources: Mapping[str, str],
    left_out: Mapping[str, str],
    seed: int,
) -> dict[str, Any]:
    """`evaluation.json`, as docs/evaluation.md describes it."""

    def numbers(estimate: Estimate | None) -> dict[str, Any] | None:
        if estimate is None:
            return None
        return {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in estimate._asdict().items()
        }

    return {
        "schema": 1,
        "seed": seed,
        "left_out": dict(left_out),
        "models": {
            model: {
                "source": sources[model],
                "figures": {
                    name: {
                        **(numbers(reading.estimate) or {}),
                        "better": reading.figure.better,
                        "unit": reading.figure.unit,
                        "change": numbers(reading.change),
                        **({"counts": dict(reading.figure.counts)} if reading.figure.counts else {}),
                    }
                    for name, reading in readings.items()
                },
            }
            for model, readings in figures.items()
        },
    }


def without_verdict(figures: Mapping[str, Mapping[str, Reading]]) -> list[str]:
    """The judge's figures, with their model, for which not one verdict came."""
    return [
        f"{name} of {model}"
        for model, readings in figures.items()
        for name, reading in readings.items()
        if 0 < reading.estimate.n == reading.figure.counts.get("no_verdict")
    ]


Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
WHOLE_TABLE = 128
"""Characters that a table of every interval needs."""
_ARROWS = {"higher": " ↑", "lower": " ↓", "neither": ""}


def tables(figures: Mapping[str, Mapping[str, Reading]], width: int = 80) -> list[Table]:
    """For each model its figures beside the original's and the change: with n and every interval where
    `width`, in characters, has room for them, else narrow enough for 80 (`evaluation.json` has all)."""
    base = figures[ORIGINAL]
    whole = width >= WHOLE_TABLE
    found: list[Table] = []
    for model, readings in figures.items():
        if model == ORIGINAL:
            continue
        lines: list[tuple[str, ...]] = [
            (
                f"{name}{_ARROWS[own.figure.better]}",
                *([str(own.estimate.n)] if whole else []),
                shown(base[name].estimate, interval=whole),
                shown(own.estimate, interval=whole),
                shown(own.change, sign="+"),
            )
            for name, own in readings.items()
        ]
        header = ("figure", *(["n"] if whole else []), ORIGINAL, "model", "change [95 %]")
        found.append((f"{model} beside the original model", header, lines))
    return found


def outcomes(figures: Mapping[str, Mapping[str, Reading]]) -> list[str]:
    """A sentence for each model but the original: how many of its figures changed beyond noise.

    Not counted is `kl`: it is 0 for the original and cannot but rise.
    """
    lines = []
    for model, readings in figures.items():
        counted = {"better": 0, "worse": 0}
        sure = [reading for name, reading in readings.items() if reading.sign and name != "kl"]
        for reading in sure:
            if reading.figure.better != "neither":
                good = (reading.sign > 0) == (reading.figure.better == "higher")
                counted["better" if good else "worse"] += 1
        if model != ORIGINAL:
            lines.append(
                f"{model}: beyond noise {counted['better']} figures are better than the original model's and "
                f"{counted['worse']} worse, of {len(readings)}."
            )
    return lines


def shown(estimate: Estimate | None, *, interval: bool = True, sign: str = "") -> str:
    """`value [low, high]`; a dash = undefined."""
    if estimate is None or math.isnan(estimate.value):
        return "–"
    value = f"{estimate.value:{sign}.3g}"
    if not interval or math.isnan(estimate.low):
        return value
    return f"{value} [{estimate.low:{sign}.3g}, {estimate.high:{sign}.3g}]"
