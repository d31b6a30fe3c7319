"""`AlignResult`: what `align` returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from u2a.alignment.ledger import Point
from u2a.impact.table import ImpactTable
from u2a.problem import Measurement


@dataclass
class AlignResult:
    """What `align` found. The policy holds the parameters of the best admissible measured point.

    `weights` (N,) are those of the outer step that led to it (the last one's when the original is kept);
    `history` has one such array an outer step. `impact` is the table taken at the original model (None with
    fixed weights). `start` and `best` are measured with the negatives. `outcome` is a sentence for people;
    `improved` says whether any admissible point raised J above the original's; `stopped_by_guard` whether
    something that is not finite ended the run.
    """

    weights: np.ndarray
    history: list[np.ndarray]
    impact: ImpactTable | None
    points: list[Point]
    start: Measurement
    best: Measurement
    outcome: str
    improved: bool
    stopped_by_guard: bool

    def __repr__(self) -> str:
        """What came of it: the arrays and measurements are long."""
        selected = int((self.weights > 0).sum())
        gain = f"J {self.start.objective:.4g} → {self.best.objective:.4g}"
        return (
            f"AlignResult(outcome={self.outcome!r}, {gain}, {selected} of {len(self.weights)} negatives "
            f"selected, improved={self.improved}, stopped_by_guard={self.stopped_by_guard})"
        )
