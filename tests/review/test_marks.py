"""Marks: what is written after each, going on later, and what is never overwritten."""

import json

import pytest

from cases import jsonl
from scored_run import negative_rows
from u2a.data.load import load_negatives
from u2a.data.raw_rows import RawRows
from u2a.review.marks import Mark, Review
from u2a.types import UserError

WRONG, EXCLUDE = Mark("wrong label", "is polite"), Mark("exclude")


def opened(folder, source):
    return Review.open(folder, source, load_negatives(source), RawRows.read(source))


@pytest.fixture
def source(tmp_path):
    return jsonl(tmp_path / "bad.jsonl", negative_rows(4))


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_is_marked_is_left_out_and_named_with_its_reason(tmp_path, source):
    before = (tmp_path / "bad.jsonl").read_bytes()
    review = opened(tmp_path / "out", source)
    assert rows_of(review.reviewed) == negative_rows(4)  # before the first mark: all
    review.mark(1, WRONG)
    review.mark(3, EXCLUDE)
    assert rows_of(review.reviewed) == [negative_rows(4)[i] for i in (0, 2)]
    kept = json.loads((tmp_path / "out" / "review.json").read_text())
    assert kept["marks"] == [
        {"row": 1, "id": "n1", "file": source, "file_row": 2, "reason": "wrong label", "note": "is polite"},
        {"row": 3, "id": "n3", "file": source, "file_row": 4, "reason": "exclude", "note": ""},
    ]
    assert "script" not in (tmp_path / "out" / "review.json").read_text()
    review.mark(3, None)
    assert rows_of(review.reviewed) == [negative_rows(4)[i] for i in (0, 2, 3)]
    assert review.counts == {"remaining": 3, "wrong label": 1, "exclude": 0}
    assert (tmp_path / "bad.jsonl").read_bytes() == before


def test_a_review_goes_on_later(tmp_path, source):
    opened(tmp_path / "out", source).mark(1, WRONG)
    (tmp_path / "out" / "reviewed.jsonl").unlink()  # a kill between the two files
    again = opened(tmp_path / "out", source)
    assert again.marks == {1: WRONG}
    assert len(rows_of(again.reviewed)) == 3


@pytest.mark.parametrize("row, mark", [(-1, WRONG), (4, WRONG), (0, Mark("nice"))])
def test_a_mark_that_means_nothing_changes_nothing(tmp_path, source, row, mark):
    review = opened(tmp_path / "out", source)
    with pytest.raises(UserError):
        review.mark(row, mark)
    assert review.marks == {}


def test_the_last_negative_stays(tmp_path, source):
    review = opened(tmp_path / "out", source)
    for row in range(3):
        review.mark(row, EXCLUDE)
    with pytest.raises(UserError, match="last negative"):
        review.mark(3, EXCLUDE)
    assert review.remaining == 1


def test_a_file_of_the_users_is_not_overwritten(tmp_path, source):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "reviewed.jsonl").write_text("mine")
    with pytest.raises(UserError, match="not overwritten"):
        opened(tmp_path / "out", source)
    assert (tmp_path / "out" / "reviewed.jsonl").read_text() == "mine"


def test_marks_of_other_rows_are_refused(tmp_path, source):
    opened(tmp_path / "out", source).mark(1, WRONG)
    jsonl(tmp_path / "bad.jsonl", [*negative_rows(3), {"prompt": "a", "completion": "b"}])
    with pytest.raises(UserError, match="other rows"):
        opened(tmp_path / "out", source)


BROKEN = {
    "no json": "{",
    "a list": "[]",
    "a row that there is not": {"row": 9},
    "a row that is no number": {"row": True},
    "another reason": {"reason": "fun"},
    "a note that is no text": {"note": 3},
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_review_is_refused(tmp_path, source, case):
    review = opened(tmp_path / "out", source)
    review.mark(1, WRONG)
    path = tmp_path / "out" / "review.json"
    kept = json.loads(path.read_text())
    if isinstance(BROKEN[case], dict):
        kept["marks"][0] |= BROKEN[case]
    path.write_text(json.dumps(kept) if isinstance(BROKEN[case], dict) else BROKEN[case])
    with pytest.raises(UserError, match=r"review\.json"):
        opened(tmp_path / "out", source)


def test_a_mark_that_cannot_be_saved_is_no_mark(tmp_path, source, monkeypatch):
    review = opened(tmp_path / "out", source)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RawRows, "write", full)
    with pytest.raises(OSError, match="No space"):
        review.mark(0, WRONG)
    assert review.marks == {}


PKU = {
    "prompt": "Q?",
    "response_0": "Bad one.",
    "response_1": "Bad two.",
    "is_response_0_safe": False,
    "is_response_1_safe": False,
    "safer_response_id": 0,
    "weight": 0.5,
    "topic": "x",
}


def test_one_of_two_negatives_of_a_row_is_left(tmp_path):
    source = jsonl(tmp_path / "pku.jsonl", [PKU, {**PKU, "prompt": "R?"}])
    review = opened(tmp_path / "out", source)
    review.mark(1, WRONG)  # "Bad two." of the first row
    left = load_negatives(str(review.reviewed))
    assert list(left["response"]) == ["Bad one.", "Bad one.", "Bad two."]
    assert list(left["weight"]) == [0.5] * 3
    assert [turn[0]["content"] for turn in left["prompt"]] == ["Q?", "R?", "R?"]
    assert json.loads(left["extra"][0])["topic"] == "x"
    review.mark(0, EXCLUDE)
    assert list(load_negatives(str(review.reviewed))["response"]) == ["Bad one.", "Bad two."]
