"""`u2a align`: the main job."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from u2a import processes
from u2a.commands.ends import End, end_of
from u2a.commands.held_out import held_out_values, keep_held_out
from u2a.commands.idle_options import idle_options
from u2a.commands.impact import counts, describe, self_check_figures
from u2a.commands.launch import join_processes
from u2a.commands.schemas import ALIGN
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
from u2a.commands.summary import (
    Row,
    answer_rows,
    held_out_rows,
    measurement_rows,
    print_summary,
    write_summary,
)
from u2a.commands.terminal import Bars, say
from u2a.config import MOST_OVERLAP_RISE, MOST_REPETITION_RISE, OuterOptions, UnlearnOptions, WeightOptions
from u2a.runs.run_folder import RunFolder, whole_file, whole_folder, write_text
from u2a.weighting import parse_selection

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from u2a.alignment.outer_loop import AlignResult
    from u2a.models.policy import Policy
    from u2a.ngrams import AnswerShares
    from u2a.problem import Measurement, Problem


def run(values: Mapping[str, Any]) -> int:
    """Aligns and writes the run folder; the last line and the exit status are those of `ends`."""
    folder = output_path(values)
    join_processes(values)
    from u2a.answers import greedy_answers

    with processes.as_one():
        if values["output"]:
            RunFolder.check(folder, resume=values["resume"])
        data = load_data(values, ALIGN)
        keep_held_out(data)

        from u2a.models.policy import check_source

        source = check_source(values["model"], trust_remote_code=values["trust_remote_code"])
        if source.kind == "adapter" and values["lora_rank"] and not values["merge"]:
            data.warnings.append(
                f"the original model is itself an adapter, {source.name}: the new one will be right only on "
                "the whole model with that one merged into it, which the model card shows in code, and "
                "PEFT's AutoPeftModelForCausalLM would load it wrongly. --merge also writes one whole model"
            )
    with RunFolder.create(folder, values, command="align", resume=values["resume"]) as run, Bars() as bars:
        data.warnings += idle_options(values)
        say_warnings(data.warnings)
        with run.phase("loading"):
            policy = load_model(values, ALIGN)
        with run.phase("measuring"):
            problem = build_problem(values, ALIGN, data, policy, bars)
            begin = time.perf_counter()
            answers = greedy_answers(problem, bars.task)
            say(_cost(problem, values, time.perf_counter() - begin))
            before = held_out_values(problem, data, bars)
            start = problem.measure(bars.task, negatives=True)
        result = _align(problem, replace(start, answers=answers), values, run, bars)
        with run.phase("evaluation"):
            after, now = held_out_values(problem, data, bars), result.best.answers
            if now is None:  # no guard was on it, or the best point is of before an interruption
                now = greedy_answers(problem, bars.task)
        found = _collapses(answers, now)
        data.warnings += found
        say_warnings(found)
        rows = [*measurement_rows(result.start, result.best, problem), *answer_rows(answers, now)]
        rows += held_out_rows(before, after) if before and after else []
        was, is_now = (each["margin"] if each else None for each in (before, after))
        end = end_of(result, was, is_now, values["min_gain"])
        state = policy.whole_state()
        with processes.as_one():
            if processes.is_main():
                _write_results(run, result, data, policy, rows, end, state)
                if values["merge"]:
                    save_merged(policy, run.path)
                _write_card(run)
                print_summary(rows, run)
                say(_outcome(result), essential=True)
    say(f"Run folder: {run.path}")
    say(end.line, essential=True)
    return end.status


def _collapses(before: AnswerShares, after: AnswerShares) -> list[str]:
    """What greedy answers have become, where that is worth a look, noise or not."""
    found = []
    was, now = before.repetition.mean(), after.repetition.mean()
    if now - was > MOST_REPETITION_RISE:
        found.append(
            f"greedy answers run in circles: {now:.0%} of their 4-grams stood in them before, {was:.0%} in "
            "the original's, which J, KL and NLL do not show: read them. A lower --max-repetition-rise keeps "
            "an earlier step, a lower --learning-rate hits less hard"
        )
    was, now = before.overlap.mean(), after.overlap.mean()
    if now - was > MOST_OVERLAP_RISE:
        found.append(
            f"greedy answers became alike: {now:.0%} of an answer's 2-grams stand in another one, {was:.0%} "
            "in the original's. That is as it should be where every prompt deserves the same refusal; else "
            "read them, and try a lower --learning-rate"
        )
    return found


def _align(
    problem: Problem, start: Measurement, values: Mapping[str, Any], run: RunFolder, bars: Bars
) -> AlignResult:
    from u2a.alignment.outer_loop import align
    from u2a.impact.curvature import CURVATURES

    return align(
        problem,
        unlearn=ALIGN.part(UnlearnOptions, values),
        weights=ALIGN.part(WeightOptions, values),
        outer=ALIGN.part(OuterOptions, values),
        curvature=CURVATURES[values["curvature"]](**ALIGN.chosen_options("curvature", values)),
        scoring=values["scoring"],
        self_check=values["self_check"],
        start=start,
        seed=values["seed"],
        folder=run.path / "checkpoints",
        resume=values["resume"],
        record=run.record,
        task=bars.task,
        phase=run.phase,
    )


def _cost(problem: Problem, values: Mapping[str, Any], answering: float) -> str:
    """What lies ahead, where greedy answers took `answering` seconds."""
    sizes, options = Sizes.of(problem), values
    mean = sizes.negatives / len(problem.negatives)
    passes = options["epochs"] * parse_selection(options["select"], len(problem.negatives)) * mean
    if options["max_steps"]:
        passes = options["max_steps"] * options["batch_size"] * options["gradient_accumulation"] * mean
    # a training step costs about two forward passes over the negatives and, at most, as many retain tokens
    unlearning = 4 * passes + options["measurements"] * (sizes.measuring + sizes.negatives)
    answers = options["outer_steps"] * options["measurements"] if options["max_repetition_rise"] < 1 else 1
    total = options["outer_steps"] * (sizes.scoring(options["scoring"]) + unlearning)
    scoring = sizes.scoring(options["scoring"]) / sizes.negatives
    return (
        f"Each outer step: scoring costs about {scoring:.1f} forward passes over the "
        f"{len(problem.negatives)} negatives, unlearning and measuring about "
        f"{unlearning / sizes.negatives:.1f}. In all at most about "
        f"{minutes(total * seconds_per_token(problem) + answers * answering)}."
    )


def _write_results(
    run: RunFolder,
    result: AlignResult,
    data: Data,
    policy: Policy,
    rows: list[Row],
    end: End,
    state: dict[str, Tensor] | None = None,
) -> None:
    from u2a.report.html import write_report

    table = result.impact
    if table is None:
        raise ValueError("this command always scores, so there is a table")
    table.write(run.path / "impact.parquet", data.negatives)
    write_weights(run.path / "weights.parquet", data.negatives, result.weights, result.history)
    with whole_folder(run.path / ("adapter" if policy.has_adapter else "model")) as whole:
        policy.save(whole, state)
    write_metrics(run, result)
    write_summary(
        run,
        "align",
        _outcome(result),
        rows,
        counts=counts(table, data, selected=int((result.weights > 0).sum())),
        self_check=self_check_figures(table),
        warnings=data.warnings,
        end=end.line,
        ended=end.kind,
    )
    write_report(run.path)


def _outcome(result: AlignResult) -> str:
    return f"{describe(result.impact) if result.impact else ''} {result.outcome}".strip()


def _write_card(run: RunFolder) -> None:
    from u2a.report.model_card import write_model_card

    write_model_card(run.path)


def save_merged(policy: Policy, folder: Path) -> None:
    """Writes the full model with the adapter folded in, as safetensors, to `merged/`."""
    policy.merge()
    with whole_folder(folder / "merged") as whole:
        policy.save(whole)


def write_metrics(run: RunFolder, result: AlignResult) -> None:
    """Writes `metrics.jsonl` again from the measured points: a resumed run has some of them twice."""
    lines = []
    for point in result.points:
        figures = {key: value for key, value in vars(point).items() if key != "figures"}
        lines.append(json.dumps({"event": "measurement", **figures, **point.figures}, allow_nan=False))
    write_text(run.path / "metrics.jsonl", "".join(f"{line}\n" for line in lines))


def write_weights(path: Path, negatives: Dataset, weights: np.ndarray, history: list[np.ndarray]) -> None:
    """Writes `weights.parquet` (docs/reference/files.md) whole."""
    columns = {
        "row": pa.array(negatives["row"], pa.int64()),
        "id": pa.array(negatives["id"], pa.string()),
        "weight": weights,
        "selected": weights > 0,
        **{f"weight_{k}": step for k, step in enumerate(history, start=1)},
    }
    with whole_file(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
