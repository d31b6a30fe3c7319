"""The small files of a run folder as the report reads them: settings, versions and summary."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from u2a.report.wording import NOTHING
from u2a.storage.links import refuse_links_out
from u2a.storage.plain_yaml import plain_values
from u2a.types import UserError

Interval = tuple[float, float]
DISTANCE = "KL from the original"
"""A figure that cannot but rise: what it is judged by is its budget."""


@dataclass(frozen=True)
class Row:
    """One line of the summary table; `better` is `higher`, `lower` or empty; NaN = not measured.

    Intervals are None where there is none. That of the change is of the paired difference. `sure_only`:
    without an interval nothing is called better or worse.
    """

    metric: str
    unit: str
    better: str
    original: float
    aligned: float
    original_interval: Interval | None = None
    aligned_interval: Interval | None = None
    change_interval: Interval | None = None
    sure_only: bool = False

    @property
    def change(self) -> float:
        """The aligned model's figure minus the original's."""
        return self.aligned - self.original

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `within noise` where the change's interval holds 0, or empty where there is no
        change or no better direction, and for the distance from the original."""
        if not self.change or math.isnan(self.change) or not self.better or self.metric == DISTANCE:
            return ""
        if self.sure_only and not self.change_interval:
            return ""
        if self.change_interval and self.change_interval[0] <= 0 <= self.change_interval[1]:
            return "within noise"
        return "better" if (self.change > 0) == (self.better == "higher") else "worse"


@dataclass(frozen=True)
class Phase:
    """What one phase of the run cost; `peak_bytes` 0 = not measured."""

    name: str
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Record:
    """`config.yaml`, `versions.json` and `summary.json` of a run folder.

    `end`: better, worse or stopped, in a sentence; empty for a command that does not judge itself.
    """

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
    findings: list[str]
    end: str = ""

    @property
    def left_out(self) -> list[str]:
        """Of the warnings those that only say what was not asked for."""
        return [warning for warning in self.warnings if " is left out: " in warning]

    @property
    def cautions(self) -> list[str]:
        """The other warnings: what a reader of the figures must know."""
        return [warning for warning in self.warnings if " is left out: " not in warning]

    @property
    def seconds(self) -> float:
        """Wall-clock time of all phases."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def peak_bytes(self) -> int:
        """Largest memory of any phase; 0 = not measured."""
        return max((phase.peak_bytes for phase in self.phases), default=0)

    @property
    def scores_negatives(self) -> bool:
        """Whether the run has a table of negatives."""
        return self.command not in ("compare", "evaluate")

    @property
    def name(self) -> str:
        """The run folder's own name."""
        return self.path.resolve().name

    @property
    def version_rows(self) -> list[list[str]]:
        """What and which version, as text."""
        return [
            [name, NOTHING if version is None else str(version)] for name, version in self.versions.items()
        ]

    @property
    def measured_only(self) -> bool:
        """An `impact` or `verify` run: no model was made, so there is nothing beside the original."""
        return self.command in ("impact", "verify")


def read_record(run: Path) -> Record:
    """Reads the three small files of a run folder.

    Raises:
        UserError: `run` is no folder, a link leads out of it, or one of the files is missing or not what a
            run writes.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder; name the folder that --output of `u2a align` made")
    refuse_links_out(run)
    config = _mapping(run / "config.yaml", plain_values)
    versions = _mapping(run / "versions.json", parsed)
    path = run / "summary.json"
    summary = _mapping(path, parsed)
    try:
        return Record(
            path=run,
            config=config,
            versions=versions,
            command=_text(summary["command"]),
            outcome=_text(summary["outcome"]),
            table=[_row(row) for row in summary["table"]],
            phases=[_phase(phase) for phase in summary.get("phases", [])],
            counts={
                _text(k): int(number_or_nan(v)) for k, v in summary.get("counts", {}).items() if v is not None
            },
            self_check=_self_check(summary.get("self_check")),
            warnings=[_text(warning) for warning in summary.get("warnings", [])],
            findings=[_text(finding) for finding in summary.get("findings", [])],
            end=_text(summary.get("end") or ""),
        )
    except KeyError as error:
        raise UserError(f"{path}: {error} is missing; write the run again") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: not what a run writes ({error}); write the run again") from None


def read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: {path.parent} is no run folder, or its run has not finished (see --resume)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as UTF-8 text: {error}") from None


def parsed(text: str) -> Any:
    """JSON of a run's file.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    try:
        found = parse(read_file(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: broken ({error}); write the run again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: must hold keys and values, not {type(found).__name__}; write the run again")
    return {str(key): value for key, value in found.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} must be text")
    return value


def number_or_nan(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r:.60} must be a number or null")
    return float(value)


def _row(row: Any) -> Row:
    better = _text(row.get("better") or "")
    if better not in ("higher", "lower", ""):
        raise ValueError(f"better: {better!r:.60} must be higher, lower or empty")
    return Row(
        _text(row["metric"]),
        _text(row.get("unit") or ""),
        better,
        number_or_nan(row.get("original")),
        number_or_nan(row.get("aligned")),
        original_interval=interval(row.get("original_interval")),
        aligned_interval=interval(row.get("aligned_interval")),
        change_interval=interval(row.get("change_interval")),
    )


def interval(ends: Any) -> Interval | None:
    """Two ends; None where there is no interval, or one without a finite end."""
    if ends is None:
        return None
    low, high = map(number_or_nan, ends)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _phase(phase: Any) -> Phase:
    return Phase(
        _text(phase["name"]),
        number_or_nan(phase["seconds"]),
        int(number_or_nan(phase.get("peak_bytes") or 0)),
    )


def _self_check(check: Any) -> dict[str, Any] | None:
    if check is None:
        return None
    return {
        "examples": int(check["examples"]),
        "relative_error": number_or_nan(check["relative_error"]),
        "passed": check["passed"] is True,
    }
