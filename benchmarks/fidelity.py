"""Predicted against measured: how well every estimator and control orders what real unlearning does.

    python benchmarks/main_job.py --data PATH/hh_harmless.jsonl --work runs/main_job   # the original model
    python benchmarks/fidelity.py --work runs/main_job     # resumable; several processes share the work
    python benchmarks/fidelity.py --table                  # cells -> docs/results.md

The original model and the split are the main job's. Of each part only texts of at most 72 tokens are taken:
60 negatives, 40 validation pairs, 48 held-out pairs, 16 retain rows for U and 16 for the retain term, the
first of a seeded order. 30 subsets of 15 negatives, in which every negative is 7 or 8 times, are unlearned
for real by each loss, at two strengths and two seeds; a seed is that of LoRA's A and of the order of steps.
Every run starts at the original model and no guard cuts it short. For one setting also: single negatives,
and the best, the worst and random k by the impact of the estimator that is the default.

Two processes of one thread each are faster than one of two: OMP_NUM_THREADS=1. Each run is a cell that is
claimed by a lock, so processes may be started and killed at any time. Cells hold numbers only.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from u2a.config import UnlearnOptions
from u2a.data.collate import tokenize_rows
from u2a.data.load import load_negatives, load_preferences, load_retain
from u2a.data.render import Renderer
from u2a.losses import LOSSES, resolve_loss
from u2a.models.policy import load_policy
from u2a.preparation import prepare
from u2a.problem import Measurement, Problem
from u2a.verification.cells import Cells, settings_of
from u2a.verification.plan import Plan, Run
from u2a.verification.subsets import draw_singles, draw_subsets
from u2a.verification.truth import GroundTruth, held_out_objective

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.objectives.preference import Preference

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "fidelity"
SEEDS = (0, 1)
STRENGTHS = {
    "real": UnlearnOptions(learning_rate=3e-4, max_steps=8, batch_size=8),
    "gentle": UnlearnOptions(learning_rate=2e-4, max_steps=4, batch_size=8),
}
"""`real` moves φ about as far as the main job does (10 steps at 3e-4), `gentle` a third of that."""
MAX_TOKENS = 72
NEGATIVES, VALIDATION, HELD_OUT, RETAIN = 60, 40, 48, 32
SUBSETS, SIZE, SINGLES = 30, 15, 12
CHOSEN = "diagonal"
"""The estimator of the gain curves."""


@dataclass(frozen=True)
class Setting:
    """One truth: a loss, a strength and a seed."""

    loss: str
    strength: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.loss}-{self.strength}-{self.seed}"


SETTINGS = [
    Setting(loss, strength, seed)
    for strength, seed in (("real", 0), ("real", 1), ("gentle", 0), ("gentle", 1))
    for loss in ("npo", "graddiff")
]
SINGLED_OUT = Setting("npo", "real", 0)
"""Where single negatives, and the best and the worst k, are measured too."""


def short(rows: Dataset, renderer: Renderer, responses: tuple[str, ...], count: int) -> Dataset:
    """The first `count` rows of a seeded order whose texts all have at most MAX_TOKENS tokens."""
    lengths = [
        [len(ids) for ids in tokenize_rows(rows, renderer, response=r)["input_ids"]] for r in responses
    ]
    fitting = np.flatnonzero(np.max(lengths, axis=0) <= MAX_TOKENS)
    if len(fitting) < count:
        raise SystemExit(f"only {len(fitting)} of {len(rows)} rows are short enough, {count} are wanted")
    return rows.select(np.sort(np.random.default_rng(0).permutation(fitting)[:count]))


@dataclass
class Bench:
    """What all settings share, measured once: B = 0 at the start, so no figure depends on A."""

    work: Path
    negatives: Dataset = field(init=False)
    validation: Dataset = field(init=False)
    held_out_pairs: Dataset = field(init=False)
    first: Problem = field(init=False)
    start: Measurement = field(init=False)
    held_out: Preference = field(init=False)

    def __post_init__(self) -> None:
        policy = load_policy(str(self.work / "original"), lora_rank=16, seed=0)
        renderer, parts = Renderer(policy.tokenizer), self.work / "split"
        pair, answer = ("chosen", "rejected"), ("response",)
        self.negatives = short(load_negatives(str(parts / "forget.jsonl")), renderer, answer, NEGATIVES)
        self.validation = short(load_preferences(str(parts / "validation.jsonl")), renderer, pair, VALIDATION)
        self.held_out_pairs = short(load_preferences(str(parts / "test.jsonl")), renderer, pair, HELD_OUT)
        self.first = prepare(
            policy,
            negatives=self.negatives,
            preferences=self.validation,
            retain=short(load_retain(str(parts / "retain.jsonl")), renderer, answer, RETAIN),
            retain_loss="nll",  # so that U is measured on the same rows for every loss
        )
        self.start = self.first.measure(negatives=True)
        self.held_out = held_out_objective(self.first, self.held_out_pairs)

    def problem(self, loss: str, seed: int) -> Problem:
        """The problem of that loss with a fresh adapter of that seed, at φ₀."""
        name, term = resolve_loss(loss, None)
        policy = load_policy(str(self.work / "original"), lora_rank=16, seed=seed)
        return replace(self.first, policy=policy, loss=LOSSES[name](), retain_loss=term)

    def truth(self, setting: Setting, plan: Plan, folder: Path) -> GroundTruth:
        """What runs and measures the cells of a plan."""
        problem = self.problem(setting.loss, setting.seed)
        unlearn = STRENGTHS[setting.strength]
        made_with = settings_of(problem, unlearn, plan, self.held_out.texts, {"A": setting.seed})
        return GroundTruth(problem, unlearn, Cells(folder, plan, made_with), self.start, self.held_out)


def subset_plan(setting: Setting) -> Plan:
    """The subsets, the same for every setting, and some single negatives for one of them."""
    members = draw_subsets(NEGATIVES, SIZE, SUBSETS, seed=0)
    if setting == SINGLED_OUT:
        members = np.concatenate([members, draw_singles(NEGATIVES, SINGLES, seed=0)])
    steps = STRENGTHS[setting.strength].max_steps
    return Plan(members, SUBSETS, (setting.seed,), (), steps)


CURVE = [(kind, k, n) for k in (5, 15, 30) for kind, n in (("best", 0), ("worst", 0), ("random", 0))] + [
    ("random", 5, 1),
    ("random", 30, 1),
]
"""Points of the gain curves: which negatives, how many, and which draw."""


def curve_plan() -> Plan | None:
    """The best, the worst and random k negatives by CHOSEN's impact; None while there are no scores."""
    path = RESULTS / "scores" / f"{SINGLED_OUT.loss}-{SINGLED_OUT.seed}-{CHOSEN}.json"
    if not path.is_file():
        return None
    impact = np.array(json.loads(path.read_text(encoding="utf-8"))["scores"][CHOSEN]["impact"])
    members = np.zeros((len(CURVE), NEGATIVES), dtype=bool)
    for row, (kind, k, draw) in zip(members, CURVE, strict=True):
        order = {
            "best": np.argsort(-impact, kind="stable"),
            "worst": np.argsort(impact, kind="stable"),
            "random": np.random.default_rng((draw, 3)).permutation(NEGATIVES),
        }[kind]
        row[order[:k]] = True
    steps = STRENGTHS[SINGLED_OUT.strength].max_steps
    return Plan(members, len(members), (SINGLED_OUT.seed,), (), steps)


def cells_of(folder: Path, plan: Plan) -> dict[int, dict[str, dict[str, float]]]:
    """The finished cells by subset, without the model that would check their settings."""
    found = {}
    for run in plan.runs:
        path = Cells(folder, plan, {}).path(run)
        if path.is_file():
            found[run.subset] = json.loads(path.read_text(encoding="utf-8"))
    return found


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process may make `path`: nobody else is making it, and it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def measure_runs(bench: Bench, setting: Setting, plan: Plan, folder: Path) -> None:
    """Measures the cells that are missing and nobody else is at."""
    truth: GroundTruth | None = None
    unread = Cells(folder, plan, {})
    for run in plan.runs:
        if unread.path(run).is_file():
            continue
        with claimed(bench.work / "claims" / folder.name / unread.path(run).name) as mine:
            if not mine or unread.path(run).is_file():
                continue
            truth = truth or bench.truth(setting, plan, folder)
            report(folder.name, run, truth)


def report(folder: str, run: Run, truth: GroundTruth) -> None:
    """Runs one cell and says what came of it."""
    begin = time.perf_counter()
    cell = truth.run(run)
    seconds = time.perf_counter() - begin
    changes = " ".join(f"{name} {cell.change(name):+.4f}" for name in ("objective", "utility", "held_out"))
    print(f"{folder} {run.subset}: {changes} kl {cell.end['kl']:.4f} {seconds:.0f} s", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/main_job"), help="that of main_job.py")
    parser.add_argument(
        "--embedding-model", default="", help="for the control; a sentence-transformers folder"
    )
    parser.add_argument("--only", choices=("runs", "scores"), help="to share the work")
    parser.add_argument("--table", action="store_true", help="only write docs/results.md from the cells")
    options = parser.parse_args()
    if options.table:
        from fidelity_table import write_table

        write_table()
        return
    begin = time.perf_counter()
    bench = Bench(options.work)
    print(f"prepared in {time.perf_counter() - begin:.0f} s, start {bench.start.figures}", flush=True)
    for setting in SETTINGS if options.only != "scores" else ():
        measure_runs(bench, setting, subset_plan(setting), RESULTS / setting.name)
        curves = curve_plan() if setting == SINGLED_OUT else None
        if curves is not None:
            measure_runs(bench, setting, curves, RESULTS / f"{setting.name}-curves")
    if options.only != "runs":
        from fidelity_scores import STAGES, score_all

        for stage, seed, loss in product(STAGES, SEEDS, ("npo", "graddiff")):
            score_all(bench, loss, seed, stage, options.embedding_model)


if __name__ == "__main__":
    main()
