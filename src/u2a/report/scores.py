"""What a run measured: impact and weight of every negative, J, U and KL over steps; texts on request."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from u2a.report.record import number_or_nan, parsed, read_file
from u2a.report.wording import shortened
from u2a.types import UserError

Array = np.ndarray

_STEP = re.compile(r"weight_[0-9]{1,6}")


@dataclass(frozen=True)
class Scores:
    """Impact and weights of N negatives, in the order of `impact.parquet`; all arrays are (N,).

    `impact` > 0: unlearning it raises J. `cost` > 0: it lowers U. `se` is the standard error of the impact.
    `weight` and `selected` are None for a run without weights; `history` holds the weights of each outer
    step. NaN = not known.
    """

    row: Array
    ids: list[str]
    impact: Array
    cost: Array
    se: Array
    n_tokens: Array
    weight: Array | None = None
    selected: Array | None = None
    history: tuple[Array, ...] = ()

    @classmethod
    def none(cls) -> Scores:
        """Of no negatives."""
        nothing = np.zeros(0)
        return cls(nothing, [], nothing, nothing, nothing, nothing)

    @property
    def has_errors(self) -> bool:
        """Whether the standard error of any impact is known."""
        return bool(np.isfinite(self.se).any())

    @property
    def order(self) -> Array:
        """Positions of the negatives with a finite impact, largest impact first; ties keep file order."""
        finite = np.flatnonzero(np.isfinite(self.impact))
        return finite[np.argsort(-self.impact[finite], kind="stable")]


@dataclass(frozen=True)
class Measured:
    """One `measurement` line of `metrics.jsonl`; NaN = not measured."""

    outer_step: int
    step: int
    objective: float
    utility: float
    kl: float
    admissible: bool
    best: bool
    negative_logprob: float = math.nan
    repetition: float = math.nan
    objective_se: float = math.nan


def read_scores(run: Path) -> Scores:
    """Reads `impact.parquet` and, where there is one, `weights.parquet`; no text of negatives.

    Raises:
        UserError: `impact.parquet` is missing, or one of the two is not what a run writes.
    """
    names = ("row", "id", "impact", "utility_cost", "n_tokens")
    table = _columns(run / "impact.parquet", names, re.compile("impact_se"))
    row = table["row"]
    weight, selected, history = _weights(run / "weights.parquet", row)
    return Scores(
        row=row.astype(np.int64),
        ids=table["id"],
        impact=table["impact"],
        cost=table["utility_cost"],
        se=table.get("impact_se", np.full(len(row), math.nan)),
        n_tokens=table["n_tokens"],
        weight=weight,
        selected=selected,
        history=history,
    )


def _weights(path: Path, row: Array) -> tuple[Array | None, Array | None, tuple[Array, ...]]:
    """Of the negatives in these rows: weights, which are selected, and the weights of every outer step."""
    if not path.exists():
        return None, None, ()
    found = _columns(path, ("row", "weight", "selected"), _STEP)
    known = dict(zip(found["row"].tolist(), range(len(found["row"])), strict=True))
    at = np.array([known.get(r, -1) for r in row.tolist()], np.int64)

    def of_these(name: str) -> Array:
        return np.append(found[name], math.nan)[at].astype(np.float64)  # -1: the NaN at the end

    steps = sorted((name for name in found if _STEP.fullmatch(name)), key=lambda name: int(name[7:]))
    return of_these("weight"), of_these("selected") == 1, tuple(of_these(name) for name in steps)


def read_texts(run: Path, positions: set[int], length: int) -> dict[int, tuple[str, str]]:
    """Prompt and response of the negatives at these positions of `impact.parquet`, batch by batch.

    Args:
        length: most characters of each; what is longer is cut and says so.

    Raises:
        UserError: the file has no readable `prompt` and `response`.
    """
    path = run / "impact.parquet"
    found: dict[int, tuple[str, str]] = {}
    start = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["prompt", "response"]):
                wanted = [i for i in range(batch.num_rows) if start + i in positions]
                texts = batch.take(pa.array(wanted, pa.int64())).to_pylist()
                for i, text in zip(wanted, texts, strict=True):
                    found[start + i] = (
                        shortened(str(text["prompt"] or ""), length),
                        shortened(str(text["response"] or ""), length),
                    )
                start += batch.num_rows
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: prompt and response are not readable ({error}); write the run again"
        ) from None
    return found


def read_measurements(run: Path) -> list[Measured]:
    """The measured points of `metrics.jsonl` in order of outer step; none when there is no such file.

    Raises:
        UserError: a line is not what a run writes. A last line cut off by an interruption is left out.
    """
    path = run / "metrics.jsonl"
    lines = read_file(path).split("\n") if path.exists() else []
    points = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            event = parsed(line)
            if event["event"] == "measurement":
                points.append(_measured(event))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            if number == len(lines):  # no line end: interrupted while this line was written
                continue
            raise UserError(f"{path}, line {number}: not a line that a run writes ({error!r})") from None
    return sorted(points, key=lambda point: point.outer_step)


def _measured(event: dict[str, Any]) -> Measured:
    return Measured(
        outer_step=int(number_or_nan(event["outer_step"])),
        step=int(number_or_nan(event["step"])),
        objective=number_or_nan(event.get("objective")),
        utility=number_or_nan(event.get("utility")),
        kl=number_or_nan(event.get("kl")),
        admissible=event.get("admissible") is not False,
        best=event.get("best") is True,
        negative_logprob=number_or_nan(event.get("negative_logprob")),
        repetition=number_or_nan(event.get("repetition")),
        objective_se=number_or_nan(event.get("objective_se")),
    )


def _columns(path: Path, names: tuple[str, ...], more: re.Pattern[str]) -> dict[str, Any]:
    """Columns as float64 arrays (null = NaN), `id` as a list of text; those of `more` if they are there."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing: the run has not finished, or its files were moved; write it again"
        )
    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            if missing := [name for name in names if name not in there]:
                raise UserError(f"{path}: column {', '.join(missing)} is missing; write the run again")
            table = file.read(columns=[*names, *(name for name in there if more.fullmatch(name))])
        return {
            name: [str(i) for i in table[name].to_pylist()]
            if name == "id"
            else np.array(table[name].cast(pa.float64()).to_numpy())
            for name in table.column_names
        }
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: not readable ({error}); write the run again") from None
