"""The large figures on top of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from u2a.report.headline import headline, tiles
from u2a.report.record import Record, Row


def record(**given: Any) -> Record:
    empty: dict[str, Any] = {"path": Path("run"), "config": {"kl_budget": 0.1}, "versions": {}}
    empty |= {"command": "align", "outcome": "2 of 4.", "table": [], "phases": [], "counts": {}}
    empty |= {"self_check": None, "warnings": [], "findings": []}
    return Record(**empty | given)


J = Row("J on validation", "nats", "higher", -0.7, -0.5)
MARGIN = Row("held-out margin, summed", "nats", "higher", 1.0, 3.0, change_interval=(1.5, 2.5))
ACCURACY = Row("held-out accuracy, summed", "share", "higher", 0.75, 0.875, change_interval=(-0.1, 0.35))
NLL = Row("retain NLL", "nats/token", "lower", 2.0, 2.25)
KL = Row("KL from the original", "nats/token", "lower", 0.0, 0.0625)


def test_the_held_out_margin_goes_before_the_climbed_objective() -> None:
    assert [tile.metric for tile in tiles(record(), [J, MARGIN, NLL])] == [MARGIN.metric, NLL.metric]
    assert [tile.metric for tile in tiles(record(), [J])] == [J.metric]


def test_tiles_say_change_range_and_verdict() -> None:
    margin, accuracy, nll, kl = tiles(record(), [J, NLL, KL, MARGIN, ACCURACY])
    assert (margin.change, margin.verdict) == ("+2", "better")
    assert margin.detail == "[1.5, 2.5] nats, from 1 to 3"
    assert (accuracy.change, accuracy.verdict) == ("87.5 %", "within noise")
    assert accuracy.detail == "+12.5 points, from 75.0 %"
    assert (nll.change, nll.verdict) == ("+0.25", "worse")
    assert (kl.change, kl.verdict, kl.detail) == ("0.0625", "", "nats/token; the budget is 0.1")


@pytest.mark.parametrize("budget", [0, None, True, float("inf"), "0.1"])
def test_what_is_no_budget_is_not_shown(budget: Any) -> None:
    (kl,) = tiles(record(config={"kl_budget": budget}), [KL])
    assert kl.detail == "nats/token"


def test_what_was_not_measured_is_no_tile() -> None:
    assert tiles(record(), [Row("J on validation", "nats", "higher", -0.7, float("nan"))]) == []


def test_the_end_goes_before_the_outcome() -> None:
    assert headline(record(end="Better.")) == ("Better.", "2 of 4.")
    assert headline(record()) == ("2 of 4.", "")
