"""Loaders, whatever the file: rows or a `UserError` that names it; the same rows in every format."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from data.test_load import KINDS, write
from u2a.data.load import FEATURES, load_negatives, load_preferences, load_prompts, load_retain
from u2a.types import UserError

LOADERS = {
    "negatives": load_negatives,
    "preferences": load_preferences,
    "retain": load_retain,
    "prompts": load_prompts,
}
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=8)
WORDS = TEXT.filter(bool)
TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "tool"]), WORDS), min_size=1, max_size=3).map(
    lambda turns: [{"role": role, "content": content} for role, content in turns]
)


def answer(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def loaded(role: str, rows: list[dict[str, Any]], kind: str) -> Dataset:
    with tempfile.TemporaryDirectory() as folder:
        return LOADERS[role](write(Path(folder), rows, kind))


@settings(max_examples=5)
@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4))
@pytest.mark.parametrize("role", ["preferences", "retain", "prompts"])
def test_plain_rows_are_the_same_in_every_format(role: str, rows: list[tuple[str, str, str]]) -> None:
    table = [{"prompt": p or "Q", "chosen": c, "rejected": r, "topic": "moon"} for p, c, r in rows]
    first, *others = (loaded(role, table, kind) for kind in KINDS)
    assert [turn["content"] for (turn,) in first["prompt"]] == [row["prompt"] for row in table]
    if role != "prompts":
        column = "chosen" if role == "preferences" else "response"
        assert first[column] == [row["chosen"] for row in table]
    assert all(json.loads(extra) == {"topic": "moon"} for extra in first["extra"])
    for other in others:
        assert other.features == first.features
        assert other[:] == first[:]


@settings(max_examples=6)
@given(rows=st.lists(st.tuples(TURNS, TEXT, TEXT), min_size=1, max_size=3))
def test_conversations_are_the_same_in_every_format(rows: list[tuple[Any, str, str]]) -> None:
    table = [{"prompt": t, "chosen": answer(c), "rejected": answer(r)} for t, c, r in rows]
    for kind in KINDS:
        pairs = loaded("preferences", table, kind)
        assert pairs["prompt"] == [row["prompt"] for row in table]
        assert pairs["chosen"] == [c for _, c, _ in rows]
        assert pairs["rejected"] == [r for _, _, r in rows]


def _files() -> list[tuple[str, bytes]]:
    """A valid file of every kind, to be broken."""
    rows = [
        {"prompt": "Q", "completion": "A", "label": False},
        {"prompt": "P", "completion": "B", "label": True},
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    batches = pa.BufferOutputStream()
    with pa.ipc.new_stream(batches, pa.Table.from_pylist(rows).schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows))
    return [
        ("arrow", batches.getvalue().to_pybytes()),
        ("jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()),
        ("json", json.dumps(rows, indent=1).encode()),
        ("csv", b'prompt,completion,label\nQ,"A\nB",false\nP,C,true\n'),
        ("parquet", sink.getvalue().to_pybytes()),
        ("txt", b"one\ntwo\n"),
    ]


@settings(max_examples=12)
@given(data=st.data(), role=st.sampled_from(list(LOADERS)))
@pytest.mark.parametrize("kind, content", _files(), ids=[kind for kind, _ in _files()])
def test_a_broken_file_gives_rows_or_a_user_error(
    kind: str, content: bytes, data: st.DataObject, role: str
) -> None:
    broken = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(broken)))
        cut = data.draw(st.integers(0, 4))
        broken[at : at + cut] = data.draw(st.binary(max_size=4))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"data.{kind}"
        path.write_bytes(broken)
        try:
            dataset = LOADERS[role](path)
        except UserError as fault:
            named = f"data.{kind}" in str(fault)
        else:
            named = True
            assert dataset.features == FEATURES[role]
            assert dataset["row"][:] == list(range(len(dataset))) != []
            assert len(set(dataset["id"])) == len(dataset)
        assert named
