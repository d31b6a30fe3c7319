"""Figures: statistics by hand and against scikit-learn's definition, intervals, paired differences."""

import json
import math

import numpy as np
import pytest

from u2a.commands.evaluation_results import document
from u2a.evaluation.figure import Figure, auc, figure_of_json, known_mean, mean, perplexity_of, ratio
from u2a.evaluation.readings import estimates
from u2a.types import GuardStop


def test_statistics_by_hand():
    """Ratio: (1 + 6) / (2 + 3); perplexity: e to that. AUC of scores 3, 1 | 2, 1: pairs 3>2, 3>1 count 1, 1<2
    counts 0, 1=1 half."""
    assert mean(np.array([[1.0], [4.0]])) == 2.5
    assert ratio(np.array([[1.0, 2.0], [6.0, 3.0]])) == 7 / 5
    assert perplexity_of(np.array([[1.0, 2.0], [6.0, 3.0]])) == math.exp(7 / 5)
    assert auc(np.array([[3.0, 1], [1.0, 1], [2.0, 0], [1.0, 0]])) == 2.5 / 4
    assert math.isnan(auc(np.array([[3.0, 1], [1.0, 1]])))


def test_an_unknown_example_drops_out_of_the_mean_and_keeps_its_place():
    """4 and 0 are known, 9 is not: 2. Replicates of the two known alone are 0, 2 or 4, or drawn without
    either, which no interval counts. Against a figure that knows all: (4 + 0)/2 − (1 + 1 + 1)/3."""
    values = np.array([[4.0, 1], [9.0, 0], [0.0, 1]])
    assert known_mean(values) == 2.0
    assert math.isnan(known_mean(values[1:2]))
    np.testing.assert_array_equal(known_mean(np.stack([values, values[::-1] * [1, 0]])), [2.0, math.nan])
    figure = Figure("x", values, "higher", "", known_mean)
    assert figure.estimate() == (2.0, 0.0, 4.0, 3)
    ones = Figure("x", np.ones((3, 2)), "higher", "", known_mean)
    assert figure.minus(ones) == (1.0, -1.0, 3.0, 3)


def test_auc_works_on_stacked_sets():
    """Each replicate is its own set of examples."""
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(size=(5, 20)), rng.integers(2, size=(5, 20))], axis=-1)
    found = auc(values)
    for one, each in zip(found, values, strict=True):
        inside, outside = each[each[:, 1] == 1, 0], each[each[:, 1] == 0, 0]
        pairs = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
        assert one == pytest.approx(np.mean(pairs))


def test_the_interval_is_that_of_the_normal_approximation_where_there_are_many():
    """For 400 examples of spread 1: ± 1.96/√400."""
    values = np.random.default_rng(1).normal(size=400)
    found = Figure("x", values, "higher", "nats").estimate()
    assert found.value == pytest.approx(values.mean())
    assert found.n == 400
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert found == Figure("x", values, "higher", "nats").estimate()


def test_paired_differences_draw_the_same_examples():
    """A shift common to all examples has no spread at all; examples of their own would give it one."""
    values = np.random.default_rng(2).normal(size=50)
    one, other = (Figure("x", v, "higher", "nats") for v in (values + 0.5, values))
    found = one.minus(other)
    assert found[:3] == pytest.approx((0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="not over the same examples"):
        one.minus(Figure("x", values[:3], "higher", "nats"))
    with pytest.raises(ValueError, match="x and y"):
        one.minus(Figure("y", values, "higher", "nats"))


def test_few_examples_have_no_interval_and_none_no_value():
    assert Figure("x", np.array([2.0]), "higher", "").estimate()[0] == 2.0
    assert math.isnan(Figure("x", np.array([2.0]), "higher", "").estimate().low)
    assert math.isnan(Figure("x", np.zeros(0), "higher", "").estimate().value)


def test_a_value_that_is_not_finite_stops_with_the_example():
    with pytest.raises(GuardStop, match="x of example 1 is not finite"):
        Figure("x", np.array([0.0, np.nan]), "higher", "")


def test_a_perplexity_beyond_numbers_is_infinite_and_has_no_interval():
    """exp(850) is no float64; a collapsed model must still be measured, and its other figures written."""
    collapsed = Figure("p", np.array([[9000.0, 10.0], [8000.0, 10.0]]), "lower", "", perplexity_of)
    sound = Figure("p", np.array([[20.0, 10.0], [10.0, 10.0]]), "lower", "", perplexity_of)
    for found in (collapsed.estimate(), collapsed.minus(sound)):
        assert math.isinf(found.value)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    assert math.isnan(collapsed.minus(collapsed).low)
    readings = estimates({"original": {"p": sound}, "other": {"p": collapsed}}, 0)
    written = json.dumps(document(readings, {"original": "", "other": ""}, {}, 0), allow_nan=False)
    assert json.loads(written)["models"]["other"]["figures"]["p"]["value"] is None


def test_figures_survive_being_written():
    figure = Figure(
        "x", np.array([[1.0, 2.0], [3.0, 5.0]]), "lower", "nats", ratio, resampled=False, counts={"ties": 3}
    )
    again = figure_of_json("x", json.loads(json.dumps(figure.as_json())))
    assert again.value == figure.value == pytest.approx(4 / 7)
    assert (again.better, again.unit, again.resampled) == ("lower", "nats", False)
    assert again.counts == {"ties": 3}


@pytest.mark.parametrize(
    "statistic", ["os:system", "u2a.evaluation.figure:a.b", "u2a.models.policy:load_policy"]
)
def test_only_our_own_statistics_are_called(statistic):
    kept = {"values": [[1.0]], "better": "lower", "unit": "x", "statistic": statistic, "resampled": True}
    with pytest.raises(ValueError, match="unknown statistic"):
        figure_of_json("x", kept)
