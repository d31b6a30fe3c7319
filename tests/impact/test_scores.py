"""The three scoring routes against each other, and every sign against a real gradient step."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from cases import FAMILIES
from problems import PAIRS, answers, pairs, tiny_problem
from u2a.impact.context import ScoringContext, inner_product, shifted
from u2a.impact.curvature import Identity
from u2a.impact.gradient import objective_gradient, weighted_logprob_gradient
from u2a.impact.scores import directional_derivatives
from u2a.impact.table import score_impact
from u2a.logprobs import response_logprobs
from u2a.losses import NPO, GradientAscent, SimNPO
from u2a.objectives import MeanLogProb
from u2a.types import GuardStop

KINDS = [(family, rank) for family in FAMILIES for rank in (4, 0)]
LOSSES = [GradientAscent(), NPO(0.1), SimNPO(0.1)]


def _context(problem):
    return ScoringContext.of(problem)


def _along(context, problem, direction, method):
    found = directional_derivatives(context, problem.negative_texts, [direction], method=method)
    return found.along[0], found.self_checks


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
    scores = {method: _along(context, problem, direction, method)[0] for method in ("exact", "jvp", "fd")}
    error = (scores["exact"] - scores["jvp"]).norm() / scores["exact"].norm()
    assert error <= 1e-9
    assert spearmanr(scores["exact"], scores["fd"]).statistic >= 0.999
    assert (scores["exact"] - scores["fd"]).norm() / scores["exact"].norm() <= 1e-4


def test_fd_agrees_with_exact_in_float32():
    problem = tiny_problem("llama", dtype=torch.float32)
    context, direction = _context(problem), _direction(problem)
    exact, _ = _along(context, problem, direction, "exact")
    fd, (check,) = _along(context, problem, direction, "fd")
    assert check.passed
    assert check.sides == 1
    assert (exact - fd).norm() / exact.norm() <= 0.02


def test_a_failing_self_check_is_reported_and_switches_to_exact(monkeypatch):
    problem = tiny_problem("llama")
    context, direction = _context(problem), _direction(problem)
    exact, _ = _along(context, problem, direction, "exact")
    from u2a.impact.finite_difference import _Run

    def broken(run, _sides, _step):
        return torch.zeros(len(run.texts), dtype=torch.float64)

    monkeypatch.setattr(_Run, "difference", broken)
    values, (check,) = _along(context, problem, direction, "fd")
    assert not check.passed
    assert check.relative_error == pytest.approx(1.0)
    torch.testing.assert_close(values, exact)


def test_where_one_side_is_too_coarse_two_sides_are_taken(monkeypatch):
    problem = tiny_problem("llama")
    context, direction = _context(problem), _direction(problem)
    exact, _ = _along(context, problem, direction, "exact")
    from u2a.impact.finite_difference import _Run

    real = _Run.difference
    monkeypatch.setattr(_Run, "difference", lambda run, n, step: real(run, n, step) * (2 if n == 1 else 1))
    values, (check,) = _along(context, problem, direction, "fd")
    assert check.passed
    assert check.sides == 2
    assert (exact - values).norm() / exact.norm() <= 0.02


def test_the_self_check_takes_texts_of_the_shorter_half():
    """Lengths 9, 1, 7, 2, 5, 3, 8, 4: the shorter half is at 1, 3, 5, 7 in that order; of two picks
    each is the later middle of its half."""
    from datasets import Dataset

    from u2a.impact.finite_difference import spread

    texts = Dataset.from_dict({"input_ids": [[0] * n for n in (9, 1, 7, 2, 5, 3, 8, 4)]})
    assert spread(texts, 4) == [1, 3, 5, 7]
    assert spread(texts, 2) == [3, 7]
    assert sorted(spread(texts, 20)) == list(range(8))


def test_only_the_route_that_is_taken_passes_over_all_texts(monkeypatch):
    """A step that is too coarse costs a few texts, not a pass."""
    problem = tiny_problem("llama")
    context, direction = _context(problem), _direction(problem)
    from u2a.impact.finite_difference import _Run

    real, passes = _Run.difference, []

    def counted(run, sides, step):
        passes.append((len(run.texts), sides))
        return real(run, sides, step) * (2 if len(passes) == 1 else 1)

    monkeypatch.setattr(_Run, "difference", counted)
    found = directional_derivatives(context, problem.negative_texts, [direction], method="fd", self_check=3)
    assert passes == [(3, 1), (3, 1), (6, 1)]
    assert found.self_checks[0].passed


@pytest.mark.parametrize("rank", [4, 0], ids=["lora", "full"])
def test_several_directions_at_once_are_the_single_ones(rank):
    """Also the log-probs and the gradients' norms, which come from the same pass."""
    problem = tiny_problem("gemma", lora_rank=rank)
    context = _context(problem)
    directions = [_direction(problem, seed) for seed in range(3)]
    texts = problem.negative_texts
    found = directional_derivatives(context, texts, directions, method="exact")
    for direction, values in zip(directions, found.along, strict=True):
        torch.testing.assert_close(values, _along(context, problem, direction, "exact")[0])
    torch.testing.assert_close(found.s, problem.logprobs(texts).double(), rtol=1e-6, atol=1e-6)
    for i in range(len(texts)):
        gradient = weighted_logprob_gradient(context, texts.select([i]), torch.ones(1))
        assert float(found.square_norm[i]) == pytest.approx(inner_product(gradient, gradient), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_backward_pass_a_batch_equals_one_an_example(family):
    """LoRA's layers are all linear, so batches are taken; the loop over examples is the oracle."""
    from u2a.impact import per_example

    problem = tiny_problem(family)
    context, directions = _context(problem), [_direction(problem, seed) for seed in range(2)]
    assert per_example.is_batched(context)
    batched = per_example.per_example_derivatives(context, problem.negative_texts, directions)
    loop = per_example._one_by_one(context, problem.negative_texts, directions, None)
    for name in ("s", "along", "square_norm"):
        torch.testing.assert_close(getattr(batched, name), getattr(loop, name), rtol=1e-5, atol=1e-7)


def test_full_fine_tuning_falls_back_to_one_example_at_a_time():
    problem = tiny_problem("llama", lora_rank=0)
    from u2a.impact.per_example import is_batched
    from u2a.impact.scores import cheapest_method

    assert not is_batched(_context(problem))
    assert cheapest_method(_context(problem), 2) == "fd"
    assert cheapest_method(_context(tiny_problem("llama")), 2) == "exact"
    assert cheapest_method(_context(tiny_problem("llama")), 1) == "fd"


def test_a_layer_used_twice_is_scored_one_example_at_a_time():
    """‖sum of two uses‖² is not the sum of squares."""
    from u2a.impact import per_example

    problem = tiny_problem("llama")
    context = _context(problem)
    layers = per_example.linear_layers(context)
    handle = layers[0].module.register_forward_pre_hook(_use_twice())
    assert per_example._batched(context, layers, problem.negative_texts, [_direction(problem)], None) is None
    found = per_example.per_example_derivatives(context, problem.negative_texts, [_direction(problem)])
    handle.remove()
    expected = per_example._one_by_one(context, problem.negative_texts, [_direction(problem)], None)
    torch.testing.assert_close(found.along, expected.along, rtol=1e-6, atol=1e-9)


def _use_twice():
    inside = []

    def hook(module, args):
        if not inside:
            inside.append(True)
            module(*args)
            inside.clear()

    return hook


def test_the_standard_error_is_that_of_the_mean_over_pairs():
    """One pair a group: s/√P of the impacts that each pair alone would give."""
    problem = tiny_problem("llama")
    table = score_impact(problem, scoring="exact")
    objective = problem.objective
    pairs = len(objective.texts) // 2
    singles = []
    for p in range(pairs):
        both = [p, pairs + p]
        alone = replace(objective, texts=objective.texts.select(both), reference=objective.reference[both])
        singles.append(score_impact(replace(problem, objective=alone), scoring="exact").impact)
    np.testing.assert_allclose(np.mean(singles, 0), table.impact, rtol=1e-6)
    expected = np.std(singles, axis=0, ddof=1) / np.sqrt(pairs)
    np.testing.assert_allclose(table.impact_se, expected, rtol=1e-6)


def test_the_standard_error_of_a_mean_over_tokens_is_that_of_a_ratio():
    """One text a group: with q_i the impact of Σs_i alone and a = Σq/T, texts have the influences
    a + (q_i − a·|y_i|)·P/T, and the error is theirs: that a text is long is no noise."""
    preferred = answers([(prompt, chosen) for prompt, chosen, _ in PAIRS])
    problem = tiny_problem("llama", objective="nll", preferences=preferred)
    table = score_impact(problem, scoring="exact")
    texts = problem.objective.texts
    lengths, count = np.array(texts["n_tokens"]), len(texts)
    assert len(set(lengths)) > 1
    assert count >= 4
    singles = []
    for i in range(count):
        alone = replace(problem, objective=MeanLogProb(texts.select([i])))
        singles.append(score_impact(alone, scoring="exact").impact * lengths[i])
    sums, total = np.array(singles), lengths.sum()
    np.testing.assert_allclose(sums.sum(0) / total, table.impact, rtol=1e-6)
    influence = table.impact + (sums - np.outer(lengths, table.impact)) * count / total
    expected = np.std(influence, axis=0, ddof=1) / np.sqrt(count)
    np.testing.assert_allclose(table.impact_se, expected, rtol=1e-6)


def test_few_pairs_have_no_standard_error():
    few = tiny_problem("llama", preferences=pairs().select(range(3)))
    assert score_impact(few, scoring="exact").impact_se is None


def test_a_large_adapter_gets_fewer_groups_or_no_standard_error(monkeypatch):
    from u2a.impact import aims

    problem = tiny_problem("llama")
    context = _context(problem)
    each = 3 * sum(p.numel() * p.element_size() for p in context.parameters.values())
    monkeypatch.setattr(aims, "_SE_BYTES", 5 * each)
    assert aims._affordable_groups(context, 16) == 5
    assert aims._affordable_groups(context, 4) == 4
    monkeypatch.setattr(aims, "_SE_BYTES", 3 * each)
    found = score_impact(problem, scoring="exact")
    assert found.impact_se is None
    np.testing.assert_allclose(found.impact, score_impact(problem, scoring="jvp").impact, rtol=1e-4)


def test_cosine_and_gradient_norm_belong_to_the_impact():
    """a_i = cos·‖∇ℓ_i‖·‖∇J‖ with identity curvature; the norm is that of the loss itself."""
    problem = tiny_problem("qwen", loss=SimNPO(0.1))
    table = score_impact(problem, curvature=Identity(), scoring="exact")
    of_j = objective_gradient(_context(problem), problem.objective, problem.measure().s_objective)
    length = inner_product(of_j, of_j) ** 0.5
    np.testing.assert_allclose(table.cosine * table.grad_norm * length, table.impact, rtol=1e-6)
    gradient = _loss_gradient(problem, 2)
    assert table.grad_norm[2] == pytest.approx(inner_product(gradient, gradient) ** 0.5, rel=1e-5)
    assert np.all(np.abs(table.cosine) <= 1)


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
    table = score_impact(problem, curvature=Identity(), scoring="exact", at=at)
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


@pytest.mark.usefixtures("true_float64")
def test_gradient_of_the_objective_is_that_of_autograd_over_everything_at_once():
    """Batches and the chain rule over log-probs against one graph from φ to J."""
    problem = tiny_problem("qwen")
    from u2a.data.collate import collate

    texts, parameters = problem.objective.texts, problem.policy.trainable()
    s = problem.logprobs(texts)
    ours = objective_gradient(replace(_context(problem), max_tokens=40), problem.objective, s)
    batch = collate([texts[i] for i in range(len(texts))], range(len(texts)), pad_token_id=0)
    value = problem.objective.terms(response_logprobs(problem.policy.model, batch)).mean()
    for (name, _), expected in zip(
        parameters.items(), torch.autograd.grad(value, list(parameters.values())), strict=True
    ):
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-12)


def test_a_zero_direction_gives_zero_scores():
    problem = tiny_problem("llama")
    zero = {name: torch.zeros_like(p) for name, p in problem.policy.trainable().items()}
    for method in ("fd", "exact"):
        values, checks = _along(_context(problem), problem, zero, method)
        assert values.tolist() == [0.0] * len(values)
        assert checks == ()


def test_non_finite_parameters_stop_the_run_with_the_rows_name():
    problem = tiny_problem("llama")
    with torch.no_grad():
        next(iter(problem.policy.trainable().values())).fill_(float("nan"))
    with pytest.raises(GuardStop, match="row 0"):
        problem.logprobs(problem.negative_texts)


@pytest.mark.usefixtures("true_float64")
def test_weighted_gradient_is_the_weighted_sum_of_single_ones():
    problem = tiny_problem("llama")
    context = replace(_context(problem), max_tokens=64)
    coefficients = torch.tensor([2.0, -1.0, 0.0, 0.5, 0.0, 3.0])
    texts = problem.negative_texts
    whole = weighted_logprob_gradient(context, texts, coefficients)
    total = {name: torch.zeros_like(p) for name, p in context.parameters.items()}
    for i, c in enumerate(coefficients.tolist()):
        single = weighted_logprob_gradient(context, texts.select([i]), torch.ones(1))
        for name, value in single.items():
            total[name] += c * value
    for name, value in whole.items():
        torch.testing.assert_close(value, total[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["exact", "fd", "jvp"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_direction_that_is_not_finite_stops_the_run(method, value):
    """NaN > 0 is false: it used to pass for a zero direction, and every negative scored 0."""
    problem = tiny_problem("llama")
    good, bad = _direction(problem), _direction(problem, seed=1)
    name = list(bad)[2]
    bad[name].view(-1)[0] = value
    with pytest.raises(GuardStop, match=rf"direction 2 of 2 .* not finite \({re.escape(name)}\)"):
        directional_derivatives(_context(problem), problem.negative_texts, [good, bad], method=method)
