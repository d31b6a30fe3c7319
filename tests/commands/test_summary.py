"""The table at the end of `align`: figures of the original and the aligned model, with intervals."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from problems import tiny_problem
from u2a.commands import summary
from u2a.commands.summary import (
    Row,
    held_out_rows,
    mean_interval,
    measurement_rows,
    print_summary,
    write_summary,
)
from u2a.evaluation.preference import pair_metrics, pair_values
from u2a.impact.difference import difference


def test_an_interval_is_of_the_mean() -> None:
    """Of 1 and 3 the mean is 2, the standard deviation √2, so the error of the mean 1."""
    assert mean_interval(np.array([1.0, 3.0])) == pytest.approx((0.04, 3.96))
    assert mean_interval(np.array([1.0])) is None
    assert mean_interval(None) is None


def test_values_of_pairs_have_the_metrics_as_means() -> None:
    """Summed −2 − (−4) = 2 and −3 − (−2) = −1; per token −2/2 − (−4)/1 = 3 and again −1."""
    s, lengths = torch.tensor([-2.0, -3.0, -4.0, -2.0]), torch.tensor([2, 1, 1, 1])
    values = pair_values(s, lengths)
    assert values["margin"].tolist() == [2.0, -1.0]
    assert values["margin_per_token"].tolist() == [3.0, -1.0]
    assert values["accuracy"].tolist() == values["accuracy_per_token"].tolist() == [1.0, 0.0]
    assert values["chosen_logprob"].tolist() == [-2.0, -3.0]
    metrics = pair_metrics(s, lengths)
    assert {name: getattr(metrics, name) for name in values} == {n: v.mean() for n, v in values.items()}


def test_the_change_of_held_out_pairs_is_paired() -> None:
    """Pairs that differ much but all gain 1: the figures are unsure, their change is not."""
    before = dict.fromkeys(
        ("margin", "margin_per_token", "accuracy", "accuracy_per_token", "chosen_logprob"),
        np.array([0.0, 10.0]),
    )
    after = {name: values + 1 for name, values in before.items()}
    rows = {row.metric: row for row in held_out_rows(before, after)}
    margin = rows["held-out margin, summed"]
    assert (margin.original, margin.aligned) == (5.0, 6.0)
    assert margin.original_interval == pytest.approx((5 - 1.96 * 5, 5 + 1.96 * 5))
    assert margin.aligned_interval == pytest.approx((6 - 1.96 * 5, 6 + 1.96 * 5))
    assert margin.change_interval == pytest.approx((1.0, 1.0))
    chosen = rows["change of held-out chosen log-prob"]
    assert (chosen.original, chosen.aligned, chosen.change_interval) == (0.0, 1.0, pytest.approx((1.0, 1.0)))


def test_intervals_lie_around_the_changes_of_j_and_u() -> None:
    problem = tiny_problem()
    start = problem.measure(negatives=True)
    with torch.no_grad():
        for parameter in problem.policy.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    moved = problem.measure(negatives=True)
    rows = measurement_rows(start, moved, problem)
    for row in rows[:2]:
        assert row.original is not None
        assert row.aligned is not None
        assert row.change_interval is not None
        assert sum(row.change_interval) / 2 == pytest.approx(row.aligned - row.original)
        assert row.change_interval[0] < row.change_interval[1]
    assert [row.change_interval for row in rows[2:]] == [None, None]
    assert all(row.change_interval is None for row in measurement_rows(start, moved))
    json.dumps([row.change_interval for row in rows], allow_nan=False)


@pytest.mark.parametrize(
    "aligned, interval, title, header, cells",
    [
        (None, None, "The original model", 2, ("J ↑ (nats)", "-0.75")),
        (-0.5, None, "Original beside aligned", 4, ("J ↑ (nats)", "-0.75", "-0.5", "+0.25")),
        (
            -0.5,
            (0.125, 0.375),
            "Original beside aligned",
            5,
            ("J ↑ (nats)", "-0.75", "-0.5", "+0.25", "0.12"),
        ),
        (-0.75, (0.0, 0.0), "Original beside aligned", 5, ("J ↑ (nats)", "-0.75", "-0.75", "0", "")),
    ],
)
def test_the_table_has_the_columns_that_hold_something(
    aligned, interval, title, header, cells, monkeypatch
) -> None:
    tables = []
    monkeypatch.setattr(summary, "print_table", lambda *table: tables.append(table))
    row = Row("J", "nats", "higher", -0.75, aligned, change_interval=interval)
    print_summary([row], SimpleNamespace(phases={}))
    assert tables[0][0] == title
    assert tables[0][1] == ("metric (unit)", "original", "aligned", "change", "± 95 %")[:header]
    assert tables[0][2] == [cells]


def test_what_is_undefined_is_null(tmp_path) -> None:
    """Where no negative helps, nothing is shared out: an impact run ended in an error of JSON's for it."""
    found = asdict(difference(np.array([-1.0, -2.0]), None, {}))
    run = SimpleNamespace(path=tmp_path, phases={})
    write_summary(run, "impact", "Nothing helps.", [], difference=found)
    written = json.loads((tmp_path / "summary.json").read_text())["difference"]
    assert (written["gini"], written["half_of_gain"]) == (None, None)
    assert written["harms"] == 1.0
