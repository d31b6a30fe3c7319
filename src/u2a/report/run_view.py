"""Everything that the report shows of one run, read from its folder and ordered by the reader's questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from u2a.report.answers import Sample, read_samples
from u2a.report.compare_plot import compare_plots
from u2a.report.evaluate_plot import evaluate_plots, evaluate_tables
from u2a.report.figure import Plot
from u2a.report.negatives_plots import cumulative_gain, gain_and_cost, impact_histogram
from u2a.report.negatives_table import Texts, table_positions
from u2a.report.progress_plot import budgets, progress
from u2a.report.record import Record, Row, read_record
from u2a.report.scores import Scores, read_measurements, read_scores, read_texts
from u2a.report.verify_plot import verify_plots
from u2a.report.weights_plot import weights_plot

TEXT_LENGTH = 1200
"""Most characters of a prompt, a response or an answer on the page."""


@dataclass(frozen=True)
class RunView:
    """One run. `plots` are grouped by the section that they belong to: `summary`, `negatives`, `weights`,
    `progress`, `truth`. `texts` are None where the page shows none. `tables` put each model beside the
    original one."""

    record: Record
    scores: Scores
    texts: Texts | None
    tables: list[tuple[str, list[Row]]]
    plots: dict[str, list[Plot]]
    samples: list[Sample]

    @property
    def all_plots(self) -> list[Plot]:
        """In the order of the page."""
        return [plot for group in self.plots.values() for plot in group]


def read_run(run: Path, *, with_text: bool) -> RunView:
    """Reads a run folder.

    Raises:
        UserError: the folder or one of its files is missing or broken; names it.
    """
    record = read_record(run)
    scores = read_scores(run) if record.scores_negatives else Scores.none()
    texts = None
    if with_text and record.scores_negatives:
        texts = read_texts(run, set(table_positions(scores).tolist()), TEXT_LENGTH)
    own = [("", record.table)] if record.table else []
    return RunView(
        record=record,
        scores=scores,
        texts=texts,
        tables=[*own, *evaluate_tables(run)],
        plots=_plots(record, scores, texts or {}),
        samples=read_samples(run, TEXT_LENGTH) if with_text else [],
    )


def _plots(record: Record, scores: Scores, texts: Texts) -> dict[str, list[Plot]]:
    run = record.path
    groups: dict[str, list[Plot]] = {
        "summary": [*compare_plots(run), *evaluate_plots(run)],
        "negatives": [],
        "weights": [],
        "progress": [],
        "truth": verify_plots(run),
    }
    if len(scores.order):
        responses = {position: response for position, (_, response) in texts.items()}
        groups["negatives"] = [
            impact_histogram(scores),
            cumulative_gain(scores, record.counts.get("selected")),
            gain_and_cost(scores, responses),
        ]
    if (moved := weights_plot(scores)) is not None:
        groups["weights"] = [moved]
    if points := read_measurements(run):
        bounds = budgets(record.config, points[0])
        again = record.config.get("restart") is True
        units = {row.metric.split()[0]: row.unit for row in record.table if row.metric.startswith("J ")}
        groups["progress"] = [progress(points, restart=again, bounds=bounds, units=units)]
    return groups
