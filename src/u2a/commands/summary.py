"""The end of a run: the table that puts the original model beside the aligned one, and `summary.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2a.commands.session import minutes
from u2a.commands.terminal import give, print_table
from u2a.impact.difference import CERTAIN
from u2a.report.wording import NOTHING, number
from u2a.runs.run_folder import RunFolder, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from u2a.ngrams import AnswerShares
    from u2a.objectives import Objective
    from u2a.problem import Measurement, Problem


Interval = tuple[float, float]
Values = Mapping[str, NDArray[np.float64]]
"""What each held-out pair contributes, by figure: (P,) each."""


@dataclass(frozen=True)
class Row:
    """One line of the table; `better` is `higher`, `lower` or empty.

    Intervals are 95 % ones over the rows that a figure is a mean of, None where there is none; that of the
    change is paired. They tell how much other rows of the same kind would have changed the figure.
    """

    metric: str
    unit: str
    better: str
    original: float | None
    aligned: float | None
    original_interval: Interval | None = None
    aligned_interval: Interval | None = None
    change_interval: Interval | None = None


def mean_interval(values: NDArray[np.float64] | None) -> Interval | None:
    """The mean of values (n,) ± 1.96 standard errors; None for fewer than two."""
    if values is None or len(values) < 2:
        return None
    middle, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    return middle - CERTAIN * error, middle + CERTAIN * error


def measurement_rows(
    original: Measurement, aligned: Measurement | None, problem: Problem | None = None
) -> list[Row]:
    """J, retain NLL, log-prob of the negatives and KL, each with its unit and direction.

    Args:
        problem: what they were measured on, for intervals of the changes of J and U.
    """

    def row(metric: str, unit: str, better: str, name: str, sign: float = 1.0) -> Row:
        before, after = (m.figures.get(name) if m else None for m in (original, aligned))
        return Row(
            metric,
            unit,
            better,
            None if before is None else sign * before,
            None if after is None else sign * after,
            change_interval=mean_interval(changes.get(name)),
        )

    changes = _term_changes(problem, original, aligned) if problem and aligned else {}
    return [
        row("J on validation", "the scorer's" if original.drawn else "nats", "higher", "objective"),
        row("retain NLL", "nats/token", "lower", "utility", -1.0),
        row("log-prob of the negatives", "nats/token", "", "negative_logprob"),
        row("KL from the original", "nats/token", "lower", "kl"),
    ]


def _term_changes(
    problem: Problem, original: Measurement, aligned: Measurement
) -> dict[str, NDArray[np.float64]]:
    """By figure, how each row's share of it changed: of J (P,), unless responses are drawn anew each time,
    and of the retain NLL (R,)."""
    found = {}
    if original.drawn is None and aligned.drawn is None:
        objective = problem.objective_of(original)
        found["objective"] = _changes(objective, original.s_objective, aligned.s_objective)
    # U = −NLL
    found["utility"] = -_changes(problem.utility, original.s_utility, aligned.s_utility)
    return found


def _changes(objective: Objective, before: Tensor, after: Tensor) -> NDArray[np.float64]:
    """What each example did to the change of J from log-probs `before` to those `after`."""
    from u2a.objectives import influences

    was, now = (influences(objective, objective.terms(s.double()).numpy()) for s in (before, after))
    return now - was


def held_out_rows(original: Values, aligned: Values) -> list[Row]:
    """Preference accuracy and margin on held-out pairs, and how the chosen answers' log-prob changed.

    Args:
        original, aligned: from `u2a.evaluation.preference.pair_values`.
    """

    def row(metric: str, unit: str, name: str) -> Row:
        before, after = original[name], aligned[name]
        intervals = map(mean_interval, (before, after, after - before))
        return Row(metric, unit, "higher", float(before.mean()), float(after.mean()), *intervals)

    change = aligned["chosen_logprob"] - original["chosen_logprob"]
    interval = mean_interval(change)
    return [
        row("held-out accuracy, summed", "share", "accuracy"),
        row("held-out accuracy, per token", "share", "accuracy_per_token"),
        row("held-out margin, summed", "nats", "margin"),
        row("held-out margin, per token", "nats/token", "margin_per_token"),
        Row(
            "change of held-out chosen log-prob",
            "nats",
            "higher",
            0.0,
            float(change.mean()),
            change_interval=interval,
        ),
    ]


def answer_rows(original: AnswerShares, aligned: AnswerShares) -> list[Row]:
    """How much greedy answers repeat themselves, and each other: of the same prompts. To three places: of 16
    answers no more is known."""

    def row(metric: str, before: np.ndarray, after: np.ndarray) -> Row:
        intervals = map(mean_interval, (before, after, after - before))
        means = round(float(before.mean()), 3), round(float(after.mean()), 3)
        return Row(metric, "share", "lower", *means, *intervals)

    names = ("repetition in answers", "overlap between answers")
    return [row(*each) for each in zip(names, original, aligned, strict=True)]


def print_summary(rows: Sequence[Row], run: RunFolder) -> None:
    """The table, then what each phase cost."""
    lines = [
        (_name(row), number(row.original), number(row.aligned), _change(row), _error(row)) for row in rows
    ]
    title, columns = "Original beside aligned", 5
    if all(row.aligned is None for row in rows):
        title, columns = "The original model", 2
    elif all(row.change_interval is None for row in rows):
        columns = 4
    header = ("metric (unit)", "original", "aligned", "change", "± 95 %")
    print_table(title, header[:columns], [line[:columns] for line in lines])
    print_table(
        "Cost",
        ("phase", "time", "peak memory"),
        [(p.name, minutes(p.seconds), f"{p.peak_bytes / 2**20:.0f} MiB") for p in run.phases.values()],
    )


def write_summary(run: RunFolder, command: str, outcome: str, rows: Sequence[Row], **more: Any) -> None:
    """Writes `summary.json`, and gives it all to `--json`. Nothing is said: what cannot be printed is to cost
    a run none of its files.

    What is undefined, such as how unequal gains are where there is none, is null there.
    """
    summary = _defined(
        {
            "outcome": outcome,
            "table": [asdict(row) for row in rows],
            "phases": [asdict(phase) for phase in run.phases.values()],
            **more,
        }
    )
    write_json(run.path / "summary.json", {"command": command, **summary})
    give(**summary)


def _defined(value: Any) -> Any:
    """The same with None for every float that is not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _defined(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_defined(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _name(row: Row) -> str:
    arrow = {"higher": " ↑", "lower": " ↓", "": ""}[row.better]
    return f"{row.metric}{arrow} ({row.unit})"


def _change(row: Row) -> str:
    if row.original is None or row.aligned is None:
        return NOTHING
    return number(row.aligned - row.original, signed=True)


def _error(row: Row) -> str:
    """Half the width of the change's interval; empty where there is none, or nothing changed."""
    low, high = row.change_interval or (0.0, 0.0)
    return number((high - low) / 2, digits=2) if high > low else ""
