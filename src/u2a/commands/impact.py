"""`u2a impact`: which negatives matter, and what would they cost?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from u2a import processes
from u2a.commands.launch import join_processes
from u2a.commands.proxies import (
    SampledRows,
    is_proxy,
    load_scoring_policy,
    proxy_loss,
    refuse_bad_proxy,
    said_of_proxy,
)
from u2a.commands.schemas import IMPACT
from u2a.commands.session import (
    Data,
    Sizes,
    build_problem,
    load_data,
    minutes,
    output_path,
    say_warnings,
    seconds_per_token,
)
from u2a.commands.summary import measurement_rows, print_summary, write_summary
from u2a.commands.terminal import Bars, say
from u2a.runs.run_folder import RunFolder
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.impact.difference import Difference
    from u2a.impact.table import ImpactTable
    from u2a.problem import Measurement


MOST_CATEGORIES = 50
"""More values of a `category` column than this are not taken for categories."""
MOST_COMPARISONS = 1_000_000
"""Negatives times validation texts beyond which their likeness is not taken: it would take minutes."""


def run(values: Mapping[str, Any]) -> int:
    """Scores every negative once, at the original model."""
    from u2a.commands.impact_pool import refuse_unused, run_pool

    refuse_bad_proxy(values)
    if values["pool"]:
        return run_pool(values)
    refuse_unused(values)
    folder = output_path(values)
    join_processes(values)
    with processes.as_one():
        if values["output"]:
            RunFolder.check(folder, resume=values["resume"])
        data = load_data(values, IMPACT)

        from u2a.models.policy import check_source

        for model in filter(None, (values["model"], values["proxy_model"])):
            check_source(model, trust_remote_code=values["trust_remote_code"])
    with RunFolder.create(folder, values, command="impact", resume=values["resume"]) as run, Bars() as bars:
        say_warnings(data.warnings)
        start, table, mark = _score(values, data, run, bars)
        loss = None
        if is_proxy(values):
            sample = SampledRows(values["proxy_check"], values["seed"])
            sample.add(data.negatives, table.impact)
            with run.phase("checking the proxy"):
                loss = proxy_loss(values, data, sample, bars) if values["proxy_check"] else None
        with processes.as_one():
            if processes.is_main():
                _write_results(run, start, table, data, {"fingerprint": mark}, said_of_proxy(values, loss))
    return 0


def _score(
    values: Mapping[str, Any], data: Data, run: RunFolder, bars: Bars
) -> tuple[Measurement, ImpactTable, str]:
    """The measurement, the table, and a fingerprint of what they are of."""
    from u2a.fingerprint import fingerprint
    from u2a.impact.curvature import CURVATURES
    from u2a.impact.table import score_impact

    with run.phase("loading"):
        policy = load_scoring_policy(values)
    with run.phase("measuring"):
        problem = build_problem(values, IMPACT, data, policy, bars)
        mark = fingerprint(problem)
        _refuse_other_rows(run, mark)
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
            keep=run.path / "checkpoints" / "scores-000",
            task=bars.task,
        )
    return start, table, mark


def _refuse_other_rows(run: RunFolder, mark: str) -> None:
    """A finished run whose rows changed since is not written over."""
    try:
        before = json.loads((run.path / "summary.json").read_text(encoding="utf-8")).get("fingerprint")
    except (OSError, ValueError, AttributeError):  # not finished
        return
    if before not in (None, mark):
        raise UserError(
            f"--resume: {run.path} is finished, and the negatives, the validation or the retain rows, or "
            "their tokens, changed since: keep them as they were, or begin a new run in another --output"
        )


def _write_results(
    run: RunFolder,
    start: Measurement,
    table: ImpactTable,
    data: Data,
    more: Mapping[str, Any],
    proxy: tuple[list[str], dict[str, Any]],
) -> None:
    from u2a.report.html import write_report

    table.write(run.path / "impact.parquet", data.negatives)
    found = negatives_differ(table, data.negatives, data.preferences)
    findings = [*proxy[0], *describe_difference(found)]
    rows = measurement_rows(start, None)
    write_summary(
        run,
        "impact",
        describe(table),
        rows,
        counts=counts(table, data, selected=None),
        self_check=self_check_figures(table),
        difference=asdict(found),
        findings=findings,
        warnings=data.warnings,
        **more,
        **proxy[1],
    )
    write_report(run.path)
    for finding in findings:
        say(finding)
    print_summary(rows, run)
    say(describe(table), essential=True)
    say(f"Run folder: {run.path}")


def describe(table: ImpactTable) -> str:
    """One sentence: how many negatives are worth unlearning."""
    helpful = int((table.impact > 0).sum())
    return (
        f"{helpful} of {len(table.impact)} negatives are worth unlearning (positive impact); "
        f"{int((table.impact < 0).sum())} would harm alignment."
    )


def negatives_differ(table: ImpactTable, negatives: Dataset, preferences: Dataset) -> Difference:
    """How unequal the impacts are, and what of each negative explains them."""
    from u2a.impact.difference import difference
    from u2a.verification.bm25 import bm25
    from u2a.verification.controls import has_answers, likeness

    properties = {"length": table.n_tokens.astype(float), "loss": table.loss}
    if table.grad_norm is not None:
        properties["gradient norm"] = table.grad_norm
    if has_answers(preferences) and len(negatives) * len(preferences) <= MOST_COMPARISONS:
        properties["likeness to the rejected answers"] = likeness(negatives, preferences, bm25)
    extra = [json.loads(text) if text else {} for text in negatives["extra"]]
    names = [str(row["category"]) for row in extra if "category" in row]
    # many categories would explain by their number alone, and take long
    few = len(set(names)) <= min(MOST_CATEGORIES, len(names) // 2)
    category = names if len(names) == len(negatives) and few else None
    return difference(table.impact, table.impact_se, properties, category)


def describe_difference(found: Difference) -> list[str]:
    """The same in sentences; nothing where nothing helps."""
    sentences = []
    if found.surely_helps is not None and found.surely_harms is not None:
        sentences.append(
            f"Beyond the noise of validation (95 %), {found.surely_helps:.0%} of the negatives help "
            f"and {found.surely_harms:.0%} harm."
        )
    if not math.isnan(found.gini):
        sentences.append(
            f"Half of the predicted gain lies in {found.half_of_gain:.0%} of the negatives (Gini "
            f"{found.gini:.2f}; 0 = all give the same, 1 = one gives everything)."
        )
    if found.explained:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in found.explained.items())
        sentences.append(f"Share of the variance of the impacts' ranks explained by {shares}.")
    return sentences


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
