"""What the page of a review is answered, by a real server."""

import json

import pytest

from scored_run import HOSTILE, run_of
from served_page import send, served
from u2a.data.load import load_negatives
from u2a.data.raw_rows import RawRows
from u2a.review.marks import Review
from u2a.review.page import review_page
from u2a.review.table import ReviewTable


@pytest.fixture
def page(tmp_path):
    run, source = run_of(tmp_path)
    negatives = load_negatives(source)
    review = Review.open(run, source, negatives, RawRows.read(source))
    with served(review_page(run, ReviewTable.read(run, negatives, source), review)) as made:
        yield made


def rows_of(reply):
    return [row["row"] for row in reply.json["rows"]]


def test_pieces_of_the_table(page):
    assert rows_of(send(page, "rows?limit=2")) == [0, 1]
    second = send(page, "rows?limit=2&offset=2&descending=false")
    assert rows_of(second) == [3, 2]
    assert second.json["total"] == 6
    assert rows_of(send(page, "rows?search=RUDE&sign=negative&sort=cost")) == [5, 4, 3]
    assert send(page, "about").json["negatives"] == 6


def test_a_mark_is_in_both_files_at_once(page, tmp_path):
    reply = send(page, "mark", {"row": 2, "reason": "wrong label", "note": "polite"})
    assert reply.json == {"counts": {"remaining": 5, "wrong label": 1, "exclude": 0}}
    kept = json.loads((tmp_path / "run" / "review.json").read_text())["marks"]
    assert [(each["row"], each["reason"], each["note"]) for each in kept] == [(2, "wrong label", "polite")]
    assert len((tmp_path / "run" / "reviewed.jsonl").read_text().splitlines()) == 5
    assert rows_of(send(page, "rows?marks=wrong%20label")) == [2]
    assert rows_of(send(page, "rows?marks=unmarked")) == [0, 1, 3, 4, 5]
    send(page, "mark", {"row": 2, "reason": ""})
    assert rows_of(send(page, "rows?marks=marked")) == []


@pytest.mark.parametrize(
    "body",
    [{"row": 0, "reason": "fun"}, {"row": "x", "reason": ""}, {}, {"row": 0, "reason": "exclude", "note": 3}],
)
def test_a_mark_that_is_none_is_refused(page, body):
    assert send(page, "mark", body).status == 422


@pytest.mark.parametrize(
    "query", ["sort=id", "limit=0", "limit=100000", "offset=-1", "marks=x", f"search={'a' * 1001}"]
)
def test_a_query_that_is_none_is_refused(page, query):
    assert send(page, f"rows?{query}").status == 422


def test_a_row_that_there_is_not(page):
    reply = send(page, "mark", {"row": 6, "reason": "exclude"})
    assert reply.status == 409
    assert "6 negatives" in reply.json["error"]


def test_a_full_disk_is_said_and_the_mark_is_not_kept(page, monkeypatch, logged):
    def full(*_):
        raise OSError(28, "No space left on device", "reviewed.jsonl")

    monkeypatch.setattr(RawRows, "write", full)
    reply = send(page, "mark", {"row": 1, "reason": "exclude", "note": "hush"})
    assert reply.status == 507
    assert "No space left" in reply.json["error"]
    assert rows_of(send(page, "rows?marks=marked")) == []
    assert "No space left" in logged.text
    assert "hush" not in logged.text
    assert HOSTILE not in logged.text
