"""Weights, whatever the scores: on the simplex, larger for larger impacts, within floor and budget."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from u2a.types import UserError
from u2a.weighting import (
    Weighting,
    exchange,
    mean_cost,
    mirror_ascent,
    parse_selection,
    select_greedily,
    step_within_budget,
    within_budget,
)

N = 7
FINITE = st.floats(-1e6, 1e6)
IMPACTS = arrays(np.float64, N, elements=FINITE)
PRIORS = arrays(np.float64, N, elements=st.floats(0, 100).filter(lambda x: x == 0 or x > 1e-3))
CHOSEN = arrays(np.bool_, N).filter(lambda chosen: chosen.any())
MASSES = arrays(np.float64, N, elements=st.floats(0.01, 10))
COSTS = arrays(np.int64, N, elements=st.integers(-10, 10)).map(lambda cost: cost / 10.0)
OPTIONS = st.builds(
    Weighting, eta=st.floats(0, 20), rho=st.floats(0, 3), floor=st.sampled_from([0.0, 0.05, 0.3, 0.9])
)


def on_simplex(chosen, mass):
    """Weights of the chosen, with mean 1."""
    weights = np.where(chosen, mass, 0.0)
    return weights * (chosen.sum() / weights.sum())


@settings(max_examples=40)
@given(IMPACTS, PRIORS, st.integers(1, N))
def test_selection_takes_the_best_and_keeps_the_sum(impact, prior, count):
    weights = select_greedily(impact, count, prior)
    chosen, allowed = weights > 0, (impact > 0) & (prior > 0)
    assert (weights >= 0).all()
    assert chosen.sum() == min(count, allowed.sum())
    assert not chosen[~allowed].any()
    assert weights.sum() == pytest.approx(chosen.sum())
    if chosen.any():
        assert (impact[allowed & ~chosen] <= impact[chosen].min()).all()
        assert weights[chosen] / weights[chosen].max() == pytest.approx(prior[chosen] / prior[chosen].max())


@settings(max_examples=40)
@given(CHOSEN, MASSES, IMPACTS, OPTIONS)
def test_a_step_stays_on_the_simplex_of_the_same_set(chosen, mass, impact, options):
    weights = on_simplex(chosen, mass)
    updated = mirror_ascent(weights, impact, 3.0, options)
    assert np.isfinite(updated).all()
    assert ((updated > 0) == chosen).all()
    assert updated.sum() == pytest.approx(chosen.sum())


@settings(max_examples=40)
@given(CHOSEN, MASSES, IMPACTS, st.floats(0, 5), st.floats(-1e3, 1e3))
def test_a_step_moves_weight_towards_impact_and_a_common_shift_moves_none(chosen, mass, impact, eta, shift):
    options, weights = Weighting(eta=eta), on_simplex(chosen, mass)
    updated = mirror_ascent(weights, impact, 1e4, options)
    gain = (updated[chosen] / weights[chosen])[np.argsort(impact[chosen])]
    assert (np.diff(gain) >= -1e-9 * gain.max()).all()
    assert mirror_ascent(weights, impact + shift, 1e4, options) == pytest.approx(updated, rel=1e-6)


@settings(max_examples=40)
@given(CHOSEN, MASSES, IMPACTS, OPTIONS, st.permutations(range(N)))
def test_the_order_of_the_negatives_does_not_matter(chosen, mass, impact, options, order):
    weights, order = on_simplex(chosen, mass), np.asarray(order)
    updated = mirror_ascent(weights, impact, 3.0, options)
    assert mirror_ascent(weights[order], impact[order], 3.0, options) == pytest.approx(updated[order])


@settings(max_examples=40)
@given(CHOSEN, MASSES, IMPACTS, PRIORS, OPTIONS)
def test_exchange_keeps_the_sum_and_the_floor(chosen, mass, impact, prior, options):
    weights = on_simplex(chosen, mass)
    updated = exchange(weights, impact, prior, options)
    before, after = weights > 0, updated > 0
    assert updated.sum() == pytest.approx(after.sum())
    leaving = before & (weights < options.floor)
    assert not after[leaving].any()
    assert after[before & ~leaving].all()
    entered = after & ~before
    assert entered.sum() <= leaving.sum()
    assert (updated[entered] >= options.floor * (1 - 1e-12)).all()
    assert (prior[entered] > 0).all()
    assert (prior[entered] >= prior[before & ~leaving].mean() * (1 - 1e-6)).all()
    assert (impact[entered] > max(0.0, impact[before & ~leaving].min(initial=np.inf))).all()


@settings(max_examples=40)
@given(
    CHOSEN,
    MASSES,
    IMPACTS.map(lambda a: a / 1e5),
    COSTS,
    st.floats(0.1, 5),
    st.floats(-5, 5),
    st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_the_budget_holds_wherever_it_can(chosen, mass, impact, cost, eta, budget, unit):
    options, weights = Weighting(eta=eta), on_simplex(chosen, mass)
    held = within_budget(weights, impact, cost, 1.0, budget, options)
    in_another_unit = within_budget(weights, unit * impact, cost, unit, budget, options)
    free = mirror_ascent(weights, impact, 1.0, options)
    cheapest = cost[chosen].min()
    if held is None:
        assert budget < cheapest + 1e-6
        assert mean_cost(free, cost) > budget
        return
    assert in_another_unit == pytest.approx(held, rel=1e-5, abs=1e-6)
    assert ((held > 0) == chosen).all()
    assert held.sum() == pytest.approx(chosen.sum())
    assert mean_cost(held, cost) <= budget + 1e-9
    if mean_cost(free, cost) <= budget:
        assert held == pytest.approx(free)


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0), OPTIONS)
def test_no_exchange_takes_a_step_past_its_budget(seed, share, options):
    """The budget is between the least and the largest cost of those selected, some cheaper than nothing."""
    draw = np.random.default_rng(seed)
    n = int(draw.integers(2, 40))
    chosen = draw.random(n) < 0.6
    chosen[0] = True
    weights = on_simplex(chosen, draw.exponential(size=n))
    impact, cost, prior = draw.normal(1, 2, n), draw.normal(0.3, 1, n), draw.choice([0.0, 0.5, 1.0, 2.0], n)
    budget = cost[chosen].min() + share * np.ptp(cost[chosen])
    held = within_budget(weights, impact, cost, 2.0, budget, options)
    updated = step_within_budget(weights, impact, cost, 2.0, budget, prior, options)
    if held is None:
        assert updated is None
        return
    assert mean_cost(updated, cost) <= budget
    after = updated > 0
    assert updated.sum() == pytest.approx(after.sum())
    assert after.sum() <= chosen.sum()
    assert (impact[after & ~chosen] > 0).all()
    assert (prior[after & ~chosen] > 0).all()


@settings(max_examples=40)
@given(st.text("0123456789%.-+e_ ٣nainf", max_size=8), st.integers(1, 10**6))
def test_a_selection_is_a_count_or_refused(text, total):
    try:
        sound = 1 <= parse_selection(text, total) <= total
    except UserError as fault:
        sound = "percentage" in str(fault)
    assert sound


@settings(max_examples=40)
@given(st.floats(), st.floats(), st.floats())
def test_options_are_sane_or_refused(eta, rho, floor):
    try:
        options = Weighting(eta=eta, rho=rho, floor=floor)
    except UserError:
        assert not (0 <= eta < np.inf and 0 <= rho < np.inf and 0 <= floor < 1)
    else:
        assert 0 <= options.floor < 1
        assert np.isfinite([options.eta, options.rho]).all()
