"""What a trajectory estimator returns, and how its cost is counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from u2a.data.collate import token_counts
from u2a.problem import Problem
from u2a.trajectory.recording import RecordedStep

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class TrajectoryImpact:
    """Scores of N negatives for one inner run, (N,) float64 in the order of the negatives.

    `impact` a_i estimates dJ(φ_T)/dω_i with Ω held fixed, in J's unit: positive = unlearning it raises
    alignment. `utility_cost` c_i estimates −dU(φ_T)/dω_i: positive = usefulness lost, in U's unit. So a
    change δ of the weights changes J by about Σ a_i·δ_i. `passes` is what it cost, in forward passes over
    the negatives.
    """

    impact: np.ndarray
    utility_cost: np.ndarray
    passes: float


class Meter:
    """Adds up tokens sent through the model, in forward passes over the negatives.

    A backward pass counts as one forward pass where only an adapter is trained (no gradient of the frozen
    weights is formed) and as two otherwise. Padding is not counted.
    """

    def __init__(self, problem: Problem) -> None:
        self._unit = float(token_counts(problem.negative_texts).sum())
        self.backward = 1.0 if problem.policy.has_adapter else 2.0
        self.passes = 0.0

    def texts(self, texts: Dataset, times: float) -> None:
        """Counts `times` forward passes over tokenised texts."""
        self.passes += times * float(token_counts(texts).sum()) / self._unit

    def steps(self, steps: Iterable[RecordedStep], times: float) -> None:
        """Counts `times` forward passes over the negatives, retain rows and pairs of optimiser steps."""
        batches = [batch for step in steps for batch in step.batches]
        parts = [part for batch in batches for part in (batch, batch.get("retain"), batch.get("pairs"))]
        tokens = sum(float(part["attention_mask"].sum()) for part in parts if part is not None)
        self.passes += times * tokens / self._unit
