"""A pool of negatives too large for memory and for a second copy on the disk: read row by row, given shard by
shard.

A source is what `u2a.data.load` reads. It is never copied, counted or sorted: memory holds one shard, and
from a parquet file one row group. Who goes through a pool twice finds the same shards.

Duplicates: a row that says the same as an earlier one is a row of its own here, since finding it would need
every row's digest at once. `u2a.impact.best_rows` keeps each text once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetInfo

from u2a.data.canonical_rows import Reading
from u2a.data.labels import UnreadLabels
from u2a.data.load import FEATURES, streamed_negatives
from u2a.data.sources import find_source
from u2a.data.validate import prompt_key
from u2a.types import UserError

SHARD_CHARACTERS = 1 << 26
"""A shard with as many characters ends before it has all its rows: a few rows can be megabytes long."""
_SCHEMA = FEATURES["negatives"].arrow_schema

Row = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """Consecutive negatives of a pool.

    `index` counts shards from 0. `rows` are canonical negatives as `load_negatives` makes them, in memory;
    their `row` is the position in the whole pool. `digest` changes with any of their texts, weights, ids or
    places. `shared_prompts` counts rows whose prompt is among those that were asked about.
    """

    index: int
    rows: Dataset
    digest: str
    shared_prompts: int = 0


class Pool:
    """Negatives from a file, a folder, a Hub id or `-` (standard input, which is kept on the disk).

    Raises:
        UserError: there is no such source.
    """

    def __init__(self, source: str | Path, *, shard_rows: int, split: str = "train") -> None:
        self.name, self.shard_rows = str(source), shard_rows
        self._source, self._unread = find_source(source, split), UnreadLabels("negatives")

    def head(self, count: int) -> Dataset:
        """The first `count` canonical rows, or all where there are fewer. Raises `UserError` as `shards`."""
        reading, rows = streamed_negatives(self._source, self._unread), list[Row]()
        for row in self._rows(reading):
            rows.append(row)
            if len(rows) == count:
                break
        return _shard(0, rows, reading.starts, frozenset()).rows

    def shards(self, prompts: Set[bytes] = frozenset()) -> Iterator[Shard]:
        """All rows in order, `shard_rows` to a shard (the last one has what is left).

        Args:
            prompts: keys (`u2a.data.validate.prompt_key`) to look for among the rows' prompts.

        Raises:
            UserError: a row is broken or its response empty; names file and row. Shards before are given.
        """
        reading = streamed_negatives(self._source, self._unread)
        index, rows, size = 0, list[Row](), 0
        for row in self._rows(reading):
            rows.append(row)
            size += len(row["response"]) + sum(len(turn["content"]) for turn in row["prompt"])
            if len(rows) == self.shard_rows or size >= SHARD_CHARACTERS:
                yield _shard(index, rows, reading.starts, prompts)
                index, rows, size = index + 1, [], 0
        if rows:
            yield _shard(index, rows, reading.starts, prompts)

    def _rows(self, reading: Reading) -> Iterator[Row]:
        for row in reading.rows():
            if not row["response"] or row["response"].isspace():
                file, start = max((s for s in reading.starts if s[1] <= row["source_row"]), key=_start)
                place = f"{file}, row {row['source_row'] - start + 1}"
                raise UserError(f"{place}: the answer is empty; remove the row")
            yield row


def _start(entry: tuple[str, int]) -> int:
    return entry[1]


def _shard(index: int, rows: list[Row], starts: list[tuple[str, int]], prompts: Set[bytes]) -> Shard:
    digest = blake2b(digest_size=16)
    for row in rows:
        facts = [row["row"], row["id"], row["weight"], row["response"], row["prompt"]]
        digest.update(json.dumps(facts, ensure_ascii=False).encode())
    shared = sum(prompt_key(row["prompt"]) in prompts for row in rows) if prompts else 0
    # only files that have rows here, so that the note stays short; the first entry must begin at 0
    first = max((s for s in starts if s[1] <= rows[0]["source_row"]), key=_start)
    files = [first, *(s for s in starts if s[1] > first[1])]
    note = json.dumps({"files": files if first[1] == 0 else [("", 0), *files]})
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    info = DatasetInfo(features=FEATURES["negatives"], description=note)
    return Shard(index, Dataset(table, info=info, fingerprint=digest.hexdigest()), digest.hexdigest(), shared)
