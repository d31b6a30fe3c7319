"""The three scoring routes against each other, and every sign against a real gradient step."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from cases import FAMILIES
from problems import tiny_problem
from u2a.impact.gradient import inner_product, objective_gradient, weighted_logprob_gradient
from u2a.impact.scores import ScoringContext, directional_derivatives, shifted
from u2a.impact.table import score_impact
from u2a.logprobs import response_logprobs
from u2a.losses import NPO, GradientAscent, SimNPO

KINDS = [(family, rank) for family in FAMILIES for rank in (4, 0)]
LOSSES = [GradientAscent(), NPO(0.1), SimNPO(0.1)]


def _context(problem):
    return ScoringContext(
        problem.policy.model, problem.policy.trainable(), problem.max_tokens, problem.pad_token_id
    )


def _direction(problem, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for name, p in problem.policy.trainable().items()
    }


@pytest.mark.parametrize("family, rank", KINDS)
@pytest.mark.usefixtures("true_float64")
def test_the_three_methods_agree_in_float64(family, rank):
    problem = tiny_problem(family, lora_rank=rank)
    context, direction = _context(problem), _direction(problem)
    scores = {
        method: directional_derivatives(context, problem.negative_texts, direction, method=method)[0]
        for method in ("exact", "jvp", "fd")
    }
    error = (scores["exact"] - scores["jvp"]).norm() / scores["exact"].norm()
    assert error <= 1e-9
    assert spearmanr(scores["exact"], scores["fd"]).statistic >= 0.999
    assert (scores["exact"] - scores["fd"]).norm() / scores["exact"].norm() <= 1e-4


def test_fd_agrees_with_exact_in_float32():
    problem = tiny_problem("llama", dtype=torch.float32)
    context, direction = _context(problem), _direction(problem)
    exact, _ = directional_derivatives(context, problem.negative_texts, direction, method="exact")
    fd, check = directional_derivatives(context, problem.negative_texts, direction)
    assert check.passed
    assert (exact - fd).norm() / exact.norm() <= 0.02


def test_a_failing_self_check_is_reported_and_switches_to_exact(monkeypatch):
    problem = tiny_problem("llama")
    context, direction = _context(problem), _direction(problem)
    exact, _ = directional_derivatives(context, problem.negative_texts, direction, method="exact")
    from u2a.impact import scores

    def broken(*args):
        return torch.zeros(len(args[1]), dtype=torch.float64)

    monkeypatch.setattr(scores, "_central_difference", broken)
    values, check = directional_derivatives(context, problem.negative_texts, direction)
    assert not check.passed
    assert check.relative_error == pytest.approx(1.0)
    torch.testing.assert_close(values, exact)


def test_shifted_restores_the_very_bits():
    problem = tiny_problem("llama", dtype=torch.float32)
    parameters = problem.policy.trainable()
    before = {name: p.detach().clone() for name, p in parameters.items()}

    def fails_inside():
        with shifted(parameters, _direction(problem), 0.1):
            assert any((p != before[name]).any() for name, p in parameters.items())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails_inside()
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())


@pytest.mark.parametrize("max_tokens", [1, 40, 4096])
def test_scores_do_not_depend_on_the_batch_size(max_tokens):
    small = tiny_problem("mistral", max_tokens=max_tokens)
    table = score_impact(small, scoring="exact")
    expected = score_impact(tiny_problem("mistral"), scoring="exact")
    np.testing.assert_allclose(table.impact, expected.impact, rtol=1e-9)
    np.testing.assert_allclose(table.utility_cost, expected.utility_cost, rtol=1e-9)


@pytest.mark.parametrize("rank", [4, 0], ids=["lora", "full"])
@pytest.mark.parametrize("loss", LOSSES, ids=["ga", "npo", "simnpo"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("true_float64")
def test_a_real_unlearning_step_changes_j_and_u_as_predicted(family, loss, rank):
    """φ ← φ − η·∇ℓ_i changes J by +η·a_i and U by −η·c_i to first order (identity curvature)."""
    problem = tiny_problem(family, loss=loss, lora_rank=rank)
    at = problem.measure()
    table = score_impact(problem, scoring="exact", at=at)
    parameters = problem.policy.trainable()
    for i in (0, 3):
        gradient = _loss_gradient(problem, i)
        # small against the curvature, large against float64's rounding
        eta = 1e-5 / inner_product(gradient, gradient) ** 0.5
        with shifted(parameters, gradient, -eta):
            moved = problem.measure()
        assert moved.objective - at.objective == pytest.approx(eta * table.impact[i], rel=0.01)
        assert moved.utility - at.utility == pytest.approx(-eta * table.utility_cost[i], rel=0.01)


def _loss_gradient(problem, i):
    """∇ℓ_i by autograd through the loss itself: no closed form, no chain rule of ours."""
    from u2a.data.collate import collate

    batch = collate([problem.negative_texts[i]], [i], pad_token_id=problem.pad_token_id)
    parameters = problem.policy.trainable()
    s = response_logprobs(problem.policy.model, batch)
    loss = problem.loss(s, problem.reference[[i]], problem.lengths[[i]].double()).sum()
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), gradients, strict=True)
    }


def test_gradient_of_the_objective_is_that_of_autograd_over_everything_at_once():
    """Batches and the chain rule over log-probs against one graph from φ to J."""
    problem = tiny_problem("qwen")
    from u2a.data.collate import collate

    texts, parameters = problem.objective.texts, problem.policy.trainable()
    s = problem.logprobs(texts)
    ours = objective_gradient(
        problem.policy.model,
        parameters,
        problem.objective,
        s,
        max_tokens=40,
        pad_token_id=problem.pad_token_id,
    )
    batch = collate([texts[i] for i in range(len(texts))], range(len(texts)), pad_token_id=0)
    value = problem.objective.terms(response_logprobs(problem.policy.model, batch)).mean()
    for (name, _), expected in zip(
        parameters.items(), torch.autograd.grad(value, list(parameters.values())), strict=True
    ):
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-12)


def test_a_zero_direction_gives_zero_scores():
    problem = tiny_problem("llama")
    zero = {name: torch.zeros_like(p) for name, p in problem.policy.trainable().items()}
    values, check = directional_derivatives(_context(problem), problem.negative_texts, zero)
    assert values.tolist() == [0.0] * len(values)
    assert check is None


def test_non_finite_parameters_stop_the_run_with_the_rows_name():
    from u2a.types import GuardStop

    problem = tiny_problem("llama")
    with torch.no_grad():
        next(iter(problem.policy.trainable().values())).fill_(float("nan"))
    with pytest.raises(GuardStop, match="row 0"):
        problem.logprobs(problem.negative_texts)


@pytest.mark.usefixtures("true_float64")
def test_weighted_gradient_is_the_weighted_sum_of_single_ones():
    problem = tiny_problem("llama")
    model, parameters = problem.policy.model, problem.policy.trainable()
    options = {"max_tokens": 64, "pad_token_id": problem.pad_token_id}
    coefficients = torch.tensor([2.0, -1.0, 0.0, 0.5, 0.0, 3.0])
    texts = problem.negative_texts
    whole = weighted_logprob_gradient(model, parameters, texts, coefficients, **options)
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for i, c in enumerate(coefficients.tolist()):
        single = weighted_logprob_gradient(model, parameters, texts.select([i]), torch.ones(1), **options)
        for name, value in single.items():
            total[name] += c * value
    for name, value in whole.items():
        torch.testing.assert_close(value, total[name], rtol=1e-9, atol=1e-12)
