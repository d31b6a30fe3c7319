"""Subsets: of one size, balanced, seeded; and the plan that is made of them."""

import numpy as np
import pytest

from u2a.config import UnlearnOptions
from u2a.types import UserError
from u2a.verification.plan import Run, make_plan, over_all, steps, steps_per_pass
from u2a.verification.subsets import draw_singles, draw_subsets, subset_size


@pytest.mark.parametrize("share, size", [("25%", 15), ("15", 15), ("1%", 1), ("59", 59)])
def test_a_share_is_a_percentage_or_a_number(share, size):
    assert subset_size(share, 60) == size


@pytest.mark.parametrize("share", ["0%", "100%", "60", "many", "-3"])
def test_a_share_without_a_remainder_or_sense_is_refused(share):
    with pytest.raises(UserError, match=f"--subset-share {share}"):
        subset_size(share, 60)


@pytest.mark.parametrize("negatives, size", [(60, 15), (7, 3), (10, 9), (5, 1)])
def test_every_negative_is_in_about_equally_many(negatives, size):
    members = draw_subsets(negatives, size, 13, seed=3)
    assert members.dtype == bool
    assert (members.sum(axis=1) == size).all()
    for drawn in range(1, 14):
        taken = members[:drawn].sum(axis=0)
        assert taken.max() - taken.min() <= 1


def test_the_seed_and_nothing_else_decides():
    first = draw_subsets(20, 5, 8, seed=1)
    np.random.default_rng(5).random(100)
    np.testing.assert_array_equal(first, draw_subsets(20, 5, 8, seed=1))
    assert (first != draw_subsets(20, 5, 8, seed=2)).any()
    np.testing.assert_array_equal(first[:4], draw_subsets(20, 5, 4, seed=1))  # more subsets keep the first


def test_singles_are_different_negatives():
    singles = draw_singles(9, 9, seed=0)
    assert (singles.sum(axis=1) == 1).all()
    assert (singles.sum(axis=0) == 1).all()
    with pytest.raises(UserError, match="--singles 10"):
        draw_singles(9, 10, seed=0)


def test_steps_by_hand():
    """15 negatives in batches of 8 are 2 micro-batches: 2 steps a pass, or 1 with accumulation over 2."""
    assert steps(UnlearnOptions(batch_size=8, epochs=1.0), 15) == 2
    assert steps(UnlearnOptions(batch_size=8, epochs=2.5), 15) == 5
    assert steps(UnlearnOptions(batch_size=8, gradient_accumulation=2, epochs=3.0), 15) == 3
    assert steps(UnlearnOptions(max_steps=7), 15) == 7


def test_the_runs_of_a_plan():
    options = UnlearnOptions(batch_size=2)
    plan = make_plan(8, 4, options, subsets=2, singles=1, seeds=2, repeats=1, seed=5)
    assert plan.runs == [Run(0, 5), Run(1, 5), Run(2, 5), Run(0, 6), Run(1, 6), Run(2, 6), Run(0, 7)]
    assert plan.size == 4
    assert plan.steps == 2
    assert len(plan.rows(Run(2, 5))) == 1


@pytest.mark.parametrize("negatives, size, batch", [(60, 15, 8), (60, 15, 4), (10, 3, 2), (6, 5, 8)])
def test_a_run_over_all_is_as_long_as_a_subsets(negatives, size, batch):
    options = UnlearnOptions(batch_size=batch, epochs=2.0)
    plan = make_plan(negatives, size, options, subsets=4)
    whole = over_all(options, plan)
    assert whole.max_steps == plan.steps
    assert steps_per_pass(whole, negatives) == steps_per_pass(options, size)
