"""The figures of an evaluation."""

import json

import pytest

from u2a.report.evaluate_plot import beyond, colour_of_change, evaluate_plots
from u2a.types import UserError


def figure(value, change=None, low=None, high=None, better="higher"):
    return {
        "value": value,
        "low": None,
        "high": None,
        "n": 4,
        "better": better,
        "unit": "nats",
        "change": None if change is None else {"value": change, "low": low, "high": high, "n": 4},
    }


@pytest.fixture
def run(tmp_path):
    names = ("margin", "perplexity_retain", "kl", "answer_tokens", "accuracy", "distinct")
    original = {name: figure(1.0) for name in names}
    ours = {
        "margin": figure(3.0, 2.0, 1.0, 3.0),  # twice its interval's arm, for the better
        "perplexity_retain": figure(41.0, 40.0, 39.0, 41.0, better="lower"),  # forty, for the worse
        "kl": figure(3.0, 2.0, 1.0, 3.0, better="lower"),  # cannot but rise
        "answer_tokens": figure(5.0, 4.0, 2.0, 6.0, better="neither"),
        "accuracy": figure(1.1, 0.1, -0.1, 0.3),  # within noise
        "distinct": figure(0.5, -0.5),  # no interval
    }
    models = {"original": {"figures": original}, "mine": {"figures": ours}}
    (tmp_path / "evaluation.json").write_text(json.dumps({"models": models}))
    return tmp_path


def test_changes_are_in_arms_of_their_interval(run):
    (plot,) = evaluate_plots(run)
    (bars,) = plot.figure["data"]
    assert bars["y"] == [
        "held-out accuracy, summed",
        "tokens of an answer",
        "KL from the original",
        "perplexity of retain texts",
        "held-out margin, summed",
    ]
    assert bars["x"] == pytest.approx([0.5, 2.0, 2.0, 10.0, 2.0])
    assert bars["marker"]["color"] == ["--quiet", "--quiet", "--quiet", "--bad", "--good"]
    assert plot.figure["layout"]["yaxis"]["dtick"] == 1  # no name is left out
    assert plot.title == "mine: changes from the original model"
    assert plot.rows[0] == ["held-out margin, summed", "higher", "nats", 1.0, 3.0, 2.0, "+1 to +3", 4]
    assert plot.rows[5][6] == "–"
    assert len(plot.rows) == 6


@pytest.mark.parametrize(
    "value, low, high, expected",
    [
        (1.0, 0.5, 1.5, 2.0),
        (-1.0, -1.5, -0.5, -2.0),
        (1.0, -0.25, 1.5, 0.8),  # holds 0, though its width is less than twice the value
        (-1.0, -1.5, 0.25, -0.8),
        (0.5, 0.25, 2.5, 2.0),  # does not, though its width is more than that
        (1.0, 0.0, 2.0, 1.0),
        (1.0, 1.0, 2.0, 10.0),  # no arm towards 0: as long as bars are
        (0.0, -1.0, 1.0, 0.0),
        (0.0, 0.0, 0.0, None),
        (1.0, None, None, None),
    ],
)
def test_beyond_one_is_where_the_interval_leaves_zero_out(value, low, high, expected):
    """As the table beside it says it, of lopsided intervals too."""
    found = beyond({"value": value, "low": low, "high": high})
    assert found == (None if expected is None else pytest.approx(expected))
    if found is not None:
        sure = low > 0 or high < 0
        assert (abs(found) > 1) is sure
        assert (colour_of_change("margin", "higher", found) != "--quiet") is sure


def test_other_runs_have_none(tmp_path):
    assert evaluate_plots(tmp_path) == []


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "evaluation.json").write_text("[]")
    with pytest.raises(UserError, match=r"evaluation\.json"):
        evaluate_plots(tmp_path)
