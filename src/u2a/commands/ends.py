"""How an `align` run ended: the last line it says, and its exit status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from u2a.impact.difference import CERTAIN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from u2a.outer_loop import AlignResult

DONE, FINDINGS, STOPPED = 0, 1, 3
"""Exit statuses (design, section 4)."""


@dataclass(frozen=True)
class End:
    """`line` is for people, `status` for programs."""

    line: str
    status: int


def end_of(result: AlignResult, before: NDArray[np.float64] | None, after: NDArray[np.float64] | None) -> End:
    """Better, worse, no better, unchanged, or stopped by a guard.

    Args:
        before, after: (P,) margins of the held-out pairs at the original and at the kept model, in nats; None
            without held-out pairs.
    """
    gain = result.best.objective - result.start.objective
    if result.stopped_by_guard:
        kept = "the original model is kept"
        if result.improved:
            kept = f"the kept model is the best measured step (J {gain:+.4g})"
        return End(
            f"Stopped by a guard, and {kept}; the reason is above. Begin again "
            "with a lower --learning-rate, or without that row.",
            STOPPED,
        )
    if not result.history:
        return End("Unchanged: nothing here is worth unlearning, so the original model is kept.", DONE)
    if not result.improved:
        return End(_without_gain(result), FINDINGS)
    change, error = _change(before, after)
    held_out = (
        ""
        if change is None
        else f", the held-out margin by {change:+.4g} ± {CERTAIN * error:.2g} nats (95 %)"
    )
    if change is not None and change < -CERTAIN * error:
        return End(
            f"Worse: J changed by {gain:+.4g}{held_out}. What was gained on the validation rows does not "
            "hold on others: do not use this model.",
            FINDINGS,
        )
    return End(f"Better: J rose by {gain:.4g}{held_out}; the best measured step is kept.", DONE)


def _without_gain(result: AlignResult) -> str:
    start = result.start.objective
    measured = [point for point in result.points if point.outer_step > 0]
    within = [point.figures["objective"] or 0.0 for point in measured if point.admissible]
    if not within:
        return "No better: every measured step was past a budget, so the original model is kept."
    nearest = max(within) - start
    if nearest < 0:
        return (
            f"Worse: every measured step within the budgets lowered J (the best by {nearest:+.4g}), so the "
            "original model is kept."
        )
    return "No better: no measured step raised J, so the original model is kept."


def _change(
    before: NDArray[np.float64] | None, after: NDArray[np.float64] | None
) -> tuple[float | None, float]:
    """Mean change of the margins and its standard error over pairs (0 for one pair)."""
    if before is None or after is None:
        return None, 0.0
    change = after - before
    error = change.std(ddof=1) / len(change) ** 0.5 if len(change) > 1 else 0.0
    return float(change.mean()), float(error)
