"""The outer loop: score, weight, unlearn; measured at every step, guarded, and the best step wins."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from u2a.checkpoints import Checkpoints, OuterState
from u2a.config import OuterOptions, UnlearnOptions, WeightOptions
from u2a.finetune import ShowSteps
from u2a.impact.curvature import Curvature
from u2a.impact.table import ImpactTable, score_impact
from u2a.inner_run import unlearning_trainer
from u2a.ledger import Ledger, Point, restore, snapshot
from u2a.problem import Measurement, Problem, Task, silent
from u2a.repetition import greedy_repetition
from u2a.types import GuardStop
from u2a.weighting import (
    Weighting,
    exchange,
    impact_scale,
    mirror_ascent,
    parse_selection,
    select_greedily,
    within_budget,
)

log = logging.getLogger("u2a")

Phase = Callable[[str], AbstractContextManager[None]]
Score = Callable[[Measurement], ImpactTable]


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


def align(
    problem: Problem,
    *,
    unlearn: UnlearnOptions | None = None,
    weights: WeightOptions | None = None,
    outer: OuterOptions | None = None,
    curvature: Curvature | None = None,
    scoring: str = "auto",
    self_check: int = 4,
    fixed_weights: np.ndarray | None = None,
    start: Measurement | None = None,
    first_table: ImpactTable | None = None,
    keep_last: bool = False,
    seed: int = 0,
    folder: Path | None = None,
    resume: bool = False,
    record: Callable[..., None] | None = None,
    task: Task = silent,
    phase: Phase | None = None,
) -> AlignResult:
    """Selects, weights and unlearns negatives so that J rises (design, section 2).

    Args:
        problem: from `u2a.prepare`, with the policy at the original model.
        unlearn, weights, outer: options; defaults as in the command.
        curvature, scoring, self_check: as in `score_impact`.
        fixed_weights: (N,) skips scoring and weighting and unlearns with these: what baselines use.
        start, first_table: the measurement and the impact table at the original model, if there are any.
        keep_last: keep the last admissible point instead of the best: for comparisons at equal strength.
        folder: where checkpoints of outer steps go (none are written without it).
        resume: go on from the last checkpoint in `folder`.
        record: called with an event's name and figures; task: shows progress; phase: times a phase.

    Returns:
        the result; the policy's parameters are those of the best admissible measured point, which is the
        original model itself when nothing did better.
    """
    weights = weights or WeightOptions()

    def score(at: Measurement) -> ImpactTable:
        return score_impact(
            problem, curvature=curvature, scoring=scoring, self_check=self_check, at=at, task=task
        )

    phase = phase or (lambda _name: nullcontext())
    outer = outer or OuterOptions()
    if start is None:
        with phase("measuring"):
            start = problem.measure(task, negatives=True)
    if outer.max_repetition > 0 and start.repetition is None:
        start = replace(start, repetition=greedy_repetition(problem, task))
    loop = _OuterLoop(
        problem=problem,
        unlearn=unlearn or UnlearnOptions(),
        weighting=Weighting(weights.select, weights.eta, weights.rho, weights.weight_floor),
        outer=outer,
        score=score,
        fixed_weights=fixed_weights,
        seed=seed,
        checkpoints=Checkpoints(folder),
        ledger=Ledger(problem, outer, start, record or (lambda _event, **_figures: None), keep_last),
        task=task,
        phase=phase,
        first=first_table,
    )
    return loop.run(resume)


@dataclass
class _OuterLoop:
    problem: Problem
    unlearn: UnlearnOptions
    weighting: Weighting
    outer: OuterOptions
    score: Score
    fixed_weights: np.ndarray | None
    seed: int
    checkpoints: Checkpoints
    ledger: Ledger
    task: Task
    phase: Phase
    first: ImpactTable | None = None
    stopped_by_guard: bool = field(default=False, init=False)

    def run(self, resume: bool) -> AlignResult:
        original = snapshot(self.problem)
        state = self._first_state()
        if resume:
            state = self.checkpoints.load(state, self.ledger, self.task)
        if state.outer_step == 0:
            self.ledger.begin(state.learning_rate)
        if not state.weights.any():
            why = (
                "no negative has a positive impact" if self.problem.prior.any() else "every prior weight is 0"
            )
            return self._result(state, f"Nothing here is worth unlearning: {why}.")
        if not state.outcome:
            return self._result(state, self._outer_steps(state, original))
        return self._result(state, state.outcome)

    def _first_state(self) -> OuterState:
        """Scores at the original model and selects greedily; or takes the fixed weights."""
        rate = self.unlearn.learning_rate
        if self.fixed_weights is not None:
            return OuterState(np.asarray(self.fixed_weights, np.float64), 1.0, rate)
        if self.first is None:
            with self.phase("scoring"):
                self.first = self.score(self.ledger.start)
        impact = self.first.impact
        count = parse_selection(self.weighting.select, len(impact))
        weights = select_greedily(impact, count, self.problem.prior)
        return OuterState(weights, impact_scale(impact, weights) if weights.any() else 1.0, rate)

    def _outer_steps(self, state: OuterState, original: dict[str, Any]) -> str:
        """Runs outer steps until a stopping rule holds; returns it as a sentence."""
        ledger = self.ledger
        for k in range(state.outer_step + 1, self.outer.outer_steps + 1):
            before = ledger.best.objective
            try:
                restore(self.problem, ledger.best_parameters)
                table = self._table(k)
                restart = self.outer.restart or k == 1
                at = ledger.start if restart else ledger.best
                restore(self.problem, original if restart else ledger.best_parameters)
                state.weights = self._new_weights(state, at, table)
                state.history.append(state.weights)
                state.outer_step = k
                with self.phase("unlearning"):
                    self._inner_run(state, at, table)
            except GuardStop as stop:
                self.stopped_by_guard = True
                log.warning("guard: %s", stop)
                return f"Stopped by a guard in outer step {k}: {stop} The best measured step is kept."
            if ledger.best.objective - before <= self.outer.min_gain:
                state.outcome = (
                    f"Stopped after outer step {k}: it raised J by no more than {self.outer.min_gain:g}."
                )
            elif k == self.outer.outer_steps:
                state.outcome = f"Done after {k} outer step{'s' if k > 1 else ''}."
            self.checkpoints.save(state, ledger)
            if state.outcome:
                break
        return state.outcome

    def _table(self, k: int) -> ImpactTable | None:
        """Impacts at the best φ so far: what the last weights led to. At the original they are known."""
        if self.fixed_weights is not None or self.ledger.best is self.ledger.start or k == 1:
            return self.first
        with self.phase("scoring"):
            return self.score(self.ledger.best)

    def _new_weights(self, state: OuterState, at: Measurement, table: ImpactTable | None) -> np.ndarray:
        """One mirror ascent step, within what is left of the utility budget once a measured step has
        calibrated costs."""
        if table is None:
            return state.weights
        if state.cost_calibration is not None and self.outer.utility_budget > 0:
            weights = within_budget(
                state.weights,
                table.impact,
                table.utility_cost * state.cost_calibration,
                state.scale,
                self.outer.utility_budget - (self.ledger.start.utility - at.utility),
                self.weighting,
            )
        else:
            weights = mirror_ascent(state.weights, table.impact, state.scale, self.weighting)
        return exchange(weights, table.impact, self.problem.prior, self.weighting)

    def _inner_run(self, state: OuterState, at: Measurement, table: ImpactTable | None) -> None:
        """Unlearns with the current weights; halves the learning rate while the first measured point is
        already past a budget, or not finite, which is the far end of the same."""
        begin = snapshot(self.problem)
        for halving in range(self.outer.halvings + 1):
            measuring, why = _Measuring(self, state), ""
            try:
                self._train(state, measuring, seed=self.seed + 1000 * state.outer_step + halving)
            except GuardStop as stop:
                if measuring.admissible_points or halving == self.outer.halvings:
                    raise
                why = str(stop)
            if measuring.admissible_points or halving == self.outer.halvings:
                break
            state.learning_rate /= 2
            restore(self.problem, begin)
            log.info("learning rate halved to %g: %s", state.learning_rate, why or measuring.passed)
        if measuring.last is not None and table is not None:
            # what one unit of predicted cost, Σω·c, really costs
            predicted, fall = float(state.weights @ table.utility_cost), at.utility - measuring.last.utility
            if predicted > 0 and fall > 0:
                state.cost_calibration = fall / predicted

    def measured(self) -> Measurement:
        """J, U, KL and, where a guard is on it, repetition at the current φ."""
        found = self.problem.measure(self.task)
        if self.outer.max_repetition > 0:
            found = replace(found, repetition=greedy_repetition(self.problem, self.task))
        return found

    def _train(self, state: OuterState, measuring: _Measuring, seed: int) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            unlearning_trainer(
                self.problem,
                state.weights,
                self.unlearn,
                learning_rate=state.learning_rate,
                seed=seed,
                folder=scratch,
                callbacks=[ShowSteps(f"unlearning, outer step {state.outer_step}", self.task), measuring],
            ).train()

    def _result(self, state: OuterState, outcome: str) -> AlignResult:
        ledger = self.ledger
        restore(self.problem, ledger.best_parameters)
        improved = ledger.best.objective > ledger.start.objective
        best = ledger.start
        if ledger.best is not ledger.start:
            best = self._with_negatives(ledger.best)
        if state.history and not improved:
            outcome += " No measured step within the budgets raised J: the original model is kept."
        kept = max((point.outer_step for point in ledger.points if point.best), default=0)
        return AlignResult(
            weights=state.history[kept - 1] if kept else state.weights,
            history=state.history,
            impact=self.first,
            points=ledger.points,
            start=ledger.start,
            best=best,
            outcome=outcome,
            improved=improved,
            stopped_by_guard=self.stopped_by_guard,
        )

    def _with_negatives(self, measured: Measurement) -> Measurement:
        """A measurement at the current φ completed by the negatives' log-probs, if the start has them too."""
        if self.ledger.start.s_negatives is None:
            return measured
        with self.phase("measuring"):
            s = self.problem.measure_negatives(self.task)
        per_token = float((s.double() / self.problem.lengths).mean())
        return replace(measured, s_negatives=s, negative_logprob=per_token)


class _Measuring(TrainerCallback):
    """Measures J, U and KL a few times in an inner run, and stops it once a point is past a budget."""

    def __init__(self, loop: _OuterLoop, state: OuterState) -> None:
        self.loop, self.state = loop, state
        self.admissible_points = 0
        self.last: Measurement | None = None
        self.passed = ""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        del args
        every = max(1, round(state.max_steps / self.loop.outer.measurements))
        if state.global_step % every and state.global_step < state.max_steps:
            return
        self.last = self.loop.measured()
        outer_step, rate = self.state.outer_step, self.state.learning_rate
        if self.loop.ledger.consider(self.last, outer_step, state.global_step, rate):
            self.admissible_points += 1
        else:
            self.passed = self.loop.ledger.passed(self.last)
            log.info("outer step %d ends at step %d: %s", outer_step, state.global_step, self.passed)
            control.should_training_stop = True
