"""The exact derivative of a run's outcome with respect to the weights, through every optimiser step.

Reverse replay of a recorded run (Engstrom et al. 2025, arXiv 2503.13751), as MAGIC uses it for attribution
(Ilyas & Engstrom 2025, arXiv 2504.16430).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from u2a.config import UnlearnOptions
from u2a.impact.context import Direction, ScoringContext, norm
from u2a.impact.gradient import objective_gradient
from u2a.objectives import Objective
from u2a.problem import Problem, Task, silent
from u2a.trajectory.estimate import Meter, TrajectoryImpact
from u2a.trajectory.hessian import ROUTES, StepDerivatives, replay_passes
from u2a.trajectory.recording import RecordedStep, Recording, Snapshot, recorded_run, set_parameters
from u2a.types import GuardStop, UserError

REPLAY_TOLERANCE = 0.01
"""Largest relative difference of a replayed gradient from the recorded one; ten times the precision of the
arithmetic where that is coarser."""


def metagradient_impact(
    problem: Problem,
    unlearn: UnlearnOptions,
    *,
    weights: np.ndarray | None = None,
    seed: int = 0,
    hvp: str = "exact",
    task: Task = silent,
) -> TrajectoryImpact:
    """a_i = dJ(φ_T)/dω_i and c_i = −dU(φ_T)/dω_i through the AdamW steps of one inner run from the current φ.

    A step takes g = (steps/Ω)·Σ_i ω_i·∇ℓ_i + λ·∇R, steps being those of one pass, and moves (φ, m, v). Going
    backwards with the derivatives of J with respect to (φ, m, v), a step gives dJ/dg (`AdamWStep.adjoint`),
    adds (steps/Ω)·⟨dJ/dg, ∇ℓ_i⟩ to a_i for the negatives it used and H·dJ/dg to dJ/dφ, H being the Hessian
    of the step's loss with its retain term. Ω is a constant in dω_i, as in the inner problem; the trainer
    itself would divide a change of it out again, so to compare with real runs keep the sum of the weights.

    Without a retain term Σ ω_i·a_i is 0 but for ε: Adam does not see the scale of a gradient. So the sign of
    a_i then says whether a negative helps more or less than the others of its run, and not whether it is
    worth unlearning at all; the order means the same as ever.
    A negative that no step used (weight 0, or more negatives than the steps reach) has a_i = c_i = 0.

    Adam's first step is nearly −η·sign(g): where √v̂ is not far above ε the derivative is a spike of height
    η/ε between two flats. It is exact, but elements on a spike can make it hold for very small changes of
    the weights only. More steps, and gradients well above ε (1e-8), make the outcome smoother in ω:
    metasmoothness, in the words of arXiv 2503.13751.

    Cost in forward passes over the rows of the run's steps, with LoRA: the run 2, the replay about 10 by
    either route, 4 for each of J and U and 2 that they share; and 3 over the texts of J and of U. So one pass
    over the negatives costs about 12, however many they are. Disk: 4·|φ| numbers a step. The policy is left
    as it was.

    Args:
        weights: ω (N,) of the run; default 1 for each negative.
        seed: the run's.
        hvp: how H·λ_g is found: `exact` (double backward pass, eager attention, more activations than a
            training step keeps) or `fd` (differences of gradients, no more memory than training).

    Raises:
        UserError: no such `hvp`, or the run cannot be replayed because the adapter has dropout.
        GuardStop: something is not finite.
    """
    if hvp not in ROUTES:
        raise UserError(f"hvp {hvp}: take one of {', '.join(ROUTES)}")
    meter, context = Meter(problem), ScoringContext.of(problem)
    with recorded_run(problem, unlearn, weights=weights, seed=seed, task=task) as recording:
        meter.steps(recording.steps, 1 + meter.backward + replay_passes(2, meter.backward))
        adjoints = []
        utility = problem.utility
        for goal, s in (problem.objective_here(), (utility, context.logprobs(utility.texts))):
            adjoints.append(_Adjoint.at_the_end(context, goal, s))
            meter.texts(goal.texts, 2 + meter.backward)
        scores = torch.zeros(2, len(problem.negative_texts), dtype=torch.float64)
        with task("replaying the run backwards", len(recording.steps)) as progress:
            for number in range(len(recording.steps), 0, -1):
                _step_back(problem, recording, number, adjoints, scores, hvp)
                if progress:
                    progress(1)
    return TrajectoryImpact(scores[0].numpy(), -scores[1].numpy(), meter.passes)


@dataclass
class _Adjoint:
    """Derivatives of J (or U) at the end of the run with respect to φ, m and v at one time of it."""

    of_phi: Direction
    of_m: Direction
    of_v: Direction

    @classmethod
    def at_the_end(cls, context: ScoringContext, goal: Objective, s: torch.Tensor) -> _Adjoint:
        """∇J at the current φ; the moments left over do not matter any more."""
        gradient = objective_gradient(context, goal, s)
        return cls(gradient, *({name: torch.zeros_like(g) for name, g in gradient.items()} for _ in range(2)))

    def through_update(self, step: RecordedStep, state: Snapshot) -> Direction:
        """Goes back through AdamW's update with g held fixed; returns dJ/dg."""
        of_gradient = {}
        for name, adamw in step.adamw.items():
            after = self.of_phi[name], self.of_m[name], self.of_v[name]
            of_gradient[name], before = adamw.adjoint(
                state.m[name], state.v[name], state.gradient[name], after
            )
            self.of_phi[name], self.of_m[name], self.of_v[name] = before
        return of_gradient

    def through_gradient(self, product: Direction) -> None:
        """Adds what φ does to g: H·λ_g."""
        for name, value in product.items():
            self.of_phi[name] = self.of_phi[name] + value


def _step_back(
    problem: Problem,
    recording: Recording,
    number: int,
    adjoints: list[_Adjoint],
    scores: torch.Tensor,
    hvp: str,
) -> None:
    """From after step `number` (counted from 1) to before it; adds the step's part to `scores` (2, N)."""
    step, trainer = recording.steps[number - 1], recording.trainer
    state = step.load(problem.policy.device)
    of_gradient = [adjoint.through_update(step, state) for adjoint in adjoints]
    set_parameters(problem, state.phi)
    found = ROUTES[hvp](problem, trainer, step, of_gradient)
    _refuse_another_run(problem, state, found, number)
    scores.index_add_(1, step.rows, trainer.scale * found.along)
    for adjoint, product in zip(adjoints, found.products, strict=True):
        adjoint.through_gradient(product)
        if not all(torch.isfinite(value).all() for value in adjoint.of_phi.values()):
            raise GuardStop(f"the metagradient is not finite at step {number}; try --dtype float32")


def _refuse_another_run(problem: Problem, state: Snapshot, found: StepDerivatives, number: int) -> None:
    """The replayed gradient must be the recorded one."""
    precision = torch.finfo(next(problem.policy.model.parameters()).dtype).eps
    difference = {name: g - found.gradient[name] for name, g in state.gradient.items()}
    off, size = norm(difference), norm(state.gradient)
    if off > max(REPLAY_TOLERANCE, 10 * precision) * size:
        raise UserError(
            f"step {number} of the run cannot be replayed: its gradient differs by {off / size:.1%} from the "
            "one that was recorded. Switch the adapter's dropout off (--lora-dropout 0)"
        )
