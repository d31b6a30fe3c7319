"""How much negatives differ, against numbers derived by hand."""

import math

import numpy as np
import pytest

from u2a.impact.difference import difference, gini


def test_gini_by_hand():
    """Equal: 0. One holds all of N: (N−1)/N. (1, 3): Σ|x_i−x_j| = 2·2, over 2·2·4 = 1/4."""
    assert gini(np.array([2.0, 2.0, 2.0])) == pytest.approx(0.0)
    assert gini(np.array([0.0, 0.0, 0.0, 5.0])) == pytest.approx(3 / 4)
    assert gini(np.array([3.0, 1.0])) == pytest.approx(1 / 4)
    assert math.isnan(gini(np.zeros(3)))


def test_shares_and_half_of_the_gain_by_hand():
    """Gains 4, 3, 2, 1 (Σ = 10): the first two hold 7 ≥ 5, the first one 4 < 5, so 2 of 8."""
    impact = np.array([4.0, 3.0, 2.0, 1.0, 0.0, -1.0, -2.0, -3.0])
    found = difference(impact, np.full(8, 1.2), {})
    assert (found.helps, found.harms) == (4 / 8, 3 / 8)
    assert (found.surely_helps, found.surely_harms) == (2 / 8, 1 / 8)  # 1.96·1.2 = 2.35
    assert found.half_of_gain == 2 / 8
    assert difference(impact, None, {}).surely_helps is None


def test_nothing_that_helps_has_no_concentration():
    found = difference(np.array([-1.0, -2.0]), None, {})
    assert math.isnan(found.gini)
    assert math.isnan(found.half_of_gain)


def test_explained_shares():
    """A monotone function of the impact explains all of its ranks, an unrelated one next to nothing."""
    rng = np.random.default_rng(0)
    impact = rng.normal(size=400)
    found = difference(
        impact, None, {"same order": np.exp(-impact), "noise": rng.normal(size=400), "constant": np.ones(400)}
    ).explained
    assert found["same order"] == pytest.approx(1.0)
    assert found["noise"] < 0.03
    assert "constant" not in found
    assert found["all together"] == pytest.approx(1.0)


def test_two_halves_explain_together_what_neither_does_alone():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 500))
    found = difference(a + b, None, {"a": a, "b": b}).explained
    assert found["a"] == pytest.approx(0.5, abs=0.15)
    assert found["b"] == pytest.approx(0.5, abs=0.15)
    assert found["all together"] > 0.85


def test_categories_explain_what_their_means_do():
    """Ranks 1..4 (centred −1.5..1.5, Σ² = 5); categories' means are −1 and +1: 4·1 of 5, and of what is left
    1/5 on 2 degrees of freedom instead of 5/5 on 3: 1 − (1/5)·(3/2)."""
    impact = np.array([1.0, 2.0, 3.0, 4.0])
    found = difference(impact, None, {}, category=["a", "a", "b", "b"]).explained
    assert found == {"category": pytest.approx(7 / 10)}


def test_many_categories_do_not_explain_by_their_number():
    """Drawn at random they fit (k − 1)/(N − 1) of the ranks in the mean, here half: none of it is theirs."""
    shares = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        category = [str(name) for name in rng.integers(0, 30, size=60)]
        shares.append(difference(rng.normal(size=60), None, {}, category).explained["category"])
    assert np.mean(shares) < 0.1
    assert difference(np.arange(3.0), None, {}, ["a", "b", "c"]).explained["category"] == 0.0  # nothing left
