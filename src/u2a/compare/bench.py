"""Runs one method once: the same texts, original model and measuring for all of them."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from u2a.alignment.ledger import Parameters, restore, snapshot
from u2a.answers import greedy_answers, rise_beyond_noise
from u2a.baselines import Budget, Spent, Stage, Watch
from u2a.compare.plan import CellName, Entry
from u2a.evaluation import METRICS
from u2a.evaluation.material import Material, different_prompts, drawn_prompts
from u2a.evaluation.subject import Sampling, Subject
from u2a.fingerprint import fingerprint
from u2a.impact.curvature import Curvature
from u2a.impact.table import ImpactTable, score_impact
from u2a.losses import LOSSES, resolve_loss
from u2a.ngrams import AnswerShares
from u2a.objectives import MeanLogProb
from u2a.objectives.preference import Preference
from u2a.problem import Measurement, Problem, Task, silent
from u2a.runs.run_folder import write_json
from u2a.storage.files import whole_folder
from u2a.types import UserError
from u2a.validation import pair_texts, shared_out

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.scorers import Scorer

log = logging.getLogger("u2a")

JOINT_SHARE = 0.5
"""Share of the validation prompts that joint methods train on."""


@dataclass
class Bench:
    """What all cells share.

    Args:
        first: the problem, prepared at φ₀. Its retain term is `nll` where there are retain rows, so that U is
            measured on the same texts whatever the method trains on.
        has_retain: whether U is measured on retain rows, and not on preferred validation answers: of joint
            methods, on those to pairs that they do not train on.
        validation, test: rows of pairs. training, mixture, scorer: what some methods need.
        folder: of the kept scores.
        loss, loss_options: options of the unlearning loss of that name; other losses take their defaults.
        metrics: names in `METRICS`, measured at the end of a final cell. models: where final models are kept;
            None = nowhere. load_options: of `load_policy`, as the original model was loaded.
        answering: seconds that greedy answers to validation prompts took at φ₀.
    """

    first: Problem
    validation: Dataset
    test: Dataset
    budget: Budget
    folder: Path
    curvature: Curvature
    scoring: str = "auto"
    loss: str = ""
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    looks: int = 3
    metrics: Sequence[str] = ()
    answers: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    training: Dataset | None = None
    mixture: Dataset | None = None
    scorer: Scorer | None = None
    models: Path | None = None
    load_options: Mapping[str, Any] = field(default_factory=dict)
    has_retain: bool = True
    task: Task = silent
    start: Measurement = field(init=False)
    answering: float = field(init=False)
    _answers_at_start: AnswerShares = field(init=False)
    held_out: Dataset = field(init=False)
    _test_at_start: np.ndarray = field(init=False)
    _original: Parameters = field(init=False)

    def __post_init__(self) -> None:
        self._original = snapshot(self.first)
        self.start = self.first.measure(self.task, negatives=True)
        begin = time.perf_counter()
        self._answers_at_start = greedy_answers(self.first, self.task)
        self.answering = time.perf_counter() - begin
        self.held_out, _ = pair_texts(self.test, self.first.renderer)
        with self.task("held-out pairs", len(self.held_out)) as progress:
            self._test_at_start = self.first.logprobs(self.held_out, progress).double().numpy()

    def run(self, entry: Entry, name: CellName) -> dict[str, Any]:
        """Makes a cell: trains by the method, looks at it on the way, measures the end."""
        problem, start = self._problem(entry, name.seed)
        watch = Watch(problem, self.budget, self.looks, self.held_out if name.final else None, self.task)
        with tempfile.TemporaryDirectory(prefix="u2a-compare-") as scratch:
            stage = Stage(
                problem=problem,
                validation=self.validation,
                start=start,
                # charged once, however often the method asks
                scores=cache(lambda: self._scores(entry, name.seed, problem, watch)),
                score=lambda at: self._score(problem, at),
                watch=watch,
                rate=name.rate,
                seed=name.seed,
                folder=scratch,
                training=self.training,
                mixture=self.mixture,
                scorer=self.scorer,
                task=self.task,
                load_options=self.load_options,
            )
            with watch.running():
                entry.method.train(stage)
        if entry.has_rate and not watch.steps and not self.budget.seconds:
            raise UserError(f"{entry.name} made no step: there are too few rows for a batch of its trainer")
        if name.final and self.models is not None:
            with whole_folder(self.models / name.file.removesuffix(".json")) as folder:
                stage.problem.policy.save(folder)
        before, answers = self._answers_at_start, self._answers(stage.problem)
        return {
            "entry": name.entry,
            "rate": name.rate,
            "seed": name.seed,
            "final": name.final,
            "start": start.figures,
            "points": [asdict(point) for point in watch.points],
            "steps": watch.steps,
            "seconds": round(watch.points[-1].seconds, 3),
            "tokens": asdict(watch.spent),
            "figures": self._figures(stage.problem, watch, name) if name.final else {},
            "repetition": float(answers.repetition.mean()),
            "repetition_rise": rise_beyond_noise(before.repetition, answers.repetition),
            "overlap": float(answers.overlap.mean()),
            "overlap_rise": rise_beyond_noise(before.overlap, answers.overlap),
        }

    def _answers(self, problem: Problem) -> AnswerShares:
        """Of greedy answers at the end, to the same validation prompts for every method."""
        return greedy_answers(replace(problem, objective=self.first.objective), self.task)

    def _problem(self, entry: Entry, seed: int) -> tuple[Problem, Measurement]:
        """The problem of an entry's loss at φ₀, with LoRA's A of that seed, and what it is there."""
        loss, term = resolve_loss(entry.loss, None)
        if entry.takes_loss and term in ("nll", "kl") and self.first.retain_texts is None:
            raise UserError(f"{entry.name}: {entry.loss} needs --retain: good texts to train on")
        restore(self.first, self._original)
        self.first.policy.redraw_adapter(seed)
        options = self.loss_options if entry.loss == self.loss else {}
        problem = replace(self.first, loss=LOSSES[loss](**options), retain_loss=term)
        if getattr(entry.method, "joint", 0.0) <= 0:
            return problem, self.start
        if not isinstance(problem.objective, Preference):
            raise UserError(f"{entry.name}: joint methods climb J on preference pairs")
        joint, objective = shared_out(problem.objective, self.validation["prompt"], JOINT_SHARE)
        problem = replace(problem, joint=joint, objective=objective)
        if not self.has_retain:  # U is on preferred answers: on none that is trained on, as `prepare` has it
            preferred = objective.texts.select(range(len(objective.texts) // 2))
            problem = replace(problem, utility=MeanLogProb(preferred))
        return problem, problem.measure(self.task, negatives=True)

    def _scores(self, entry: Entry, seed: int, problem: Problem, watch: Watch) -> ImpactTable:
        """The impact table at φ₀, kept for every method of this loss, route and seed; its price goes to each.

        What it needs to know of φ₀ is measured again, so that this is in the price, as in every later round.
        """
        scoring = getattr(entry.method, "scoring", self.scoring)
        part = "joint-" if problem.joint is not None else ""
        part += "" if scoring == self.scoring else f"{scoring}-"
        path = self.folder / f"{part}{entry.loss}-{seed}.json"
        mark = fingerprint(problem)
        if path.is_file():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
                arrays: dict[str, Any] = {
                    k: None if v is None else np.asarray(v) for k, v in kept["table"].items()
                }
                table, charged = ImpactTable(**arrays), Spent(**kept["tokens"])
                whole = kept["mark"] == mark
            except (ValueError, KeyError, TypeError, AttributeError):
                whole = False
            if whole:
                watch.charge(kept["seconds"], charged)
                return table
            log.warning("%s is damaged or of other rows: scored again", path)
        seconds, spent = watch.seconds, replace(watch.spent)
        table = self._score(problem, scoring=scoring)
        columns = ("impact", "utility_cost", "loss", "n_tokens", "cosine", "grad_norm")
        values = {name: getattr(table, name) for name in columns}
        tokens = {
            "forward": watch.spent.forward - spent.forward,
            "trained": watch.spent.trained - spent.trained,
        }
        write_json(
            path,
            {
                "mark": mark,
                "seconds": watch.seconds - seconds,
                "tokens": tokens,
                "table": {k: None if v is None else np.asarray(v).tolist() for k, v in values.items()},
            },
        )
        return table

    def _score(self, problem: Problem, at: Measurement | None = None, scoring: str = "") -> ImpactTable:
        scoring = scoring or self.scoring
        return score_impact(
            problem, curvature=self.curvature, scoring=scoring, se_groups=0, at=at, task=self.task
        )

    def _figures(self, problem: Problem, watch: Watch, name: CellName) -> dict[str, Any]:
        """The metrics at the end, with the values behind them."""
        at_end = np.asarray(watch.points[-1].held_out)
        subject = self._subject(name.entry, problem, at_end)
        subject.original = self._subject("original", self.first, self._test_at_start)
        prompts = drawn_prompts(different_prompts(self.test["prompt"]), self.answers, seed=0)
        material = Material(
            test=self.held_out,
            negatives=problem.negative_texts,
            retain=problem.utility.texts if self.has_retain else None,
            prompts=prompts if self.answers else None,
        )
        found: dict[str, Any] = {}
        for metric in self.metrics:
            for figure in METRICS[metric]().measure(subject, material):
                found[figure.name] = figure.as_json()
        return found

    def _subject(self, name: str, problem: Problem, test: np.ndarray) -> Subject:
        subject = Subject(
            name,
            problem.policy,
            problem.renderer,
            self.sampling,
            max_tokens=problem.max_tokens,
            task=self.task,
        )
        subject.remember({}, {"test": test.tolist()})
        return subject
