"""The figures of a run's negatives and of its measured points."""

from __future__ import annotations

import numpy as np
import pytest

from u2a.report.negatives_plots import (
    SCATTER_POINTS,
    cumulative_gain,
    gain_and_cost,
    impact_histogram,
    pareto_front,
)
from u2a.report.negatives_table import extremes
from u2a.report.progress_plot import budgets, progress
from u2a.report.scores import Measured, Scores


def scores(impact: list[float], **columns: list) -> Scores:
    n = len(impact)
    given = {name: np.array(values) for name, values in columns.items()}
    return Scores(
        row=np.arange(n),
        ids=[str(i) for i in range(n)],
        impact=np.array(impact, float),
        cost=given.get("cost", np.ones(n)),
        se=np.full(n, np.nan),
        n_tokens=np.ones(n),
        weight=given.get("weight"),
        selected=given.get("selected"),
    )


def test_extremes_never_overlap_and_leave_out_what_is_not_finite() -> None:
    assert extremes(scores([0.5, float("nan"), -1.0, 0.25])) == ([0, 3], [2])
    best, worst = extremes(scores(list(range(100))))
    assert best == list(range(99, 79, -1))
    assert worst == list(range(20))


def test_histogram_keeps_zero_on_the_left() -> None:
    """Of -1, 0, 0 and 1 only the last raises alignment: three in bars left of zero, one right of it."""
    bars = impact_histogram(scores([-1.0, 0.0, 0.0, 1.0])).figure["data"][0]
    left = sum(y for x, y in zip(bars["x"], bars["y"], strict=True) if x < 0)
    right = sum(y for x, y in zip(bars["x"], bars["y"], strict=True) if x > 0)
    assert (left, right) == (3, 1)
    assert set(zip(np.sign(bars["x"]), bars["marker"]["color"], strict=True)) == {
        (-1, "--bad"),
        (1, "--good"),
    }


@pytest.mark.parametrize(
    "impact", [[0.0], [0.0, 0.0], [1e-300], [-2.0], [5.0, 5.0], list(np.linspace(-1, 9, 500))]
)
def test_histogram_counts_every_negative_once(impact: list[float]) -> None:
    plot = impact_histogram(scores(impact))
    assert sum(plot.figure["data"][0]["y"]) == len(impact)
    assert sum(row[-1] for row in plot.rows) == len(impact)


@pytest.mark.parametrize("size, written", [(2e4, "none"), (1e-3, "none"), (1e8, "power"), (1e-6, "power")])
def test_long_numbers_on_an_axis_become_powers_of_ten(size: float, written: str) -> None:
    layout = impact_histogram(scores([-size, size])).figure["layout"]
    assert layout["xaxis"]["exponentformat"] == written
    assert layout["yaxis"]["exponentformat"] == "none"


def test_cumulative_gain_sums_from_the_largest() -> None:
    """Sorted 4, 1, -2: sums 4, 5, 3; the largest is reached with two."""
    plot = cumulative_gain(scores([1.0, -2.0, 4.0]), cut=1)
    assert plot.figure["data"][0]["x"] == [0, 1, 2, 3]
    assert plot.figure["data"][0]["y"] == [0, 80, 100, 60]  # in per cent of 5
    assert [row[1:] for row in plot.rows] == [[4.0, 80.0], [5.0, 100.0], [3.0, 60.0]]
    assert "best 2 of 3" in plot.caption
    assert "Chosen for unlearning: 1, which is 80 % of it." in plot.caption
    assert plot.figure["layout"]["shapes"][0]["x0"] == 1
    assert "shapes" not in cumulative_gain(scores([1.0]), cut=None).figure["layout"]


def test_scatter_marks_the_selected_and_counts_quarters() -> None:
    plot = gain_and_cost(
        scores([2.0, 1.0, -1.0], cost=[1.0, -1.0, 1.0], selected=[True, False, False], weight=[1, 0, 0]), {}
    )
    assert [(trace["name"], trace["y"]) for trace in plot.figure["data"]] == [
        ("not selected", [1, -1]),
        ("selected", [2]),
        ("Pareto front", [1, 2]),
    ]
    assert [row[-2:] for row in plot.rows] == [[1, 1], [1, 0], [1, 0], [0, 0]]


def test_pareto_front_rises_in_cost_and_gain() -> None:
    """Of costs 0, 1, 1, 2, 3 and gains 1, 2, 5, 5, 6: the second is beaten at its cost, the fourth costs more
    for as much. What is not known is in no front."""
    found = pareto_front(scores([6.0, 5.0, 1.0, 2.0, 5.0, 9.0], cost=[3.0, 2.0, 0.0, 1.0, 1.0, np.nan]))
    assert found.tolist() == [2, 4, 0]


def test_the_front_is_drawn_also_where_points_are_thinned() -> None:
    generator = np.random.default_rng(0)
    many = scores(list(generator.normal(size=5000)), cost=list(generator.normal(size=5000)))
    points, front = gain_and_cost(many, {}).figure["data"]
    drawn = set(zip(points["x"], points["y"], strict=True))
    assert set(zip(front["x"], front["y"], strict=True)) <= drawn
    assert len(front["x"]) == len(pareto_front(many)) > 3


def test_scatter_of_many_negatives_is_thinned() -> None:
    plot = gain_and_cost(scores(list(np.linspace(-1, 1, 5000))), {})
    assert len(plot.figure["data"][0]["x"]) == SCATTER_POINTS
    assert "1,000 of 5,000 are drawn" in plot.caption


@pytest.mark.parametrize("restart, begin", [(False, -0.4), (True, -0.7)])
def test_progress_draws_each_inner_run_from_its_beginning(restart: bool, begin: float) -> None:
    """Outer step 1 is tried twice (its learning rate was halved); outer step 2 follows at step 10 + 5."""

    def point(outer: int, step: int, j: float, best: bool) -> Measured:
        return Measured(outer, step, j, -2.0, 0.0, admissible=True, best=best)

    points = [
        point(0, 0, -0.7, True),
        point(1, 5, -0.9, False),
        point(1, 5, -0.4, True),
        point(1, 10, -0.5, False),
    ]
    plot = progress([*points, point(2, 5, -0.3, True)], restart=restart)
    line, dots = plot.figure["data"][:2]
    assert line["x"] == [0, None, 0, 5, None, 0, 5, 10, None, 10, 15]
    assert line["y"] == [-0.7, None, -0.7, -0.9, None, -0.7, -0.4, -0.5, None, begin, -0.3]
    assert dots["x"] == [0, 5, 5, 10, 15]
    assert [shape["x0"] for shape in plot.figure["layout"]["shapes"]] == [10]


def start(**figures: float) -> Measured:
    return Measured(0, 0, -0.7, -2.0, 0.0, admissible=True, best=True, **figures)


@pytest.mark.parametrize(
    "config, expected",
    [
        ({}, {}),
        ({"kl_budget": 0.1, "max_nll_rise": 0.5}, {"KL": 0.1, "U": -2.5}),
        ({"kl_budget": 0, "max_nll_rise": 0.5, "utility_budget": 0.2}, {"U": -2.2}),
        ({"max_repetition_rise": 0.1}, {"repetition": 0.4}),
        ({"max_repetition_rise": 0}, {"repetition": 0.3}),
        ({"max_repetition_rise": 1.0}, {}),  # off
        ({"max_repetition_rise": "0.1"}, {}),
        ({"kl_budget": "0.1", "max_nll_rise": True, "utility_budget": float("inf")}, {}),
    ],
)
def test_budgets_are_read_from_the_settings(config: dict, expected: dict) -> None:
    assert budgets(config, start(repetition=0.3)) == pytest.approx(expected)


def test_progress_draws_the_guards_that_the_curves_come_near() -> None:
    point = Measured(1, 5, -0.6, -2.1, 0.08, admissible=True, best=True, repetition=0.2, objective_se=0.05)
    plot = progress(
        [start(repetition=0.1, negative_logprob=-1.0), point], restart=False, bounds={"KL": 0.1, "U": -9.0}
    )
    assert [(s["y0"], s["yref"]) for s in plot.figure["layout"]["shapes"]] == [(0.1, "y3")]
    assert "KL below 0.1, U above -9" in plot.caption
    assert plot.title == "J, U, KL and repetition while unlearning"
    assert plot.header == ["outer step", "step", "J", "U", "KL", "repetition", "state"]
    assert plot.rows[1] == [1, 5, -0.6, -2.1, 0.08, 0.2, "best"]
    errors = [trace.get("error_y", {}).get("array") for trace in plot.figure["data"]]
    assert [each for each in errors if each] == [[None, 0.05]]
