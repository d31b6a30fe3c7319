"""How an `align` run ended: the last line it says, and its exit status."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from u2a.impact.difference import CERTAIN

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from u2a.alignment.outer_loop import AlignResult

DONE, FINDINGS, STOPPED = 0, 1, 3
"""Exit statuses (docs/reliability.md)."""


@dataclass(frozen=True)
class End:
    """`line` is for people, `kind`, its first words, and `status` for programs."""

    line: str
    status: int

    @property
    def kind(self) -> str:
        """`better`, `better on validation`, `unclear`, `no better`, `worse`, `unchanged` or `stopped`."""
        return "stopped" if self.status == STOPPED else self.line.split(":")[0].lower()


def end_of(
    result: AlignResult,
    before: NDArray[np.float64] | None,
    after: NDArray[np.float64] | None,
    min_gain: float = 0.0,
) -> End:
    """Better, perhaps on validation alone, unclear, worse, no better, unchanged, or stopped by a guard.

    Args:
        before, after: (P,) margins of the held-out pairs at the original and at the kept model, in nats; None
            without held-out pairs.
        min_gain: of J, no more than which is none.
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
    if before is not None and after is not None:
        return _held_out_end(gain, after - before, min_gain)
    return _gained(gain, min_gain) or End(f"Better: J rose by {gain:.4g}; {_KEPT}.", DONE)


_KEPT = "the best measured step is kept"


def _gained(gain: float, min_gain: float, held_out: str = "") -> End | None:
    if gain > min_gain:
        return None
    few = f"J rose by {gain:.4g}, no more than --min-gain {min_gain:g}{held_out}"
    return End(f"No better: {few}; {_KEPT}.", FINDINGS)


def _held_out_end(gain: float, changes: NDArray[np.float64], min_gain: float) -> End:
    """Of a run that raised J and changed the margins of held-out pairs by these, (P,)."""
    change, noise = float(changes.mean()), math.inf
    shown = f"the margin of the one held-out pair by {change:+.4g} nats"
    if len(changes) > 1:
        noise = CERTAIN * float(changes.std(ddof=1)) / len(changes) ** 0.5
        shown = f"the held-out margin by {change:+.4g} ± {noise:.2g} nats (95 %)"
    if change < -noise:
        return End(
            f"Worse: J changed by {gain:+.4g}, {shown}. What was gained on the validation rows does not "
            "hold on others: do not use this model.",
            FINDINGS,
        )
    if change > noise:
        return End(f"Better: J rose by {gain:.4g}, {shown}; {_KEPT}.", DONE)
    if few := _gained(gain, min_gain, f", {shown}"):
        return few
    if change <= 0:
        return End(
            f"Unclear: J changed by {gain:+.4g}, {shown}. That the gain on the validation rows holds on "
            f"others is not shown: more pairs would tell; {_KEPT}.",
            FINDINGS,
        )
    return End(f"Better on validation: J rose by {gain:.4g}, {shown}, within noise; {_KEPT}.", DONE)


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
