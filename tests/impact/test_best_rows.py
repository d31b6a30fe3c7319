"""The best rows of a stream are those of the whole, whatever the order of the shards, each text once."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import jsonl
from u2a.data.load import load_negatives
from u2a.data.pool import Pool
from u2a.impact.best_rows import BestRows
from u2a.impact.shard_scores import PART_SCHEMA
from u2a.impact.table import SCHEMA


def _shards(folder, rows, size):
    return [s.rows for s in Pool(jsonl(folder / "pool.jsonl", rows), shard_rows=size).shards()]


def _scores(rows, impact):
    columns = {name: [None] * len(rows) for name in PART_SCHEMA.names}
    columns |= {"row": rows["row"][:], "id": rows["id"][:], "impact": impact, "n_tokens": [1] * len(rows)}
    return pa.table(columns, schema=PART_SCHEMA)


@settings(max_examples=60)
@given(data=st.data(), keep=st.integers(1, 8), size=st.integers(1, 5))
def test_the_same_as_sorting_everything(tmp_path_factory, data, keep, size):
    """Few values and few texts, so that ties and repeated texts are common."""
    entries = data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 6)), min_size=1, max_size=24))
    rows = [{"prompt": "Q", "completion": f"A{text}"} for text, _ in entries]
    impact = np.array([float(value) for _, value in entries])
    shards = _shards(tmp_path_factory.mktemp("pool"), rows, size)
    best = BestRows(keep)
    for at in data.draw(st.permutations(range(len(shards)))):
        best.add(shards[at], _scores(shards[at], impact[shards[at]["row"]]))
    expected, seen = [], set()
    for row in np.lexsort((np.arange(len(rows)), -impact)):
        if entries[row][0] not in seen:
            seen.add(entries[row][0])
            expected.append(int(row))
    assert [row["row"] for row in best.best] == expected[:keep]
    assert (best.rows, best.helpful, best.harmful) == (len(rows), (impact > 0).sum(), (impact < 0).sum())
    np.testing.assert_allclose(best.gain, np.maximum(impact, 0).sum())


def test_what_is_written_is_what_align_reads(tmp_path):
    """Conversations, raw texts, weights and other columns come through; ids that come twice are told apart;
    what does not help is not written."""
    turns = [{"role": "system", "content": "Be."}, {"role": "user", "content": "<b>Q</b>\u2028"}]
    rows = [
        {"id": "a", "prompt": turns, "completion": "Bad\n1", "weight": 2.5, "category": "x"},
        {"id": "a", "text": "raw"},
        {"id": "b", "prompt": "P", "completion": "Bad 3"},
        {"id": "c", "prompt": "P", "completion": "harmless"},
    ]
    (shard,) = _shards(tmp_path, rows, 9)
    best = BestRows(9)
    best.add(shard, _scores(shard, [1.0, 3.0, 2.0, -1.0]))
    assert best.write_selected(tmp_path / "selected.jsonl") == 3
    found = load_negatives(tmp_path / "selected.jsonl")
    assert found["id"][:] == ["a", "b", "a (row 0)"]
    assert found["response"][:] == ["raw", "Bad 3", "Bad\n1"]
    assert found[0]["prompt"] == []
    assert found[2]["prompt"] == turns
    assert found["weight"][:] == [1.0, 1.0, 2.5]
    assert json.loads(found["extra"][2]) == {"category": "x", "impact": 1.0, "pool_row": 0}
    best.write_table(tmp_path / "impact.parquet")
    table = pq.read_table(tmp_path / "impact.parquet")
    assert table.schema.equals(SCHEMA)
    assert table["row"].to_pylist() == [1, 2, 0, 3]
    assert table["prompt"].to_pylist()[2] == "system: Be.\nuser: <b>Q</b>\u2028"


def test_half_a_character_in_another_column_is_written(tmp_path):
    """Such as a cut emoji in a log: text of ours is refused with it, what is only kept is not."""
    rows = [{"prompt": "P", "completion": "bad", "user": "cut \ud83d"}]
    (shard,) = _shards(tmp_path, rows, 9)
    best = BestRows(9)
    best.add(shard, _scores(shard, [1.0]))
    assert best.write_selected(tmp_path / "selected.jsonl") == 1
    (found,) = load_negatives(tmp_path / "selected.jsonl")["extra"]
    assert json.loads(found)["user"] == "cut \ud83d"


def test_no_file_where_nothing_helps(tmp_path):
    (shard,) = _shards(tmp_path, [{"text": "x"}], 9)
    best = BestRows(2)
    best.add(shard, _scores(shard, [-1.0]))
    (tmp_path / "selected.jsonl").write_text("of an earlier run\n")
    assert best.write_selected(tmp_path / "selected.jsonl") == 0
    assert not (tmp_path / "selected.jsonl").exists()
    assert np.isnan(best.share_of_gain)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_share_of_the_gain(tmp_path, keep):
    (shard,) = _shards(tmp_path, [{"text": str(i)} for i in range(4)], 9)
    best = BestRows(keep)
    best.add(shard, _scores(shard, [1.0, 6.0, 3.0, -5.0]))
    np.testing.assert_allclose(best.share_of_gain, [0.6, 0.9, 1.0][keep - 1])
