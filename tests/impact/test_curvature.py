"""Every curvature's solve against the dense solve of its own definition, and what each reports of itself."""

import logging
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator
from scipy.sparse.linalg import minres as scipy_minres

from cases import FAMILIES, TEXT
from oracle import Oracle, small_problem
from problems import GOOD, answers, tiny_problem
from u2a.impact.context import ScoringContext, inner_product, shifted
from u2a.impact.curvature import CURVATURES, EKFAC, KFAC, Adam, Diagonal, GaussNewton, Hessian, Identity
from u2a.impact.curvature.conjugate_gradients import ConjugateGradients
from u2a.impact.curvature.flat import Flat, iterative_solution
from u2a.impact.curvature.gauss_newton_products import gauss_newton_product
from u2a.impact.curvature.hessian_products import hessian_product
from u2a.impact.curvature.kept_texts import KeptTexts, drawn_rows, fisher_diagonal
from u2a.impact.curvature.minres import minres
from u2a.impact.table import score_impact
from u2a.logprobs import kl_per_token, response_logits, response_logprobs
from u2a.losses import NPO, SimNPO
from u2a.problem import silent
from u2a.types import IGNORE, GuardStop, UserError

WEIGHT, DAMPING = 3.0, 0.2
MEASURED = ("diagonal", "ggn", "kfac", "ekfac")
"""Those that are made of the retain term alone."""


@cache
def _shared(retain_loss="nll"):
    """A problem whose φ no test moves, and its oracle at λ = 3, δ = 0.2."""
    problem = small_problem(loss=NPO(0.1), retain_loss=retain_loss)
    return problem, Oracle(problem, WEIGHT, DAMPING)


@pytest.fixture
def logged(caplog):
    """What `u2a` logs, as text."""
    logger = logging.getLogger("u2a")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def _gradient(problem, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
        for name, p in problem.policy.trainable().items()
    }


def _sampled_labels(problem):
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
    "kfac": lambda p, o: WEIGHT * _block_diagonal(o.kronecker_blocks(_sampled_labels(p))),
    "ekfac": lambda p, o: WEIGHT * _block_diagonal(o.kronecker_blocks(_sampled_labels(p), True)),
}
"""H without its damping, by the oracle."""


def _curvature(name, **options):
    tight = {"tolerance": 1e-7, "max_iterations": 200} if name in ("ggn", "hessian") else {}
    return CURVATURES[name](**{"retain_weight": WEIGHT, **tight, **options})


def _assert_solves(solver, oracle, matrix, problem, rel=1e-6):
    gradient = _gradient(problem)
    solution = solver.solve(gradient)
    expected = torch.linalg.solve(matrix, oracle.flat(gradient))
    assert float((oracle.flat(solution.direction) - expected).norm() / expected.norm()) <= rel
    assert solution.converged
    for name, value in gradient.items():
        assert solution.direction[name].shape == value.shape


# -- against dense matrices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("retain_loss", ["nll", "none"])
@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.usefixtures("true_float64")
def test_the_solve_is_the_dense_solve(name, retain_loss):
    problem, oracle = _shared(retain_loss)
    damped = DENSE[name](problem, oracle) + DAMPING * torch.eye(len(oracle.start), dtype=torch.float64)
    solver = _curvature(name, damping=DAMPING).prepare(problem, silent)
    _assert_solves(solver, oracle, damped, problem)


@pytest.mark.usefixtures("true_float64")
def test_the_preconditioner_saves_products_and_solves_the_same_system():
    """16 short texts: with only two, K-FAC's factors are too noisy to help."""
    rows = [(prompt, text[:30]) for text in TEXT for prompt, _ in GOOD[:2]]
    problem = small_problem(loss=NPO(0.1), retain_loss="nll", retain=answers(rows))
    plain, helped = (
        _curvature("ggn", damping=0.01, tolerance=1e-2, preconditioner=name).prepare(problem, silent)
        for name in ("none", "kfac")
    )
    assert plain.delta == helped.delta
    gradient = _gradient(problem)
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
    problem, oracle = _shared(retain_loss)
    identity = torch.eye(len(oracle.start), dtype=torch.float64)
    matrix = oracle.hessian(oracle.start) + (40 - DAMPING) * identity
    _assert_solves(_curvature("hessian", damping=40.0).prepare(problem, silent), oracle, matrix, problem)


@pytest.mark.parametrize("name", [*MEASURED, "hessian"])
def test_an_l2_term_is_lambda_times_the_identity(name, monkeypatch):
    """The Hessian has the forget part beside it, which is taken away here."""
    from u2a.impact.curvature import hessian_products

    monkeypatch.setattr(hessian_products, "unlearning_parts", lambda *_: iter(()))
    problem, _ = _shared("l2")
    gradient = _gradient(problem)
    for damping in (0.0, 2.0):
        solved = _curvature(name, damping=damping).prepare(problem, silent).solve(gradient)
        for key, value in gradient.items():
            torch.testing.assert_close(solved.direction[key], value / (WEIGHT + damping))


# -- damping by rule ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("true_float64")
def test_the_rule_is_a_tenth_of_the_mean_diagonal():
    problem, oracle = _shared()
    size = len(oracle.start)
    for name in ("diagonal", "kfac", "ekfac"):
        matrix = DENSE[name](problem, oracle)
        damped = matrix + 0.1 * matrix.trace() / size * torch.eye(size, dtype=torch.float64)
        _assert_solves(_curvature(name).prepare(problem, silent), oracle, damped, problem)


def test_gauss_newton_and_ekfac_have_the_same_damping():
    """A rotation keeps the trace, and both draw the same labels."""
    problem, _ = _shared()
    ggn, ekfac = (_curvature(name, seed=3).prepare(problem, silent).delta for name in ("ggn", "ekfac"))
    assert ggn == pytest.approx(ekfac, rel=1e-6)


@pytest.mark.usefixtures("true_float64")
def test_the_estimated_trace_is_that_of_the_dense_matrix_on_average():
    problem, oracle = _shared()
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
    problem, _ = _shared()
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
    problem, _ = _shared()
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


# -- Adam ---------------------------------------------------------------------------------------------------


def _minibatch_loss(problem, rows, kept, steps):
    """The trainer's loss of one step, spelled out."""
    from u2a.data.collate import collate

    def logprobs(texts, positions):
        batch = collate([texts[int(r)] for r in positions], positions, pad_token_id=problem.pad_token_id)
        return response_logprobs(problem.policy.model, batch)

    losses = problem.loss(
        logprobs(problem.negative_texts, rows),
        problem.reference[rows].double(),
        problem.lengths[rows].double(),
    )
    texts = problem.retain_texts
    tokens = sum(texts[int(r)]["n_tokens"] for r in kept)
    forget = steps / len(problem.negative_texts) * losses.sum()
    return forget - WEIGHT * logprobs(texts, kept).sum() / tokens


@pytest.mark.usefixtures("true_float64")
def test_adam_is_the_preconditioner_of_torch_adamw():
    """Three minibatches of 2, 2 and 1 negatives at a φ that does not move (learning rate 0)."""
    from u2a.impact.curvature.second_moments import retain_rows

    problem = small_problem(loss=SimNPO(0.1), retain_loss="nll", negatives=answers([*GOOD, *GOOD[:2]]))
    order = np.random.default_rng(5).permutation(5)
    leaves = list(problem.policy.trainable().values())
    optimizer = torch.optim.AdamW(leaves, lr=0.0, weight_decay=0.0)
    for step in range(3):
        rows = order[2 * step : 2 * step + 2]
        kept = retain_rows(len(problem.retain_texts), 2, step, 5)
        optimizer.zero_grad()
        _minibatch_loss(problem, rows, kept, 3).backward()
        optimizer.step()
    optimizer.zero_grad()
    solver = Adam(retain_weight=WEIGHT, batch_size=2, seed=5).prepare(problem, silent)
    for name, p in problem.policy.trainable().items():
        second = optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**3)
        torch.testing.assert_close(solver.diagonal[name], second.sqrt() + 1e-8, rtol=1e-9, atol=0)


@pytest.mark.parametrize("retain_loss", ["nll", "kl", "l2", "none"])
def test_adam_has_the_moments_of_the_trainers_own_first_step(tmp_path, retain_loss):
    """`UnlearnTrainer` itself, one step with every negative in the batch."""
    from u2a.trainer import U2AConfig, UnlearnTrainer

    problem = small_problem(loss=NPO(0.1), retain_loss=retain_loss)
    count = len(problem.negative_texts)
    solver = Adam(retain_weight=WEIGHT, batch_size=count, seed=7).prepare(problem, silent)
    args = U2AConfig(
        str(tmp_path),
        loss_type="npo",
        retain_loss=retain_loss,
        retain_weight=WEIGHT,
        per_device_train_batch_size=count,
        max_steps=1,
        learning_rate=0.0,
        seed=7,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    negatives = problem.negative_texts.add_column("ref_logprob", problem.reference.tolist())
    trainer = UnlearnTrainer(
        problem.policy.model,
        args,
        train_dataset=negatives,
        retain_dataset=problem.retain_texts,
        processing_class=problem.policy.tokenizer,
    )
    trainer.train()
    state = trainer.optimizer.state
    for name, p in problem.policy.trainable().items():
        inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        second = (state or inner.state)[p]["exp_avg_sq"] / (1 - 0.999)
        torch.testing.assert_close(solver.diagonal[name], second.sqrt() + 1e-8, rtol=1e-4, atol=1e-9)


def test_adam_does_not_move_what_had_no_gradient():
    """LoRA with B = 0: the gradient at A is exactly 0, so v is 0 there and finite at B."""
    problem = tiny_problem("llama", random_b=False)
    solution = Adam().prepare(problem, silent).solve(_gradient(problem))
    for name, value in solution.direction.items():
        if "lora_A" in name:
            assert not value.any()
        else:
            assert torch.isfinite(value).all()
            assert value.any()


def test_adams_options_count():
    problem, _ = _shared()
    base = Adam(retain_weight=1.0, batch_size=2)
    changes = {"retain_weight": 5.0, "batch_size": 3, "minibatches": 1, "seed": 4}
    before = base.prepare(problem, silent).diagonal
    for name, value in changes.items():
        after = replace(base, **{name: value}).prepare(problem, silent).diagonal
        assert any(not torch.allclose(after[key], before[key]) for key in before), name


# -- iterative solvers --------------------------------------------------------------------------------------


def _random_matrix(eigenvalues, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    return q @ torch.tensor(eigenvalues, dtype=torch.float64).diag() @ q.T


def _solved(method, matrix, **options):
    gradient = {"a": torch.ones(2, 5, dtype=torch.float64), "b": torch.arange(20.0, dtype=torch.float64)}
    flat = Flat.of(gradient)

    def product(v):
        return flat.unflatten(matrix @ flat.flatten(v))

    given = {"name": "test", "tolerance": 1e-8, "max_iterations": 200, **options}
    solution = iterative_solution(method, product, gradient, **given)
    rest = matrix @ flat.flatten(solution.direction) - flat.flatten(gradient)
    return solution, float(rest.norm() / flat.flatten(gradient).norm())


@pytest.mark.parametrize("method", [ConjugateGradients(), minres], ids=["cg", "minres"])
def test_the_reported_residual_is_the_real_one(method, logged):
    matrix = _random_matrix(np.geomspace(1e-3, 10, 30))
    good, real = _solved(method, matrix)
    assert good.converged
    assert real <= 1e-8
    assert good.residual == pytest.approx(real, rel=1e-3)
    assert not logged.records
    poor, real = _solved(method, matrix, max_iterations=6)
    assert not poor.converged
    assert poor.residual == pytest.approx(real, rel=1e-9)
    assert poor.iterations == 6
    assert "after 6 products the residual is" in logged.text


def test_minres_agrees_with_scipy_on_an_indefinite_matrix():
    values = [*np.linspace(-3, -0.5, 10), *np.linspace(0.5, 9, 20)]
    matrix = _random_matrix(values)
    b = torch.linspace(-1, 2, 30, dtype=torch.float64)
    run = minres(lambda v: matrix @ v, b, target=1e-12, most=100)
    operator = LinearOperator((30, 30), matvec=lambda v: matrix.numpy() @ v, dtype=np.float64)
    expected, _ = scipy_minres(operator, b.numpy(), rtol=1e-14, maxiter=200)
    np.testing.assert_allclose(run.x.numpy(), expected, rtol=1e-8, atol=1e-10)
    assert run.negative_curvature == pytest.approx(-3.0, rel=1e-6)
    short = minres(lambda v: matrix @ v, b, target=1e-12, most=7)
    scipys, _ = scipy_minres(operator, b.numpy(), rtol=1e-14, maxiter=7)
    np.testing.assert_allclose(short.x.numpy(), scipys, rtol=1e-8, atol=1e-10)


def test_conjugate_gradients_stop_at_negative_curvature(logged):
    solution, _ = _solved(ConjugateGradients(), _random_matrix([-5.0, *np.linspace(1, 2, 29)]))
    assert solution.negative_curvature < 0
    assert not solution.converged
    assert "negative curvature" in logged.text


@pytest.mark.parametrize("method", [ConjugateGradients(), minres], ids=["cg", "minres"])
def test_a_zero_gradient_needs_no_product(method):
    gradient = {"a": torch.zeros(3)}
    solution = iterative_solution(method, None, gradient, name="test", tolerance=1e-2, max_iterations=5)
    assert solution.converged
    assert solution.iterations == 0
    assert not solution.direction["a"].any()


def test_a_singular_system_without_a_solution_is_reported(logged):
    """H = 0 along a third of the space: the least-squares solution, its residual, and no false alarm."""
    matrix = _random_matrix([0.0] * 10 + [1.0] * 10 + [4.0] * 10)
    solution, real = _solved(minres, matrix)
    assert not solution.converged
    assert solution.residual == pytest.approx(real)
    b = torch.cat([torch.ones(10), torch.arange(20.0)]).double()
    best = torch.linalg.pinv(matrix, rtol=1e-9) @ b
    assert real == pytest.approx(float((matrix @ best - b).norm() / b.norm()), rel=1e-6)
    assert solution.iterations <= 5
    assert solution.negative_curvature == 0
    assert "negative curvature" not in logged.text


def test_the_hessian_of_forgetting_alone_is_indefinite_and_says_so(logged):
    """ga without a retain term; the curvature reported lies within the dense spectrum."""
    problem = small_problem(loss="ga", retain_loss="none")
    solution = Hessian(tolerance=1e-3, max_iterations=12).prepare(problem, silent).solve(_gradient(problem))
    lowest = float(torch.linalg.eigvalsh(Oracle(problem).hessian(Oracle(problem).start))[0])
    assert 1.01 * lowest <= solution.negative_curvature < 0.3 * lowest
    assert "met negative curvature" in logged.text


# -- every model family -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [4, 0], ids=["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("true_float64")
def test_the_gauss_newton_matrix_is_the_curvature_of_kl(family, rank):
    """KL(π_φ ‖ π_φ+εv) per token = ½ε²·vᵀ·GGN·v to leading order: forward passes alone."""
    problem = tiny_problem(family, lora_rank=rank, retain_loss="nll", retain=answers(GOOD + GOOD[:1]))
    kept, v = KeptTexts.of(problem, 0, 0), _gradient(problem)
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
    u, v = _gradient(problem, 1), _gradient(problem, 2)
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
        solution = _curvature(name).prepare(problem, silent).solve(_gradient(problem))
        assert all(torch.isfinite(value).all() for value in solution.direction.values())


@pytest.mark.parametrize("curvature", [KFAC(), EKFAC(), GaussNewton(preconditioner="kfac")])
def test_full_fine_tuning_has_no_kronecker_factors(curvature):
    problem = tiny_problem("llama", lora_rank=0, retain_loss="nll")
    with pytest.raises(UserError, match=r"needs an adapter.*--curvature ggn or diagonal"):
        curvature.prepare(problem, silent)


def test_squares_of_full_fine_tuning_are_those_of_single_texts():
    """The loop over texts against the batched route, which LoRA takes."""
    from u2a.impact.curvature import kept_texts
    from u2a.impact.per_example import _linear_layers

    problem = tiny_problem("gpt2", retain_loss="nll")
    kept = KeptTexts.of(problem, 0, 2)
    for sampled in (False, True):
        loop = kept_texts._squares_one_by_one(kept, sampled, None)
        batched = kept_texts._batched_squares(kept, _linear_layers(kept.context), sampled, None)
        for name, value in loop.items():
            torch.testing.assert_close(batched[name], value, rtol=1e-6, atol=1e-12)


# -- through the public API ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CURVATURES)
def test_the_same_input_gives_the_same_scores(name):
    problem, _ = _shared()
    options = {"tolerance": 1e-2, "max_iterations": 5} if name in ("ggn", "hessian") else {}
    tables = [score_impact(problem, curvature=CURVATURES[name](**options)) for _ in range(2)]
    np.testing.assert_array_equal(tables[0].impact, tables[1].impact)
    assert np.isfinite(tables[0].impact).all()
    assert tables[0].impact.any()


@pytest.mark.parametrize(
    "curvature",
    [
        Diagonal(),
        Adam(),
        GaussNewton(damping=1.0, tolerance=1e-5),
        KFAC(),
        EKFAC(),
        Hessian(damping=50.0, tolerance=1e-5),
    ],
    ids=["diagonal", "adam", "ggn", "kfac", "ekfac", "hessian"],
)
def test_solutions_do_not_depend_on_how_texts_are_batched(curvature):
    """Labels and minibatches are drawn by row, not by batch; the model's own float32 is what differs."""
    problem, _ = _shared()
    small, large = (
        curvature.prepare(replace(problem, max_tokens=size), silent).solve(_gradient(problem)).direction
        for size in (1, 4096)
    )
    difference = {key: small[key] - large[key] for key in small}
    assert inner_product(difference, difference) <= 1e-8 * inner_product(large, large)


def test_under_an_l2_term_scores_are_those_of_the_identity():
    problem, _ = _shared("l2")
    expected = score_impact(problem, curvature=Identity(WEIGHT), scoring="exact")
    for name in MEASURED:
        table = score_impact(problem, curvature=_curvature(name), scoring="exact")
        np.testing.assert_allclose(table.impact, expected.impact, rtol=1e-9)


@pytest.mark.parametrize("name", [*MEASURED, "hessian"])
def test_options_count(name):
    problem, _ = _shared()
    loose = {"tolerance": 1e-3, "max_iterations": 30} if name in ("ggn", "hessian") else {}
    base = _curvature(name, damping=50.0, rows=1, **loose)
    changes = {"retain_weight": 90.0, "damping": 80.0, "rows": 0, "seed": 3}
    before = base.prepare(problem, silent).solve(_gradient(problem)).direction
    for option, value in changes.items():
        after = replace(base, **{option: value}).prepare(problem, silent).solve(_gradient(problem)).direction
        assert any(not torch.allclose(after[key], before[key], rtol=1e-3) for key in before), option


def test_few_rows_are_drawn_by_the_seed():
    assert drawn_rows(5, 0, 0) == drawn_rows(5, 5, 0) == [0, 1, 2, 3, 4]
    assert drawn_rows(100, 10, 1) == drawn_rows(100, 10, 1) != drawn_rows(100, 10, 2)
    assert len(set(drawn_rows(100, 10, 1))) == 10


@pytest.mark.parametrize("name", [*MEASURED, "adam", "hessian"])
def test_non_finite_values_stop_the_run(name):
    problem = small_problem(loss=NPO(0.1), retain_loss="nll")
    gradient = _gradient(problem)
    with torch.no_grad():
        next(iter(problem.policy.trainable().values()))[0, 0] = float("nan")
    with pytest.raises(GuardStop, match="not finite"):
        _curvature(name).prepare(problem, silent).solve(gradient)


def _in_two_formats(curvature, act):
    """The cosine between what `act(solver, gradient)` gives for a base in float32 and one in bfloat16.

    Adapters stay in float32, as `load_policy` leaves them.
    """
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        problem = tiny_problem("llama", dtype=dtype, retain_loss="nll", loss=NPO(0.1))
        assert all(p.dtype == torch.float32 for p in problem.policy.trainable().values())
        found.append(act(curvature.prepare(problem, silent), _gradient(problem)))
    a, b = found
    return inner_product(a, b) / (inner_product(a, a) * inner_product(b, b)) ** 0.5


@pytest.mark.parametrize("name, cosine", [("diagonal", 0.98), ("kfac", 0.95), ("ekfac", 0.88)])
def test_a_base_in_bfloat16_gives_nearly_the_same_direction(name, cosine):
    """Adam is left out: docs/lab-notes.md."""
    assert _in_two_formats(_curvature(name), lambda solver, g: solver.solve(g).direction) > cosine


@pytest.mark.parametrize("name", ["ggn", "hessian"])
def test_a_base_in_bfloat16_gives_nearly_the_same_products(name):
    """Damped by next to nothing, so that it is the curvature that is compared."""
    assert _in_two_formats(_curvature(name, damping=1e-6), lambda solver, g: solver.product(g)) > 0.98


@pytest.mark.parametrize(
    "curvature, options, words",
    [
        (Diagonal, {"damping": -1.0}, "--curvature-damping -1.0: must be at least 0"),
        (GaussNewton, {"retain_weight": 0.0}, "--curvature-retain-weight 0.0: must be above 0"),
        (GaussNewton, {"preconditioner": "x"}, "take one of none, kfac"),
        (Hessian, {"tolerance": float("nan")}, "must be above 0"),
        (Hessian, {"max_iterations": 0}, "must be at least 1"),
        (KFAC, {"rows": -1}, "must be at least 0"),
        (Adam, {"batch_size": 0}, "must be at least 1"),
    ],
)
def test_bad_options_are_refused(curvature, options, words):
    with pytest.raises(UserError, match=words):
        curvature(**options)


def test_options_of_one_name_mean_and_default_to_the_same():
    """The flags of all curvatures share one list: the first one's help and default are taken."""
    known = {}
    for cls in CURVATURES.values():
        for f in fields(cls):
            found = known.setdefault(f.name, (f.type, f.default, dict(f.metadata)))
            assert found == (f.type, f.default, dict(f.metadata)), f"{cls.__name__}.{f.name}"


def test_the_registry_is_free_of_torch():
    """`u2a --help` reads the options of every curvature."""
    code = "import sys, u2a.impact.curvature; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
