"""A pool's shards: the rows of `load_negatives` in order, errors by file and row, no memory of the past."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cases import jsonl
from u2a.data import pool as module
from u2a.data.load import load_negatives, locate
from u2a.data.pool import Pool
from u2a.data.validate import prompt_key
from u2a.types import UserError

ROWS = [{"id": f"n{i}", "prompt": f"Q{i}", "completion": f"A{i}", "kind": i % 3} for i in range(11)]


def source(folder: Path, kind: str) -> str:
    """The rows as one source of each kind."""
    if kind == "jsonl":
        return jsonl(folder / "bad.jsonl", ROWS)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), folder / "bad.parquet", row_group_size=4)
        return str(folder / "bad.parquet")
    if kind == "arrow":
        table = pa.Table.from_pylist(ROWS)
        with (
            pa.OSFile(str(folder / "bad.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)
        return str(folder / "bad.arrow")
    (folder / "parts").mkdir()
    jsonl(folder / "parts" / "a.jsonl", ROWS[:5])
    pq.write_table(pa.Table.from_pylist(ROWS[5:]), folder / "parts" / "b.parquet")
    return str(folder / "parts")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "folder"])
@pytest.mark.parametrize("size", [1, 4, 11, 100])
def test_shards_are_the_rows_of_load_negatives_in_order(tmp_path, kind, size):
    name = source(tmp_path, kind)
    shards = list(Pool(name, shard_rows=size).shards())
    assert [shard.index for shard in shards] == list(range(-(-11 // size)))
    assert [len(shard.rows) for shard in shards[:-1]] == [size] * (len(shards) - 1)
    whole = load_negatives(name)
    assert [row for shard in shards for row in shard.rows] == list(whole)
    assert shards[0].rows.features == whole.features
    places = [locate(shard.rows, at) for shard in shards for at in shard.rows["source_row"]]
    assert places == [locate(whole, at) for at in whole["source_row"]]


def test_digests_change_with_text_weight_and_place(tmp_path):
    def digests(rows):
        return [s.digest for s in Pool(jsonl(tmp_path / "x.jsonl", rows), shard_rows=4).shards()]

    first = digests(ROWS)
    assert first == digests(ROWS)
    assert len(set(first)) == 3
    for changed in ({"completion": "B"}, {"prompt": "P"}, {"weight": 2}, {"id": "z"}):
        other = digests([*ROWS[:5], {**ROWS[5], **changed}, *ROWS[6:]])
        assert [a == b for a, b in zip(first, other, strict=True)] == [True, False, True]
    assert not set(first) & set(digests(ROWS[1:]))


def test_equal_and_missing_ids_are_taken_as_they_are(tmp_path):
    rows = [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}, {"text": "z"}]
    (shard,) = Pool(jsonl(tmp_path / "x.jsonl", rows), shard_rows=9).shards()
    assert shard.rows["id"][:] == ["a", "a", "2"]


def test_a_broken_row_is_named_once_its_shard_is_reached(tmp_path):
    """The shards before it are given. In a folder the row is counted within its file."""
    (tmp_path / "in").mkdir()
    jsonl(tmp_path / "in" / "a.jsonl", ROWS[:6])
    jsonl(tmp_path / "in" / "b.jsonl", [*ROWS[6:8], {**ROWS[8], "completion": " "}])
    shards = Pool(tmp_path / "in", shard_rows=4).shards()
    assert len(next(shards).rows) == 4
    assert len(next(shards).rows) == 4
    with pytest.raises(UserError, match=r"b\.jsonl, row 3: the answer is empty"):
        next(shards)
    (tmp_path / "in" / "b.jsonl").write_text('{"prompt": "Q", "completion": "A"}\n{"prompt": 3}\n')
    with pytest.raises(UserError, match=r"b\.jsonl, line 2: "):
        list(Pool(tmp_path / "in", shard_rows=4).shards())


def test_a_file_labelled_in_part_is_refused_across_shards(tmp_path):
    rows = [{**row, "label": False} for row in ROWS[:6]] + ROWS[6:]
    with pytest.raises(UserError, match="line 7: the row has no `label`"):
        list(Pool(jsonl(tmp_path / "x.jsonl", rows), shard_rows=2).shards())


def test_long_rows_end_a_shard_early(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_CHARACTERS", 10)
    shards = Pool(jsonl(tmp_path / "x.jsonl", ROWS), shard_rows=100).shards()
    assert [len(shard.rows) for shard in shards] == [3, 3, 3, 2]  # 4 characters a row; the last has 6


def test_prompts_that_are_asked_about_are_counted(tmp_path):
    keys = frozenset(prompt_key([{"role": "user", "content": text}]) for text in ("q1 ", "Q5", "Q77"))
    shards = list(Pool(jsonl(tmp_path / "x.jsonl", ROWS), shard_rows=4).shards(keys))
    assert [shard.shared_prompts for shard in shards] == [1, 1, 0]


def test_the_head_is_the_first_rows(tmp_path):
    name = jsonl(tmp_path / "x.jsonl", ROWS)
    pool = Pool(name, shard_rows=4)
    assert pool.head(5)["id"][:] == ["n0", "n1", "n2", "n3", "n4"]
    assert len(pool.head(100)) == 11
    with pytest.raises(UserError, match="no rows"):
        Pool(jsonl(tmp_path / "none.jsonl", []), shard_rows=4).head(5)


def test_memory_does_not_grow_with_the_pool(tmp_path):
    """Python's own peak over 1,000 rows and over 6,000 differ by next to nothing."""

    def peak(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as stream:
            for i in range(count):
                stream.write(json.dumps({"id": f"n{i}", "prompt": f"Q{i}", "completion": "A" * 100}) + "\n")
        tracemalloc.start()
        assert sum(len(shard.rows) for shard in Pool(path, shard_rows=250).shards()) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(250)  # what is made once
    assert peak(6_000) < 1.2 * peak(1_000)
