"""Parquet: the same rows as jsonl, and no bombs."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from u2a.data import limits, parquet
from u2a.data.parquet import parquet_rows
from u2a.types import UserError


def shared(text: str, rows: int, path: Path) -> Path:
    """A file of so many rows that share one text: some kilobytes."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), [text])
    table = pa.table({"text": column})
    pq.write_table(table, path, compression="zstd", store_schema=False, dictionary_pagesize_limit=1 << 30)
    return path


def test_rows_of_every_type_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH", 2)
    rows: list[dict[str, Any]] = [
        {"prompt": [{"role": "user", "content": f"é {i}"}], "n": i, "w": 0.5, "s": {"a": None}, "b": b"\xff"}
        for i in range(5)
    ]
    rows[3]["prompt"] = None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = list(parquet_rows(tmp_path / "a.parquet", "a"))
    assert found == [(i, f"a, row {i + 1}", row) for i, row in enumerate(rows)]


def test_a_text_that_many_rows_share_is_held_once(tmp_path: Path) -> None:
    """300 rows of 20 MB in two kilobytes: 6 GB, of which 1 GiB is read, a row at a time."""
    path = shared("x" * 20_000_000, 300, tmp_path / "a.parquet")
    assert path.stat().st_size < 10_000
    before, most, read = pa.total_allocated_bytes(), 0, 0
    rows = parquet_rows(path, "a")
    tracemalloc.start()
    try:
        for _ in range(53):
            next(rows)
            read += 1
            most = max(most, pa.total_allocated_bytes() - before)
        with pytest.raises(UserError, match=r"a, row 54: the file expands to more than 1,073,741,824 bytes"):
            next(rows)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read == 53
    assert most < 200_000_000
    assert held < 100_000_000


def test_a_text_that_is_too_long_is_refused_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LONGEST_ROW", 1000)
    path = shared("x" * 1000, 3, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="a, row 1: the row is longer than 1,000 bytes"):
        list(parquet_rows(path, "a"))


def test_shared_texts_within_messages_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two messages a row and 1,000 characters each: 200 rows make 400,000 characters out of one text."""
    turns = [{"role": "user", "content": "x" * 1000}] * 2
    pq.write_table(pa.Table.from_pylist([{"messages": turns, "n": i} for i in range(200)]), tmp_path / "a")
    for longest in (limits.LONGEST_ROW, 10_000):  # a batch at once, and row by row
        monkeypatch.setattr(limits, "LONGEST_ROW", longest)
        monkeypatch.setattr(limits, "EXPANDED_LEAST", 1 << 30)
        assert len(list(parquet_rows(tmp_path / "a", "a"))) == 200
        monkeypatch.setattr(limits, "EXPANDED_LEAST", 300_000)
        monkeypatch.setattr(limits, "EXPANSION", 1)
        with pytest.raises(UserError, match=r"a, row 1\d?\d?: the file expands to more than 300,000 bytes"):
            list(parquet_rows(tmp_path / "a", "a"))


def test_a_billion_rows_of_nothing_are_refused_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the file says of itself; twenty million rows here."""
    path = shared("", 20_000_000, tmp_path / "a.parquet")
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UserError, match="a: the file expands to more than"):
        list(parquet_rows(path, "a"))
