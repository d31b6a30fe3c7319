"""A run folder as the report reads it: settings, summary, scores, measured points, and texts on request."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from u2a.types import UserError

Array = np.ndarray


@dataclass(frozen=True)
class Row:
    """One line of the summary table; `better` is `higher`, `lower` or empty; NaN = not measured."""

    metric: str
    unit: str
    better: str
    original: float
    aligned: float

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or empty where there is no change or no better direction."""
        change = self.aligned - self.original
        if not change or math.isnan(change) or not self.better:
            return ""
        return "better" if (change > 0) == (self.better == "higher") else "worse"


@dataclass(frozen=True)
class Phase:
    """What one phase of the run cost; `peak_bytes` 0 = not measured."""

    name: str
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Record:
    """`config.yaml`, `versions.json` and `summary.json` of a run folder."""

    path: Path
    config: dict[str, Any]
    versions: dict[str, Any]
    command: str
    outcome: str
    table: list[Row]
    phases: list[Phase]
    counts: dict[str, int]
    self_check: dict[str, Any] | None
    warnings: list[str]

    @property
    def name(self) -> str:
        """The run folder's own name."""
        return self.path.resolve().name

    @property
    def measured_only(self) -> bool:
        """An `impact` run: nothing was unlearned, so there is nothing beside the original."""
        return self.command == "impact"


@dataclass(frozen=True)
class Scores:
    """Impact and weights of N negatives, in the order of `impact.parquet`; all arrays are (N,).

    `impact` > 0: unlearning it raises J. `cost` > 0: it lowers U. `se` is the standard error of the impact.
    `weight` and `selected` are None for a run without weights. NaN = not known.
    """

    row: Array
    ids: list[str]
    impact: Array
    cost: Array
    se: Array
    n_tokens: Array
    weight: Array | None = None
    selected: Array | None = None

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


def read_record(run: Path) -> Record:
    """Reads the three small files of a run folder.

    Raises:
        UserError: `run` is no folder, or one of the files is missing or not what a run writes.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder; name the folder that --output of `u2a align` made")
    config = _mapping(run / "config.yaml", yaml.safe_load)
    versions = _mapping(run / "versions.json", json.loads)
    path = run / "summary.json"
    summary = _mapping(path, json.loads)
    try:
        return Record(
            path=run,
            config=config,
            versions=versions,
            command=_text(summary["command"]),
            outcome=_text(summary["outcome"]),
            table=[_row(row) for row in summary["table"]],
            phases=[_phase(phase) for phase in summary.get("phases", [])],
            counts={_text(k): int(v) for k, v in summary.get("counts", {}).items() if v is not None},
            self_check=_self_check(summary.get("self_check")),
            warnings=[_text(warning) for warning in summary.get("warnings", [])],
        )
    except KeyError as error:
        raise UserError(f"{path}: {error} is missing; write the run again") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: not what a run writes ({error}); write the run again") from None


def read_scores(run: Path) -> Scores:
    """Reads `impact.parquet` and, where there is one, `weights.parquet`; no text of negatives.

    Raises:
        UserError: `impact.parquet` is missing, or one of the two is not what a run writes.
    """
    table = _columns(run / "impact.parquet", ("row", "id", "impact", "utility_cost", "n_tokens"), "impact_se")
    row = table["row"]
    weight = selected = None
    if (run / "weights.parquet").exists():
        weights = _columns(run / "weights.parquet", ("row", "weight", "selected"))
        known = dict(zip(weights["row"].tolist(), range(len(weights["row"])), strict=True))
        at = [known.get(r) for r in row.tolist()]
        weight = np.array([math.nan if i is None else weights["weight"][i] for i in at], np.float64)
        selected = np.array([i is not None and weights["selected"][i] == 1 for i in at], bool)
    return Scores(
        row=row.astype(np.int64),
        ids=table["id"],
        impact=table["impact"],
        cost=table["utility_cost"],
        se=table.get("impact_se", np.full(len(row), math.nan)),
        n_tokens=table["n_tokens"],
        weight=weight,
        selected=selected,
    )


def read_texts(run: Path, positions: set[int]) -> dict[int, tuple[str, str]]:
    """Prompt and response of the negatives at these positions of `impact.parquet`, batch by batch.

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
                    found[start + i] = (str(text["prompt"] or ""), str(text["response"] or ""))
                start += batch.num_rows
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path}: prompt and response are not readable ({error}); write the run again") from None
    return found


def read_measurements(run: Path) -> list[Measured]:
    """The measured points of `metrics.jsonl` in order of outer step; none when there is no such file.

    Raises:
        UserError: a line is not what a run writes. A last line cut off by an interruption is left out.
    """
    path = run / "metrics.jsonl"
    lines = _read(path).split("\n") if path.exists() else []
    points = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            if event["event"] == "measurement":
                points.append(_measured(event))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            if number == len(lines):  # no line end: interrupted while this line was written
                continue
            raise UserError(f"{path}, line {number}: not a line that a run writes ({error!r})") from None
    return sorted(points, key=lambda point: point.outer_step)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: {path.parent} is no run folder, or its run has not finished (see --resume)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as UTF-8 text: {error}") from None


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    try:
        found = parse(_read(path))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: broken ({error}); write the run again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: must hold keys and values, not {type(found).__name__}; write the run again")
    return {str(key): value for key, value in found.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} must be text")
    return value


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r:.60} must be a number or null")
    return float(value)


def _row(row: Any) -> Row:
    better = _text(row.get("better") or "")
    if better not in ("higher", "lower", ""):
        raise ValueError(f"better: {better!r:.60} must be higher, lower or empty")
    original, aligned = _number(row.get("original")), _number(row.get("aligned"))
    return Row(_text(row["metric"]), _text(row.get("unit") or ""), better, original, aligned)


def _phase(phase: Any) -> Phase:
    return Phase(_text(phase["name"]), _number(phase["seconds"]), int(phase.get("peak_bytes") or 0))


def _self_check(check: Any) -> dict[str, Any] | None:
    if check is None:
        return None
    return {
        "examples": int(check["examples"]),
        "relative_error": _number(check["relative_error"]),
        "passed": check["passed"] is True,
    }


def _measured(event: dict[str, Any]) -> Measured:
    return Measured(
        outer_step=int(event["outer_step"]),
        step=int(event["step"]),
        objective=_number(event.get("objective")),
        utility=_number(event.get("utility")),
        kl=_number(event.get("kl")),
        admissible=event.get("admissible") is not False,
        best=event.get("best") is True,
    )


def _columns(path: Path, names: tuple[str, ...], optional: str = "") -> dict[str, Any]:
    """Columns as float64 arrays (null = NaN), `id` as a list of text."""
    if not path.is_file():
        raise UserError(f"{path} is missing: the run has not finished, or its files were moved; write it again")
    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            if missing := [name for name in names if name not in there]:
                raise UserError(f"{path}: column {', '.join(missing)} is missing; write the run again")
            table = file.read(columns=[name for name in (*names, optional) if name in there])
        return {
            name: [str(i) for i in table[name].to_pylist()]
            if name == "id"
            else np.array(table[name].cast(pa.float64()).to_numpy())
            for name in table.column_names
        }
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: not readable ({error}); write the run again") from None
