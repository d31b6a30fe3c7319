"""`u2a evaluate`: did it work, what did it break? The original model always stands beside the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2a.commands.ends import DONE, FINDINGS
from u2a.commands.evaluation_metrics import choose_metrics
from u2a.commands.evaluation_models import Finished, Measured, ask_again, marks_of
from u2a.commands.evaluation_results import document, outcomes, tables, without_verdict
from u2a.commands.evaluation_rows import chosen_by, labelled, overlaps, refuse_empty, trained_on
from u2a.commands.evaluation_runs import USUAL, as_the_runs, check_models, other_originals, run_of
from u2a.commands.session import minutes, output_path, say_warnings
from u2a.commands.summary import write_summary
from u2a.commands.terminal import Bars, give, print_table, say, terminal_width
from u2a.evaluation.choice import NOT_SENT
from u2a.evaluation.readings import ORIGINAL, Reading, estimates
from u2a.runs.run_folder import RunFolder, write_json
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.evaluation import Metric
    from u2a.evaluation.figure import Figure
    from u2a.evaluation.material import Material
    from u2a.evaluation.subject import Subject
    from u2a.models.policy import Policy
    from u2a.types import Message

log = logging.getLogger("u2a")

ROLES = (
    "test",
    "negatives",
    "held_out_negatives",
    "retain",
    "text",
    "safe_prompts",
    "unsafe_prompts",
)
"""Flags that name rows."""
JUDGE_ANSWERS = "judge_answers.jsonl"
"""Where the judge's answers are kept in the run folder, unless `--judge-cache` says otherwise."""


@dataclass(frozen=True)
class Rows:
    """Rows by role, checked; `names` of the models -> what they are loaded from, the original first;
    `prompts` to answer by role of the material; metrics by name, and why each other one is left out; what
    people should know of the rows."""

    names: dict[str, str]
    by_role: dict[str, Dataset]
    prompts: dict[str, list[list[Message]]]
    metrics: dict[str, Metric]
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def run(values: Mapping[str, Any], models: Sequence[str]) -> int:
    """Measures every model on the same texts and prompts; writes `evaluation.json`, answers and a report."""
    folder = output_path(values)
    if not values["output"]:
        raise UserError("--output is missing: a new folder for the run")
    RunFolder.check(folder, resume=values["resume"])
    cache = values["judge_cache"] or str(folder / JUDGE_ANSWERS)
    values, differ = as_the_runs(values, models)
    rows = read_rows({**values, "judge_cache": cache}, models)
    rows.warnings.extend(differ)
    kept = {**values, "models": list(models)}
    with RunFolder.create(folder, kept, command="evaluate", resume=values["resume"]) as run, Bars() as bars:
        say(
            f"Original model: {rows.names[ORIGINAL]}; rows are read with --template {values['template']} and "
            f"--max-length {values['max_length']}."
        )
        say_warnings(rows.warnings)
        if not_measured := [name for name, why in rows.left_out.items() if NOT_SENT not in why]:
            log.info(
                "Not measured for want of rows or options: %s; `u2a evaluate --help` says what each needs",
                ", ".join(not_measured),
            )
        found = _measure_all(rows, values, run, bars)
        others = [name for name, each in found.items() if each.vocabulary != found[ORIGINAL].vocabulary]
        figures = estimates({name: each.figures for name, each in found.items()}, values["seed"], others)
        results = document(figures, rows.names, rows.left_out, values["seed"])
        write_json(run.path / "evaluation.json", results)
        give(results=results)
        outcome = " ".join(outcomes(figures)) or "The original model alone."
        _write_report(run, figures, rows, outcome)
        for title, header, lines in tables(figures, terminal_width()):
            print_table(title, header, lines)
        say(outcome, essential=True)
        for name, each in found.items():
            open_ = [f"{name}: {key}: {n} requests without a reply" for key, n in each.unanswered.items()]
            say_warnings([f"{line}; --resume asks the judge again" for line in open_])
    say(f"Run folder: {run.path}")
    unknown = without_verdict(figures)
    if unknown:
        say(f"No verdict at all: {', '.join(unknown)}.", essential=True)
    return FINDINGS if unknown else DONE


def _measure_all(rows: Rows, values: Mapping[str, Any], run: RunFolder, bars: Bars) -> dict[str, Measured]:
    """Every model's figures and answers; those of models that were finished before are read."""
    from u2a.evaluation.evaluate import EXACT
    from u2a.evaluation.llm_judge import LLMJudge
    from u2a.evaluation.material import material_of

    finished = Finished(run.path / "models", tuple(rows.names), marks_of(rows.names, rows.by_role))
    found = {name: measured for name in rows.names if (measured := finished.read(name))}
    unjudged = [name for name, measured in found.items() if measured.unanswered]
    original: Subject | None = None
    dtype = EXACT if values["dtype"] == "auto" else values["dtype"]
    for name, source in rows.names.items():
        done = name in found
        if done and not (name == ORIGINAL and len(found) < len(rows.names)):
            continue
        with run.phase(f"evaluating {name}"):
            subject = load_subject(name, source, original, {**values, "dtype": dtype}, bars)
            if done:  # the others are compared with it
                subject.remember(found[name].answers, found[name].logprobs)
            else:
                figures = _measure(
                    subject, material_of(rows.by_role, rows.prompts, subject.renderer), rows.metrics
                )
                measured = Measured(figures, subject.all_answers, subject.all_logprobs, subject.vocabulary)
                found[name] = finished.write(name, measured)
        if original is None:
            original = subject
            if not done:
                seconds, left = run.phases[f"evaluating {name}"].seconds, len(rows.names) - 1
                after = minutes(left * seconds)
                say(f"The original model took {minutes(seconds)}; {left} more: about {after}.")
        del subject  # before the next is loaded
    found = {name: found[name] for name in rows.names}
    judge = rows.metrics.get("judge")
    if isinstance(judge, LLMJudge):
        for name in unjudged:
            with run.phase(f"judging {name}"):
                found[name] = finished.write(name, ask_again(judge, found, name, rows.prompts, bars.task))
    finished.write_answers(run.path / "answers.jsonl", found, rows.prompts)
    return found


def _write_report(
    run: RunFolder, figures: Mapping[str, Mapping[str, Reading]], rows: Rows, outcome: str
) -> None:
    from u2a.report.html import write_report

    write_summary(
        run,
        "evaluate",
        outcome,
        [],
        counts={"models": len(figures), "figures": len(figures[ORIGINAL])},
        warnings=rows.warnings,
    )
    write_report(run.path)


def read_rows(values: Mapping[str, Any], models: Sequence[str]) -> Rows:
    """Loads and checks everything that can be checked without a model.

    Raises:
        UserError: a file or model is missing or unusable, a metric unknown, or nothing is left to measure.
    """
    from u2a.data.load import load_negatives, load_preferences, load_prompts, load_retain
    from u2a.evaluation.material import Plan, prompts_of

    names = model_names(models, values["original"])
    check_models(names, trust_remote_code=values["trust_remote_code"])
    loaders: dict[str, Callable[[str], Dataset]] = dict.fromkeys(
        ("negatives", "held_out_negatives"), load_negatives
    )
    loaders |= {"test": load_preferences, "retain": load_retain, "text": load_retain}
    loaders |= dict.fromkeys(("safe_prompts", "unsafe_prompts"), load_prompts)
    by_role = {role: loaders[role](values[role]) for role in ROLES if values[role]}
    for role, rows in by_role.items():
        refuse_empty(rows, values[role])
    for role in ("safe_prompts", "unsafe_prompts"):
        if role in by_role:
            by_role[role] = labelled(by_role[role], role.removesuffix("_prompts"), values[role])
    warnings = other_originals(models, names[ORIGINAL]) + overlaps(by_role)
    warnings += trained_on(models, values["retain"]) + chosen_by(models, by_role.get("test"))
    prompts = prompts_of(by_role, values["answers"], values["seed"], say)
    plan = Plan(prompts, len(names), values["max_new_tokens"])
    metrics, left_out = choose_metrics(values, by_role, plan)
    # somebody gave a judge or a scorer, and so expects its figures
    warnings += [f"{name} is left out: {why}" for name, why in left_out.items() if NOT_SENT in why]
    return Rows(names, by_role, prompts, metrics, left_out, warnings)


def model_names(models: Sequence[str], original: str) -> dict[str, str]:
    """Names for the tables -> what to load, the original model first.

    A run folder of `u2a align` stands for its adapter or model; with no `original` the model that the first
    of them started from is taken.

    Raises:
        UserError: the original model is not known.
    """
    found: dict[str, str] = {}
    started_from = original
    for model in models:
        path = Path(model).expanduser()
        source = model
        for made in ("adapter/adapter_config.json", "model/config.json"):
            if (path / made).is_file() and not (path / "config.json").is_file():
                source = str((path / made).parent)
                run = None if started_from else run_of(model)
                started_from = run.original if run else started_from
        whole_or_adapter = any((path / n).is_file() for n in ("config.json", "adapter_config.json"))
        if source == model and (path / "config.yaml").is_file() and not whole_or_adapter:
            raise UserError(f"{model}: this run folder holds no model; take that of a finished `u2a align`")
        names = (path.name or model, model, whole := str(path.resolve()))
        found[next((name for name in names if name not in (ORIGINAL, *found)), whole)] = source
    if not started_from:
        raise UserError("--original is missing: the model that all are compared with")
    return {ORIGINAL: started_from, **found}


def load_subject(
    name: str,
    source: str,
    original: Subject | None,
    values: Mapping[str, Any],
    bars: Bars,
    policy: Policy | None = None,
    usual_length: int = USUAL["max_length"],
) -> Subject:
    """A model as the options have it loaded and answer; an adapter is merged. `policy`: it is there;
    `usual_length`: the default of `--max-length`."""
    from u2a.data.render import Renderer
    from u2a.evaluation.subject import Sampling, Subject
    from u2a.models.policy import load_policy
    from u2a.passes.positions import usable_length

    if policy is None:
        policy = load_policy(
            source,
            lora_rank=0,
            dtype=values["dtype"],
            device=values["device"] or None,
            trust_remote_code=values["trust_remote_code"],
            trained=False,
        )
    sampling = Sampling(
        values["max_new_tokens"], values["temperature"], values["generation_batch"], values["seed"]
    )
    longest = usable_length(policy.model, values["max_length"], usual_length)
    renderer = Renderer(policy.tokenizer, values["template"], longest)
    return Subject(name, policy, renderer, sampling, original, values["score_tokens"], bars.task)


def _measure(subject: Subject, material: Material, metrics: Mapping[str, Metric]) -> dict[str, Figure]:
    return {figure.name: figure for m in metrics.values() for figure in m.measure(subject, material)}
