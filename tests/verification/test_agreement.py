"""LDS, calibration and the noise ceiling against numbers worked out by hand, scipy and simulation."""

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from u2a.verification.agreement import agreement, noise_ceiling, pearson, spearman


def column(values):
    return np.asarray(values, float)[:, None]


def test_spearman_by_hand():
    """Ranks 1 2 3 4 5 and 2 1 4 3 5: Σd² = 4, so 1 − 6·4/(5·24) = 0.8."""
    found = agreement(np.array([10.0, 20, 30, 40, 50]), column([0.2, 0.1, 0.4, 0.3, 9.0]))
    assert found.lds == pytest.approx(0.8)
    assert found.n == 5
    assert found.pearson != pytest.approx(0.8)  # the last value is far out


def test_ties_take_their_mean_rank():
    """Ranks 1.5 1.5 3 and 1 2 3: 1.5/√(1.5·2) = √3/2."""
    assert spearman(np.array([1.0, 1, 2]), np.array([1.0, 2, 3])) == pytest.approx(math.sqrt(3) / 2)


def test_both_correlations_are_scipys():
    draw = np.random.default_rng(0)
    x, y = draw.integers(5, size=30).astype(float), draw.normal(size=30)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert pearson(x, y) == pytest.approx(pearsonr(x, y).statistic)
    rows = spearman(np.stack([x, y]), np.stack([y, y]))
    np.testing.assert_allclose(rows, [spearmanr(x, y).statistic, 1.0])


def test_an_exactly_linear_prediction():
    predicted = np.random.default_rng(1).normal(size=16)
    found = agreement(predicted, column(3 * predicted + 2))
    assert found.lds == pytest.approx(1.0)
    assert found.interval == pytest.approx((1.0, 1.0))
    assert found.pearson == pytest.approx(1.0)
    assert (found.slope, found.intercept) == pytest.approx((3.0, 2.0))
    assert agreement(-predicted, column(predicted)).lds == pytest.approx(-1.0)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Independent values: 0 is inside in about 95 % of 100 intervals, and they are not trivially wide."""
    draw = np.random.default_rng(2)
    found = [
        agreement(draw.normal(size=30), draw.normal(size=(30, 1)), replicates=300, seed=i).interval
        for i in range(100)
    ]
    assert 85 <= sum(low <= 0 <= high for low, high in found) <= 100
    assert np.mean([high - low for low, high in found]) < 1.0


def test_the_interval_is_seeded():
    draw = np.random.default_rng(3)
    x, y = draw.normal(size=12), draw.normal(size=(12, 1))
    assert agreement(x, y, seed=4) == agreement(x, y, seed=4)
    assert agreement(x, y, seed=4).interval != agreement(x, y, seed=5).interval


@pytest.mark.parametrize("subsets", [4, 9, 10])
def test_few_subsets_have_no_interval(subsets):
    predicted = np.arange(float(subsets))
    low, high = agreement(predicted, column(predicted)).interval
    assert (math.isnan(low), math.isnan(high)) == (subsets < 10, subsets < 10)


def test_seeds_are_drawn_too():
    """Two seeds of opposite sign: their mean says −1, but drawing one of them alone may say +1."""
    predicted = np.random.default_rng(4).normal(size=10)
    both = agreement(predicted, np.stack([predicted, -3 * predicted], axis=1))
    assert both.lds == pytest.approx(-1.0)
    assert both.interval == pytest.approx((-1.0, 1.0))


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e-6])
def test_a_score_that_is_the_same_everywhere_has_no_agreement(scale):
    """Also where the sums differ in their last bits."""
    constant = scale * (1 + 1e-15 * np.arange(6.0))
    found = agreement(constant, column(np.arange(6.0)))
    assert math.isnan(found.lds)
    assert math.isnan(found.pearson)
    assert math.isnan(found.slope)
    assert all(math.isnan(end) for end in found.interval)


def test_the_ceiling_by_hand():
    """Changes 0 2 4 6: V = 20/3. Repeats 0 1 −1: σ² = 1. 1 − 3/20 = 0.85; √0.85 = 0.92195;
    6/π·arcsin(0.46098) = 6/π·0.47910 = 0.91501."""
    runs = [np.array([0.0, 1, -1]), np.array([2.0]), np.array([4.0]), np.array([6.0])]
    found = noise_ceiling(column([0, 2, 4, 6]), runs)
    assert found.noise == pytest.approx(1.0)
    assert found.spread == pytest.approx(math.sqrt(20 / 3))
    assert found.pearson == pytest.approx(math.sqrt(0.85))
    assert found.lds == pytest.approx(0.91501, abs=1e-5)
    assert found.runs == 3


def test_the_ceiling_is_what_the_true_changes_reach():
    draw = np.random.default_rng(5)
    true = draw.normal(size=4000)
    measured = true[:, None] + 0.8 * draw.normal(size=(4000, 2))
    found = noise_ceiling(measured, list(measured))
    assert found.lds == pytest.approx(float(spearman(true, measured.mean(axis=1))), abs=0.02)
    assert found.pearson == pytest.approx(float(pearson(true, measured.mean(axis=1))), abs=0.02)


def test_the_ceiling_without_repeats_is_unknown_and_with_pure_noise_0():
    changes = column([0, 2, 4, 6])
    assert math.isnan(noise_ceiling(changes, list(changes)).lds)
    assert noise_ceiling(changes, [np.array([-50.0, 50.0])]).lds == 0.0
    assert noise_ceiling(changes, [np.array([1.0, 1.0])]).lds == pytest.approx(1.0)
