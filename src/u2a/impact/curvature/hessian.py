"""The true Hessian of the inner problem, forget part included: indefinite in general."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from u2a.config import Checked, option
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
    from u2a.problem import Problem, Task


@dataclass(frozen=True)
class Hessian(Checked):
    """H = ∇²[(1/N)·Σ_i ℓ_i + λ·R] + δI at the current φ, every weight 1; solved by MINRES.

    Products by double backward. H is indefinite where forgetting outweighs the retain term: then a_i is the
    response of a stationary point that may be no minimum. The most negative curvature met is reported and
    logged. δ is 0 unless given; δ with `nll` is the same as an `l2` term of that weight beside it. That of
    −μ·J, which `--joint` climbs too, is not in H.
    """

    passes: ClassVar[str] = (
        "nothing to prepare; each product 4 to 5 forward passes over `rows` negatives and `rows` retain "
        "texts, at most `max_iterations` products for ∇J and again for ∇U"
    )

    retain_weight: float = option(0.0, RETAIN_WEIGHT, least=0)
    damping: float = option(0.0, DAMPING, least=0)
    rows: int = option(64, ROWS, least=0)
    seed: int = option(0, SEED, least=0)
    tolerance: float = option(1e-2, TOLERANCE, above=0)
    max_iterations: int = option(50, MAX_ITERATIONS, least=1)

    def prepare(self, problem: Problem, task: Task) -> HessianSolver:
        """Nothing to gather: products are taken at the φ of the moment."""
        return HessianSolver(self, problem, task)


@dataclass(frozen=True)
class HessianSolver:
    """MINRES on Hessian-vector products."""

    options: Hessian
    problem: Problem
    task: Task
    elementwise: bool = False

    def product(self, direction: Direction) -> Direction:
        """H·v by name."""
        from u2a.impact.curvature.hessian_products import hessian_product

        o, weight = self.options, weight_of(self.options, self.problem, stands_alone=True)
        return hessian_product(self.problem, direction, weight, o.damping, o.rows, o.seed)

    def solve(self, gradient: Direction) -> Solution:
        """v with H·v ≈ g."""
        from u2a.impact.curvature.flat import iterative_solution
        from u2a.impact.curvature.minres import minres

        with self.task("curvature: products with the Hessian", self.options.max_iterations) as progress:
            return iterative_solution(
                minres,
                self.product,
                gradient,
                name="hessian",
                tolerance=self.options.tolerance,
                max_iterations=self.options.max_iterations,
                progress=progress,
            )
