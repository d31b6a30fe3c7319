"""The measured points of a run: which are within the budgets, and which is the best so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from u2a.answers import rise_beyond_noise
from u2a.config import OuterOptions
from u2a.models.sharding import set_whole, whole
from u2a.problem import Measurement, Problem

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Point:
    """One measured point: φ after `step` optimiser steps of outer step `outer_step` (0, 0 = the original).

    `figures` holds J (`objective`), U (`utility`) and `kl`. `admissible` says whether every budget and
    guard held; `best` whether it was, when measured, the admissible point of the largest J.
    """

    outer_step: int
    step: int
    figures: dict[str, float | None]
    learning_rate: float
    admissible: bool
    best: bool


@dataclass
class Ledger:
    """Keeps every measured point, and a copy of φ at the best admissible one; `start` is the original.

    With `keep_last` the last admissible point counts as the best, even when J fell: comparisons at equal
    strength need what a method did, not what a guard would have saved it from.
    """

    problem: Problem
    options: OuterOptions
    start: Measurement
    record: Callable[..., None]
    keep_last: bool = False
    best: Measurement = field(init=False)
    best_parameters: Parameters = field(init=False)
    points: list[Point] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.best, self.best_parameters = self.start, snapshot(self.problem)

    def begin(self, learning_rate: float) -> None:
        """Notes the original model as the first point."""
        self._note(Point(0, 0, self.start.figures, learning_rate, admissible=True, best=True))

    def consider(self, measured: Measurement, outer_step: int, step: int, learning_rate: float) -> bool:
        """Notes a measured point, keeps φ when it is the best so far; says whether it is admissible."""
        admissible = self.admissible(measured)
        best = admissible and (self.keep_last or measured.objective > self.best.objective)
        if best:
            self.best, self.best_parameters = measured, snapshot(self.problem)
        self._note(Point(outer_step, step, measured.figures, learning_rate, admissible, best))
        return admissible

    def admissible(self, measured: Measurement) -> bool:
        """Within every budget and guard."""
        return not self.passed(measured)

    def passed(self, measured: Measurement) -> str:
        """The budgets that a measured point is past, in words; empty = none.

        The KL budget, the largest rise of the retain NLL, the utility budget, and the largest rise of
        repetition.
        """
        options, fall = self.options, self.start.utility - measured.utility
        found = []
        # without a reference there is no KL to guard
        if measured.kl is not None and 0 < options.kl_budget < measured.kl:
            found.append(f"KL {measured.kl:.4g} is over --kl-budget {options.kl_budget:g}")
        if not fall <= options.max_nll_rise:
            found.append(f"the retain NLL rose by {fall:.4g}, over --max-nll-rise {options.max_nll_rise:g}")
        if options.utility_budget > 0 and fall > options.utility_budget:
            found.append(f"U fell by {fall:.4g}, over --utility-budget {options.utility_budget:g}")
        before, now = self.start.answers, measured.answers
        if before is not None and now is not None:
            rise = rise_beyond_noise(before.repetition, now.repetition)
            if rise > options.max_repetition_rise:
                found.append(
                    f"repetition in greedy answers rose by {rise:.3g}, over --max-repetition-rise "
                    f"{options.max_repetition_rise:g}"
                )
        return " and ".join(found)

    def _note(self, point: Point) -> None:
        self.points.append(point)
        figures = {key: value for key, value in vars(point).items() if key != "figures"}
        self.record("measurement", **figures, **point.figures)


def snapshot(problem: Problem) -> Parameters:
    """A copy of the trainable parameters φ, on the CPU; of sharded ones every process has all of it."""
    return {name: whole(p.detach()).to("cpu", copy=True) for name, p in problem.policy.trainable().items()}


def restore(problem: Problem, parameters: Parameters) -> None:
    """Sets φ to a snapshot."""
    with torch.no_grad():
        for name, p in problem.policy.trainable().items():
            set_whole(p, parameters[name])
