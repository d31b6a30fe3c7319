"""Figures with intervals, and paired differences to the original model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from u2a.evaluation.figure import Estimate, Figure

ORIGINAL = "original"


@dataclass(frozen=True)
class Reading:
    """A figure of one model, and its paired difference to the original's (None for the original)."""

    figure: Figure
    estimate: Estimate
    change: Estimate | None

    @property
    def sign(self) -> int:
        """+1 where the change's interval is above 0, −1 below, 0 where it holds 0 or there is none."""
        return 0 if self.change is None else int(self.change.low > 0) - int(self.change.high < 0)


def estimates(found: Mapping[str, Mapping[str, Figure]], seed: int) -> dict[str, dict[str, Reading]]:
    """By model and figure, with intervals."""
    base = found[ORIGINAL]
    return {
        model: {
            name: Reading(
                figure, figure.estimate(seed), figure.minus(base[name], seed) if model != ORIGINAL else None
            )
            for name, figure in figures.items()
        }
        for model, figures in found.items()
    }
