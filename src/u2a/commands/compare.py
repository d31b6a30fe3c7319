"""`u2a compare`: methods × metrics × cost, at one budget, over several seeds, with a verdict."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2a import interruption
from u2a.commands.comparison_metrics import CORE_METRICS
from u2a.commands.comparison_plan import (
    Extra,
    Plan,
    check_models,
    load_reward_model,
    make_plan,
    model_mark,
    read_rows,
    settings_of,
)
from u2a.commands.comparison_results import document, further_figures, rates_at_an_edge, tables
from u2a.commands.schemas import COMPARE
from u2a.commands.session import (
    Data,
    build_problem,
    load_model,
    load_options,
    minutes,
    output_path,
    say_warnings,
    seconds_per_token,
)
from u2a.commands.summary import write_summary
from u2a.commands.terminal import Bars, give, print_table, say
from u2a.config import MOST_REPETITION_RISE
from u2a.runs.run_folder import RunFolder, write_json
from u2a.types import GuardStop, OutOfMemory, UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.compare.bench import Bench
    from u2a.compare.cells import Cell, CellStore
    from u2a.compare.plan import CellName, Entry

SAME_MODEL = 0.01
"""Largest difference of U and of the negatives' log-prob, in nats per token, that arithmetic may make between
two machines."""
POLL = 2.0
"""Seconds between two looks at cells that another process is making."""


def run(values: Mapping[str, Any]) -> int:
    """Makes the cells that are missing and writes `comparison.json` and the report; 1 = a method failed."""
    from u2a.commands.comparison_cells import (
        forget_failed,
        missing,
        say_models_not_made,
        unsure,
    )
    from u2a.compare.cells import CellStore

    folder = output_path(values)
    if values["output"]:
        RunFolder.check(folder, resume=values["resume"])
    plan = make_plan(values)
    data, extra = read_rows(values, plan)
    check_models(values, plan)
    extra.scorer = load_reward_model(values, plan)
    with (
        RunFolder.create(folder, values, command="compare", resume=values["resume"], shared=True) as run,
        Bars() as bars,
    ):
        say_warnings(data.warnings)
        cells = Path(values["cells"]).expanduser() if values["cells"] else run.path / "cells"
        defaults = {entry.name: entry.defaults for entry in plan.entries}
        settings = settings_of(plan, values, data, extra)
        store = CellStore(cells, settings, model_mark(values["model"]), defaults)
        if values["resume"] and (run.lock is None or run.lock.alone()):  # nobody else's run counts on them
            forget_failed(plan, store)
            if run.lock is not None:
                run.lock.share()
        if values["keep_models"]:
            say_models_not_made(run.path / "models", plan, store, values)
        if missing(plan, store, values) or unsure(plan, store):
            bench = make_bench(values, plan, data, extra, run, bars)
            say(_cost(bench, plan, values))
            make_cells(bench, plan, store, values, bars)
        failed = _write(run, plan, store, values)
    say(f"Run folder: {run.path}")
    return 1 if failed else 0


def make_bench(
    values: Mapping[str, Any], plan: Plan, data: Data, extra: Extra, run: RunFolder, bars: Bars
) -> Bench:
    """Loads the model and measures the start."""
    from u2a.baselines import Budget
    from u2a.compare.bench import Bench
    from u2a.evaluation.subject import Sampling
    from u2a.impact.curvature import CURVATURES
    from u2a.losses import resolve_loss

    # U is measured on the same half of the retain rows whatever a method trains on
    term = "nll" if data.retain is not None and len(data.retain) > 1 else "none"
    loss, _ = resolve_loss(values["loss"], None)  # the term of each comes with its own problem
    with run.phase("preparing"):
        policy = load_model(values, COMPARE)
        first = build_problem({**values, "loss": loss, "retain_loss": term}, COMPARE, data, policy, bars)
        if data.test is None:
            raise UserError("--test is missing: held-out pairs, on which methods are compared")
        return Bench(
            first=first,
            validation=data.preferences,
            test=data.test,
            budget=Budget(values["steps"], values["batch_size"], values["seconds"]),
            folder=run.path / "scores",
            curvature=CURVATURES[values["curvature"]](**COMPARE.chosen_options("curvature", values)),
            scoring=values["scoring"],
            loss=values["loss"],
            loss_options=COMPARE.chosen_options("loss", values),
            looks=values["looks"],
            metrics=plan.metrics,
            answers=values["answers"],
            sampling=Sampling(max_new_tokens=values["max_new_tokens"], seed=values["seed"]),
            training=extra.training,
            mixture=extra.mixture,
            scorer=extra.scorer,
            models=run.path / "models" if values["keep_models"] else None,
            load_options=load_options(values, COMPARE),
            has_retain=data.retain is not None,
            task=bars.task,
        )


def make_cells(bench: Bench, plan: Plan, store: CellStore, values: Mapping[str, Any], bars: Bars) -> None:
    """Makes every cell, or waits for those that another process is making.

    Raises:
        UserError: cells that are there already began at another model.
    """
    from u2a.commands.comparison_cells import missing

    _refuse_another_model(bench, plan, store)
    with _all_cells(plan, bars) as advance:
        while work := missing(plan, store, values):
            if _one_cell(bench, store, work):
                advance(1)  # and look again: a method whose rate is picked now is finished first
            else:
                time.sleep(POLL)


def _one_cell(bench: Bench, store: CellStore, work: list[tuple[Entry, CellName]]) -> bool:
    """Makes the first cell that nobody else is at; False if there is none."""
    interruption.check()
    for entry, name in work:
        with store.claim(name) as mine:
            if mine:
                store.write(name, _cell(bench, entry, name))
                return True
    return False


def _refuse_another_model(bench: Bench, plan: Plan, store: CellStore) -> None:
    from u2a.commands.comparison_cells import unsure

    own = bench.start.figures
    for name, cell in unsure(plan, store):
        for figure in ("utility", "negative_logprob"):
            before = cell["start"].get(figure, own[figure])
            if not abs(before - own[figure]) <= SAME_MODEL:
                raise UserError(
                    f"{store.folder / name.file} began at another model: its {figure} was {before:.4f}, that "
                    f"of --model is {own[figure]:.4f}; name another --cells or --output"
                )


@contextmanager
def _all_cells(plan: Plan, bars: Bars) -> Iterator[Any]:
    from u2a.compare.plan import finals, grid

    total = sum(
        len(grid(entry, plan.rates, plan.seeds[0])) + len(finals(entry, 0.0, plan.seeds))
        for entry in plan.entries
    )
    with bars.task("methods × rates × seeds", total) as advance:
        yield advance


def _cell(bench: Bench, entry: Entry, name: CellName) -> Cell:
    """A cell; where the method could not do its work, why."""
    begin = time.perf_counter()
    failed = {"entry": name.entry, "rate": name.rate, "seed": name.seed}
    try:
        cell = bench.run(entry, name)
    except (GuardStop, UserError, OutOfMemory) as error:
        return {**failed, "failed": str(error)}
    except (RuntimeError, MemoryError) as error:
        from u2a.passes.memory import WHAT_TO_DO, is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return {**failed, "failed": f"out of memory in {name.entry}. {WHAT_TO_DO}"}
    cell["whole_seconds"] = round(time.perf_counter() - begin, 3)
    end = cell["points"][-1]
    gain = end["objective"] - cell["start"]["objective"]
    say(f"{name.file.removesuffix('.json')}: J {gain:+.4f}, {minutes(cell['seconds'])}")
    return cell


def _cost(bench: Bench, plan: Plan, values: Mapping[str, Any]) -> str:
    """How many cells, and about how long they take."""
    from u2a.compare.plan import finals, grid

    def tokens(texts: Dataset) -> int:
        return sum(len(ids) for ids in texts["input_ids"])

    first = bench.first
    each = tokens(first.negative_texts) / len(first.negative_texts)
    look = tokens(first.objective.texts) + 2 * tokens(first.utility.texts)
    per_token = seconds_per_token(first)
    training = values["seconds"] or 2 * values["steps"] * values["batch_size"] * each * per_token
    grids = sum(len(grid(entry, plan.rates, plan.seeds[0])) for entry in plan.entries)
    ends = sum(len(finals(entry, 0.0, plan.seeds)) for entry in plan.entries)
    looking = values["looks"] * per_token * (look * (grids + ends) + tokens(bench.held_out) * ends)
    total = (grids + ends) * (training + bench.answering) + looking
    return (
        f"{len(plan.entries)} methods, {grids} runs to pick learning rates and {ends} final ones: about "
        f"{minutes(total)}, scoring and sampling not counted. Stopped, it goes on with --resume; more "
        "processes with --resume and the same --output share the work."
    )


def _write(run: RunFolder, plan: Plan, store: CellStore, values: Mapping[str, Any]) -> dict[str, str]:
    """Everything of the run folder but its cells; returns why methods failed, by name."""
    from u2a.commands.comparison_cells import collected
    from u2a.compare.outcome import outcome, verdict
    from u2a.compare.plan import edge
    from u2a.report.html import write_report

    cells, failed = collected(plan, store, values)
    original = next(entry.name for entry in plan.entries if entry.kind == "original")
    made, rise = {e.name: e for e in plan.entries if e.name in cells}, values["nll_rise"]
    outcomes = [outcome(name, e.kind, cells[name], cells[original][0], rise) for name, e in made.items()]
    edges = {one.name: edge(made[one.name], one.rate, plan.rates) for one in outcomes}
    judged = next((one for one in outcomes if one.name == plan.judged.name), None)
    lines = []
    if judged is not None:
        most = values["max_repetition_rise"]
        most = MOST_REPETITION_RISE if most == 1 else most  # off for picking, and said all the same
        lines = verdict(judged, [o for o in outcomes if o is not judged], rise, most) + rates_at_an_edge(
            edges
        )
    results = document(outcomes, cells, failed, lines, values, edges)
    write_json(run.path / "comparison.json", results)
    give(results=results)
    said = (
        "; ".join(lines).replace(":;", ":") + "." if lines else f"{plan.judged.name} could not do its work."
    )
    write_summary(
        run,
        "compare",
        said,
        [],
        counts={"methods": len(outcomes), "runs": sum(len(each) for each in cells.values())},
        warnings=[f"{name}: {why}" for name, why in failed.items()],
    )
    write_report(run.path)
    for title, header, rows in tables(outcomes, rise, edges):
        print_table(title, header, rows)
    if set(plan.metrics) - set(CORE_METRICS):
        print_table(*further_figures(results["methods"]))
    for name, why in failed.items():
        say(f"{name}: {why}")
    say(said, essential=True)
    return failed
