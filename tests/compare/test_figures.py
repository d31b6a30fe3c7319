"""Metrics over seeds, by hand."""

import numpy as np
import pytest

from u2a.compare.figures import change, figures_of, over_seeds
from u2a.evaluation.figure import Figure, ratio


def figure(values, **more):
    return Figure("x", np.asarray(values, float), "higher", "nats", **more)


def test_the_mean_over_seeds_has_the_interval_of_pairs_and_seeds():
    """Without spread between examples only the seeds are left: 0, 1, and 0.5 of one each."""
    found = over_seeds([figure([0.0] * 20), figure([1.0] * 20)])
    assert (found.value, found.low, found.high, found.n) == (0.5, 0.0, 1.0, 20)


def test_one_seed_has_the_interval_of_its_examples():
    one = figure(np.random.default_rng(0).normal(size=200))
    assert over_seeds([one]) == one.estimate()


def test_changes_are_paired():
    base = np.random.default_rng(0).normal(0.0, 10.0, 60)
    found = change([figure(base + 0.1), figure(base + 0.3)], [figure(base)])
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.1, 0.3))
    assert change([figure(base)], [figure(base[1:])]) is None


def test_a_figure_of_its_own_statistic():
    """(1 + 3) / (1 + 1) = 2 and (2 + 6) / (1 + 1) = 4, mean 3."""
    seeds = [figure([[1, 1], [3, 1]], statistic=ratio), figure([[2, 1], [6, 1]], statistic=ratio)]
    assert over_seeds(seeds).value == 3.0


def test_what_is_not_resampled_has_no_interval():
    one = figure([1.0, 2.0], resampled=False)
    for found in (over_seeds([one, one]), change([one, one], [one])):
        assert np.isnan([found.low, found.high]).all()


def test_cells_hold_them():
    cells = [{"figures": {"x": figure([v, v]).as_json()}} for v in (1.0, 2.0)]
    assert [one.value for one in figures_of(cells)["x"]] == [1.0, 2.0]
