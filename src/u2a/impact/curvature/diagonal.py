"""H = λ·diag(F) + δI, F the empirical Fisher matrix of the retain term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from u2a.config import Checked, option
from u2a.impact.curvature.elementwise import ElementwiseSolver, ScalarSolver
from u2a.impact.curvature.options import DAMPING, RETAIN_WEIGHT, ROWS, SEED, weight_of

if TYPE_CHECKING:
    from u2a.problem import Problem, Task


@dataclass(frozen=True)
class Diagonal(Checked):
    """H = λ·diag(F) + δI, F = Σ_i (∇s_i)∘(∇s_i) / T over the retain texts with their own labels.

    T counts their response tokens, so that F has the scale of R = −Σ_i s_i / T's Gauss-Newton matrix; the
    same for `kl`, whose Gauss-Newton matrix is that of `nll`. For the `l2` retain term H = (λ + δ)·I, δ = 0
    unless given. Without a retain term, or with λ = 0, U's or the retain texts stand for it and λ is 1. δ by
    rule: a tenth of the mean of λ·F, so that λ changes the scores' size and not their order.
    """

    passes: ClassVar[str] = "one forward and one backward pass over `rows` retain texts, once"

    retain_weight: float = option(0.0, RETAIN_WEIGHT, least=0)
    damping: float = option(0.0, DAMPING, least=0)
    rows: int = option(64, ROWS, least=0)
    seed: int = option(0, SEED, least=0)

    def prepare(self, problem: Problem, task: Task) -> ElementwiseSolver | ScalarSolver:
        """Squares the per-example gradients of the retain texts."""
        from u2a.impact.curvature.kept_texts import KeptTexts, default_damping, fisher_diagonal

        weight = weight_of(self, problem, stands_alone=True) or 1.0
        if problem.retain_loss == "l2":
            return ScalarSolver(weight + self.damping)
        kept = KeptTexts.of(problem, self.rows, self.seed)
        with task("curvature: squared gradients of the retain texts", len(kept.texts)) as progress:
            fisher = fisher_diagonal(kept, sampled=False, progress=progress)
        scaled = {name: weight * value for name, value in fisher.items()}
        delta = self.damping or default_damping(*_trace_and_size(scaled))
        return ElementwiseSolver({name: value + delta for name, value in scaled.items()})


def _trace_and_size(diagonal: dict) -> tuple[float, int]:
    from u2a.models.sharding import added_up, own_part

    total = added_up({name: own_part(value).double().sum() for name, value in diagonal.items()}, diagonal)
    return float(total), sum(value.numel() for value in diagonal.values())
