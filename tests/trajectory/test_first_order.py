"""First order along the run: the formula by hand, its sign by really moving φ, and what it costs."""

import numpy as np
import pytest
import torch

from problems import tiny_problem
from u2a.alignment.ledger import snapshot
from u2a.config import UnlearnOptions
from u2a.impact.context import shifted
from u2a.logprobs import response_logprobs
from u2a.trajectory.first_order import evenly_spaced, first_order_impact
from u2a.trajectory.recording import recorded_run, set_parameters
from u2a.types import UserError

pytestmark = pytest.mark.usefixtures("true_float64")

CPU = torch.device("cpu")
RUN = UnlearnOptions(learning_rate=3e-3, max_steps=3, batch_size=2)


def loss_gradients(problem):
    """∇ℓ_i at the current φ, one backward pass each."""
    from u2a.data.collate import collate

    leaves, texts = problem.policy.trainable(), problem.negative_texts
    for i in range(len(texts)):
        s = response_logprobs(problem.policy.model, collate([texts[i]], [i], pad_token_id=0))
        loss = problem.loss(s, problem.reference[[i]], problem.lengths[[i]])
        yield dict(zip(leaves, torch.autograd.grad(loss.sum(), list(leaves.values())), strict=True))


def move(step, state, gradient):
    """−η·∇ℓ/(√v̂ + ε), v̂ after the step's own gradient; 0 where there was none."""
    out = {}
    for name, g in gradient.items():
        c = step.adamw[name]
        v = c.beta2 * state.v[name] + (1 - c.beta2) * state.gradient[name] ** 2
        root = (v / (1 - c.beta2**c.number)).sqrt()
        out[name] = torch.where(v > 0, -c.learning_rate * g / (root + c.epsilon), 0.0)
    return out


def value(problem, goal):
    """J or U at the current φ."""
    return float(goal.terms(problem.logprobs(goal.texts)).mean())


def by_moving(problem, unlearn, weights, checkpoints):
    """dJ and −dU by really moving φ along each negative's preconditioned gradient, by central differences."""
    n = len(weights)
    found, h = np.zeros((2, n)), 1e-5
    with recorded_run(problem, unlearn, weights=weights) as recording:
        chosen = evenly_spaced(recording.steps, checkpoints)
        for step in chosen:
            state = step.load(CPU)
            set_parameters(problem, state.phi)
            for i, gradient in enumerate(loss_gradients(problem)):
                direction = move(step, state, gradient)
                values = []
                for sign in (1, -1):
                    with shifted(problem.policy.trainable(), direction, sign * h):
                        values.append([value(problem, problem.objective), -value(problem, problem.utility)])
                found[:, i] += (np.array(values[0]) - np.array(values[1])) / (2 * h)
        total = len(recording.steps)
    return found * total / weights.sum() / len(chosen)


@pytest.mark.parametrize(
    "family, random_b, options, checkpoints",
    [
        ("llama", True, {"loss": "npo"}, 1),
        ("qwen", False, {"loss": "simnpo", "retain_loss": "nll"}, 9),
        ("gpt2", True, {"loss": "ga", "retain_loss": "l2"}, 2),
    ],
)
def test_it_is_the_change_of_j_when_phi_really_moves(family, random_b, options, checkpoints):
    problem = tiny_problem(family, random_b=random_b, **options)
    weights = np.array([1.0, 2.0, 0.5, 0.0, 1.5, 1.0])
    found = first_order_impact(problem, RUN, weights=weights, checkpoints=checkpoints)
    of_j, of_u = by_moving(problem, RUN, weights, checkpoints)
    np.testing.assert_allclose(found.impact, of_j, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.utility_cost, of_u, rtol=1e-5, atol=1e-9)
    assert found.impact.dtype == np.float64
    assert found.impact[3] != 0  # weight 0 has a score all the same


def test_full_fine_tuning_takes_plain_forward_passes_and_agrees():
    """Where layers are not all linear, `directional_derivatives` differentiates by forward passes."""
    problem = tiny_problem("llama", lora_rank=0)
    found = first_order_impact(problem, RUN, checkpoints=1)
    np.testing.assert_allclose(found.impact, by_moving(problem, RUN, np.ones(6), 1)[0], rtol=1e-3)


def test_b_at_zero_gives_a_no_say():
    """At B = 0 the gradient of A is 0: v̂ = 0 there, and 1/ε must not come in."""
    problem = tiny_problem(random_b=False)
    one = UnlearnOptions(learning_rate=3e-3, max_steps=1, batch_size=6)
    found = first_order_impact(problem, one)
    with recorded_run(problem, one) as recording:
        gradient = recording.steps[0].load(CPU).gradient
    assert all((g == 0).all() for name, g in gradient.items() if "lora_A" in name)
    # with P ≤ 1/|g|, no element contributes more than T/Ω·η·|∇J|·|∇ℓ_i|/|g|: far from 1/ε
    assert 0 < np.abs(found.impact).max() < 1.0


def test_checkpoints_are_the_middles_of_equal_parts():
    assert evenly_spaced(range(10), 2) == [2, 7]
    assert evenly_spaced(range(10), 5) == [1, 3, 5, 7, 9]
    assert evenly_spaced(range(3), 9) == [0, 1, 2]
    with pytest.raises(UserError, match="at least 1"):
        first_order_impact(tiny_problem(), RUN, checkpoints=0)


def test_seed_and_checkpoints_matter_and_the_policy_stays():
    problem = tiny_problem()
    before = snapshot(problem)
    first = first_order_impact(problem, RUN, checkpoints=1)
    assert all(torch.equal(p, before[name]) for name, p in snapshot(problem).items())
    again = first_order_impact(problem, RUN, checkpoints=1)
    np.testing.assert_array_equal(first.impact, again.impact)
    for other in (
        first_order_impact(problem, RUN, checkpoints=2),
        first_order_impact(problem, RUN, checkpoints=1, seed=1),
    ):
        assert np.abs(other.impact - first.impact).max() > 1e-6


def test_cost_by_hand():
    """Two passes of training at 2 each; at the checkpoint 2 over the negatives, 3 over J's and U's texts."""
    problem = tiny_problem()
    two_passes = UnlearnOptions(epochs=2.0, batch_size=2)
    tokens = [
        sum(len(ids) for ids in texts["input_ids"])
        for texts in (problem.negative_texts, problem.objective.texts, problem.utility.texts)
    ]
    expected = 4 + 2 + 3 * (tokens[1] + tokens[2]) / tokens[0]
    assert first_order_impact(problem, two_passes, checkpoints=1).passes == pytest.approx(expected)
