"""Runs of a partition: who is in which run, and that each score is that of its own run."""

import numpy as np
import pytest
import torch

from problems import tiny_problem
from u2a.alignment.ledger import snapshot
from u2a.config import UnlearnOptions
from u2a.impact.scores import directional_derivatives
from u2a.trajectory.first_order import first_order_impact
from u2a.trajectory.partition import deal, partition_impact, restricted
from u2a.types import UserError

RUN = UnlearnOptions(learning_rate=3e-3, max_steps=3, batch_size=2)


@pytest.mark.parametrize(
    "count, size, sizes", [(6, 2, [2, 2, 2]), (6, 4, [3, 3]), (7, 3, [4, 3]), (3, 9, [3])]
)
def test_every_negative_is_dealt_into_one_group(count, size, sizes):
    groups = deal(count, size, seed=0)
    assert [len(group) for group in groups] == sizes
    assert sorted(np.concatenate(groups).tolist()) == list(range(count))
    again = deal(count, size, seed=0)
    assert all((a == b).all() for a, b in zip(groups, again, strict=True))


def test_one_group_of_all_is_the_run_over_all():
    problem = tiny_problem("llama")
    before = snapshot(problem)
    found = partition_impact(problem, RUN, size=6, checkpoints=3)
    whole = first_order_impact(problem, RUN, checkpoints=3)
    np.testing.assert_allclose(found.impact, whole.impact, rtol=1e-6)
    np.testing.assert_allclose(found.utility_cost, whole.utility_cost, rtol=1e-6)
    assert found.passes == pytest.approx(whole.passes)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(problem).items())


def test_each_is_scored_in_the_run_of_its_own_group_and_rounds_are_averaged():
    """By hand: two rounds of three groups of two; the unit is that of all six having weight 1."""
    problem = tiny_problem("llama", loss="npo", loss_options={"beta": 2.0})
    found = partition_impact(problem, RUN, size=2, checkpoints=2, rounds=2, seed=5)
    expected = np.zeros(6)
    for seed in (5, 6):
        for group in deal(6, 2, seed):
            own = first_order_impact(restricted(problem, group), RUN, checkpoints=2, seed=seed)
            expected[group] += own.impact * (2 / 6) / 2
    np.testing.assert_allclose(found.impact, expected)
    whole = first_order_impact(problem, RUN, checkpoints=2, seed=5).impact
    assert not np.allclose(found.impact, whole, rtol=0.05)


def test_a_restricted_problem_scores_its_rows_as_the_whole_one_does():
    problem = tiny_problem("llama")
    part = restricted(problem, np.array([1, 4]))
    from u2a.impact.context import ScoringContext
    from u2a.impact.gradient import objective_gradient

    context = ScoringContext.of(problem)
    gradient = objective_gradient(context, problem.objective, problem.logprobs(problem.objective.texts))
    found = [
        directional_derivatives(context, each.negative_texts, [gradient], method="exact").along[0]
        for each in (problem, part)
    ]
    torch.testing.assert_close(found[1], found[0][[1, 4]])
    assert part.lengths.tolist() == problem.lengths[[1, 4]].tolist()
    assert part.reference.tolist() == problem.reference[[1, 4]].tolist()


def test_sizes_must_be_usable():
    problem = tiny_problem("llama")
    with pytest.raises(UserError, match="size 0, rounds 1"):
        partition_impact(problem, RUN, size=0)
    with pytest.raises(UserError, match="take at least 1"):
        partition_impact(problem, RUN, size=2, checkpoints=0)
