"""Out of memory: batches halve by themselves, it is said once, and results are what they would have been."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from allocators import CPU, Allocator
from problems import BAD, GOOD, answers, tiny_problem
from u2a.impact.context import ScoringContext
from u2a.impact.gradient import objective_gradient
from u2a.impact.scores import directional_derivatives
from u2a.impact.table import score_impact
from u2a.passes.dataset import dataset_logprobs
from u2a.passes.generation import continuations
from u2a.passes.memory import is_out_of_memory
from u2a.types import OutOfMemory

MOST = 80
"""Tokens that fit: more than the longest text alone, fewer than two of them."""


def problem(**options):
    return tiny_problem("llama", **{"max_tokens": 400, **options})


def warnings_of(logged):
    found = [r.getMessage() for r in logged.records if "out of memory" in r.getMessage()]
    return list(dict.fromkeys(found))  # two handlers see each


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to"), RuntimeError(CPU)]
)
def test_an_allocator_that_gives_up_is_told_from_other_errors(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(None)


def test_torch_s_own_refusal_is_one():
    with pytest.raises(RuntimeError, match="allocate memory") as caught:
        torch.empty(1 << 46)
    assert is_out_of_memory(caught.value)


def longest(texts):
    return max(len(ids) for ids in texts["input_ids"])


def test_logprobs_come_out_the_same_and_it_is_said_once(monkeypatch, logged):
    tiny = problem()
    assert longest(tiny.negative_texts) <= MOST < 2 * longest(tiny.negative_texts)
    expected = tiny.logprobs(tiny.negative_texts)
    allocator = Allocator(monkeypatch, tiny.policy.model, MOST)
    found = [tiny.logprobs(tiny.negative_texts) for _ in range(2)]
    for each in found:
        torch.testing.assert_close(each, expected, rtol=1e-12, atol=1e-9)
    said = warnings_of(logged)
    assert allocator.failures == len(said) > 0  # each size once, and none in the second pass
    sizes = [int(text.split("at most ")[1].split()[0]) for text in said]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_progress_counts_every_row_once(monkeypatch):
    tiny, done = problem(), []
    Allocator(monkeypatch, tiny.policy.model, MOST)
    tiny.logprobs(tiny.negative_texts, done.append)
    assert sum(done) == len(BAD)


def test_shared_prompts_are_given_up_when_memory_is_short(monkeypatch):
    """Rows of several texts cannot be made as short as one text."""
    rows = answers([("How do I bake bread?", f"{i}. Why would you, tell me that.") for i in range(8)])
    tiny = problem(negatives=rows)
    expected = tiny.logprobs(tiny.negative_texts)
    Allocator(monkeypatch, tiny.policy.model, longest(tiny.negative_texts))
    torch.testing.assert_close(tiny.logprobs(tiny.negative_texts), expected, rtol=1e-9, atol=1e-9)


def test_one_row_that_does_not_fit_is_named(monkeypatch):
    tiny = problem(negatives=answers([*BAD, ("Tell me all.", "Never. " * 40)]))
    Allocator(monkeypatch, tiny.policy.model, MOST)
    with pytest.raises(OutOfMemory, match=r"row 6 alone.* tokens\. Lower --max-length.*--quantize 4bit"):
        tiny.logprobs(tiny.negative_texts)


def test_other_errors_pass_through(monkeypatch):
    tiny = problem()

    def broken(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(tiny.policy.model.get_input_embeddings(), "forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        dataset_logprobs(tiny.policy.model, tiny.negative_texts, max_tokens=400, pad_token_id=0)


@pytest.mark.parametrize("method", ["fd", "jvp", "exact"])
def test_derivatives_come_out_the_same(monkeypatch, method):
    tiny = problem()
    context = ScoringContext.of(tiny)
    generator = torch.Generator().manual_seed(0)
    v = {
        n: torch.randn(p.shape, dtype=p.dtype, generator=generator) * 1e-2
        for n, p in context.parameters.items()
    }
    wide = replace(context, max_tokens=1600)
    expected = directional_derivatives(wide, tiny.negative_texts, [v], method=method)
    allocator = Allocator(monkeypatch, tiny.policy.model, MOST)
    found = directional_derivatives(wide, tiny.negative_texts, [v], method=method)
    assert allocator.failures > 0
    torch.testing.assert_close(found.along, expected.along, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("backward", [False, True])
def test_a_gradient_comes_out_the_same(monkeypatch, backward):
    tiny = problem()
    wide = replace(ScoringContext.of(tiny), max_tokens=1600)
    s = tiny.logprobs(tiny.objective.texts)
    expected = objective_gradient(wide, tiny.objective, s)
    allocator = Allocator(monkeypatch, tiny.policy.model, 2 * MOST, backward=backward)
    found = objective_gradient(wide, tiny.objective, s)
    assert allocator.failures > 0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("which", ["ggn", "hessian", "adam"])
def test_products_and_moments_come_out_the_same(monkeypatch, which):
    from u2a.impact.curvature.gauss_newton_products import gauss_newton_product
    from u2a.impact.curvature.hessian_products import hessian_product
    from u2a.impact.curvature.kept_texts import KeptTexts
    from u2a.impact.curvature.second_moments import second_moments
    from u2a.problem import silent

    tiny = problem(retain_loss="nll", retain=answers(GOOD * 4))
    v = {name: torch.ones_like(p) for name, p in tiny.policy.trainable().items()}
    moments = {"batch_size": 4, "most": 0, "retain_weight": 1.0, "beta2": 0.999, "seed": 0, "task": silent}

    def found():
        if which == "ggn":
            return gauss_newton_product(KeptTexts.of(tiny, 0, 0), v)
        if which == "hessian":
            return hessian_product(tiny, v, 1.0, 0.1, 0, 0)
        return second_moments(tiny, **moments)

    expected = found()
    allocator = Allocator(monkeypatch, tiny.policy.model, MOST)
    again = found()
    assert allocator.failures > 0
    for name, value in expected.items():
        torch.testing.assert_close(again[name], value, rtol=1e-3, atol=1e-6 * float(value.abs().max()))


@pytest.mark.parametrize("curvature", ["diagonal", "kfac"])
def test_impacts_and_measurements_come_out_the_same(monkeypatch, curvature):
    from u2a.impact.curvature import CURVATURES

    tiny = problem(retain_loss="nll")
    chosen = CURVATURES[curvature]()
    expected, start = score_impact(tiny, curvature=chosen, scoring="exact"), tiny.measure(negatives=True)
    allocator = Allocator(monkeypatch, tiny.policy.model, MOST)
    found, again = score_impact(tiny, curvature=chosen, scoring="exact"), tiny.measure(negatives=True)
    assert allocator.failures > 0
    np.testing.assert_allclose(found.impact, expected.impact, rtol=1e-6)
    np.testing.assert_allclose(found.utility_cost, expected.utility_cost, rtol=1e-6)
    assert again.figures == pytest.approx(start.figures, rel=1e-9, abs=1e-12)


def test_greedy_answers_come_out_the_same(monkeypatch):
    tiny = problem()
    prompts = [[1 + i, 5, 7, 9, 11 + i] for i in range(5)]
    how = {"seed": 0, "max_new_tokens": 6, "do_sample": False}
    expected = continuations(tiny.policy, prompts, **how)
    allocator = Allocator(monkeypatch, tiny.policy.model, 12)
    assert continuations(tiny.policy, prompts, **how) == expected
    assert allocator.failures > 0
    Allocator(monkeypatch, tiny.policy.model, 2)
    with pytest.raises(OutOfMemory, match="5 tokens alone"):
        continuations(tiny.policy, prompts, **how)
