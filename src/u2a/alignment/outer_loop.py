"""The outer loop: score, weight, unlearn; measured at every step, guarded, and the best step wins."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from u2a import interruption, processes
from u2a.alignment.checkpoints import Checkpoints, OuterState, settings_of
from u2a.alignment.inner_checkpoints import InnerCheckpoints, InnerPosition
from u2a.alignment.inner_run import check_options, even_joint
from u2a.alignment.ledger import Ledger, Parameters, restore, snapshot
from u2a.alignment.measured_run import MeasuredRun
from u2a.alignment.result import AlignResult as AlignResult
from u2a.answers import greedy_answers
from u2a.config import OuterOptions, UnlearnOptions, WeightOptions
from u2a.fingerprint import digest_of, named
from u2a.impact.curvature import Curvature
from u2a.impact.table import ImpactTable, score_impact
from u2a.problem import Measurement, Problem, Task, silent
from u2a.types import GuardStop, UserError, shown
from u2a.weighting import (
    Weighting,
    exchange,
    impact_scale,
    mean_cost,
    mirror_ascent,
    parse_selection,
    select_greedily,
    step_within_budget,
    warn_of_idle_rho,
)

log = logging.getLogger("u2a")

Phase = Callable[[str], AbstractContextManager[None]]
Score = Callable[[Measurement, int], ImpactTable]
"""The table at a measured point, for an outer step."""


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
    folder: Path | str | None = None,
    resume: bool = False,
    record: Callable[..., None] | None = None,
    task: Task = silent,
    phase: Phase | None = None,
) -> AlignResult:
    """Selects, weights and unlearns negatives so that J rises (docs/explanation/mathematics.md).

    Args:
        problem: from `u2a.prepare`, with the policy at the original model.
        unlearn, weights, outer: options; defaults as in the command. The retain term and the pairs to train
            on are those that `prepare` was given.
        curvature, scoring, self_check: as in `score_impact`.
        fixed_weights: (N,) skips scoring and weighting and unlearns with these: what baselines use.
        start, first_table: the measurement and the impact table at the original model, if there are any.
        keep_last: keep the last admissible point instead of the best: for comparisons at equal strength.
        folder: where scores and checkpoints go (none are written without it); other files in it are left
            alone.
        resume: go on from what is kept in `folder`, with the same settings, but that `outer_steps` may grow;
            without it that is removed.
        record: called with an event's name and figures; task: shows progress; phase: times a phase.

    Returns:
        the result; the policy's parameters are those of the best admissible measured point, which is the
        original model itself when nothing did better.

    Raises:
        UserError: `unlearn` names another retain term or share of pairs than the problem was prepared with.

    Example:
        >>> from u2a import align, load_negatives, load_policy, load_preferences, prepare, tiny_model
        >>> bad = [{"prompt": "Hello!", "completion": "Go away."}, {"prompt": "Tea?", "completion": "No."}]
        >>> pairs = [{"prompt": "Coffee?", "chosen": "Yes, please.", "rejected": "No."}]
        >>> problem = prepare(
        ...     load_policy(tiny_model(), lora_rank=2),
        ...     negatives=load_negatives(bad), preferences=load_preferences(pairs),
        ... )
        >>> result = align(problem)
        >>> result.best.objective >= result.start.objective
        True
        >>> len(result.weights)
        2
    """
    weights, unlearn, outer = weights or WeightOptions(), unlearn or UnlearnOptions(), outer or OuterOptions()
    check_options(problem, unlearn)
    _check_weights(fixed_weights, len(problem.negatives))
    if unlearn.joint > 0 and problem.prior.any():
        even = even_joint(problem)
        log.info("joint %g: pairs and negatives would pull alike with %.3g", unlearn.joint, even)
    how = {"curvature": named(curvature), "scoring": scoring, "keep_last": keep_last, "seed": seed}
    how["fixed_weights"] = digest_of(fixed_weights)
    settings = settings_of(problem, (unlearn, weights, outer), how)
    folder = Path(folder) if folder is not None else None
    checkpoints = Checkpoints(folder, settings)
    if not resume:
        checkpoints.clear()

    def score(at: Measurement, outer_step: int) -> ImpactTable:
        return score_impact(
            problem,
            curvature=curvature,
            scoring=scoring,
            self_check=self_check,
            at=at,
            keep=checkpoints.scores(outer_step),
            task=task,
        )

    phase = phase or (lambda _name: nullcontext())
    if start is None:
        with phase("measuring"):
            start = problem.measure(task, negatives=True)
    if outer.kl_budget > 0 and start.kl is None:
        log.warning(
            "KL is not guarded: there is no copy of the original model to measure it from. Give "
            "prepare(keep_frozen_copy=True), or OuterOptions(kl_budget=0) if that is meant"
        )
    if outer.guards_repetition and start.answers is None:
        start = replace(start, answers=greedy_answers(problem, task))
    inner = InnerCheckpoints(folder, settings)
    ledger = Ledger(problem, outer, start, record or (lambda _event, **_figures: None), keep_last)
    loop = _OuterLoop(
        problem=problem,
        learning_rate=unlearn.learning_rate,
        weighting=Weighting(weights.select, weights.eta, weights.rho, weights.weight_floor),
        outer=outer,
        score=score,
        fixed_weights=fixed_weights,
        checkpoints=checkpoints,
        inner=inner,
        inner_run=MeasuredRun(problem, unlearn, ledger, inner, snapshot(problem), seed, task),
        ledger=ledger,
        task=task,
        phase=phase,
        first=first_table,
    )
    return loop.run(resume)


def _check_weights(fixed: np.ndarray | None, count: int) -> None:
    if fixed is None:
        return
    given = np.asarray(fixed, np.float64)
    if given.shape != (count,) or not (np.isfinite(given) & (given >= 0)).all():
        raise UserError(
            f"fixed_weights must be {count} finite numbers of at least 0, one for each negative; got "
            f"{shown(fixed)} of shape {given.shape}"
        )


def _done(steps: int) -> str:
    return f"Done after {steps} outer step{'s' if steps > 1 else ''}."


@dataclass
class _OuterLoop:
    problem: Problem
    learning_rate: float
    weighting: Weighting
    outer: OuterOptions
    score: Score
    fixed_weights: np.ndarray | None
    checkpoints: Checkpoints
    inner: InnerCheckpoints
    inner_run: MeasuredRun
    ledger: Ledger
    task: Task
    phase: Phase
    first: ImpactTable | None = None
    stopped_by_guard: bool = field(default=False, init=False)

    def run(self, resume: bool) -> AlignResult:
        original = self.inner_run.original
        state, position = self._first_state(), None
        begin = original
        if resume:
            state = self.checkpoints.load(state, self.ledger, self.task)
            begin = self.ledger.best_parameters
            position = self.inner.load(state, self.ledger, self.task)
            if state.outcome == _done(state.outer_step) and state.outer_step < self.outer.outer_steps:
                state.outcome = ""
        if not self.ledger.points:
            self.ledger.begin(state.learning_rate)
        if not state.weights.any():
            return self._result(state, f"Nothing here is worth unlearning: {self._why_nothing()}.")
        if not state.outcome:
            if self.outer.restart or state.outer_step == 0:
                begin = original
            if self.fixed_weights is None:
                warn_of_idle_rho(state.weights, self.weighting, self.outer.outer_steps)
            return self._result(state, self._outer_steps(state, original, position, begin))
        return self._result(state, state.outcome)

    def _why_nothing(self) -> str:
        if not self.problem.prior.any():
            return "every prior weight is 0"
        if self.fixed_weights is not None:
            return "every fixed weight is 0"
        if self.first is not None and (self.first.impact > 0).any():
            return "every negative of positive impact has the prior weight 0"
        return "no negative has a positive impact"

    def _first_state(self) -> OuterState:
        """Scores at the original model and selects greedily; or takes the fixed weights."""
        rate = self.learning_rate
        if self.fixed_weights is not None:
            return OuterState(np.asarray(self.fixed_weights, np.float64), 1.0, rate)
        if self.first is None:
            with self.phase("scoring"):
                self.first = self.score(self.ledger.start, 0)
            self._pause()
        impact = self.first.impact
        count = parse_selection(self.weighting.select, len(impact))
        weights = processes.from_main(select_greedily(impact, count, self.problem.prior))
        return OuterState(weights, impact_scale(impact, weights) if weights.any() else 1.0, rate)

    def _outer_steps(
        self, state: OuterState, original: Parameters, position: InnerPosition | None, begin: Parameters
    ) -> str:
        """Runs outer steps until a stopping rule holds; returns it as a sentence.

        Args:
            position: where an interrupted inner run goes on, and begin: φ where that run began.
        """
        ledger = self.ledger
        for k in range(state.outer_step + 1, self.outer.outer_steps + 1):
            try:
                if position is None:
                    started = self._begin_step(k, state, original)
                    if started is None:
                        state.outcome = (
                            f"Stopped after outer step {k - 1}: no weights would keep within what is left of "
                            "the utility budget."
                        )
                        self.checkpoints.save(state, ledger)
                        break
                    position, begin = started
                before = position.objective
                state.outer_step = k
                with self.phase("unlearning"):
                    self.inner_run(state, position, begin)
            except GuardStop as stop:
                self.stopped_by_guard = True
                log.warning("guard: %s", stop)
                return f"Stopped by a guard in outer step {k}: {stop} The best measured step is kept."
            if ledger.best.objective - before <= self.outer.min_gain:
                state.outcome = (
                    f"Stopped after outer step {k}: it raised J by no more than {self.outer.min_gain:g}."
                )
            elif k == self.outer.outer_steps:
                state.outcome = _done(k)
            self.checkpoints.save(state, ledger)
            self.inner.clear()
            self._pause()
            position = None
            if state.outcome:
                break
        return state.outcome

    def _pause(self) -> None:
        """A place to stop at: with a folder, all so far is kept."""
        if self.checkpoints.folder is not None:
            interruption.check()

    def _begin_step(
        self, k: int, state: OuterState, original: Parameters
    ) -> tuple[InnerPosition, Parameters] | None:
        """Scores at the best φ so far and sets the weights; returns where the inner run begins, None where no
        weights keep within the utility budget."""
        ledger, before = self.ledger, self.ledger.best.objective
        restore(self.problem, ledger.best_parameters)
        table = self._table(k)
        restart = self.outer.restart or k == 1
        at, begin = (ledger.start, original) if restart else (ledger.best, ledger.best_parameters)
        weights = processes.from_main(self._new_weights(state, at, table))
        if weights is None:
            return None
        state.weights = weights
        state.history.append(state.weights)
        cost = mean_cost(state.weights, table.utility_cost) if table is not None else None
        return InnerPosition(k, before, at.utility, cost), begin

    def _table(self, k: int) -> ImpactTable | None:
        """Impacts at the best φ so far: what the last weights led to. At the original they are known."""
        if self.fixed_weights is not None or self.ledger.best is self.ledger.start or k == 1:
            return self.first
        with self.phase("scoring"):
            table = self.score(self.ledger.best, k)
            self._pause()
            return table

    def _new_weights(
        self, state: OuterState, at: Measurement, table: ImpactTable | None
    ) -> np.ndarray | None:
        """One mirror ascent step on the impacts of `table`; without a table the weights stay as they are.

        Once a measured step has calibrated the costs, the step stays within what is left of the utility
        budget; None where it cannot.
        """
        if table is None:
            return state.weights
        impact, scale, prior = table.impact, state.scale, self.problem.prior
        if state.cost_calibration is None or self.outer.utility_budget <= 0:
            weights = mirror_ascent(state.weights, impact, scale, self.weighting)
            return exchange(weights, impact, prior, self.weighting)
        cost = table.utility_cost * state.cost_calibration
        left = self.outer.utility_budget - (self.ledger.start.utility - at.utility)
        return step_within_budget(state.weights, impact, cost, scale, left, prior, self.weighting)

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
