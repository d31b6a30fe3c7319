"""Files to raw rows: positions, every fault at its place, and hostile input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from u2a.data import reading
from u2a.data.load import load_negatives
from u2a.data.reading import DataFile, Row, read_file
from u2a.types import UserError

GOOD = '{"prompt": "Q", "completion": "A"}'


def rows_of(tmp_path: Path, name: str, content: str | bytes) -> list[Row]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return list(read_file(DataFile(path, name, path.suffix[1:])))


FAULTS = [
    # name, content, the whole message as a pattern
    (
        "a.jsonl",
        f"{GOOD}\n\n{{'prompt': 1}}\n",
        r"a\.jsonl, line 3: not valid json \(Expecting property name .*",
    ),
    ("a.jsonl", f'{GOOD}\n{{"prompt": "Q', r"a\.jsonl, line 2: not valid json \(Unterminated string.*"),
    (
        "a.jsonl",
        f"{GOOD}\n[1, 2]\n",
        r"a\.jsonl, line 2: the row is a list, not an object with named columns",
    ),
    ("a.jsonl", f"{GOOD}\nnull\n", r"a\.jsonl, line 2: the row is missing, not an object with named columns"),
    ("a.jsonl", f"{GOOD}{GOOD}\n", r"a\.jsonl, line 1: not valid json \(Extra data, character 35\)"),
    ("a.jsonl", b'{"a": "\xff"}\n', r"a\.jsonl, line 1: not UTF-8 text; save the file as UTF-8"),
    ("a.jsonl", GOOD.encode("utf-16"), r"a\.jsonl, line 1: not UTF-8 text; save the file as UTF-8"),
    ("a.jsonl", '{"a": "\ud800"}\n', r"a\.jsonl, line 1: not UTF-8 text; save the file as UTF-8"),
    ("a.jsonl", '{"a": "b\x00c"}\n', r"a\.jsonl, line 1: not valid json \(Invalid control character at.*"),
    ("a.jsonl", f"\n{'[' * 200_000}\n", r"a\.jsonl, line 2: the json is nested too deeply to be read"),
    ("a.jsonl", f'{{"a": {"9" * 5000}}}', r"a\.jsonl, line 1: not valid json \(a number is too long\)"),
    ("a.json", f"[{GOOD},\n 5]", r"a\.json, row 2 \(line 2\): the row is not an object with named columns"),
    (
        "a.json",
        f"[{GOOD},\n {{x}}]",
        r"a\.json, row 2 \(line 2\): not valid json \(Expecting .*, at line 2\)",
    ),
    ("a.json", f"[{GOOD},\n]", r"a\.json, line 2: not valid json \(a comma before `\]`\)"),
    ("a.json", f"[{GOOD}\n{GOOD}]", r"a\.json, line 2: not valid json \(no `,` after row 1\)"),
    ("a.json", f"[{GOOD}", r"a\.json, line 1: not valid json \(no `,` after row 1\)"),
    ("a.json", f"[{GOOD}]\n]", r"a\.json, line 2: not valid json \(text after the last row\)"),
    ("a.json", f'[{GOOD},\n{{"a":\n "x\ny"}}]', r"a\.json, row 2 \(line 2\): not valid json .*, at line 3\)"),
    ("a.json", f'[{{"a": {"[" * 200_000}', r"a\.json, row 1 \(line 1\): the json is nested too deeply .*"),
    (
        "a.json",
        f'[{{"a": {"9" * 5000}}}]',
        r"a\.json, row 1 \(line 1\): not valid json \(a number is too long\)",
    ),
    ("a.json", b'[{"a": "b"},\n{"a": "\xff"}]', r"a\.json, line 2: not UTF-8 text; save the file as UTF-8"),
    ("a.json", '"text"', r"a\.json, row 1 \(line 1\): the row is not an object with named columns"),
    (
        "a.csv",
        'prompt,text\nQ,"A\nB"\nQ\n',
        r"a\.csv, row 2 \(line 4\): 1 cells where the header has 2 columns",
    ),
    ("a.csv", "prompt,text\nQ,A,B\n", r"a\.csv, row 1 \(line 2\): 3 cells where the header has 2 columns"),
    ("a.csv", 'prompt,text\nQ,"A\n', r"a\.csv, row 1 \(line 2\): not valid csv \(unexpected end of data\)"),
    ("a.csv", "text,prompt,text\n", r"a\.csv, line 1: the column `text` stands in the header twice"),
    ("a.csv", b"prompt\nQ\n\xe9\n", r"a\.csv, line 3: not UTF-8 text; save the file as UTF-8"),
    ("a.parquet", b"not parquet", r"a\.parquet: not a readable parquet file \(.*\)"),
    ("a.parquet", b"", r"a\.parquet: not a readable parquet file \(.*\)"),
    ("a.txt", b"fine\n\xff\n", r"a\.txt, line 2: not UTF-8 text; save the file as UTF-8"),
]


@pytest.mark.parametrize("name, content, message", FAULTS)
def test_fault_is_located(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        rows_of(tmp_path, name, content)


@pytest.mark.parametrize("name, content", [fault[:2] for fault in FAULTS])
def test_fault_reaches_the_user_through_the_loader(tmp_path: Path, name: str, content: str | bytes) -> None:
    """The loader may stop at an earlier row for its columns, but never with anything but a `UserError`."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=name):
        load_negatives(path)


def test_positions_and_places(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "a.jsonl", f"\n{GOOD}\r\n \n{GOOD}") == [
        (1, "a.jsonl, line 2", json.loads(GOOD), ()),
        (3, "a.jsonl, line 4", json.loads(GOOD), ()),
    ]
    assert rows_of(tmp_path, "a.json", f"[\n{GOOD},\n\n{GOOD}\n]\n") == [
        (0, "a.json, row 1 (line 2)", json.loads(GOOD), ()),
        (1, "a.json, row 2 (line 4)", json.loads(GOOD), ()),
    ]
    assert [row.where for row in rows_of(tmp_path, "a.json", '[{"text":\n\n"A"}, {"text":\n"B"}]')] == [
        "a.json, row 1 (line 1)",
        "a.json, row 2 (line 3)",
    ]
    assert rows_of(tmp_path, "a.csv", 'text\n"A\nB"\n\nC\n') == [
        (0, "a.csv, row 1 (line 2)", {"text": "A\nB"}, ()),
        (1, "a.csv, row 2 (line 5)", {"text": "C"}, ()),
    ]


@pytest.mark.parametrize("content", ["", "  \n", "[]", "[ ]\n", "\ufeff"])
def test_json_without_rows(tmp_path: Path, content: str) -> None:
    assert rows_of(tmp_path, "a.json", content) == []
    with pytest.raises(UserError, match=r"a\.json: it is empty, no rows"):
        load_negatives(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_empty_files(tmp_path: Path, name: str) -> None:
    assert rows_of(tmp_path, name, "") == []
    with pytest.raises(UserError, match=f"{name}: it is empty, no rows"):
        load_negatives(tmp_path / name)


def test_header_alone(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "a.csv", "prompt,completion\n") == []


def test_objects_without_an_array(tmp_path: Path) -> None:
    """jsonl under the name json, and one row alone."""
    assert len(rows_of(tmp_path, "a.json", f"{GOOD}\n{GOOD}\n")) == 2
    assert len(rows_of(tmp_path, "a.json", GOOD)) == 1


def test_byte_order_marks_are_no_text(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "a.jsonl", "\ufeff" + GOOD)[0].values == json.loads(GOOD)
    assert rows_of(tmp_path, "a.json", "\ufeff[" + GOOD + "]")[0].values == json.loads(GOOD)
    assert rows_of(tmp_path, "a.csv", "\ufefftext\nA\n")[0].values == {"text": "A"}


def test_nulls_count_as_missing(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "a.jsonl", '{"a": null, "b": ""}')[0].values == {"b": ""}
    table = pa.Table.from_pylist([{"a": None, "b": "x"}, {"a": 1, "b": None}])
    pq.write_table(table, tmp_path / "a.parquet")
    rows = list(read_file(DataFile(tmp_path / "a.parquet", "a", "parquet")))
    assert rows == [(0, "a, row 1", {"b": "x"}, ("a",)), (1, "a, row 2", {"a": 1}, ("b",))]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_line_of_a_megabyte(tmp_path: Path, name: str) -> None:
    """Longer than the json window and Python's own csv limit."""
    text = "a quick answer; " * 100_000
    content = {
        "a.jsonl": json.dumps({"text": text}) + "\n" + '{"text": "B"}',
        "a.json": json.dumps([{"text": text}, {"text": "B"}]),
        "a.csv": f'text\n"{text}"\nB\n',
        "a.txt": f"{text}\nB\n",
    }[name]
    before = csv.field_size_limit(1000)
    try:
        assert [row.values for row in rows_of(tmp_path, name, content)] == [{"text": text}, {"text": "B"}]
    finally:
        after = csv.field_size_limit(before)
    assert after == 1000
    assert load_negatives(tmp_path / name)["response"] == [text, "B"]


def test_nul_characters_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "Q\\u0000", "completion": "\\u0000A"}')
    assert load_negatives(path)[0].items() >= {"response": "\0A"}.items()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), max_size=6)
QUIET = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUIET
@given(
    objects=OBJECTS, chunk=st.integers(1, 40), indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans()
)
def test_json_windows_of_any_size_give_the_same_rows(
    tmp_path: Path, objects: list[dict[str, Any]], chunk: int, indent: int | None, ascii_only: bool
) -> None:
    """The window may cut a row anywhere: in a string, an escape, a number, a literal, between rows."""
    try:
        content = json.dumps(objects, indent=indent, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:  # half a surrogate pair can only be written as an escape
        content = json.dumps(objects, indent=indent).encode()
    before, reading.CHUNK = reading.CHUNK, chunk
    try:
        rows = rows_of(tmp_path, "a.json", content)
    finally:
        reading.CHUNK = before
    expected = [{key: value for key, value in each.items() if value is not None} for each in objects]
    assert [row.values for row in rows] == expected
    assert [row.position for row in rows] == list(range(len(objects)))


@QUIET
@given(content=st.binary(max_size=60) | st.text('{}[]",:\\\n "ptu1', max_size=40).map(str.encode))
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet"])
def test_any_bytes_give_rows_or_a_user_error(tmp_path: Path, name: str, content: bytes) -> None:
    try:
        rows = rows_of(tmp_path, name, content)
    except UserError as fault:
        located = name in str(fault)
    else:
        located = [row.position for row in rows] == sorted({row.position for row in rows})
    assert located
