"""The metagradient against finite differences of whole runs of the real trainer."""

import numpy as np
import pytest
import torch

import cases
from problems import BAD, GOOD, answers, pairs, tiny_problem
from u2a.alignment.ledger import snapshot
from u2a.config import UnlearnOptions
from u2a.models.policy import Policy, add_adapter
from u2a.preparation import prepare
from u2a.trajectory.metagradient import metagradient_impact
from u2a.trajectory.recording import recorded_run
from u2a.types import UserError

pytestmark = pytest.mark.usefixtures("true_float64")

WEIGHTS = np.array([1.0, 2.0, 0.5, 1.5, 0.8, 1.2])


def with_half(*args, **options):
    """A problem whose retain term weighs 0.5, as in `run`."""
    return tiny_problem(*args, retain_weight=0.5, **options)


def run(steps=3, accumulation=1, **options):
    size = 1 if accumulation > 1 else 2
    return UnlearnOptions(
        learning_rate=3e-3,
        max_steps=steps,
        batch_size=size,
        gradient_accumulation=accumulation,
        retain_weight=0.5,
        **options,
    )


def outcome(problem, unlearn, weights, seed):
    with recorded_run(problem, unlearn, weights=weights, seed=seed):
        at = problem.measure()
    return np.array([at.objective, at.utility])


def assert_predicts_real_runs(problem, unlearn, *, weights=WEIGHTS, seed=0, delta=None, h=3e-7, rtol=1e-3):
    """J and U of runs whose weights are moved by ±h·δ, with Σδ = 0 so that Ω stays, δ random or given."""
    found = metagradient_impact(problem, unlearn, weights=weights, seed=seed)
    if delta is None:
        used = weights > 0
        delta = np.where(used, np.random.default_rng(0).normal(size=len(weights)), 0.0)
        delta -= np.where(used, delta.sum() / used.sum(), 0.0)
    up, down = (outcome(problem, unlearn, weights + sign * h * delta, seed) for sign in (1, -1))
    measured = (up - down) / (2 * h)
    predicted = [found.impact @ delta, -found.utility_cost @ delta]
    np.testing.assert_allclose(predicted, measured, rtol=rtol)
    assert np.abs(measured).min() > 1e-5  # rounding of J is 1e-16/h, far below
    return found


@pytest.mark.parametrize(
    "family, problem, options",
    [
        ("llama", {"loss": "npo"}, {}),
        ("llama", {"loss": "ga", "retain_loss": "nll"}, {"accumulation": 2}),
        ("qwen", {"loss": "simnpo", "retain_loss": "kl"}, {"accumulation": 2}),
        ("qwen", {"loss": "npo", "retain_loss": "nll", "random_b": False}, {"steps": 5}),
        ("gemma", {"loss": "ga", "retain_loss": "l2", "random_b": False}, {"accumulation": 2}),
        ("gpt2", {"loss": "npo", "retain_loss": "l2"}, {"accumulation": 2}),
        ("gpt2", {"loss": "simnpo", "retain_loss": "nll"}, {"steps": 5}),
        ("mistral", {"loss": "ga", "retain_loss": "kl"}, {"steps": 4}),
        ("llama", {"loss": "npo", "lora_rank": 0}, {}),
    ],
    ids=str,
)
def test_it_is_the_derivative_of_the_whole_run(family, problem, options):
    assert_predicts_real_runs(with_half(family, **problem), run(**options))


def test_two_weights_moved_in_opposite_directions():
    pair = np.eye(6)[0] - np.eye(6)[4]
    assert_predicts_real_runs(with_half("llama", retain_loss="nll"), run(), delta=pair)


def test_two_passes_with_an_uneven_last_step_and_a_weight_of_zero():
    """Five rows in steps of 2, 2 and 1, twice; the negative of weight 0 is in no step."""
    weights = np.array([1.0, 2.0, 0.0, 1.5, 0.8, 1.2])
    options = UnlearnOptions(
        learning_rate=3e-3, epochs=2.0, batch_size=1, gradient_accumulation=2, retain_weight=0.5
    )
    problem = with_half("llama", loss="npo", retain_loss="l2")
    found = assert_predicts_real_runs(problem, options, weights=weights, seed=3)
    assert found.impact[2] == found.utility_cost[2] == 0.0


@pytest.mark.parametrize("retain_loss", ["none", "nll"])
def test_adam_does_not_see_the_scale_of_a_gradient(retain_loss):
    """Σ ω_i·a_i is 0 without a retain term, and not with one."""
    found = metagradient_impact(with_half(loss="ga", retain_loss=retain_loss), run(), weights=WEIGHTS)
    share = abs(WEIGHTS @ found.impact) / np.abs(WEIGHTS * found.impact).sum()
    assert share < 1e-3 if retain_loss == "none" else share > 1e-2


def test_omega_is_a_constant():
    """With all weights doubled the run is the same, and a unit of weight counts half."""
    problem = with_half(retain_loss="nll")
    once = metagradient_impact(problem, run(), weights=WEIGHTS)
    twice = metagradient_impact(problem, run(), weights=2 * WEIGHTS)
    np.testing.assert_allclose(twice.impact, once.impact / 2, rtol=1e-6)


@pytest.mark.parametrize("family, random_b", [("llama", True), ("gpt2", False)])
def test_differences_of_gradients_give_the_same(family, random_b):
    problem = with_half(family, random_b=random_b, retain_loss="nll")
    exact = metagradient_impact(problem, run(accumulation=2))
    near = metagradient_impact(problem, run(accumulation=2), hvp="fd")
    for one, other in ((exact.impact, near.impact), (exact.utility_cost, near.utility_cost)):
        np.testing.assert_allclose(other, one, atol=1e-6 * np.abs(one).max())
        assert not np.array_equal(one, other)


def test_negatives_that_no_step_reaches_have_none():
    problem = with_half()
    with recorded_run(problem, run(steps=2)) as recording:
        used = {int(row) for step in recording.steps for row in step.rows}
    found = metagradient_impact(problem, run(steps=2))
    assert len(used) == 4
    assert set(np.flatnonzero(found.impact)) == used


def test_gradient_checkpointing_changes_nothing():
    plain = metagradient_impact(with_half(), run(steps=2))
    saving = metagradient_impact(with_half(), run(steps=2, gradient_checkpointing=True))
    np.testing.assert_allclose(saving.impact, plain.impact, rtol=1e-9)


def test_the_policy_stays_and_the_cost_is_counted():
    """12 a pass over the negatives (the run 2, the replay 10) and 3 over the texts of J and of U."""
    problem = with_half()
    before = snapshot(problem)
    found = metagradient_impact(problem, UnlearnOptions(epochs=1.0, batch_size=3))
    assert all(torch.equal(p, before[name]) for name, p in snapshot(problem).items())
    assert not problem.policy.model.training
    tokens = [
        sum(len(ids) for ids in texts["input_ids"])
        for texts in (problem.negative_texts, problem.objective.texts, problem.utility.texts)
    ]
    assert found.passes == pytest.approx(12 + 3 * (tokens[1] + tokens[2]) / tokens[0])


def test_a_run_with_dropout_cannot_be_replayed():
    tokenizer = cases.tiny_tokenizer("llama")
    model = add_adapter(cases.tiny_model("llama", torch.float64, tokenizer=tokenizer), rank=4, dropout=0.3)
    problem = prepare(
        Policy(model, tokenizer, True, "tiny"),
        negatives=answers(BAD),
        preferences=pairs(),
        retain=answers(GOOD),
        max_tokens=96,
    )
    with pytest.raises(UserError, match=r"cannot be replayed.*--lora-dropout 0"):
        metagradient_impact(problem, run(steps=2))


def test_an_unknown_route_is_refused():
    with pytest.raises(UserError, match="take one of exact, fd"):
        metagradient_impact(with_half(), run(), hvp="magic")
