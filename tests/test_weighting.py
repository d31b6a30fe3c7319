"""Selection and weights: signs, the simplex, sparsity, exchange and the utility budget."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from u2a.types import UserError
from u2a.weighting import (
    Weighting,
    exchange,
    impact_scale,
    mean_cost,
    mirror_ascent,
    parse_selection,
    select_greedily,
    step_within_budget,
    warn_of_idle_rho,
    within_budget,
)

ONES = np.ones(4)
IMPACTS = arrays(np.float64, 6, elements=st.floats(-1e3, 1e3))


@pytest.mark.parametrize(
    "text, expected", [("30%", 30), ("100%", 100), ("0.1%", 1), ("7", 7), ("1000", 100), (" 5 ", 5)]
)
def test_selection_counts(text, expected):
    assert parse_selection(text, 100) == expected


@pytest.mark.parametrize("text", ["0", "-3", "0%", "101%", "2.5", "many", "", "nan%"])
def test_selection_refuses(text):
    with pytest.raises(UserError, match="percentage"):
        parse_selection(text, 100)


def test_selection_takes_the_largest_positive_impacts():
    weights = select_greedily(np.array([0.5, -1.0, 2.0, 0.1]), 2, ONES)
    assert weights.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_nothing_positive_selects_nothing():
    assert not select_greedily(np.array([-0.5, -1.0, 0.0, -2.0]), 4, ONES).any()


def test_prior_weights_scale_and_zero_excludes():
    weights = select_greedily(np.array([1.0, 1.0, 1.0, 1.0]), 4, np.array([3.0, 1.0, 0.0, 2.0]))
    assert weights.tolist() == [1.5, 0.5, 0.0, 1.0]


def test_mirror_ascent_by_hand():
    """Two weights of 1, impacts 2 and 0, scale 2, eta = log 3: factors 3 and 1, sum 4, |S| = 2."""
    weights = mirror_ascent(np.array([1.0, 1.0]), np.array([2.0, 0.0]), 2.0, Weighting(eta=math.log(3)))
    assert weights.tolist() == pytest.approx([1.5, 0.5])


def test_sparsity_term_by_hand():
    """Equal impacts, weights 1.6 and 0.4, rho = 1, eta = 1: factors exp(-1/(2 sqrt w)) =
    exp(-0.3952847) = 0.6734883 and exp(-0.7905694) = 0.4535864; products 1.0775813 and 0.1814346."""
    weights = mirror_ascent(np.array([1.6, 0.4]), np.zeros(2), 1.0, Weighting(eta=1.0, rho=1.0))
    assert weights[0] == pytest.approx(2 * 1.0775813 / (1.0775813 + 0.1814346), rel=1e-5)


@given(IMPACTS, st.floats(0, 50), st.floats(0, 5))
def test_weights_stay_on_the_scaled_simplex_and_grow_with_impact(impact, eta, rho):
    weights = np.array([1.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    updated = mirror_ascent(weights, impact, 7.0, Weighting(eta=eta, rho=rho))
    assert updated.sum() == pytest.approx(4)
    assert (updated >= 0).all()
    assert (updated[weights == 0] == 0).all()
    selected = np.flatnonzero(weights)
    by_impact = selected[np.argsort(impact[selected])]
    assert (np.diff(updated[by_impact]) >= -1e-12).all()


def test_scale_is_the_root_mean_square_of_the_selected():
    assert impact_scale(np.array([3.0, 4.0, 100.0]), np.array([1.0, 1.0, 0.0])) == pytest.approx(
        math.sqrt(12.5)
    )


def test_exchange_lets_a_better_negative_in_for_a_leaver():
    """0.02 is under the floor and leaves; 5.0 beats the stayers' least impact 1.0 and enters at the floor.

    Stayers hold 2.98 and the newcomer e = 0.05·2.98/(2 + 0.95), so that of three rescaled ones it has 0.05.
    """
    updated = exchange(
        np.array([1.98, 1.0, 0.02, 0.0, 0.0]),
        np.array([2.0, 1.0, -1.0, 5.0, 0.5]),
        np.ones(5),
        Weighting(floor=0.05),
    )
    assert updated[2] == 0
    assert updated[4] == 0
    assert updated.sum() == pytest.approx(3)
    assert updated[3] == pytest.approx(0.05)
    assert updated[3] >= 0.05
    assert updated[0] / updated[1] == pytest.approx(1.98)


@pytest.mark.parametrize("prior, enters", [(0.001, False), (0.99, False), (1.0, True), (3.0, True)])
def test_who_enters_has_at_least_the_mean_prior_of_those_that_stay(prior, enters):
    """Those that stay have 1 in the mean. With a thousandth of it a newcomer would have 0.00005, not 0.05."""
    weights, impact = np.array([1.98, 1.0, 0.02, 0.0]), np.array([2.0, 1.0, -1.0, 5.0])
    updated = exchange(weights, impact, np.array([0.5, 1.5, 9.0, prior]), Weighting(floor=0.05))
    assert (updated > 0).tolist() == [True, True, False, enters]


@pytest.mark.parametrize("prior", [0.1, 1 / 3, 1e-9])
def test_equal_priors_keep_nobody_out(prior):
    """The mean of ten times 0.1 is not 0.1."""
    weights = np.array([*[1.098] * 10, 0.02, 0.0])
    assert exchange(weights, np.arange(12.0), np.full(12, prior), Weighting())[-1] >= 0.05


def test_exchange_takes_nobody_in_when_nobody_leaves():
    weights = np.array([1.0, 1.0, 0.0])
    assert exchange(weights, np.array([1.0, 1.0, 9.0]), np.ones(3), Weighting()).tolist() == weights.tolist()


def test_budget_moves_weight_to_cheap_negatives():
    weights, impact, cost = np.ones(3), np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.1, 0.1])
    free = mirror_ascent(weights, impact, 1.0, Weighting())
    assert free @ cost > 1.0
    held = within_budget(weights, impact, cost, 1.0, 1.0 / 3, Weighting())  # in the mean over Ω = 3
    assert held @ cost == pytest.approx(1.0, abs=1e-6)
    assert held.sum() == pytest.approx(3)


BUDGETED = {
    "weights": np.array([1.3, 1.2, 0.5, 0.0, 0.0]),
    "impact": np.array([3.0, 2.0, 2.5, 2.2, 2.1]),
    "cost": np.array([0.02, 0.01, 1.5, 3.0, 3.0]),
    "scale": 2.5,
    "prior": np.ones(5),
    "options": Weighting("3", eta=0.5, floor=0.05),
}


def test_a_dear_negative_does_not_enter_for_its_impact_alone():
    """The third, which costs most of the selection, leaves. The fourth has a larger impact than the second,
    and at the floor's weight alone would cost 3.0·0.05/3 = 0.05 in the mean."""
    updated = step_within_budget(budget=0.02, **BUDGETED)
    assert (updated > 0).tolist() == [True, True, False, False, False]
    cheap = {**BUDGETED, "cost": np.array([0.02, 0.01, 1.5, 3.0, 0.01])}
    updated = step_within_budget(budget=0.02, **cheap)
    assert (updated > 0).tolist() == [True, True, False, False, True]  # the dearer one would be before it
    assert mean_cost(updated, cheap["cost"]) <= 0.02


def test_those_who_enter_under_a_budget_have_a_positive_impact():
    """Cheap is not enough: of a_i − ν·c_i it would be the first."""
    harmful = {
        **BUDGETED,
        "impact": np.array([3.0, 2.0, 2.5, 2.2, -0.1]),
        "cost": np.array([1, 1, 9, 9, -9.0]),
    }
    assert step_within_budget(budget=1.1, **harmful)[4] == 0


def test_nobody_leaves_where_only_the_cheap_ones_would():
    """The third keeps the mean at the budget by a weight under the floor."""
    options = Weighting("3", eta=0.0, floor=0.05)
    weights, cost = np.array([1.49, 1.48, 0.03]), np.array([1.0, 1.0, -9.0])
    budget = mean_cost(weights, cost) + 1e-6
    updated = step_within_budget(weights, np.ones(3), cost, 1.0, budget, np.ones(3), options)
    assert updated == pytest.approx(weights)


def test_budget_that_holds_anyway_changes_nothing():
    weights, impact, cost = np.ones(3), np.array([3.0, 2.0, 1.0]), np.array([0.1, 0.1, 0.1])
    held = within_budget(weights, impact, cost, 1.0, 1.0, Weighting())
    assert held.tolist() == mirror_ascent(weights, impact, 1.0, Weighting()).tolist()


@pytest.mark.parametrize("bad", [{"eta": -1.0}, {"rho": float("nan")}, {"floor": 1.0}, {"select": "none"}])
def test_bad_options_are_refused(bad):
    with pytest.raises(UserError):
        Weighting(**bad)


def test_rho_that_can_do_nothing_is_said(logged):
    """From equal weights the penalty is the same for all and drops out; from priors it does not."""
    impact, sparse = np.array([3.0, 1.0, -2.0]), Weighting("100%", 0.5, rho=1.0)
    plain = Weighting("100%", 0.5)
    equal, prior = np.ones(3), np.array([1.5, 1.0, 0.5])
    np.testing.assert_allclose(
        mirror_ascent(equal, impact, 1.0, sparse), mirror_ascent(equal, impact, 1.0, plain)
    )
    differs = mirror_ascent(prior, impact, 1.0, sparse) - mirror_ascent(prior, impact, 1.0, plain)
    assert np.abs(differs).max() > 0.01
    for weights, options, steps in ((prior, sparse, 1), (equal, sparse, 2), (equal, plain, 1)):
        warn_of_idle_rho(weights, options, steps)
    assert logged.text == ""
    warn_of_idle_rho(equal, sparse, 1)
    assert "rho 1 changes nothing in one outer step" in logged.text


def test_the_budget_holds_for_impacts_and_costs_of_any_size():
    """Impacts are tens of thousands where H is small, costs thousandths of a nat: no matter."""
    rng = np.random.default_rng(0)
    impact, cost = np.exp(rng.normal(size=48)), rng.uniform(0.1, 1.0, size=48)
    weights, cost = np.ones(48), cost * (0.02 / cost.sum())
    for unit in (1e-6, 1.0, 1e4, 1e9):
        scale = impact_scale(unit * impact, weights)
        assert mirror_ascent(weights, unit * impact, scale, Weighting()) @ cost > 0.015
        held = within_budget(weights, unit * impact, cost, scale, 0.01 / 48, Weighting())
        assert held @ cost == pytest.approx(0.01)
        assert held.sum() == pytest.approx(48)


def test_a_budget_that_no_weights_hold_has_none():
    """The cheapest negative alone costs 0.2 in the mean."""
    weights, impact, cost = np.ones(3), np.ones(3), np.array([0.2, 0.3, 0.4])
    assert within_budget(weights, impact, cost, 1.0, 0.19, Weighting()) is None
    held = within_budget(weights, impact, cost, 1.0, 0.21, Weighting())
    assert mean_cost(held, cost) == pytest.approx(0.21)


def test_what_a_budget_leaves_of_the_selection_keeps_it_too():
    """Weights under the floor leave, Ω falls with them, and what is trained is divided by Ω."""
    rng = np.random.default_rng(0)
    impact, cost, prior = np.exp(rng.normal(size=48)), rng.uniform(0.1, 1.0, size=48), np.ones(48)
    held = within_budget(np.ones(48), impact, cost, impact_scale(impact, prior), 0.2, Weighting())
    left = exchange(held, impact, prior, Weighting())
    assert 1 < np.count_nonzero(left) < 48
    assert mean_cost(left, cost) == pytest.approx(0.2, abs=0.02)
