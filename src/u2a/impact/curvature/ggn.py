"""H = λ·GGN(R) + δI, coupled over all parameters at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from u2a.config import Checked, option
from u2a.impact.curvature.elementwise import ScalarSolver
from u2a.impact.curvature.options import (
    DAMPING,
    MAX_ITERATIONS,
    RETAIN_WEIGHT,
    ROWS,
    SEED,
    TOLERANCE,
    weight_of,
)

if TYPE_CHECKING:
    from u2a.impact.context import Direction
    from u2a.impact.curvature.interface import Solution
    from u2a.impact.curvature.kept_texts import KeptTexts
    from u2a.impact.curvature.kronecker import KroneckerSolver
    from u2a.problem import Problem, Task


@dataclass(frozen=True)
class GaussNewton(Checked):
    """H = λ·GGN(R) + δI (Schraudolph 2002; Martens 2010), R the NLL per token of the retain texts.

    GGN(R) = Σ_t J_tᵀ·(diag(p_t) − p_t·p_tᵀ)·J_t / T over their T response tokens, J_t the logits' Jacobian,
    p_t the model's probabilities: positive semidefinite, cross-module terms included, never formed. That of
    `kl` is the same matrix. For the `l2` retain term H = (λ + δ)·I, δ = 0 unless given; without a retain
    term U's texts stand for it. δ by rule: a tenth of the mean diagonal, the trace being estimated from
    squared gradients with labels drawn from the model. Solved by conjugate gradients.
    """

    passes: ClassVar[str] = (
        "two forward passes and one backward pass over `rows` retain texts, once (kfac: twice); each product "
        "3 to 4 forward passes over them, at most `max_iterations` products for ∇J and again for ∇U"
    )

    retain_weight: float = option(0.0, RETAIN_WEIGHT, least=0)
    damping: float = option(0.0, DAMPING, least=0)
    rows: int = option(64, ROWS, least=0)
    seed: int = option(0, SEED, least=0)
    tolerance: float = option(1e-2, TOLERANCE, above=0)
    max_iterations: int = option(50, MAX_ITERATIONS, least=1)
    preconditioner: str = option(
        "none", "ggn: kfac saves products and needs adapters on linear layers.", ("none", "kfac")
    )

    def prepare(self, problem: Problem, task: Task) -> GaussNewtonSolver | ScalarSolver:
        """Chooses the texts, the damping and, if asked, the preconditioner."""
        from u2a.impact.curvature.kept_texts import KeptTexts, default_damping, fisher_diagonal

        weight = weight_of(self, problem)
        if problem.retain_loss == "l2":
            return ScalarSolver(weight + self.damping)
        kept = KeptTexts.of(problem, self.rows, self.seed)
        delta = self.damping
        if not delta:
            with task("curvature: trace of the Gauss-Newton matrix", len(kept.texts)) as progress:
                found = fisher_diagonal(kept, sampled=True, progress=progress)
            trace = sum(float(value.double().sum()) for value in found.values())
            delta = default_damping(weight * trace, sum(v.numel() for v in found.values()))
        preconditioner = None
        if self.preconditioner == "kfac":
            from u2a.impact.curvature.kronecker import KFAC

            kfac = KFAC(weight, delta, self.rows, self.seed).prepare(problem, task)
            preconditioner = None if isinstance(kfac, ScalarSolver) else kfac
        return GaussNewtonSolver(self, kept, weight, delta, preconditioner, task)


@dataclass(frozen=True)
class GaussNewtonSolver:
    """Conjugate gradients on Gauss-Newton products; `weight` is λ, `delta` δ."""

    options: GaussNewton
    kept: KeptTexts
    weight: float
    delta: float
    preconditioner: KroneckerSolver | None
    task: Task
    elementwise: bool = False

    def product(self, direction: Direction) -> Direction:
        """H·v by name."""
        from u2a.impact.curvature.gauss_newton_products import gauss_newton_product

        found = gauss_newton_product(self.kept, direction)
        return {name: self.weight * value + self.delta * direction[name] for name, value in found.items()}

    def solve(self, gradient: Direction) -> Solution:
        """v with H·v ≈ g."""
        from u2a.impact.curvature.conjugate_gradients import ConjugateGradients
        from u2a.impact.curvature.flat import Flat, iterative_solution

        flat, kfac = Flat.of(gradient), self.preconditioner
        inverse = None if kfac is None else lambda r: flat.flatten(kfac.solve(flat.unflatten(r)).direction)
        limit = self.options.max_iterations
        with self.task("curvature: products with the Gauss-Newton matrix", limit) as progress:
            return iterative_solution(
                ConjugateGradients(inverse),
                self.product,
                gradient,
                name="ggn",
                tolerance=self.options.tolerance,
                max_iterations=limit,
                progress=progress,
            )
