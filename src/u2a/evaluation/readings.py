"""Figures with intervals, and paired differences to the original model's."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from u2a.evaluation.figure import Estimate

if TYPE_CHECKING:
    from u2a.evaluation.figure import Figure

log = logging.getLogger("u2a")

ORIGINAL = "original"
BY_TOKEN = ("accuracy_per_token", "negative_extracted")
"""Figures that depend on how a text is cut into tokens, beside those whose unit says so."""


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


def estimates(
    found: Mapping[str, Mapping[str, Figure]], seed: int, other_tokens: Collection[str] = ()
) -> dict[str, dict[str, Reading]]:
    """By model and figure, with intervals.

    Args:
        other_tokens: models whose tokens are not the original's: what is per token has no change there (NaN),
            and a warning says so.
    """
    base = found[ORIGINAL]
    if other_tokens:
        log.warning(
            "%s: other tokens than the original model's, so perplexities and figures per token cannot be "
            "compared: their change is left out",
            ", ".join(other_tokens),
        )

    def change(model: str, figure: Figure) -> Estimate | None:
        if model == ORIGINAL:
            return None
        if model in other_tokens and ("token" in figure.unit or figure.name in BY_TOKEN):
            return Estimate(math.nan, math.nan, math.nan, len(figure.values))
        return figure.minus(base[figure.name], seed)

    return {
        model: {
            name: Reading(figure, figure.estimate(seed), change(model, figure))
            for name, figure in figures.items()
        }
        for model, figures in found.items()
    }
