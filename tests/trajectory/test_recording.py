"""A recorded run is the real run, and leaves nothing behind."""

import numpy as np
import pytest
import torch

from problems import tiny_problem
from u2a.alignment.ledger import snapshot
from u2a.alignment.outer_loop import align
from u2a.config import OuterOptions, UnlearnOptions
from u2a.trajectory.recording import recorded_run
from u2a.types import UserError

CPU = torch.device("cpu")
RUN = UnlearnOptions(learning_rate=3e-3, epochs=2.0, batch_size=2)


@pytest.mark.usefixtures("true_float64")
def test_steps_follow_each_other_by_adamw():
    """φ, m and v of step t+1 are those of step t moved by AdamW with the recorded gradient."""
    problem = tiny_problem()
    with recorded_run(problem, RUN) as recording:
        states = [step.load(CPU) for step in recording.steps]
        end = snapshot(problem)
    assert len(states) == 6
    for t, (step, state) in enumerate(zip(recording.steps, states, strict=True)):
        last = t == len(states) - 1
        for name, adamw in step.adamw.items():
            assert (adamw.number, adamw.learning_rate) == (t + 1, RUN.learning_rate)
            m = adamw.first_moment(state.m[name], state.gradient[name])
            v = adamw.second_moment(state.v[name], state.gradient[name])
            rate = adamw.learning_rate / (1 - adamw.beta1**adamw.number)
            phi = state.phi[name] - rate * m * adamw.preconditioner(v)
            after = end[name] if last else states[t + 1].phi[name]
            torch.testing.assert_close(phi, after, rtol=1e-9, atol=1e-12)
            if not last:
                torch.testing.assert_close(m, states[t + 1].m[name], rtol=1e-9, atol=1e-12)
                torch.testing.assert_close(v, states[t + 1].v[name], rtol=1e-9, atol=1e-15)
    assert any(g.abs().max() > 0 for g in states[0].gradient.values())


def test_it_is_the_run_of_the_outer_loop():
    """The same seed, weights and options end at the same φ, bit for bit."""
    weights = np.array([1.0, 0.5, 0.0, 2.0, 1.0, 1.5])
    looped, recorded = (tiny_problem(retain_loss="nll", dtype=torch.float32) for _ in range(2))
    free = OuterOptions(outer_steps=1, measurements=1, kl_budget=0.0, max_nll_rise=100.0, halvings=0)
    align(looped, unlearn=RUN, outer=free, fixed_weights=weights, keep_last=True, seed=0)
    with recorded_run(recorded, RUN, weights=weights, seed=1000):
        for name, value in snapshot(recorded).items():
            assert torch.equal(value, snapshot(looped)[name])


def test_steps_say_which_rows_they_used():
    """Two passes over the five negatives of positive weight, retain rows with each micro-batch."""
    problem = tiny_problem(retain_loss="nll")
    options = UnlearnOptions(epochs=2.0, batch_size=1, gradient_accumulation=2)
    with recorded_run(problem, options, weights=np.array([1, 1, 0, 1, 1, 1])) as recording:
        rows = [step.rows.tolist() for step in recording.steps]
        assert [len(step.batches) for step in recording.steps] == [2, 2, 1, 2, 2, 1]
        assert all("retain" in step.batches[0] for step in recording.steps)
    for one_pass in (rows[:3], rows[3:]):
        assert sorted(row for step in one_pass for row in step) == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("fails", [False, True])
def test_the_policy_is_as_before_and_the_scratch_folder_gone(fails):
    problem = tiny_problem()
    before = snapshot(problem)
    with pytest.raises(ZeroDivisionError) if fails else _nothing(), recorded_run(problem, RUN) as recording:
        folder = recording.steps[0].file.parent
        assert folder.is_dir()
        assert not all(torch.equal(p, before[name]) for name, p in snapshot(problem).items())
        if fails:
            raise ZeroDivisionError
    assert not folder.exists()
    assert all(torch.equal(p, before[name]) for name, p in snapshot(problem).items())
    assert not problem.policy.model.training


def test_the_end_of_the_run_is_kept_when_asked_for():
    problem = tiny_problem()
    before = snapshot(problem)
    with recorded_run(problem, RUN, restore=False) as recording:
        end = snapshot(problem)
        with torch.no_grad():
            for name, p in problem.policy.trainable().items():
                p.copy_(recording.steps[1].load(CPU).phi[name])
    assert all(torch.equal(p, end[name]) for name, p in snapshot(problem).items())
    assert not all(torch.equal(end[name], before[name]) for name in end)


def test_unusable_weights_are_refused_and_change_nothing():
    problem = tiny_problem()
    before = snapshot(problem)
    with (
        pytest.raises(UserError, match="row 1: weight is -1"),
        recorded_run(problem, RUN, weights=np.array([1.0, -1.0, 1, 1, 1, 1])),
    ):
        pass
    assert all(torch.equal(p, before[name]) for name, p in snapshot(problem).items())


def _nothing():
    from contextlib import nullcontext

    return nullcontext()
