"""Parts of a split, whatever the pairs: disjoint by prompt, nothing lost, the same with the same seed."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from data.test_split import keys, pairs
from u2a.data.load import load_negatives, load_preferences, load_retain
from u2a.data.split import PARTS, split_rows, write_split

PROMPTS = st.lists(
    st.sampled_from(["a", "A ", "b", "B", "c", "d", "e", "f", "g", "h"]), min_size=10, max_size=16
)
SEEDS = st.integers(0, 2**31 - 1)
BASE = [f"P{i}" for i in range(6)]


@cache
def _table(prompts: tuple[str, ...]) -> Dataset:
    with tempfile.TemporaryDirectory() as folder:
        return pairs(Path(folder), [*BASE, *prompts])


def _split(prompts: list[str], seed: int, **sizes: Any) -> dict[str, Dataset]:
    return split_rows(_table(tuple(prompts)), seed=seed, **{"validation": 2, "test": 2, **sizes})


@settings(max_examples=6)
@given(prompts=PROMPTS, seed=SEEDS)
def test_parts_cover_every_prompt_and_share_none(prompts: list[str], seed: int) -> None:
    parts = _split(prompts, seed)
    apart = [keys(parts[name]) for name in ("forget", "retain", "validation", "test")]
    assert sum(map(len, apart)) == len(set().union(*apart)) == len(keys(_table(tuple(prompts))))
    assert keys(parts["original"]) == apart[0] | apart[1]
    rows = [parts[name]["source_row"][:] for name in ("forget", "retain", "validation", "test")]
    assert sum(map(len, rows)) == len(set().union(*rows))
    bad = {row["source_row"] for row in parts["original"] if not row["label"]}
    assert bad == set(parts["forget"]["source_row"])


@settings(max_examples=4)
@given(prompts=PROMPTS, seed=SEEDS)
def test_the_seed_alone_decides(prompts: list[str], seed: int) -> None:
    first, second = _split(prompts, seed), _split(prompts, seed)
    assert all(first[name][:] == second[name][:] for name in PARTS)


@settings(max_examples=4)
@given(prompts=PROMPTS, seed=SEEDS, train=st.integers(2, 3))
def test_fewer_training_prompts_leave_the_held_out_rows_alone(
    prompts: list[str], seed: int, train: int
) -> None:
    """Validation and test rows are drawn first: a smaller mixture is measured on the same pairs."""
    whole, small = _split(prompts, seed), _split(prompts, seed, train=train)
    assert len(keys(small["original"])) == train
    for name in ("validation", "test"):
        assert small[name][:] == whole[name][:]


@settings(max_examples=3)
@given(prompts=PROMPTS, seed=SEEDS)
def test_written_parts_read_back(prompts: list[str], seed: int) -> None:
    parts = _split(prompts, seed)
    with tempfile.TemporaryDirectory() as folder:
        write_split(parts, Path(folder) / "parts")
        readers = {
            "forget": load_negatives,
            "retain": load_retain,
            "validation": load_preferences,
            "test": load_preferences,
        }
        for name, read in readers.items():
            back = read(Path(folder) / "parts" / f"{name}.jsonl")
            for column in set(back.column_names) - {"source_row"}:
                assert back[column][:] == parts[name][column][:], (name, column)
