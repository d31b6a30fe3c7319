"""Arrow files of both kinds: the rows of jsonl, from a folder of `datasets` too; broken ones are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from u2a.data import arrow_rows as module
from u2a.data.arrow_rows import arrow_rows
from u2a.data.load import load_negatives
from u2a.types import UserError

ROWS = [{"prompt": f"Q{i}", "completion": f"A{i}", "note": None if i % 2 else "n"} for i in range(7)]


def write(path: Path, rows: list[dict[str, object]], kind: str, batch: int = 3) -> Path:
    """An Arrow file in batches of `batch` rows; `kind` is file or stream."""
    table = pa.Table.from_pylist(rows)
    make = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("piece", [2, 256])
def test_rows_and_their_places(tmp_path, monkeypatch, kind, piece):
    monkeypatch.setattr(module, "BATCH", piece)
    found = list(arrow_rows(write(tmp_path / "a.arrow", ROWS, kind), "a.arrow"))
    assert [values for _, _, values in found] == ROWS
    assert [position for position, _, _ in found] == list(range(7))
    assert found[4][1] == "a.arrow, row 5"


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_negatives_of_an_arrow_file(tmp_path, kind):
    negatives = load_negatives(write(tmp_path / "bad.arrow", ROWS, kind))
    assert negatives["response"][:] == [f"A{i}" for i in range(7)]
    assert negatives["extra"][0] == '{"note": "n"}'


def test_a_folder_that_datasets_saved(tmp_path):
    """Its json files are no rows."""
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} == {".arrow", ".json"}
    assert load_negatives(tmp_path / "saved")["response"][:] == [f"A{i}" for i in range(7)]


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_broken_files_are_refused_by_name(tmp_path, kind):
    path = write(tmp_path / "bad.arrow", ROWS, kind)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"bad\.arrow: not a readable Arrow file"):
        load_negatives(path)
    path.write_bytes(b"no arrow at all")
    with pytest.raises(UserError, match=r"bad\.arrow: not a readable Arrow file"):
        load_negatives(path)


def test_offsets_that_lie_are_refused(tmp_path):
    """An offset beyond the text's end would read memory that is not the file's."""
    path = write(tmp_path / "x.arrow", ROWS, "file", batch=7)
    honest = struct.pack("<8i", *range(0, 16, 2))  # of texts of two characters
    content = path.read_bytes()
    assert content.count(honest) == 2
    path.write_bytes(content.replace(honest, struct.pack("<8i", *range(0, 14, 2), 1 << 20)))
    with pytest.raises(UserError, match=r"x\.arrow: not a readable Arrow file \(.*offset"):
        load_negatives(path)


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_two_keys_of_one_name_are_refused(tmp_path, kind):
    turn = pa.StructArray.from_arrays([pa.array(["user"]), pa.array(["Q"])], names=["role", "role"])
    table = pa.table({"prompt": turn, "completion": ["A"]})
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(UserError, match=rf"x\.{kind}: not a readable"):
        load_negatives(path)
