"""What the tests of curvatures share: a problem with its oracle, gradients, and dense matrices."""

from functools import cache

import torch

from oracle import Oracle, small_problem
from u2a.impact.curvature import CURVATURES
from u2a.impact.curvature.kept_texts import KeptTexts
from u2a.losses import NPO
from u2a.types import IGNORE

WEIGHT, DAMPING = 3.0, 0.2
MEASURED = ("diagonal", "ggn", "kfac", "ekfac")
"""Those that are made of the retain term alone."""


@cache
def shared_problem(retain_loss="nll"):
    """A problem whose φ no test moves, and its oracle at λ = 3, δ = 0.2."""
    problem = small_problem(loss=NPO(0.1), retain_loss=retain_loss)
    return problem, Oracle(problem, WEIGHT, DAMPING)


def gradient_of(problem, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
        for name, p in problem.policy.trainable().items()
    }


def sampled_labels(problem):
    """The labels that the Kronecker curvatures draw, by position among the kept texts."""
    kept = KeptTexts.of(problem, 64, 0)
    return {
        int(i): labels[1:][labels[1:] != IGNORE]
        for batch in kept.batches(sampled=True)
        for i, labels in zip(batch.index, batch.labels, strict=True)
    }


def _block_diagonal(blocks):
    return torch.block_diag(*blocks.values())


DENSE = {
    "diagonal": lambda _p, o: WEIGHT * o.empirical_fisher(o.start).diag().diag(),
    "ggn": lambda _p, o: WEIGHT * o.gauss_newton(o.start),
    "kfac": lambda p, o: WEIGHT * _block_diagonal(o.kronecker_blocks(sampled_labels(p))),
    "ekfac": lambda p, o: WEIGHT * _block_diagonal(o.kronecker_blocks(sampled_labels(p), True)),
}
"""H without its damping, by the oracle."""


def tight_curvature(name, **options):
    tight = {"tolerance": 1e-7, "max_iterations": 200} if name in ("ggn", "hessian") else {}
    return CURVATURES[name](**{"retain_weight": WEIGHT, **tight, **options})


def assert_solves(solver, oracle, matrix, problem, rel=1e-6):
    gradient = gradient_of(problem)
    solution = solver.solve(gradient)
    expected = torch.linalg.solve(matrix, oracle.flat(gradient))
    assert float((oracle.flat(solution.direction) - expected).norm() / expected.norm()) <= rel
    assert solution.converged
    for name, value in gradient.items():
        assert solution.direction[name].shape == value.shape
