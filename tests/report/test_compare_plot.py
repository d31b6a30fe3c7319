"""The figures of a comparison."""

import json

import pytest

from run_folders import compare_run
from u2a.report.compare_plot import compare_plots
from u2a.types import UserError


def method(kind, value, seconds=10.0, reached=True):
    return {
        "method": kind,
        "margin_at_cost": {"value": value, "low": value - 0.5, "high": value + 0.25},
        "reached": reached,
        "seeds": 3,
        "seconds": seconds,
        "forward_tokens": 100.0,
        "trained_tokens": 50.0,
        "curve": [[0.01, value / 2, 5.0], [0.03, value, seconds]],
    }


@pytest.fixture
def run(tmp_path):
    methods = {
        "original": method("original", 0.0, reached=False),
        "u2a": method("u2a", 2.0),
        "<b>dpo</b>": method("dpo", 1.0, seconds=20.0),
    }
    (tmp_path / "comparison.json").write_text(json.dumps({"nll_rise": 0.02, "methods": methods}))
    return tmp_path


def test_bars_are_in_order_with_their_intervals(run):
    bars = compare_plots(run)[0]
    (trace,) = bars.figure["data"]
    assert trace["y"] == ["original", "&lt;b&gt;dpo&lt;/b&gt;", "u2a"]  # plotly draws upwards
    assert trace["x"] == [0.0, 1.0, 2.0]
    assert trace["error_x"]["array"] == [0.25] * 3
    assert trace["error_x"]["arrayminus"] == [0.5] * 3
    assert trace["marker"]["color"] == ["--text", "--quiet", "--accent"]
    assert bars.rows[0] == ["u2a", 2.0, 1.5, 2.25, "yes", "3"]
    assert bars.rows[2][4] == "no, taken at its end"
    assert "0.02 nats" in bars.caption


def test_ways_begin_at_the_original_model(run):
    pareto = compare_plots(run)[1]
    ours = pareto.figure["data"][1]
    assert (ours["x"], ours["y"]) == ([0.0, 0.01, 0.03], [0.0, 1.0, 2.0])
    assert ours["line"]["dash"] == "solid"
    assert pareto.figure["data"][2]["line"]["dash"] == "dot"
    assert pareto.figure["layout"]["shapes"][0]["x0"] == 0.02
    assert ["u2a", 2, 0.03, 2.0] in pareto.rows


def test_cost_leaves_the_original_out(run):
    price = compare_plots(run)[2]
    (trace,) = price.figure["data"]
    assert (trace["x"], trace["y"]) == ([10.0, 20.0], [2.0, 1.0])
    assert price.rows == [["u2a", 10.0, 100.0, 50.0], ["<b>dpo</b>", 20.0, 100.0, 50.0]]


def test_every_metric_is_a_mark_large_where_beyond_noise(tmp_path):
    """The first margin is within noise; `answer_distinct_2` has no interval and no mark, but a line."""
    path = compare_run(tmp_path) / "comparison.json"
    found = json.loads(path.read_text())
    methods = found["methods"]
    first = next(name for name in methods if "dpo" in name)
    methods[first]["figures"]["margin"]["change"] |= {"value": -0.1, "low": -0.6, "high": 0.4}
    path.write_text(json.dumps(found))
    plot = compare_plots(path.parent)[3]
    (trace,) = plot.figure["data"]
    marks = dict(zip(trace["text"], zip(*trace["marker"].values(), strict=True), strict=True))
    assert marks["u2a, held-out margin, summed"] == ("triangle-up", 13, "--good")
    assert marks["u2a, perplexity of retain texts"] == ("triangle-up", 13, "--bad")
    dpo = "&lt;b&gt;dpo&lt;/b&gt; &#36;x_1&#36;"
    assert marks[f"{dpo}, held-out margin, summed"] == ("triangle-down", 6, "--quiet")
    assert len(marks) == 4
    assert plot.figure["layout"]["yaxis"]["ticktext"] == [dpo, "u2a"]
    assert trace["y"] == [1, 1, 0, 0]
    assert trace["x"] == [0, 1, 0, 1]
    line = next(row for row in plot.rows if row[:2] == ["u2a", "held-out margin, summed"])
    assert line[2:] == ["higher", "nats", 0.0, 2.0, 2.0, "+1.5 to +2.5", 8]
    assert len(plot.rows) == 6


def test_without_figures_there_is_no_map(run):
    assert [plot.key for plot in compare_plots(run)] == ["methods", "pareto", "price"]


def test_other_runs_have_none(tmp_path):
    assert compare_plots(tmp_path) == []


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(UserError, match=r"comparison\.json"):
        compare_plots(tmp_path)


def test_a_method_without_an_interval_has_no_bar(run):
    """Of one held-out pair: both ends are null in the file."""
    path = run / "comparison.json"
    found = json.loads(path.read_text())
    found["methods"]["u2a"]["margin_at_cost"] |= {"low": None, "high": None}
    path.write_text(json.dumps(found))
    bars = compare_plots(run)[0]
    assert bars.figure["data"][0]["error_x"]["array"] == [0.25, 0.25, None]
    assert bars.figure["data"][0]["error_x"]["arrayminus"] == [0.5, 0.5, None]
    assert bars.rows[0][:4] == ["u2a", 2.0, "none", "none"]
