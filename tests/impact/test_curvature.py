"""Every curvature's solve against the dense solve of its own definition, in every model family."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from cases import FAMILIES, TEXT
from curvatures import (
    DAMPING,
    DENSE,
    MEASURED,
    WEIGHT,
    assert_solves,
    gradient_of,
    shared_problem,
    tight_curvature,
)
from oracle import small_problem
from problems import GOOD, answers, tiny_problem
from u2a.impact.context import ScoringContext, inner_product, shifted
from u2a.impact.curvature import EKFAC, KFAC, GaussNewton
from u2a.impact.curvature.gauss_newton_products import gauss_newton_product
from u2a.impact.curvature.hessian_products import hessian_product
from u2a.impact.curvature.kept_texts import KeptTexts, fisher_diagonal
from u2a.logprobs import kl_per_token, response_logits
from u2a.losses import NPO
from u2a.problem import silent
from u2a.types import IGNORE, UserError

# -- against dense matrices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("retain_loss", ["nll", "none"])
@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.usefixtures("true_float64")
def test_the_solve_is_the_dense_solve(name, retain_loss):
    problem, oracle = shared_problem(retain_loss)
    damped = DENSE[name](problem, oracle) + DAMPING * torch.eye(len(oracle.start), dtype=torch.float64)
    solver = tight_curvature(name, damping=DAMPING).prepare(problem, silent)
    assert_solves(solver, oracle, damped, problem)


@pytest.mark.usefixtures("true_float64")
def test_the_preconditioner_saves_products_and_solves_the_same_system():
    """16 short texts: with only two, K-FAC's factors are too noisy to help."""
    rows = [(prompt, text[:30]) for text in TEXT for prompt, _ in GOOD[:2]]
    problem = small_problem(loss=NPO(0.1), retain_loss="nll", retain=answers(rows))
    plain, helped = (
        tight_curvature("ggn", damping=0.01, tolerance=1e-2, preconditioner=name).prepare(problem, silent)
        for name in ("none", "kfac")
    )
    assert plain.delta == helped.delta
    gradient = gradient_of(problem)
    solution = helped.solve(gradient)
    assert solution.iterations < plain.solve(gradient).iterations
    rest = {name: value - gradient[name] for name, value in plain.product(solution.direction).items()}
    residual = (inner_product(rest, rest) / inner_product(gradient, gradient)) ** 0.5
    assert residual == pytest.approx(solution.residual, rel=1e-6)
    assert residual <= 1e-2


@pytest.mark.parametrize("retain_loss", ["nll", "kl", "l2", "none"])
@pytest.mark.usefixtures("true_float64")
def test_the_hessian_is_that_of_the_inner_problem(retain_loss):
    """Damped by more than its most negative eigenvalue, so that the solve is well conditioned."""
    problem, oracle = shared_problem(retain_loss)
    identity = torch.eye(len(oracle.start), dtype=torch.float64)
    matrix = oracle.hessian(oracle.start) + (40 - DAMPING) * identity
    assert_solves(tight_curvature("hessian", damping=40.0).prepare(problem, silent), oracle, matrix, problem)


@pytest.mark.parametrize("name", [*MEASURED, "hessian"])
def test_an_l2_term_is_lambda_times_the_identity(name, monkeypatch):
    """The Hessian has the forget part beside it, which is taken away here."""
    from u2a.impact.curvature import hessian_products

    monkeypatch.setattr(hessian_products, "unlearning_parts", lambda *_: iter(()))
    problem, _ = shared_problem("l2")
    gradient = gradient_of(problem)
    for damping in (0.0, 2.0):
        solved = tight_curvature(name, damping=damping).prepare(problem, silent).solve(gradient)
        for key, value in gradient.items():
            torch.testing.assert_close(solved.direction[key], value / (WEIGHT + damping))


# -- damping by rule ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("true_float64")
def test_the_rule_is_a_tenth_of_the_mean_diagonal():
    problem, oracle = shared_problem()
    size = len(oracle.start)
    for name in ("diagonal", "kfac", "ekfac"):
        matrix = DENSE[name](problem, oracle)
        damped = matrix + 0.1 * matrix.trace() / size * torch.eye(size, dtype=torch.float64)
        assert_solves(tight_curvature(name).prepare(problem, silent), oracle, damped, problem)


def test_gauss_newton_and_ekfac_have_the_same_damping():
    """A rotation keeps the trace, and both draw the same labels."""
    problem, _ = shared_problem()
    ggn, ekfac = (tight_curvature(name, seed=3).prepare(problem, silent).delta for name in ("ggn", "ekfac"))
    assert ggn == pytest.approx(ekfac, rel=1e-6)


@pytest.mark.usefixtures("true_float64")
def test_the_estimated_trace_is_that_of_the_dense_matrix_on_average():
    problem, oracle = shared_problem()
    traces = []
    for seed in range(60):
        found = fisher_diagonal(KeptTexts.of(problem, 0, seed), sampled=True)
        traces.append(sum(float(value.sum()) for value in found.values()))
    exact = float(oracle.gauss_newton(oracle.start).trace())
    error = np.std(traces, ddof=1) / np.sqrt(len(traces))
    assert error < 0.1 * exact
    assert abs(np.mean(traces) - exact) < 3.5 * error


# -- sampled labels -----------------------------------------------------------------------------------------


def test_labels_are_drawn_from_the_model():
    """First response token of one text, 300 seeds: as often as the model says, within four sigmas."""
    problem, _ = shared_problem()
    kept = KeptTexts.of(problem, 0, 0)
    (batch,) = (b for b in kept.batches() if 0 in b.index.tolist())
    row = batch.index.tolist().index(0)
    with torch.no_grad():
        logits, _, example = response_logits(problem.policy.model, batch)
    p = logits[(example == row).nonzero()[0, 0]].softmax(-1)
    counts = Counter()
    for seed in range(300):
        labels = replace(kept, seed=seed)._sampled(batch).labels[row, 1:]
        counts[int(labels[labels != IGNORE][0])] += 1
    for token in p.topk(3).indices.tolist():
        expected = 300 * float(p[token])
        assert abs(counts[token] - expected) <= 4 * expected**0.5
    assert sum(p[list(counts)]) > 0.5


def test_only_labels_are_drawn_anew():
    problem, _ = shared_problem()
    kept = KeptTexts.of(problem, 0, 0)
    for own, drawn in zip(kept.batches(), kept.batches(sampled=True), strict=True):
        assert torch.equal(own.input_ids, drawn.input_ids)
        assert torch.equal(own.labels == IGNORE, drawn.labels == IGNORE)
        assert not torch.equal(own.labels, drawn.labels)


def test_every_row_has_draws_of_its_own():
    """Three times the same text: were the labels the same too, the texts would not be independent."""
    problem = small_problem(retain_loss="none", retain=answers(GOOD[1:2] * 3))
    labels = [row for b in KeptTexts.of(problem, 0, 0).batches(sampled=True) for row in b.labels.tolist()]
    assert len(labels) == 3
    assert labels[0] != labels[1] != labels[2] != labels[0]


# -- every model family -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [4, 0], ids=["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("true_float64")
def test_the_gauss_newton_matrix_is_the_curvature_of_kl(family, rank):
    """KL(π_φ ‖ π_φ+εv) per token = ½ε²·vᵀ·GGN·v to leading order: forward passes alone."""
    problem = tiny_problem(family, lora_rank=rank, retain_loss="nll", retain=answers(GOOD + GOOD[:1]))
    kept, v = KeptTexts.of(problem, 0, 0), gradient_of(problem)
    predicted = inner_product(v, gauss_newton_product(kept, v))
    model, values = problem.policy.model, []
    with torch.no_grad():
        before = [response_logits(model, batch)[0] for batch in kept.batches()]
        for epsilon in (1e-4, -1e-4):
            with shifted(problem.policy.trainable(), v, epsilon / inner_product(v, v) ** 0.5):
                after = [response_logits(model, batch)[0] for batch in kept.batches()]
            total = sum(float(kl_per_token(b, a).sum()) for b, a in zip(before, after, strict=True))
            values.append(2 * total / kept.tokens / epsilon**2 * inner_product(v, v))
    assert predicted == pytest.approx(np.mean(values), rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("true_float64")
def test_a_hessian_product_is_the_change_of_the_gradient(family):
    """And symmetric: ⟨u, Hv⟩ = ⟨v, Hu⟩."""
    from u2a.impact.gradient import weighted_logprob_gradient

    problem = tiny_problem(family, loss=NPO(0.1))
    u, v = gradient_of(problem, 1), gradient_of(problem, 2)
    hu, hv = (hessian_product(problem, w, 1.0, 0.0, 0, 0) for w in (u, v))
    assert inner_product(u, hv) == pytest.approx(inner_product(v, hu), rel=1e-8)

    def gradient_of_the_losses():
        s, count = problem.logprobs(problem.negative_texts).double(), len(problem.negatives)
        slope = problem.loss.derivative(s, problem.reference.double(), problem.lengths.double())
        return weighted_logprob_gradient(ScoringContext.of(problem), problem.negative_texts, slope / count)

    ends = []
    for epsilon in (1e-5, -1e-5):
        with shifted(problem.policy.trainable(), v, epsilon):
            ends.append(inner_product(u, gradient_of_the_losses()))
    assert inner_product(u, hv) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_kronecker_factors_exist_for_adapters_of_every_family(family):
    problem = tiny_problem(family, retain_loss="nll")
    for name in ("kfac", "ekfac"):
        solution = tight_curvature(name).prepare(problem, silent).solve(gradient_of(problem))
        assert all(torch.isfinite(value).all() for value in solution.direction.values())


@pytest.mark.parametrize("curvature", [KFAC(), EKFAC(), GaussNewton(preconditioner="kfac")])
def test_full_fine_tuning_has_no_kronecker_factors(curvature):
    problem = tiny_problem("llama", lora_rank=0, retain_loss="nll")
    with pytest.raises(UserError, match=r"needs an adapter.*--curvature ggn or diagonal"):
        curvature.prepare(problem, silent)


def test_squares_of_full_fine_tuning_are_those_of_single_texts():
    """The loop over texts against the batched route, which LoRA takes."""
    from u2a.impact.curvature import kept_texts
    from u2a.impact.per_example import linear_layers

    problem = tiny_problem("gpt2", retain_loss="nll")
    kept = KeptTexts.of(problem, 0, 2)
    for sampled in (False, True):
        loop = kept_texts._squares_one_by_one(kept, sampled, None)
        batched = kept_texts._batched_squares(kept, linear_layers(kept.context), sampled, None)
        for name, value in loop.items():
            torch.testing.assert_close(batched[name], value, rtol=1e-6, atol=1e-12)
