"""`u2a verify`: may I trust the impact scores?

Unlearns subsets of the negatives for real and compares what impact predicted with what was measured. The real
runs have the user's own settings but no guard and no halved learning rate: all subsets get the same strength.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from u2a.commands.schemas import VERIFY
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
    tokens_of_j,
)
from u2a.commands.summary import measurement_rows, write_summary
from u2a.commands.terminal import Bars, give, print_table, say
from u2a.config import ModelOptions, UnlearnOptions
from u2a.runs.run_folder import RunFolder, write_json, write_text
from u2a.storage.plain_yaml import plain_values
from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.problem import Measurement
    from u2a.verification.cells import Cells
    from u2a.verification.controls import Controls
    from u2a.verification.estimators import Estimate, Estimator
    from u2a.verification.truth import GroundTruth

FREE = ("estimators", "embedding_model", "processes")
"""Options that a resumed run may change: finished cells do not depend on them."""


def run(values: Mapping[str, Any]) -> int:
    """Measures, compares, writes the run folder; 1 when the judged estimator is not to be trusted."""
    from u2a.verification.estimators import estimator_names

    folder = output_path(values)
    if values["output"]:
        RunFolder.check(folder, resume=values["resume"])
    names = estimator_names(values["estimators"], values["curvature"])
    data = read_data(values)

    from u2a.models.policy import check_source

    check_source(values["model"], trust_remote_code=values["trust_remote_code"])
    with run_folder(folder, values) as run, Bars() as bars:
        say_warnings(data.warnings)
        with run.phase("loading and measuring"):
            truth = ground_truth(values, data, bars)
        say(_cost(truth, values, names))
        with run.phase("scoring"):
            scored = _score(truth, values, names, data, bars)
        cells, start = truth.cells, truth.start
        with run.phase("unlearning"):
            if values["processes"] == 1:
                truth.run_remaining(bars.task)
            else:
                del truth  # its memory is the workers' now
                _in_processes(cells, start, values, bars)
        return _write_results(run, cells, start, scored, data)


def read_data(values: Mapping[str, Any]) -> Data:
    """The rows, with everything about them refused that could fail later.

    Raises:
        UserError: as `load_data`; or the subsets cannot be drawn, or standard input cannot be shared.
    """
    from u2a.verification.subsets import draw_singles, subset_size

    data = load_data(values, VERIFY)
    subset_size(values["subset_share"], len(data.negatives))
    draw_singles(len(data.negatives), values["singles"], values["seed"])
    if values["processes"] > 1 and "-" in [values[r] for r in ("negatives", "preferences", "test", "retain")]:
        raise UserError("--processes: only one process can read standard input; put the rows into a file")
    if data.test is None:
        data.warnings.append("no --test: nothing is compared on held-out pairs")
    if any(weight != 1 for weight in data.negatives["weight"]):
        data.warnings.append("prior weights do not enter: every member of a subset has weight 1")
    return data


def run_folder(folder: Path, values: Mapping[str, Any]) -> RunFolder:
    """The run folder; on --resume the options in `FREE` may differ, and `config.yaml` gets the new ones."""
    path = folder / "config.yaml"
    if not values["resume"] or not path.is_file():
        return RunFolder.create(folder, values, command="verify", resume=values["resume"])
    try:
        before = plain_values(path.read_text(encoding="utf-8"))
        kept = {name: before[name] for name in FREE}
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"--resume: {path} is not of a `u2a verify` run; name that run's folder") from None
    made = RunFolder.create(folder, {**values, **kept}, command="verify", resume=True)
    new = {**before, **{name: values[name] for name in FREE}}
    write_text(path, yaml.safe_dump(new, sort_keys=False, allow_unicode=True))
    return made


def ground_truth(values: Mapping[str, Any], data: Data, bars: Bars) -> GroundTruth:
    """The model, the problem, the plan and the measurement at φ₀: the same in every worker."""
    from u2a.verification.cells import Cells, settings_of
    from u2a.verification.plan import make_plan
    from u2a.verification.subsets import subset_size
    from u2a.verification.truth import GroundTruth, held_out_objective

    problem = build_problem(values, VERIFY, data, load_model(values, VERIFY), bars)
    unlearn: UnlearnOptions = VERIFY.part(UnlearnOptions, values)
    count = len(data.negatives)
    counts = {name: values[name] for name in ("subsets", "singles", "seeds", "repeats", "seed")}
    plan = make_plan(count, subset_size(values["subset_share"], count), unlearn, **counts)
    held_out = held_out_objective(problem, data.test, bars.task) if data.test is not None else None
    more = {f.name: values[f.name] for f in fields(ModelOptions) if f.name not in ("device", "model")}
    texts = held_out.texts if held_out is not None else None
    cells = Cells(output_path(values) / "cells", plan, settings_of(problem, unlearn, plan, texts, more))
    start = problem.measure(bars.task, negatives=True)
    cells.remaining(start.utility)  # a cell of other settings is refused before anything is done
    return GroundTruth(problem, unlearn, cells, start, held_out)


def _in_processes(cells: Cells, start: Measurement, values: Mapping[str, Any], bars: Bars) -> None:
    from u2a.commands.verify_workers import run_workers

    gc.collect()
    remaining = len(cells.remaining(start.utility))
    if remaining:
        with bars.task("unlearning subsets for real", remaining) as advance:
            run_workers(values, cells.finished, advance, cells.under_way)


@dataclass(frozen=True)
class _Scored:
    """Scores by name, the judged estimator first, and what was left out, in sentences."""

    estimates: dict[str, Estimate]
    controls: Controls
    left_out: list[str]


def _score(
    truth: GroundTruth, values: Mapping[str, Any], names: list[str], data: Data, bars: Bars
) -> _Scored:
    """Every estimator and control at φ₀. With `all`, one that this problem does not suit is left out.

    The judged one is scored as `u2a impact` would; the other curvatures share one pass.
    """
    from u2a.impact.curvature import CURVATURES
    from u2a.impact.several import score_curvatures
    from u2a.verification.controls import control_scores
    from u2a.verification.estimators import Estimate
    from u2a.verification.plan import over_all

    estimates: dict[str, Estimate] = {}
    left_out: list[str] = []
    unlearn = over_all(truth.unlearn, truth.cells.plan)
    together = {name: CURVATURES[name]() for name in names[1:] if name in CURVATURES}
    for name in [n for n in names if n not in together]:
        try:
            estimate = _estimator(name, values)
            estimates[name] = estimate(truth.problem, truth.start, unlearn, values["seed"], bars.task)
        except UserError as error:
            if values["estimators"].strip() != "all" or name == names[0]:
                raise
            left_out.append(f"{name} is left out: {error}")
        finally:
            truth.restore()
    refused: dict[str, str] | None = {} if values["estimators"].strip() == "all" else None
    if together:
        tables = score_curvatures(truth.problem, together, at=truth.start, refused=refused, task=bars.task)
        estimates |= {name: Estimate(table.impact, table.utility_cost) for name, table in tables.items()}
    left_out += [f"{name} is left out: {why}" for name, why in (refused or {}).items()]
    estimates = {name: estimates[name] for name in names if name in estimates}
    controls = control_scores(
        truth.problem,
        truth.start,
        data.preferences,
        seed=values["seed"],
        embedding_model=values["embedding_model"],
        task=bars.task,
    )
    left_out += [f"the control {name} is left out: {why}" for name, why in controls.left_out.items()]
    say_warnings(left_out)
    return _Scored(estimates, controls, left_out)


def _estimator(name: str, values: Mapping[str, Any]) -> Estimator:
    """The estimator of that name; the curvature that the options choose has their settings."""
    from u2a.impact.curvature import CURVATURES
    from u2a.verification.estimators import ESTIMATORS, by_curvature

    if name not in CURVATURES:
        return ESTIMATORS[name]
    options = VERIFY.chosen_options("curvature", values) if name == values["curvature"] else {}
    return by_curvature(lambda: CURVATURES[name](**options), values["scoring"], values["self_check"])


def _cost(truth: GroundTruth, values: Mapping[str, Any], names: list[str]) -> str:
    from u2a.impact.curvature import CURVATURES
    from u2a.verification.plan import steps_per_pass

    problem, plan = truth.problem, truth.cells.plan
    sizes, every = Sizes.of(problem), len(plan.runs)
    passes = plan.steps / steps_per_pass(truth.unlearn, plan.size)
    trained = passes * plan.size * sizes.negatives / len(problem.negatives)
    held_out = sum(tokens_of_j(truth.held_out)) if truth.held_out else 0
    # a training step costs about two forward passes over the negatives and, at most, as many retain tokens
    each = 4 * trained + sizes.measuring + held_out
    left = len(truth.cells.remaining())
    apart = [name for name in names[1:] if name not in CURVATURES]  # the curvatures share one pass
    scoring = (1 + len(apart)) * sizes.scoring(values["scoring"]) + 2 * sizes.scoring("exact")
    total = left * each + scoring
    done = f", {every - left} of them already there" if left < every else ""
    return (
        f"Unlearning for real: {every} runs{done}, {plan.steps} optimiser steps each, every run about "
        f"{each / sizes.negatives:.1f} forward passes over the {len(problem.negatives)} negatives. Scores to "
        f"compare: about {scoring / sizes.negatives:.1f} passes (more for curvatures that need products). In "
        f"all about {minutes(total * seconds_per_token(problem))}, or less with several --processes."
    )


def _write_results(run: RunFolder, cells: Cells, start: Measurement, scored: _Scored, data: Data) -> int:
    from u2a.report.html import write_report
    from u2a.verification.comparison import Comparison, verdict

    done = [cell for cell in map(cells.read, cells.plan.runs) if cell is not None]
    comparison = Comparison(cells.plan, done, scored.estimates, scored.controls.scores)
    figures = comparison.figures()
    found = verdict(figures)
    write_json(run.path / "verify.json", figures)
    give(results=figures)
    comparison.write_table(run.path / "subsets.parquet")
    judged = next(iter(scored.estimates.values()))
    cost = judged.utility_cost if judged.utility_cost is not None else np.full(len(judged.impact), np.nan)
    table = replace(scored.controls.table, impact=judged.impact, utility_cost=cost, self_checks=())
    table.write(run.path / "impact.parquet", data.negatives)
    plan = cells.plan
    write_summary(
        run,
        "verify",
        found.sentence,
        measurement_rows(start, None),
        counts={"negatives": len(data.negatives), "subsets": plan.subsets, "runs": len(done)},
        warnings=[*data.warnings, *scored.left_out],
    )
    write_report(run.path)
    print_table("Predicted against measured: rank correlation (LDS)", _HEADER, table_rows(figures))
    say(f"Run folder: {run.path}")
    say(found.sentence, essential=True)
    return 0 if found.trusted else 1


_HEADER = ("score (–: control)", "LDS", "95 %", "held-out", "U", "slope")


def table_rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table at the end: estimators, controls (marked), what noise allows; a dash = not known."""
    rows: list[tuple[str, ...]] = []
    for mark, group in (("", "estimators"), ("– ", "controls")):
        for name, found in figures[group].items():
            j = found["validation"]["J"]
            low, high = j["interval"]
            interval = "–" if low is None else f"[{low:.2f}, {high:.2f}]"
            rows.append((f"{mark}{name}", _lds(j), interval, *_others(found), _number(j["slope"], "{:.2g}")))
    ceiling = figures["noise_ceiling"]
    return [*rows, ("what noise allows", _lds(ceiling["validation"]["J"]), "–", *_others(ceiling), "–")]


def _others(found: Mapping[str, Any]) -> tuple[str, str]:
    """LDS on held-out pairs and of U."""
    return _lds(found.get("held_out", {}).get("J")), _lds(found["validation"].get("U"))


def _lds(found: Mapping[str, Any] | None) -> str:
    return _number(found["lds"] if found else None, "{:.2f}")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
