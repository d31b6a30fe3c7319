"""`u2a impact`: which negatives matter, and what would they cost?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from u2a.commands.schemas import IMPACT
from u2a.commands.session import (
    Data,
    Sizes,
    build_problem,
    load_data,
    load_model,
    minutes,
    output_path,
    say_warnings,
    seconds_per_token,
)
from u2a.commands.summary import measurement_rows, print_summary, write_summary
from u2a.commands.terminal import Bars, say
from u2a.runs import RunFolder

if TYPE_CHECKING:
    from u2a.impact.table import ImpactTable
    from u2a.problem import Measurement


def run(values: Mapping[str, Any]) -> int:
    """Scores every negative once, at the original model."""
    folder = output_path(values)
    if values["output"]:
        RunFolder.check(folder, resume=False)
    data = load_data(values, IMPACT)

    from u2a.models import check_source

    check_source(values["model"], trust_remote_code=values["trust_remote_code"])
    with RunFolder.create(folder, values) as run, Bars() as bars:
        say_warnings(data.warnings)
        start, table = _score(values, data, run, bars)
        _write_results(run, start, table, data)
    return 0


def _score(
    values: Mapping[str, Any], data: Data, run: RunFolder, bars: Bars
) -> tuple[Measurement, ImpactTable]:
    from u2a.impact.curvature import CURVATURES
    from u2a.impact.table import score_impact

    with run.phase("loading"):
        policy = load_model(values, IMPACT)
    with run.phase("measuring"):
        problem = build_problem(values, IMPACT, data, policy, bars)
        sizes = Sizes.of(problem)
        cost = sizes.scoring(values["scoring"])
        say(
            f"Scoring {len(data.negatives)} negatives along ∇J and ∇U costs about "
            f"{cost / sizes.negatives:.1f} forward passes over them, about "
            f"{minutes(cost * seconds_per_token(problem))}."
        )
        start = problem.measure(bars.task, negatives=True)
    with run.phase("scoring"):
        table = score_impact(
            problem,
            curvature=CURVATURES[values["curvature"]](**IMPACT.chosen_options("curvature", values)),
            scoring=values["scoring"],
            self_check=values["self_check"],
            at=start,
            task=bars.task,
        )
    return start, table


def _write_results(run: RunFolder, start: Measurement, table: ImpactTable, data: Data) -> None:
    from u2a.report.html import write_report

    table.write(run.path / "impact.parquet", data.negatives)
    rows = measurement_rows(start, None)
    print_summary(rows, run)
    write_summary(
        run,
        "impact",
        describe(table),
        rows,
        counts=counts(table, data, selected=None),
        self_check=self_check_figures(table),
        warnings=data.warnings,
    )
    write_report(run.path)
    say(f"Run folder: {run.path}")


def describe(table: ImpactTable) -> str:
    """One sentence: how many negatives are worth unlearning."""
    helpful = int((table.impact > 0).sum())
    return (
        f"{helpful} of {len(table.impact)} negatives are worth unlearning (positive impact); "
        f"{int((table.impact < 0).sum())} would harm alignment."
    )


def counts(table: ImpactTable, data: Data, selected: int | None) -> dict[str, int]:
    """How many rows of each kind."""
    found = {
        "negatives": len(table.impact),
        "helpful": int((table.impact > 0).sum()),
        "harmful": int((table.impact < 0).sum()),
        "validation": len(data.preferences),
        "test": len(data.test) if data.test else 0,
        "retain": len(data.retain) if data.retain else 0,
    }
    return found if selected is None else {**found, "selected": selected}


def self_check_figures(table: ImpactTable) -> dict[str, Any] | None:
    """The worse of the two self-checks, as it stands in `summary.json`."""
    if not table.self_checks:
        return None
    return asdict(max(table.self_checks, key=lambda check: check.relative_error))
