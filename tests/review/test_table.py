"""The table of a review: order, search, filters, and a refusal of other negatives."""

import numpy as np
import pytest

from cases import jsonl
from scored_run import HOSTILE, negative_rows, run_of, scored_run
from u2a.data.load import load_negatives
from u2a.review.marks import Mark
from u2a.review.table import TEXT_LENGTH, Query, ReviewTable
from u2a.types import UserError


@pytest.fixture
def table(tmp_path):
    run, negatives = run_of(tmp_path)
    return ReviewTable.read(run, load_negatives(negatives), negatives)


@pytest.mark.parametrize(
    "query, rows",
    [
        (Query(), [0, 1, 2, 3, 4, 5]),
        (Query(descending=False), [5, 4, 3, 2, 1, 0]),
        (Query(sort="size"), [0, 5, 1, 4, 2, 3]),
        (Query(sort="cost"), [5, 4, 3, 2, 1, 0]),
        (Query(sort="weight"), [0, 1, 2, 3, 4, 5]),
        (Query(sort="tokens", descending=False), [0, 1, 2, 3, 4, 5]),
        (Query(sort="row"), [5, 4, 3, 2, 1, 0]),
        (Query("RUDE answer 4"), [4]),
        (Query("question 2"), [2]),
        (Query("<script>"), [1]),
        (Query(".*"), []),  # no pattern, a text
        (Query(sign="positive"), [0, 1, 2]),
        (Query(sign="negative"), [3, 4, 5]),
        (Query(sign="selected"), [0, 1, 2]),
        (Query(sign="left out"), [3, 4, 5]),
        (Query(marks="unmarked"), [0, 2, 3, 5]),
        (Query(marks="marked"), [1, 4]),
        (Query(marks="wrong label"), [1]),
        (Query(marks="exclude"), [4]),
        (Query("rude", marks="unmarked", sign="positive", descending=False), [2, 0]),
    ],
)
def test_what_is_found(table, query, rows):
    marks = {1: Mark("wrong label"), 4: Mark("exclude")}
    assert table.find(query, marks).tolist() == rows


def test_a_prompt_of_several_turns_is_searched_turn_by_turn(tmp_path):
    turns = [{"role": "system", "content": "Être bref."}, {"role": "user", "content": "Why?"}]
    rows = [{"prompt": "x", "completion": "No."}, {"prompt": turns, "completion": "No."}]
    negatives = jsonl(tmp_path / "bad.jsonl", rows)
    run = scored_run(tmp_path / "run", negatives, weighted=False)
    table = ReviewTable.read(run, load_negatives(negatives), negatives)
    assert table.find(Query("être"), {}).tolist() == [1]
    assert table.find(Query("why"), {}).tolist() == [1]
    assert table.find(Query("user"), {}).tolist() == []
    assert table.find(Query(sign="selected"), {}).tolist() == [0, 1]  # there are no weights
    assert table.shown(1, None)["prompt"] == "system: Être bref.\nuser: Why?"
    assert table.shown(1, None)["weight"] is None


def test_a_negative_without_a_score_comes_last(table):
    table.scores.impact[2] = np.nan
    for descending in (True, False):
        assert table.find(Query(descending=descending), {}).tolist()[-1] == 2
    assert table.shown(2, None)["impact"] is None


def test_what_is_shown(table):
    shown = table.shown(1, Mark("exclude", "later"))
    assert shown["response"] == HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "␛")
    assert (shown["reason"], shown["note"]) == ("exclude", "later")
    assert shown["place"].endswith("bad.jsonl, row 2")
    assert shown["impact"] == 0.375
    assert (shown["cost"], shown["tokens"], shown["error"]) == (pytest.approx(0.1), 6, 0.01)


def test_a_text_without_end_is_cut(tmp_path):
    rows = [{"prompt": "x", "completion": "no " * 10_000}, {"prompt": "y", "completion": "no"}]
    negatives = jsonl(tmp_path / "bad.jsonl", rows)
    table = ReviewTable.read(scored_run(tmp_path / "run", negatives), load_negatives(negatives), negatives)
    assert table.shown(0, None)["response"].endswith("… (10,000 more characters)")
    assert len(table.shown(0, None)["response"]) < TEXT_LENGTH + 50


@pytest.mark.parametrize(
    "rows, words",
    [
        ([*negative_rows(5), {"id": "n5", "prompt": "Question 5?", "completion": "Changed."}], "row 6"),
        (negative_rows(5), "6 were scored and 5 are there"),
        (negative_rows(7), "6 were scored and 7 are there"),
    ],
)
def test_other_negatives_are_refused(tmp_path, rows, words):
    run, negatives = run_of(tmp_path)
    jsonl(tmp_path / "bad.jsonl", rows)
    with pytest.raises(UserError, match=words) as error:
        ReviewTable.read(run, load_negatives(negatives), negatives)
    assert "--negatives" in str(error.value)
