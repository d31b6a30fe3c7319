"""Unlearning one subset for real with the user's own settings, and measuring what it did."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from u2a import interruption
from u2a.alignment.ledger import Parameters, restore, snapshot
from u2a.alignment.outer_loop import align
from u2a.config import OuterOptions, UnlearnOptions
from u2a.objectives import MeanLogProb, Objective, Reward
from u2a.objectives.preference import Preference
from u2a.problem import Measurement, Problem, Task, silent
from u2a.types import GuardStop
from u2a.validation import pair_texts
from u2a.verification.cells import Cell, Cells, Figures
from u2a.verification.plan import Run

if TYPE_CHECKING:
    from datasets import Dataset

TO_THE_END = OuterOptions(
    outer_steps=1,
    measurements=1,
    halvings=0,
    kl_budget=0.0,
    max_nll_rise=1e30,
    utility_budget=0.0,
    max_repetition_rise=1.0,
)
"""One inner run, measured once, at its end, and no guard that could cut it short: every subset gets the same
strength, also where `align` would have stopped."""


def held_out_objective(problem: Problem, pairs: Dataset, task: Task = silent) -> Objective | Reward:
    """J on held-out pairs, with the validation objective's options and the same reference.

    Call it at φ₀: without an adapter the current φ is taken for the reference. Where the objective is the
    reward, J on held-out prompts by the same scorer: `pairs` need no more columns than that.
    """
    if isinstance(problem.objective, Reward):
        return problem.objective.on(pairs)
    texts, _ = pair_texts(pairs, problem.renderer)
    with (
        problem.policy.reference() if problem.policy.has_adapter else nullcontext(),
        task("log-probs of the held-out pairs", len(texts)) as progress,
    ):
        reference = problem.logprobs(texts, progress)
    if isinstance(problem.objective, MeanLogProb):
        return Preference(texts, reference)
    objective: Any = problem.objective
    return replace(objective, texts=texts, reference=reference)


@dataclass
class GroundTruth:
    """Measures the cells of a plan, each from the very same φ₀, so that their order does not matter.

    Args:
        problem: prepared, with the policy at φ₀.
        unlearn: the user's own settings; the number of steps is the plan's, the same for every subset.
        cells: where finished ones are.
        start: measured at φ₀ (estimators also need the negatives' log-probs there).
        held_out: J on held-out rows, if there are any.
    """

    problem: Problem
    unlearn: UnlearnOptions
    cells: Cells
    start: Measurement
    held_out: Objective | Reward | None = None
    original: Parameters = field(init=False)
    _held_out_start: float | None = field(init=False)

    def __post_init__(self) -> None:
        self.original = snapshot(self.problem)
        self.unlearn = replace(self.unlearn, max_steps=self.cells.plan.steps)
        self._held_out_start = self._held_out(silent)

    def restore(self) -> None:
        """Back to φ₀."""
        restore(self.problem, self.original)

    def run(self, run: Run, task: Task = silent) -> Cell:
        """Unlearns one subset, each member with weight 1, measures and writes the cell; φ is φ₀ after.

        Prior weights of the negatives do not enter: a predicted sum counts every member once.

        Raises:
            GuardStop: something was not finite; nothing is written.
        """
        begin = time.perf_counter()
        plan = self.cells.plan
        self.restore()
        try:
            result = align(
                self.problem,
                unlearn=self.unlearn,
                outer=TO_THE_END,
                fixed_weights=plan.members[run.subset].astype(np.float64),
                # with the negatives' log-probs `align` would measure them again after every run
                start=replace(self.start, s_negatives=None, negative_logprob=None),
                keep_last=True,
                seed=run.seed,
                task=task,
            )
            if result.stopped_by_guard:
                raise GuardStop(f"subset {run.subset}, seed {run.seed}: {result.outcome}")
            end = self._figures(result.best, self._held_out(task))
        finally:
            self.restore()
        start = self._figures(self.start, self._held_out_start)
        seconds = round(time.perf_counter() - begin, 3)
        cell = Cell(run.subset, run.seed, plan.rows(run), start, end, seconds)
        self.cells.write(cell)
        return cell

    def run_remaining(self, task: Task = silent) -> None:
        """Measures every cell that is not there yet, with a bar over all of them.

        Raises:
            UserError: a cell of other settings is there. GuardStop: as `run`. Interrupted: a signal asked
                for a stop; finished cells are kept.
        """
        remaining = self.cells.remaining(self.start.utility)
        with task("unlearning subsets for real", len(remaining)) as progress:
            for run in remaining:
                interruption.check()
                self.run(run, task)
                if progress:
                    progress(1)

    def _held_out(self, task: Task) -> float | None:
        if self.held_out is None:
            return None
        objective, s = self.problem.objective_here(task, self.held_out)
        return float(objective.terms(s.double()).mean())

    def _figures(self, measured: Measurement, held_out: float | None) -> Figures:
        return {
            "objective": measured.objective,
            "utility": measured.utility,
            "kl": measured.kl,
            "held_out": held_out,
        }
