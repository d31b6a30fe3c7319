"""The figure of weights over outer steps."""

from __future__ import annotations

import math

import numpy as np

from u2a.report.scores import Scores
from u2a.report.weights_plot import MOVERS, weights_plot


def scores(*history: list[float]) -> Scores:
    n = len(history[0])
    ids, one = ["<b>", *map(str, range(1, n))], np.ones(n)
    steps = tuple(np.array(step) for step in history)
    return Scores(np.arange(n), ids, one, one, one, one, steps[-1], steps[-1] > 0, steps)


def test_lines_are_of_those_that_moved_most_first() -> None:
    plot = weights_plot(scores([1.0, 1.0, 1.0, 0.0], [1.0, 0.5, 2.0, 0.0]))
    assert plot is not None
    lower, upper, *lines = plot.figure["data"]
    assert [line["name"] for line in lines] == ["row 2, id 2", "row 1, id 1"]
    assert [line["y"] for line in lines] == [[1, 2], [1, 0.5]]
    # quartiles of the selected alone: 1, 1, 1 and then 0.5, 1, 2
    assert (lower["y"], upper["y"]) == ([1, 0.75], [1, 1.5])


def test_rows_count_who_enters_and_leaves() -> None:
    plot = weights_plot(scores([1.0, 1.0, 0.0], [0.0, 1.5, 0.5], [0.0, 0.0, 0.0]))
    assert plot is not None
    assert plot.rows[0] == [1, 2, 0, 0, 1.0, 1.0, 1.0]
    assert plot.rows[1] == [2, 2, 1, 1, 0.5, 1.0, 1.5]
    assert plot.rows[2][:4] == [3, 0, 0, 2]
    assert math.isnan(plot.rows[2][4])


def test_names_are_escaped_and_lines_few() -> None:
    first = [1.0] * 40
    plot = weights_plot(scores(first, [3.0, *np.linspace(0.5, 0.9, 39)]))
    assert plot is not None
    assert plot.figure["data"][2]["name"] == "row 0, id &lt;b&gt;"
    assert len(plot.figure["data"]) == 2 + MOVERS
    assert f"the {MOVERS} whose weight moved most" in plot.caption


def test_one_step_is_drawn_by_rank() -> None:
    plot = weights_plot(scores([0.5, 0.0, 1.5]))
    assert plot is not None
    (line,) = plot.figure["data"]
    assert (line["x"], line["y"]) == ([1, 2], [0.5, 1.5])
    assert plot.rows == [[1, 2, 0, 0, 0.5, 1.0, 1.5]]


def test_nothing_selected_is_no_figure() -> None:
    assert weights_plot(scores([0.0], [0.0])) is None
