"""Rows as they came: copied, and written again without some, from every kind of source."""

import datetime
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.test_load import KINDS, write
from u2a.data.load import load_negatives
from u2a.data.raw_rows import RawRows, json_line

ROWS = [{"prompt": f"Q{i}", "completion": "é" * i + "x", "more": str(i)} for i in range(5)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file(tmp_path, kind):
    source = write(tmp_path, ROWS, kind)
    raw = RawRows.read(source)
    out = tmp_path / "out.jsonl"
    raw.write(out, {})
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == ROWS
    new = {"prompt": "new", "rejected": "n"}
    raw.write(out, {0: [], 2: [new, new], 4: []})
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert found == [ROWS[1], new, new, ROWS[3]]
    raw.write(out, {row: [] for row in range(5)})
    assert out.read_bytes() == b""


def test_source_rows_are_those_of_the_loader(tmp_path):
    """Blank lines count, and files of a folder follow each other."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jsonl").write_text("\n" + json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]) + "\n")
    (folder / "b.jsonl").write_text("")
    (folder / "c.jsonl").write_text(json.dumps(ROWS[2]) + "\n")
    raw = RawRows.read(folder)
    loaded = load_negatives(folder)
    assert raw.source_rows.tolist() == list(loaded["source_row"])
    out = tmp_path / "out.jsonl"
    raw.write(out, {loaded["source_row"][1]: []})
    assert list(load_negatives(out)["response"]) == [ROWS[0]["completion"], ROWS[2]["completion"]]


def test_rows_that_mean_nothing_to_a_role_stay(tmp_path):
    rows = [{"prompt": "a", "completion": "b", "label": label} for label in (True, False, False)]
    source = write(tmp_path, rows)
    out = tmp_path / "out.jsonl"
    RawRows.read(source).write(out, {1: []})
    assert [json.loads(line) for line in out.read_text().splitlines()] == [rows[0], rows[2]]


def test_what_json_has_not(tmp_path):
    table = pa.table({"prompt": ["a"], "completion": ["b"], "day": [datetime.date(2026, 1, 2)], "no": [None]})
    pq.write_table(table, tmp_path / "a.parquet")
    out = tmp_path / "out.jsonl"
    RawRows.read(tmp_path / "a.parquet").write(out, {})
    assert json.loads(out.read_text()) == {"prompt": "a", "completion": "b", "day": "2026-01-02"}
    assert json.loads(json_line({"x": "\ud800"})) == {"x": "\ud800"}


def test_the_digest_is_that_of_the_rows(tmp_path):
    one = RawRows.read(write(tmp_path, ROWS, name="a")).digest
    assert RawRows.read(write(tmp_path, ROWS, "json", name="b")).digest == one
    assert RawRows.read(write(tmp_path, ROWS[:4], name="c")).digest != one
    assert RawRows.read(write(tmp_path, [*ROWS[:4], {**ROWS[4], "more": "5"}], name="d")).digest != one
