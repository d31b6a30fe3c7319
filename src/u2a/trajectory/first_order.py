"""First order along the run: each checkpoint's gradients against the optimiser's own preconditioner.

TracIn (Pruthi et al. 2020, arXiv 2002.08484) averages ⟨∇J, ∇ℓ_i⟩ over checkpoints of the run; what Adam does
to a step belongs into the product (LESS, Xia et al. 2024, arXiv 2402.04333).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from u2a.config import UnlearnOptions
from u2a.impact.context import Direction, ScoringContext
from u2a.impact.gradient import objective_gradient
from u2a.impact.scores import Derivatives, directional_derivatives, impact, utility_cost
from u2a.problem import Problem, Task, silent
from u2a.trajectory.estimate import Meter, TrajectoryImpact
from u2a.trajectory.recording import RecordedStep, Snapshot, recorded_run, set_parameters
from u2a.types import UserError


def first_order_impact(
    problem: Problem,
    unlearn: UnlearnOptions,
    *,
    weights: np.ndarray | None = None,
    checkpoints: int = 4,
    seed: int = 0,
    task: Task = silent,
) -> TrajectoryImpact:
    """Impact of every negative by first order along one inner run from the current φ.

        a_i = −(T/Ω)·(1/K)·Σ_k η·⟨∇J(φ_k), P_k·∇ℓ_i(φ_k)⟩,    P_k = diag(1/(√v̂_k + ε)),

    over K checkpoints φ_k spread evenly over the T steps, v̂_k taken after the step's own gradient; c_i is
    +(T/Ω)·(1/K)·Σ_k η·⟨∇U, P_k·∇ℓ_i⟩. A unit of ω_i enters the steps T/Ω times, so a_i has the unit and the
    sign of dJ(φ_T)/dω_i. Left out are momentum, what a step does to later gradients, and what ω_i does to
    P_k, which is not small: P_k undoes most of a change of the gradient's size. So the order of the a_i is
    worth more than their size; the metagradient has all of this. Elements that have had no gradient (v̂ = 0)
    do not move and contribute 0. Every negative gets a score, also one of weight 0.

    Cost in forward passes, with LoRA: the run (2 a pass over the selected) + K·(2 over the negatives + 3 over
    the texts of J and of U). The policy is left as it was.

    Args:
        weights: ω (N,) of the run; default 1 for each negative.
        checkpoints: K; T at most are used.
        seed: the run's.

    Raises:
        UserError: `checkpoints` < 1. GuardStop: something is not finite.
    """
    if checkpoints < 1:
        raise UserError(f"{checkpoints} checkpoints: take at least 1")
    meter, context = Meter(problem), ScoringContext.of(problem)
    with recorded_run(problem, unlearn, weights=weights, seed=seed, task=task) as recording:
        meter.steps(recording.steps, 1 + meter.backward)
        chosen = evenly_spaced(recording.steps, checkpoints)
        scores = torch.zeros(2, len(problem.negative_texts), dtype=torch.float64)
        with task("scoring at checkpoints", len(chosen)) as progress:
            for step in chosen:
                scores += _scores_at(problem, context, step, meter)
                if progress:
                    progress(1)
        factor = len(recording.steps) / float(recording.trainer.weights.sum()) / len(chosen)
    by_j, by_u = (factor * scores).numpy()
    return TrajectoryImpact(impact=by_j, utility_cost=by_u, passes=meter.passes)


def evenly_spaced(steps: Sequence[RecordedStep], count: int) -> list[RecordedStep]:
    """At most `count` of the steps: the middles of that many equal parts of the run."""
    parts = min(count, len(steps))
    picks = ((np.arange(parts) + 0.5) * len(steps) / parts).astype(int)
    return [steps[i] for i in picks]


def _scores_at(problem: Problem, context: ScoringContext, step: RecordedStep, meter: Meter) -> Tensor:
    """η·(∓)(dℓ/ds)_i·⟨∇s_i, P·∇J⟩ and the same for U, at one checkpoint: (2, N)."""
    state = step.load(context.device)
    set_parameters(problem, state.phi)
    directions = []
    utility = problem.utility
    for goal, s in (problem.objective_here(), (utility, context.logprobs(utility.texts))):
        gradient = objective_gradient(context, goal, s)
        directions.append(_preconditioned(step, state, gradient))
        meter.texts(goal.texts, 2 + meter.backward)
    found = directional_derivatives(context, problem.negative_texts, directions)
    meter.texts(problem.negative_texts, _scoring_passes(found, meter))
    slope = problem.loss.derivative(found.s, problem.reference.double(), problem.lengths.double())
    return torch.stack([impact(slope, found.along[0]), utility_cost(slope, found.along[1])])


def _preconditioned(step: RecordedStep, state: Snapshot, gradient: Direction) -> Direction:
    """η·P·∇J, P as the step has it."""
    out = {}
    for name, adamw in step.adamw.items():
        v_after = adamw.second_moment(state.v[name], state.gradient[name])
        out[name] = adamw.learning_rate * adamw.preconditioner(v_after) * gradient[name]
    return out


def _scoring_passes(found: Derivatives, meter: Meter) -> float:
    if found.method == "exact":
        return 1 + meter.backward
    return 1 + float(sum(check.sides for check in found.self_checks))
