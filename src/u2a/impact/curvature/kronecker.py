"""H = λ·(G ⊗ A) + δI, block by block: Kronecker factors of the retain term's Gauss-Newton matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from u2a.config import Checked, option
from u2a.impact.curvature.elementwise import ScalarSolver
from u2a.impact.curvature.interface import Solution
from u2a.impact.curvature.options import DAMPING, RETAIN_WEIGHT, ROWS, SEED, weight_of

if TYPE_CHECKING:
    from torch import Tensor

    from u2a.impact.context import Direction
    from u2a.problem import Problem, Task


@dataclass(frozen=True)
class KFAC(Checked):
    """One block a linear layer y = W·x, H = λ·(G ⊗ A) + δI (Martens & Grosse 2015, arXiv 1503.05671).

    A = mean of x·xᵀ over the tokens (prompt included, padding not), G = Σ g·gᵀ / T, g the gradient of the
    log-prob at y with labels drawn from the model by the seed, T the retain texts' response tokens
    ("expand", Eschenhagen et al. 2023, arXiv 2311.00636). Terms between layers are dropped, LoRA's A against
    its B among them. `kl` as `nll`; `l2`: H = (λ + δ)·I, δ = 0 unless given; without a retain term U's texts
    stand for it. δ by rule: a tenth of the mean diagonal over all blocks, solved exactly.
    """

    passes: ClassVar[str] = (
        "two forward passes and one backward pass over `rows` retain texts, once, and an eigendecomposition "
        "for each side of each layer"
    )

    retain_weight: float = option(0.0, RETAIN_WEIGHT, least=0)
    damping: float = option(0.0, DAMPING, least=0)
    rows: int = option(64, ROWS, least=0)
    seed: int = option(0, SEED, least=0)

    def prepare(self, problem: Problem, task: Task) -> KroneckerSolver | ScalarSolver:
        """Factors and their eigenvectors."""
        if problem.retain_loss == "l2":
            return ScalarSolver(weight_of(self, problem) + self.damping)
        return _solver(problem, task, self, corrected=False)


@dataclass(frozen=True)
class EKFAC(Checked):
    """K-FAC's eigenvectors with measured eigenvalues (George et al. 2018, arXiv 1806.03884).

    Each eigenvalue is the second moment of the per-example gradients along its eigenvector,
    Σ_i (u_Gᵀ·∇_W s_i·u_A)² / T, with the labels that gave the factors. All else as for `kfac`.
    """

    passes: ClassVar[str] = (
        "four forward passes and two backward passes over `rows` retain texts, once, and an "
        "eigendecomposition for each side of each layer"
    )

    retain_weight: float = option(0.0, RETAIN_WEIGHT, least=0)
    damping: float = option(0.0, DAMPING, least=0)
    rows: int = option(64, ROWS, least=0)
    seed: int = option(0, SEED, least=0)

    def prepare(self, problem: Problem, task: Task) -> KroneckerSolver | ScalarSolver:
        """Factors, their eigenvectors, and the second moments along them."""
        if problem.retain_loss == "l2":
            return ScalarSolver(weight_of(self, problem) + self.damping)
        return _solver(problem, task, self, corrected=True)


def _solver(problem: Problem, task: Task, options: KFAC | EKFAC, *, corrected: bool) -> KroneckerSolver:
    from u2a.impact.curvature.kept_texts import KeptTexts, default_damping
    from u2a.impact.curvature.kronecker_factors import eigenbases, second_moments_along

    weight = weight_of(options, problem)
    kept = KeptTexts.of(problem, options.rows, options.seed)
    with task("curvature: Kronecker factors of the retain texts", len(kept.texts)) as progress:
        bases = eigenbases(kept, progress)
    if corrected:
        with task("curvature: eigenvalues of the retain texts", len(kept.texts)) as progress:
            values = second_moments_along(kept, bases, progress)
    else:
        values = {name: basis.product_eigenvalues() for name, basis in bases.items()}
    scaled = {name: weight * value for name, value in values.items()}
    trace = sum(float(value.double().sum()) for value in scaled.values())
    delta = options.damping or default_damping(trace, sum(value.numel() for value in scaled.values()))
    blocks = {
        name: KroneckerBlock(bases[name].output, bases[name].input, value + delta)
        for name, value in scaled.items()
    }
    return KroneckerSolver(blocks, delta)


@dataclass(frozen=True)
class KroneckerBlock:
    """One layer's H in its eigenbasis: `output` (out, out) and `input` (in, in) have eigenvectors in their
    columns; `eigenvalues` (out, in) are those of H, damping included."""

    output: Tensor
    input: Tensor
    eigenvalues: Tensor


@dataclass(frozen=True)
class KroneckerSolver:
    """Divides in each layer's eigenbasis; `delta` is δ."""

    blocks: dict[str, KroneckerBlock]
    delta: float
    elementwise: bool = True

    def solve(self, gradient: Direction) -> Solution:
        """U_G·[(U_Gᵀ·g·U_A) / eigenvalues]·U_Aᵀ for each layer."""
        solved = {}
        for name, value in gradient.items():
            block = self.blocks[name]
            g = value.to(block.output)
            turned = block.output.T @ g @ block.input / block.eigenvalues
            solved[name] = (block.output @ turned @ block.input.T).to(value)
        return Solution(solved)
