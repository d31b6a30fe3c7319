"""What the user may name as a source, and what each wrong name is answered with."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
from datasets import Dataset, DatasetDict

from u2a.data.load import load_negatives, load_preferences, load_retain
from u2a.types import UserError

LINE = b'{"prompt": "Q", "completion": "A"}\n'


def feed_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    feed_stdin(monkeypatch, LINE * 3)
    assert load_negatives("-")["response"] == ["A"] * 3


def test_faults_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    feed_stdin(monkeypatch, LINE + b"{")
    with pytest.raises(UserError, match=r"^standard input, line 2: not valid json"):
        load_negatives("-")
    feed_stdin(monkeypatch, b"")
    with pytest.raises(UserError, match=r"^standard input: it is empty, no rows"):
        load_negatives("-")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "bad.jsonl").write_bytes(LINE)
    assert len(load_negatives("~/bad.jsonl")) == 1


def test_upper_case_ending(tmp_path: Path) -> None:
    (tmp_path / "bad.JSONL").write_bytes(LINE)
    assert len(load_negatives(tmp_path / "bad.JSONL")) == 1


@pytest.mark.parametrize("name", ["missing.jsonl", "data/missing.jsonl", "/no/such/folder", "a/b/c"])
def test_missing_file(name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name}: no such file or folder; give a path"):
        load_negatives(name)


@pytest.mark.parametrize("name", ["a.jsonl,b.jsonl", "data/*.jsonl"])
def test_several_files_are_a_folder(name: str) -> None:
    with pytest.raises(
        UserError, match=r"no such file or folder; .*; of several files give the folder that h"
    ):
        load_negatives(name)


def test_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "bad.xlsx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"bad\.xlsx: unknown kind of file '\.xlsx'; accepted are \.jsonl, "):
        load_negatives(tmp_path / "bad.xlsx")


@pytest.mark.parametrize(
    "names",
    [("train.jsonl", "test.jsonl"), ("train-00000-of-00002.parquet", "validation-00000-of-00001.parquet"),
     ("forget.jsonl", "retain.jsonl", "original.jsonl"), ("hh-train.jsonl", "hh-test.jsonl")],
    ids=str,
)  # fmt: skip
def test_a_folder_of_several_parts_is_no_set(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(LINE)
    with pytest.raises(UserError, match=r"the folder holds parts of a data set .*: name the file"):
        load_negatives(tmp_path)


def test_a_folder_of_one_part_is_a_set(tmp_path: Path) -> None:
    for part in ("one", "two"):
        (tmp_path / part).mkdir()
    for name in (
        "train-00000-of-00002.jsonl",
        "train-00001-of-00002.jsonl",
        "trainer.jsonl",
        "contest.jsonl",
    ):
        (tmp_path / "one" / name).write_bytes(LINE)
    for name in ("val.jsonl", "validation-2.jsonl", "my_dev.jsonl", "retained.jsonl"):
        (tmp_path / "two" / name).write_bytes(LINE)
    assert len(load_negatives(tmp_path / "one")) == len(load_negatives(tmp_path / "two")) == 4


def test_folder_without_data(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no rows")
    with pytest.raises(UserError, match="the folder holds no data files"):
        load_negatives(tmp_path)


def test_splits_that_datasets_saved_are_named(tmp_path: Path) -> None:
    """The folder of a `DatasetDict` holds one json file, which was read as a row."""
    rows = Dataset.from_dict({"prompt": ["Q"], "completion": ["A"]})
    folder = tmp_path / "saved"
    DatasetDict(train=rows, test=rows).save_to_disk(folder)
    parts = f"{folder / 'test'}, {folder / 'train'}"
    with pytest.raises(UserError, match=re.escape(f"its sub-folders do: name one of {parts}") + "$"):
        load_negatives(folder)
    assert load_negatives(folder / "train")["response"][:] == ["A"]


def test_the_sub_folder_that_holds_the_rows_is_named(tmp_path: Path) -> None:
    """As snapshots of the Hub have it, beside a README and hidden folders."""
    for name in ("data/train-00000-of-00001.jsonl", ".cache/huggingface/x.json", "images/a.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(LINE)
    (tmp_path / "README.md").write_text("About.")
    told = f"{tmp_path}: the folder holds no rows itself, its sub-folder does: name {tmp_path / 'data'}"
    with pytest.raises(UserError, match=re.escape(told) + "$"):
        load_negatives(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
def test_named_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match=r"pipe\.jsonl: not a regular file; pass `-`"):
        load_negatives(tmp_path / "pipe.jsonl")


def test_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(name: str, *, split: str) -> Dataset:
        calls.append((name, split))
        return Dataset.from_dict(
            {"prompt": ["Q", "Q"], "chosen": ["A", "B"], "rejected": ["C", "D"], "score": [None, 2]}
        )

    monkeypatch.setattr("datasets.load_dataset", fake)
    loaded = load_preferences("some-org/pairs", split="validation")
    assert calls == [("some-org/pairs", "validation")]
    assert loaded["rejected"] == ["C", "D"]
    assert loaded["extra"] == ["{}", '{"score": 2}']


def test_hub_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> Dataset:
        raise ConnectionError("Couldn't reach the Hub\nmore")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(
        UserError, match=r"^org/gone: no such file or folder, .*'train'.*\(Couldn't reach the Hub\)$"
    ):
        load_negatives("org/gone")

    table = Dataset.from_dict({"prompt": ["Q"], "score": [1]})
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: table)
    with pytest.raises(
        UserError, match=r"^org/odd, row 1: no columns for negatives; found `prompt`, `score`;"
    ):
        load_negatives("org/odd")


def test_a_path_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "rows.jsonl").write_bytes(LINE)
    assert load_negatives("org/name")["response"] == ["A"]


ROWS = [{"prompt": "Q", "completion": "A"}, {"prompt": "R", "completion": "B", "label": False}]


def test_a_table_of_pandas_is_read_by_its_rows() -> None:
    """Its iteration gives the names of columns, so "row 1: it is str" was said of a sound table."""
    table = pandas.DataFrame([{**row, "label": row["completion"] == "B"} for row in ROWS])
    table["note"] = ["x", float("nan")]
    loaded = load_negatives(table)
    assert loaded["response"][:] == ["A"]
    assert loaded["extra"][:] == ['{"note": "x"}']
    assert len(load_retain(table)) == 1
    assert load_retain(table)["extra"][:] == ["{}"]
    table.index = [7, 7]
    assert load_negatives(table)["extra"][:] == ['{"note": "x"}']  # the index is no column
    with pytest.raises(UserError, match="the rows given: the column 'prompt' must hold one type of value"):
        load_negatives(pandas.DataFrame({"prompt": ["Q", 1], "completion": ["A", "B"]}))


def test_rows_of_any_iterable_are_read() -> None:
    """A generator was used up by the check of its rows, and then said to be empty."""
    assert load_negatives(row for row in ROWS[:1])["response"][:] == ["A"]
    assert load_negatives(tuple(ROWS[:1]))["response"][:] == ["A"]


@pytest.mark.parametrize(
    "given, told",
    [
        (DatasetDict(a=Dataset.from_list(ROWS), b=Dataset.from_list(ROWS)), r"such as \['a'\] \(of a, b\)"),
        ({"prompt": ["Q"], "completion": ["A"]}, r"mapping of columns; give `datasets\.Dataset\.from_dict"),
        (ROWS[0], "this is one mapping; give a path, a list of rows"),
        ({}, "this is one mapping"),
        (3, "int is no source; give a path, a list of rows"),
        (None, "NoneType is no source"),
    ],
)
def test_what_is_no_source_is_told_what_to_give(given: Any, told: str) -> None:
    with pytest.raises(UserError, match=f"^the rows given: .*{told}"):
        load_negatives(given)
