"""The watch: what it charges to a method, and when it looks."""

import time

import pytest
import torch

from problems import tiny_problem
from u2a.baselines import Budget, Spent, Watch

pytestmark = pytest.mark.usefixtures("true_float64")


def forward(problem, gradient):
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.set_grad_enabled(gradient):
        problem.policy.model(input_ids=ids)


def test_looks_at_equal_shares_and_at_the_end():
    watch = Watch(tiny_problem(), Budget(steps=10, batch_size=2), looks=3)
    with watch.running():
        stops = [watch.step() for _ in range(10)]
    # a third of ten steps is passed with the fourth, two thirds with the seventh
    assert [point.step for point in watch.points] == [4, 7, 10]
    assert stops == [False] * 9 + [True]


def test_one_look_is_at_the_end():
    watch = Watch(tiny_problem(), Budget(steps=2, batch_size=2), looks=1)
    with watch.running():
        watch.step()
        watch.step()
    assert [point.step for point in watch.points] == [2]


def test_a_method_without_steps_is_measured_as_it_is():
    problem = tiny_problem()
    watch = Watch(problem, Budget(steps=2, batch_size=2))
    with watch.running():
        pass
    start = problem.measure()
    (point,) = watch.points
    assert (point.step, point.objective) == (0, start.objective)
    assert (point.utility, point.kl) == (start.utility, start.kl)
    assert point.held_out is None


def test_counts_tokens_with_and_without_a_gradient_but_not_its_own():
    problem = tiny_problem()
    watch = Watch(problem, Budget(steps=2, batch_size=2), looks=2, held_out=problem.objective.texts)
    forward(problem, True)
    with watch.running():
        forward(problem, True)
        watch.step()  # looks
        forward(problem, False)
        forward(problem, False)
    forward(problem, False)
    assert watch.spent == Spent(forward=12, trained=6)
    assert len(watch.points) == 2
    expected = problem.logprobs(problem.objective.texts).tolist()
    assert watch.points[0].held_out == pytest.approx(expected)


def test_time_is_the_methods_own(monkeypatch):
    problem = tiny_problem()
    watch = Watch(problem, Budget(steps=3, batch_size=2), looks=2)
    measure = problem.measure
    monkeypatch.setattr(type(problem), "measure", lambda *_, **__: (time.sleep(0.3), measure())[1])
    with watch.running():
        time.sleep(0.05)
        watch.step()
        watch.step()
        watch.charge(1.0, Spent(forward=5, trained=7))
    assert len(watch.points) == 2
    assert watch.points[0].seconds == pytest.approx(0.05, abs=0.1)
    assert watch.points[1].seconds == pytest.approx(1.05, abs=0.1)
    assert watch.spent == Spent(5, 7)


def test_seconds_end_a_run_whatever_its_steps():
    watch = Watch(tiny_problem(), Budget(steps=1, batch_size=2, seconds=0.2), looks=1)
    with watch.running():
        assert not watch.step()
        assert not watch.step()
        time.sleep(0.25)
        assert watch.step()
    assert watch.budget.most_steps > 1000
