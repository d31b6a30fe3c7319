"""What the table of negatives is made of."""

from __future__ import annotations

import json

import numpy as np
import pytest

from u2a.report import negatives_table
from u2a.report.negatives_table import table_data, table_positions
from u2a.report.scores import Scores


def scores(impact: list[float], **more: np.ndarray | list[str]) -> Scores:
    n = len(impact)
    columns = {"ids": [str(i) for i in range(n)], "se": np.full(n, np.nan)} | more
    return Scores(np.arange(n), impact=np.array(impact), cost=np.ones(n), n_tokens=np.ones(n), **columns)


def test_rows_go_from_the_largest_impact_down_and_unknown_last() -> None:
    given = scores([0.5, np.nan, 2.0, -1.0])
    data = table_data(given, {i: ("p", f"r{i}") for i in range(4)}, 100)
    assert data["row"] == [2, 0, 3, 1]
    assert data["impact"] == [2.0, 0.5, -1.0, None]
    assert data["response"] == ["r2", "r0", "r3", "r1"]
    assert "error" not in data
    assert "weight" not in data
    json.dumps(data, allow_nan=False)


def test_errors_and_weights_are_there_where_they_are_known() -> None:
    more = {"weight": np.array([1.5, 0.0]), "selected": np.array([True, False])}
    data = table_data(scores([1.0, 2.0], se=np.array([0.123456, np.nan]), **more), None, 100)
    assert data["error"] == [None, 0.123]
    assert (data["weight"], data["selected"]) == ([0.0, 1.5], [0, 1])
    assert "prompt" not in data


def test_texts_are_cut_and_made_visible() -> None:
    given = scores([1.0], ids=["\u202eid"])
    data = table_data(given, {0: ("\x1b[31m", "a" * 10)}, 4)
    assert data["id"] == ["\\u202eid"]
    assert data["prompt"] == ["␛[31… (1 more characters)"]
    assert data["response"] == ["aaaa… (6 more characters)"]
    assert "response" not in table_data(given, {0: ("p", "r")}, 0)


def test_of_very_many_the_extremes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negatives_table, "MOST_ROWS", 4)
    assert table_positions(scores([0.0, 1, 2, 3, 4, 5, np.nan])).tolist() == [5, 4, 1, 0]
    assert table_positions(scores([0.0, 1, np.nan, np.nan, np.nan])).tolist() == [1, 0, 2, 3]
