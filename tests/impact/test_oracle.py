"""Predicted impacts against what really happens: the inner problem solved anew with a weight changed.

Convention: ω_i enters the inner problem as ω_i·ℓ_i/Ω with Ω = N held fixed, so dJ/dω_i = a_i/N.
"""

import numpy as np
import pytest
import torch

from oracle import Oracle, grad, hessian, jacobian, small_problem
from u2a.impact.curvature import GaussNewton, Hessian
from u2a.impact.curvature.minres import minres
from u2a.impact.table import score_impact
from u2a.losses import NPO, GradientAscent, SimNPO

pytestmark = pytest.mark.usefixtures("true_float64")

LOSSES = {"ga": GradientAscent(), "npo": NPO(0.1), "npo, per token": NPO(0.1, True), "simnpo": SimNPO(0.5)}
STEP = 1e-2
"""By which a weight of 1 is raised and lowered: small against 1, large against the solver's 1e-12."""

INNER = [
    # loss, retain term, λ, δ of a further l2 term: the least that make the inner problem convex here
    ("ga", "l2", 15.0, 0.0),
    ("npo", "l2", 60.0, 0.0),
    ("simnpo", "l2", 15.0, 0.0),
    ("ga", "nll", 2.0, 20.0),
    ("npo, per token", "nll", 0.5, 20.0),
    ("simnpo", "kl", 3.0, 20.0),
]


def _measured(functions, minimum, phi, count):
    """df(φ*(ω))/dω_i for each function f: (F, N) by central differences of the inner problem solved anew."""
    rows = []
    for i in range(count):
        ends = []
        for sign in (1, -1):
            weights = torch.ones(count, dtype=torch.float64)
            weights[i] += sign * STEP
            moved = minimum(phi, weights)
            ends.append([float(f(moved)) for f in functions])
        rows.append((np.array(ends[0]) - np.array(ends[1])) / (2 * STEP))
    return np.array(rows).T


def _assert_within_one_percent(predicted, measured):
    """Also every sign; an entry under a hundredth of the largest is judged by that."""
    floor = 0.01 * np.abs(measured).max()
    error = np.abs(predicted - measured) / np.maximum(np.abs(measured), floor)
    assert error.max() <= 0.01, f"predicted {predicted}, measured {measured}"
    assert np.abs(measured).max() > 1e-6


@pytest.mark.parametrize("loss, retain_loss, weight, damping", INNER)
def test_impact_is_the_change_of_the_solved_inner_problem(loss, retain_loss, weight, damping):
    """dJ/dω and −dU/dω through the public `score_impact` on a transformer at its inner minimum."""
    problem = small_problem(loss=LOSSES[loss], retain_loss=retain_loss)
    oracle = Oracle(problem, weight, damping)
    phi = oracle.minimum(oracle.start)
    assert float((phi - oracle.start).norm()) > 1e-3
    count = len(problem.negatives)
    h = oracle.hessian(phi)
    by_weight = _measured(
        (oracle.objective, oracle.utility), lambda p, w: oracle.minimum(p, w, h), phi, count
    )
    oracle.put(phi)
    curvature = Hessian(retain_weight=weight, damping=damping, tolerance=1e-9, max_iterations=200)
    table = score_impact(problem, curvature=curvature, scoring="exact")
    assert all(solution.converged for solution in table.solutions)
    assert all(solution.negative_curvature == 0 for solution in table.solutions)
    _assert_within_one_percent(table.impact / count, by_weight[0])
    _assert_within_one_percent(-table.utility_cost / count, by_weight[1])


def test_a_wrong_weight_of_the_retain_term_would_be_noticed():
    """The comparison above fails for half of λ, for a sum in place of the mean, and for the other sign."""
    problem = small_problem(loss=GradientAscent(), retain_loss="l2")
    oracle = Oracle(problem, 15.0)
    phi = oracle.minimum(oracle.start)
    count = len(problem.negatives)
    h = oracle.hessian(phi)
    (by_weight,) = _measured((oracle.objective,), lambda p, w: oracle.minimum(p, w, h), phi, count)
    oracle.put(phi)

    def scored(weight):
        curvature = Hessian(retain_weight=weight, tolerance=1e-9, max_iterations=200)
        return score_impact(problem, curvature=curvature, scoring="exact").impact

    right = scored(15.0)
    _assert_within_one_percent(right / count, by_weight)
    for wrong in (scored(16.0) / count, right, -right / count):
        with pytest.raises(AssertionError, match="predicted"):
            _assert_within_one_percent(wrong, by_weight)


def test_under_a_strong_l2_term_gauss_newton_predicts_what_happens():
    """There H = λ·I up to the forget part's curvature, some 7 against λ = 10,000."""
    problem = small_problem(loss=SimNPO(0.1), retain_loss="l2")
    oracle = Oracle(problem, 1e4)
    nearly = 1e4 * torch.eye(len(oracle.start), dtype=torch.float64)
    phi = oracle.minimum(oracle.start, matrix=nearly)
    count = len(problem.negatives)
    (by_weight,) = _measured((oracle.objective,), lambda p, w: oracle.minimum(p, w, nearly), phi, count)
    oracle.put(phi)
    table = score_impact(problem, curvature=GaussNewton(retain_weight=1e4), scoring="exact")
    _assert_within_one_percent(table.impact / count, by_weight)


def test_gauss_newton_scores_are_those_of_the_dense_matrices():
    """a = −∇Jᵀ(λG + δI)⁻¹∇ℓ and c = +∇Uᵀ(λG + δI)⁻¹∇ℓ, each factor by the oracle."""
    problem = small_problem(loss=NPO(0.1), retain_loss="nll")
    oracle = Oracle(problem, 3.0)
    phi = oracle.start
    matrix = 3.0 * oracle.gauss_newton(phi) + 0.1 * torch.eye(len(phi), dtype=torch.float64)
    per_loss = torch.linalg.solve(matrix, jacobian(oracle.losses, phi).T)  # (P, N)
    curvature = GaussNewton(retain_weight=3.0, damping=0.1, tolerance=1e-7, max_iterations=300)
    table = score_impact(problem, curvature=curvature, scoring="exact")
    np.testing.assert_allclose(table.impact, -(grad(oracle.objective, phi) @ per_loss), rtol=1e-4)
    np.testing.assert_allclose(table.utility_cost, grad(oracle.utility, phi) @ per_loss, rtol=1e-4)


@pytest.mark.parametrize("loss", ["ga", "npo", "simnpo"])
def test_impact_on_a_convex_model(loss):
    """A linear softmax classifier with an `nll` retain term and a little l2: the formula without our code.

    Only the losses and MINRES are ours. Texts are single tokens, so |y| = 1.
    """
    generator = torch.Generator().manual_seed(0)
    features, classes, count = 4, 3, 5

    def drawn(rows):
        x = torch.randn(rows, features, generator=generator, dtype=torch.float64)
        return x, torch.randint(classes, (rows,), generator=generator)

    bad, good, held_out = drawn(count), drawn(12), drawn(6)

    def logprobs(phi, data):
        x, y = data
        return (x @ phi.view(features, classes)).log_softmax(-1).gather(1, y[:, None])[:, 0]

    start = torch.zeros(features * classes, dtype=torch.float64)
    reference, ones = logprobs(start, bad), torch.ones(count, dtype=torch.float64)

    def losses(phi):
        return LOSSES[loss](logprobs(phi, bad), reference, ones)

    def inner(phi, weights=ones):
        return (weights * losses(phi)).sum() / count - 4 * logprobs(phi, good).mean() + phi.square().sum() / 2

    def objective(phi):
        return logprobs(phi, held_out).mean()

    def minimum(phi, weights=ones):
        for _ in range(50):
            step = torch.linalg.solve(
                hessian(lambda p: inner(p, weights), phi), grad(lambda p: inner(p, weights), phi)
            )
            phi = phi - step
            if float(step.norm()) <= 1e-13:
                return phi
        raise AssertionError("not solved")

    phi = minimum(start)
    h = hessian(inner, phi)
    assert float(torch.linalg.eigvalsh(h)[0]) > 0
    run = minres(lambda v: h @ v, grad(objective, phi), target=1e-12, most=100)
    predicted = -(jacobian(losses, phi) @ run.x).numpy() / count
    (by_weight,) = _measured((objective,), minimum, phi, count)
    _assert_within_one_percent(predicted, by_weight)


def test_the_oracle_measures_what_the_problem_measures():
    problem = small_problem(loss=NPO(0.1), retain_loss="kl")
    oracle = Oracle(problem)
    phi = oracle.start
    at = problem.measure(negatives=True)
    assert float(oracle.objective(phi)) == pytest.approx(at.objective, rel=1e-9)
    assert float(oracle.utility(phi)) == pytest.approx(at.utility, rel=1e-9)
    torch.testing.assert_close(oracle.logprobs(oracle.negatives, phi), at.s_negatives, rtol=1e-9, atol=1e-9)
    assert float(oracle.retain(phi)) > 0
