"""The K best rows of a stream of scored shards, whatever order the shards come in, in memory for K rows."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from u2a.data.raw_rows import json_line
from u2a.impact.table import SCHEMA, as_text
from u2a.storage.files import whole_file

_BLOCK = 1000

Rank = tuple[float, int]
"""Impact, then minus the row: the larger is the better, and of equal impacts the earlier row."""


class BestRows:
    """Keeps the `keep` rows with the largest impact, and of all rows what can be summed.

    A text (prompt and response as they are) that comes more than once is kept once, with its best rank. The
    result does not depend on the order of the shards: what is dropped for `keep` better texts cannot be among
    the best later, unless it comes again with a better rank.

    `rows`: scored so far; `helpful`, `harmful`: with impact above and below 0; `gain`: Σ max(impact, 0).
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.rows = self.helpful = self.harmful = 0
        self.gain = 0.0
        self._kept: dict[bytes, tuple[Rank, dict[str, Any]]] = {}
        self._heap: list[tuple[Rank, bytes]] = []  # with entries of the past, which `_least` drops

    def add(self, rows: Dataset, scores: pa.Table) -> None:
        """Takes in one shard: canonical negatives and their scores, as `shard_scores` has them."""
        impact = scores["impact"].to_numpy()
        self.rows += len(impact)
        self.helpful += int((impact > 0).sum())
        self.harmful += int((impact < 0).sum())
        self.gain += float(np.maximum(impact, 0).sum())
        least = self._least()
        places = np.arange(len(impact)) if least is None else np.flatnonzero(impact >= least[0])
        # best first, so that most of the others are never made into Python's objects
        for place in places[np.argsort(-impact[places], kind="stable")].tolist():
            least = self._least()
            if least is not None and impact[place] < least[0]:
                break
            self._offer(rows[place], scores.slice(place, 1).to_pylist()[0])

    def _offer(self, row: dict[str, Any], scores: dict[str, Any]) -> None:
        key = blake2b(json.dumps([row["prompt"], row["response"]]).encode(), digest_size=16).digest()
        rank, known = (scores["impact"], -row["row"]), self._kept.get(key)
        if known is not None and known[0] >= rank:
            return
        if known is None and len(self._kept) == self.keep:
            least = self._least()
            if least is not None and least >= rank:
                return
            del self._kept[heapq.heappop(self._heap)[1]]
        self._kept[key] = rank, {**row, **scores}
        heapq.heappush(self._heap, (rank, key))

    def _least(self) -> Rank | None:
        """The rank that a new text must exceed; None while there is room."""
        while self._heap and self._kept.get(self._heap[0][1], (None,))[0] != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if len(self._kept) == self.keep else None

    @property
    def best(self) -> list[dict[str, Any]]:
        """The kept rows, best first: columns of the negatives and of their scores."""
        return [row for _, row in sorted(self._kept.values(), key=lambda entry: entry[0], reverse=True)]

    @property
    def share_of_gain(self) -> float:
        """Of Σ max(impact, 0) over all rows, what the kept ones hold; NaN where nothing helps."""
        held = sum(max(rank[0], 0.0) for rank, _ in self._kept.values())
        return held / self.gain if self.gain > 0 else float("nan")

    def write_table(self, path: Path) -> None:
        """Writes the kept rows as `impact.parquet`, best first, with `row` their place in the pool."""
        best = self.best
        with whole_file(path) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
            for begin in range(0, len(best), _BLOCK):
                rows = [{**row, "prompt": as_text(row["prompt"])} for row in best[begin : begin + _BLOCK]]
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))

    def write_selected(self, path: Path) -> int:
        """Writes those of the kept rows that help, best first, as `--negatives` takes them. Their other
        columns stay; `impact` and `pool_row` say where they come from.

        Returns:
            how many there are; without any there is no file.
        """
        count = 0
        if not self.helpful:
            path.unlink(missing_ok=True)
            return 0
        with whole_file(path) as temporary, temporary.open("wb") as stream:
            for line in self._lines():
                stream.write(line)
                count += 1
        return count

    def _lines(self) -> Iterator[bytes]:
        ids: set[str] = set()
        for row in self.best:
            if row["impact"] <= 0:
                return
            label = row["id"] if row["id"] not in ids else f"{row['id']} (row {row['row']})"
            ids.add(label)
            own = {
                "id": label,
                "prompt": row["prompt"],
                "completion": row["response"],
                "weight": row["weight"],
                "impact": row["impact"],
                "pool_row": row["row"],
            }
            yield json_line({**json.loads(row["extra"]), **own})
