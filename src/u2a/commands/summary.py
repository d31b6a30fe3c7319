"""The end of a run: the table that puts the original model beside the aligned one, and `summary.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from u2a.commands.session import minutes
from u2a.commands.terminal import give, print_table, say
from u2a.evaluate.preference import PairMetrics
from u2a.runs import RunFolder, write_json

if TYPE_CHECKING:
    from u2a.problem import Measurement


@dataclass(frozen=True)
class Row:
    """One line of the table; `better` is `higher`, `lower` or empty."""

    metric: str
    unit: str
    better: str
    original: float | None
    aligned: float | None


def measurement_rows(original: Measurement, aligned: Measurement | None) -> list[Row]:
    """J, retain NLL, log-prob of the negatives and KL, each with its unit and direction."""

    def row(metric: str, unit: str, better: str, name: str, sign: float = 1.0) -> Row:
        before, after = (m.figures.get(name) if m else None for m in (original, aligned))
        return Row(
            metric,
            unit,
            better,
            None if before is None else sign * before,
            None if after is None else sign * after,
        )

    return [
        row("J on validation", "the scorer's" if original.drawn else "nats", "higher", "objective"),
        row("retain NLL", "nats/token", "lower", "utility", -1.0),
        row("log-prob of the negatives", "nats/token", "", "negative_logprob"),
        row("KL from the original", "nats/token", "lower", "kl"),
    ]


def held_out_rows(original: PairMetrics, aligned: PairMetrics | None) -> list[Row]:
    """Preference accuracy and margin on held-out pairs, and how the chosen answers' log-prob changed."""

    def row(metric: str, unit: str, name: str) -> Row:
        after = getattr(aligned, name) if aligned else None
        return Row(metric, unit, "higher", getattr(original, name), after)

    change = aligned.chosen_logprob - original.chosen_logprob if aligned else None
    return [
        row("held-out accuracy, summed", "share", "accuracy"),
        row("held-out accuracy, per token", "share", "accuracy_per_token"),
        row("held-out margin, summed", "nats", "margin"),
        row("held-out margin, per token", "nats/token", "margin_per_token"),
        Row("change of held-out chosen log-prob", "nats", "higher", 0.0, change),
    ]


def print_summary(rows: Sequence[Row], run: RunFolder) -> None:
    """The table, then what each phase cost."""
    arrows = {"higher": "↑", "lower": "↓", "": ""}
    print_table(
        "Original beside aligned",
        ("metric", "unit", "original", "aligned", "change"),
        [
            (f"{r.metric} {arrows[r.better]}", r.unit, _number(r.original), _number(r.aligned), _change(r))
            for r in rows
        ],
    )
    print_table(
        "Cost",
        ("phase", "time", "peak memory"),
        [(p.name, minutes(p.seconds), f"{p.peak_bytes / 2**20:.0f} MiB") for p in run.phases.values()],
    )


def write_summary(run: RunFolder, command: str, outcome: str, rows: Sequence[Row], **more: Any) -> None:
    """Writes `summary.json`, says the outcome, and gives it all to `--json`."""
    summary = {
        "outcome": outcome,
        "table": [asdict(row) for row in rows],
        "phases": [asdict(phase) for phase in run.phases.values()],
        **more,
    }
    write_json(run.path / "summary.json", {"command": command, **summary})
    give(**summary)
    say(outcome, essential=True)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _change(row: Row) -> str:
    if row.original is None or row.aligned is None:
        return "–"
    return f"{row.aligned - row.original:+.4f}"
