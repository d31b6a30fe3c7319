"""Rows without end: refused by name, in bounded memory."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from u2a.data import limits
from u2a.data.limits import Expansion, size_of
from u2a.data.load import load_negatives, load_preferences
from u2a.types import UserError

KINDS = ["a.jsonl", "a.json", "a.csv", "a.txt"]


def head_of(name: str) -> bytes:
    return {
        "a.jsonl": b'{"text": "A"}\n{"text": "',
        "a.json": b'[{"text": "A"},\n{"text": "',
        "a.csv": b'text\nA\n"',
        "a.txt": b"A\n",
    }[name]


def peak_of_refusal(path: Path, message: str) -> int:
    """Most bytes that Python held while the file was refused."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message):
            load_negatives(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", KINDS)
def test_a_line_of_100_megabytes_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with path.open("wb") as stream:
        stream.write(head_of(name))
        for _ in range(100):
            stream.write(b"a quick answer; " * 65_536)
        stream.write({"a.jsonl": b'"}\n', "a.json": b'"}]', "a.csv": b'"\n', "a.txt": b"\n"}[name])
    peak = peak_of_refusal(path, rf"{name}, (line|row) [23]( .*)?: the (line|row) .*longer than 67,108,864 b")
    assert peak < 8 * limits.LONGEST_ROW


@pytest.mark.parametrize("name", KINDS)
def test_a_sparse_file_without_a_line_end_is_refused(tmp_path: Path, name: str) -> None:
    """A terabyte of NULs that takes no room on the disk, nor in an archive."""
    path = tmp_path / name
    path.write_bytes(head_of(name))
    os.truncate(path, 1 << 40)
    with pytest.raises(UserError, match=rf"{name}, .*longer than 67,108,864 bytes|{name}, .*not valid json"):
        load_negatives(path)


def test_a_quote_that_is_never_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of it is short."""
    monkeypatch.setattr(limits, "LONGEST_ROW", 1000)
    (tmp_path / "a.csv").write_text('text\nA\n"' + "short\n" * 1000)
    with pytest.raises(UserError, match=r"a\.csv, row 2 \(line 3\): the row is longer than 1,000 bytes"):
        load_negatives(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("text\n" + "short\n" * 1000)
    assert len(load_negatives(tmp_path / "a.csv")) == 1000


def test_texts_that_no_tokenizer_should_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LONGEST_TEXT", 10)
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "12345", "completion": "12345"}\n{"prompt": "12345", "completion": "123456"}')
    message = r"a\.jsonl, line 2: prompt and answer have 11 characters, more than 10; cut them"
    with pytest.raises(UserError, match=message):
        load_negatives(path)
    turns = [{"role": "user", "content": "123456"}, {"role": "assistant", "content": "12345"}] * 2
    path.write_text(json.dumps({"messages": turns}))
    with pytest.raises(UserError, match="have 22 characters"):
        load_negatives(path)
    path.write_text('{"prompt": "1", "chosen": "12345", "rejected": "123456"}')
    with pytest.raises(UserError, match="have 12 characters"):
        load_preferences(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.zip", "a.tar", "a.jsonl.bz2", "a.jsonl.xz"])
def test_compressed_files_are_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=f"{name}: unknown kind of file"):
        load_negatives(tmp_path / name)


def test_a_compressed_file_under_another_name_is_no_text(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b"\0" * 10_000_000))
    with pytest.raises(UserError, match=r"a\.jsonl, line \d+: not UTF-8 text"):
        load_negatives(tmp_path / "a.jsonl")


def test_expansion_counts() -> None:
    assert size_of({"a": "abc", "b": ["x", None], "c": 1}) == 6 * limits.VALUE_BYTES + 4
    small = Expansion("a", 10)
    small.add(limits.EXPANDED_LEAST, "a, row 1")
    with pytest.raises(UserError, match=r"a, row 2: the file expands to more than 1,073,741,824 bytes"):
        small.add(1, "a, row 2")
    large = Expansion("b", limits.EXPANDED_LEAST)
    large.add(limits.EXPANSION * limits.EXPANDED_LEAST, "b, row 1")
