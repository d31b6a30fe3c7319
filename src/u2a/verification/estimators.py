"""The estimators that compete for predicting what real unlearning does: name -> function.

To add one: one line in `ESTIMATORS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from u2a.config import UnlearnOptions
from u2a.impact.curvature import CURVATURES, Curvature
from u2a.impact.table import score_impact
from u2a.problem import Measurement, Problem, Task
from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.trajectory.estimate import TrajectoryImpact

Array = NDArray[np.float64]


class Estimate(NamedTuple):
    """`impact` (N,): positive = unlearning it raises J. `utility_cost` (N,): positive = it lowers U; None =
    not estimated."""

    impact: Array
    utility_cost: Array | None


Estimator = Callable[[Problem, Measurement, UnlearnOptions, int, Task], Estimate]
"""Takes the problem at φ₀, the measurement there, settings under which a run over all negatives is as long as
the real ones (`plan.over_all`), a seed and what shows progress. It may move φ; the caller puts φ₀ back."""


def by_curvature(make: Callable[[], Curvature], scoring: str = "auto", self_check: int = 4) -> Estimator:
    """`score_impact` with one curvature, made when it is first needed."""

    def estimate(
        problem: Problem, at: Measurement, unlearn: UnlearnOptions, seed: int, task: Task
    ) -> Estimate:
        del unlearn, seed
        table = score_impact(
            problem, curvature=make(), scoring=scoring, self_check=self_check, se_groups=0, at=at, task=task
        )
        return Estimate(table.impact, table.utility_cost)

    return estimate


def _trajectory(
    problem: Problem, at: Measurement, unlearn: UnlearnOptions, seed: int, task: Task
) -> Estimate:
    """First order along the trainer's own steps, averaged over checkpoints."""
    from u2a.trajectory.first_order import first_order_impact

    del at
    return _estimate(first_order_impact(problem, unlearn, checkpoints=4, seed=seed, task=task))


def _metagradient(
    problem: Problem, at: Measurement, unlearn: UnlearnOptions, seed: int, task: Task
) -> Estimate:
    """The exact derivative of J after the run through every step of it."""
    from u2a.trajectory.metagradient import metagradient_impact

    del at
    return _estimate(metagradient_impact(problem, unlearn, seed=seed, task=task))


def _estimate(found: TrajectoryImpact) -> Estimate:
    return Estimate(np.asarray(found.impact, np.float64), np.asarray(found.utility_cost, np.float64))


ESTIMATORS: dict[str, Estimator] = {
    **{name: by_curvature(curvature) for name, curvature in CURVATURES.items()},
    "trajectory": _trajectory,
    "metagradient": _metagradient,
}
"""Name -> estimator: every curvature with its default options, and those that follow the run."""


def estimator_names(wanted: str, default: str) -> list[str]:
    """The estimators of a list by commas, the judged one first: `all` = every one, empty = `default`.

    Raises:
        UserError: no such estimator.
    """
    names = list(dict.fromkeys(name.strip() for name in wanted.split(",") if name.strip())) or [default]
    if names == ["all"]:
        return list(dict.fromkeys([default, *ESTIMATORS]))
    for name in names:
        if name not in ESTIMATORS:
            raise UserError(f"--estimators {name}: take some of {', '.join(ESTIMATORS)}, or all")
    return names
