"""The true Hessian of the inner problem, forget part included: indefinite in general."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from u2a.impact.curvature.options import (
    DAMPING,
    MAX_ITERATIONS,
    RETAIN_WEIGHT,
    ROWS,
    SEED,
    TOLERANCE,
    refuse_bad_options,
    weight_of,
)

if TYPE_CHECKING:
    from u2a.impact.context import Direction
    from u2a.impact.curvature.interface import Solution
    from u2a.problem import Problem, Task


@dataclass(frozen=True)
class Hessian:
    """H = ∇²[(1/N)·Σ_i ℓ_i + λ·R] + δI at the current φ, every weight 1; solved by MINRES.

    Products by double backward. H is indefinite where forgetting outweighs the retain term: then a_i is the
    response of a stationary point that may be no minimum. The most negative curvature met is reported and
    logged. δ is 0 unless given; δ with `nll` is the same as an `l2` term of that weight beside it.
    """

    passes: ClassVar[str] = (
        "nothing to prepare; each product 4 to 5 forward passes over `rows` negatives and `rows` retain "
        "texts, at most `max_iterations` products for ∇J and again for ∇U"
    )

    retain_weight: float = field(default=0.0, metadata=RETAIN_WEIGHT)
    damping: float = field(default=0.0, metadata=DAMPING)
    rows: int = field(default=64, metadata=ROWS)
    seed: int = field(default=0, metadata=SEED)
    tolerance: float = field(default=1e-2, metadata=TOLERANCE)
    max_iterations: int = field(default=50, metadata=MAX_ITERATIONS)

    def __post_init__(self) -> None:
        refuse_bad_options(self)

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
