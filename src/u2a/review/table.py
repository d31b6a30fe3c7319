"""A run's negatives with their scores, to be searched, filtered and sorted; texts stay on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from u2a.data.as_text import as_text
from u2a.data.load import locate
from u2a.report.scores import Scores, read_scores
from u2a.report.wording import visible
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from u2a.review.marks import Mark

TEXT_LENGTH = 20_000
"""Most characters of a text that are shown."""
_BATCH = 1000


@dataclass(frozen=True)
class Query:
    """Which negatives are wanted, and in which order.

    Args:
        search: in prompts and answers, whatever the case.
        sort: `impact`, `size` (of the impact, whatever its sign), `cost`, `weight`, `tokens` or `row`.
        marks: `all`, `unmarked`, `marked`, or a reason.
        sign: `all`, `positive` or `negative` impact; `selected` or `left out` by the weights, if any.
    """

    search: str = ""
    sort: str = "impact"
    descending: bool = True
    marks: str = "all"
    sign: str = "all"


@dataclass(frozen=True)
class ReviewTable:
    """N negatives, and their scores in the same order."""

    negatives: Dataset
    scores: Scores
    source: str

    @classmethod
    def read(cls, run: Path, negatives: Dataset, source: str) -> ReviewTable:
        """Reads a run's scores.

        Raises:
            UserError: they are missing, or of other negatives; names the first row that differs.
        """
        scores = read_scores(run)
        _refuse_others(run / "impact.parquet", negatives, source)
        return cls(negatives, scores, source)

    def find(self, query: Query, marks: Mapping[int, Mark]) -> NDArray[np.int64]:
        """Rows that fit, in order; those without a number come last."""
        kept = np.ones(len(self.negatives), bool)
        if query.search:
            kept &= _contains(self.negatives, query.search)
        if query.marks != "all":
            marked = np.zeros(len(kept), bool)
            any_mark = query.marks in ("marked", "unmarked")
            marked[[row for row, mark in marks.items() if any_mark or mark.reason == query.marks]] = True
            kept &= ~marked if query.marks == "unmarked" else marked
        kept &= self._with_sign(query.sign)
        rows = np.flatnonzero(kept)
        key = self._keys(query.sort)[rows]
        order = np.argsort(-key if query.descending else key, kind="stable")
        return rows[order]

    def _with_sign(self, sign: str) -> NDArray[np.bool_]:
        selected = self.scores.selected
        if sign == "positive":
            return self.scores.impact > 0
        if sign == "negative":
            return self.scores.impact < 0
        if selected is None or sign == "all":
            return np.ones(len(self.negatives), bool)
        return selected if sign == "selected" else ~selected

    def _keys(self, sort: str) -> NDArray[np.float64]:
        scores, nothing = self.scores, np.full(len(self.negatives), np.nan)
        keys = {
            "impact": scores.impact,
            "size": np.abs(scores.impact),
            "cost": scores.cost,
            "weight": nothing if scores.weight is None else scores.weight,
            "tokens": scores.n_tokens,
            "row": scores.row.astype(np.float64),
        }
        return keys[sort]

    def shown(self, row: int, mark: Mark | None) -> dict[str, Any]:
        """One negative as the page shows it; null = not known."""
        negative, scores = self.negatives[row], self.scores
        file, line = locate(self.negatives, negative["source_row"], self.source)
        return {
            "row": row,
            "place": f"{visible(file)}, row {line}",
            "prompt": _cut(as_text(negative["prompt"])),
            "response": _cut(negative["response"]),
            "impact": _number(scores.impact[row]),
            "error": _number(scores.se[row]),
            "cost": _number(scores.cost[row]),
            "weight": None if scores.weight is None else _number(scores.weight[row]),
            "tokens": _number(scores.n_tokens[row]),
            "reason": "" if mark is None else mark.reason,
            "note": "" if mark is None else mark.note,
        }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _cut(text: str) -> str:
    more = len(text) - TEXT_LENGTH
    return visible(text if more <= 0 else f"{text[:TEXT_LENGTH]}… ({more:,} more characters)")


def _contains(negatives: Dataset, text: str) -> NDArray[np.bool_]:
    """(N,): whether a turn of the prompt, or the answer, holds the text."""
    match = {"pattern": text, "ignore_case": True}
    answers = pc.match_substring(negatives.data.column("response"), **match)
    found = np.array(answers.to_numpy(), bool)
    begin = 0
    for chunk in negatives.data.column("prompt").chunks:
        contents = pc.struct_field(pc.list_flatten(chunk), "content")
        turns = pc.match_substring(contents, **match).to_numpy(zero_copy_only=False).astype(bool)
        parents = pc.list_parent_indices(chunk).to_numpy()
        found[begin + parents[turns]] = True
        begin += len(chunk)
    return found


def _refuse_others(path: Path, negatives: Dataset, source: str) -> None:
    """Raises `UserError` unless the table at `path` is of these negatives, text by text."""
    begin = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH, columns=["row", "prompt", "response"]):
                rows = negatives[begin : begin + batch.num_rows]
                there = zip(rows["row"], map(as_text, rows["prompt"]), rows["response"], strict=True)
                scored = zip(*(column.to_pylist() for column in batch.columns), strict=True)
                for given, before in zip(there, scored, strict=False):
                    if given != before:
                        raise _other(path, source, f"row {given[0] + 1} differs")
                begin += batch.num_rows
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: not readable ({error}); write the run again") from None
    if begin != len(negatives):
        raise _other(path, source, f"{begin} were scored and {len(negatives)} are there")


def _other(path: Path, source: str, how: str) -> UserError:
    return UserError(
        f"{source}: not the negatives that {path} scores ({how}); name their file with --negatives, or score "
        "these"
    )
