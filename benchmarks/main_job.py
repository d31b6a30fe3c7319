"""U2A against uniform and random-k unlearning on real data, in the same harness.

    python benchmarks/main_job.py --data PATH/hh_harmless.jsonl   # resumable: run it again
    python benchmarks/main_job.py --table                         # cells -> docs/results.md

Two processes of one thread each finish sooner than one of two: give each one of the --losses.

What is done: a seeded split by prompt of the short rows; the original model is SmolLM2-135M-Instruct
fine-tuned on 35 % chosen and 65 % rejected answers; its rejected answers are the negatives. Every method
takes the same number of optimiser steps from the same adapter and is measured at the end, also when J fell;
a point whose retain NLL rose by more than 0.1 nat per token does not count. The learning rate of each method
and loss is picked on validation J at the first seed, from the same three values; the other
seeds (LoRA's A, order, random subset) use it. Held-out pairs are read once, with the picked rate.

What is left out: rows longer than --max-chars and the chat template's default system prompt (an empty
one stands in its place), so that two CPU cores suffice. Rows of the data never leave --work; the committed
cells hold numbers only.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from u2a.alignment.ledger import restore, snapshot
from u2a.alignment.outer_loop import align
from u2a.config import OuterOptions, UnlearnOptions, WeightOptions
from u2a.data.collate import tokenize_rows
from u2a.data.load import load_negatives, load_preferences, load_retain
from u2a.data.render import Renderer
from u2a.data.split import split_rows, write_split
from u2a.impact.curvature import Identity
from u2a.impact.table import ImpactTable, score_impact
from u2a.losses import LOSSES as LOSS_CLASSES
from u2a.losses import resolve_loss
from u2a.models.policy import load_policy
from u2a.preparation import prepare
from u2a.problem import Measurement, Problem
from u2a.runs.run_folder import write_json
from u2a.training.finetune import fine_tune
from u2a.validation import pair_texts
from u2a.weighting import parse_selection

HERE = Path(__file__).parent
CELLS = HERE / "results" / "main_job"
LOSSES = ("npo", "graddiff")
METHODS = ("u2a", "uniform", "random-k")
RATES = (1e-4, 2e-4, 3e-4)
SEEDS = (0, 1, 2)
SELECT = "50%"
STEPS = 10
BATCH = 8
PARTS = ("original", "forget", "retain", "validation", "test")
RETAIN_ROWS = 64
OUTER = OuterOptions(
    outer_steps=1, measurements=1, kl_budget=0.0, max_nll_rise=0.1, max_repetition_rise=1.0, halvings=0
)


def split(data: Path, work: Path, max_chars: int) -> Path:
    """The paper's protocol on the short rows: 300 training prompts, 96 validation and 250 test pairs."""
    folder = work / "split"
    if folder.is_dir():
        return folder
    rows = load_preferences(str(data))

    def short(row: dict[str, Any]) -> bool:
        prompt = sum(len(turn["content"]) for turn in row["prompt"])
        return prompt + max(len(row["chosen"]), len(row["rejected"])) <= max_chars

    def no_system(row: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": [{"role": "system", "content": ""}, *row["prompt"]]}

    rows = rows.filter(short).map(no_system)
    write_split(split_rows(rows, seed=0, validation=96, test=250, train=300, chosen_fraction=0.35), folder)
    return folder


def original(parts: Path, work: Path) -> Path:
    """Fine-tunes SmolLM2 on the mixture; the adapter that makes it the original model."""
    folder = work / "original"
    if (folder / "done.json").is_file():
        return folder
    policy = load_policy("demo", lora_rank=16, seed=0)
    renderer = Renderer(policy.tokenizer)
    columns = ["row", "id", "prompt", "response"]
    from datasets import concatenate_datasets

    mixture = concatenate_datasets(
        [
            load_negatives(str(parts / "forget.jsonl")).select_columns(columns),
            load_retain(str(parts / "retain.jsonl")).select_columns(columns),
        ]
    )
    begin = time.perf_counter()
    loss = fine_tune(policy, tokenize_rows(mixture, renderer), epochs=3, learning_rate=5e-4, seed=0)
    policy.save(folder)
    write_json(
        folder / "done.json",
        {"rows": len(mixture), "train_loss": loss, "seconds": time.perf_counter() - begin},
    )
    return folder


@dataclass
class Bench:
    """What is the same for every cell: texts, reference log-probs, and the measurement at the original.

    A new adapter has B = 0, so all of this holds for every seed.
    """

    parts: Path
    work: Path
    base: Path
    first: Problem | None = None
    start: Measurement | None = None
    prepare_seconds: float = 0.0

    def problem(self, loss: str, seed: int) -> Problem:
        """The problem of that loss with a fresh adapter of that seed, at φ₀."""
        policy = load_policy(str(self.base), lora_rank=16, seed=seed)
        if self.first is None:
            begin = time.perf_counter()
            self.first = prepare(
                policy,
                negatives=load_negatives(str(self.parts / "forget.jsonl")),
                preferences=load_preferences(str(self.parts / "validation.jsonl")),
                retain=load_retain(str(self.parts / "retain.jsonl")).select(range(RETAIN_ROWS)),
                retain_loss="nll",  # so that U is measured on the same rows for every loss
                max_length=256,
            )
            self.start = self.first.measure()
            self.prepare_seconds = time.perf_counter() - begin
        name, term = resolve_loss(loss, None)
        plain = LOSS_CLASSES[name]()
        return replace(self.first, policy=policy, loss=plain, retain_loss=term)

    def table(self, problem: Problem, seed: int) -> tuple[ImpactTable, float]:
        """Impacts at the original model: one scoring for each seed serves every loss and rate.

        At the reference npo's slope dℓ/ds is 1, so its impact is minus the directional derivative, from
        which the other losses' follow by their own slope.
        """

        def score() -> dict[str, Any]:
            begin = time.perf_counter()
            problem_of_npo = replace(problem, loss=LOSS_CLASSES["npo"]())
            table = score_impact(problem_of_npo, curvature=Identity(), at=self.start)
            return {
                "seconds": time.perf_counter() - begin,
                "method": table.method,
                "impact": table.impact.tolist(),
                "impact_se": None if table.impact_se is None else table.impact_se.tolist(),
                "utility_cost": table.utility_cost.tolist(),
            }

        saved = once(self.work / f"impact-{seed}.json", score)
        s, lengths = problem.reference.double(), problem.lengths.double()
        slope = problem.loss.derivative(s, s, lengths).numpy()
        table = ImpactTable(
            impact=slope * np.asarray(saved["impact"]),
            utility_cost=slope * np.asarray(saved["utility_cost"]),
            loss=problem.loss(s, s, lengths).numpy(),
            n_tokens=problem.lengths.numpy(),
        )
        return table, saved["seconds"]


def run_cell(bench: Bench, method: str, loss: str, rate: float, seed: int) -> None:
    """Unlearns by one method from the original model; writes the figures, and φ to the work folder."""
    problem = bench.problem(loss, seed)
    fixed, first, scoring_seconds = None, None, 0.0
    count = len(problem.negatives)
    if method == "uniform":
        fixed = np.ones(count)
    elif method == "random-k":
        drawn = np.random.default_rng(seed).permutation(count)[: parse_selection(SELECT, count)]
        fixed = np.isin(np.arange(count), drawn).astype(float)
    else:
        first, scoring_seconds = bench.table(problem, seed)
    begin = time.perf_counter()
    result = align(
        problem,
        unlearn=UnlearnOptions(learning_rate=rate, max_steps=STEPS, batch_size=BATCH),
        weights=WeightOptions(select=SELECT),
        outer=OUTER,
        fixed_weights=fixed,
        start=bench.start,
        first_table=first,
        keep_last=True,
        seed=seed,
    )
    name = cell_path(method, loss, rate, seed)
    save_file(snapshot(problem), bench.work / f"{name.stem}.safetensors")
    gain = result.best.objective - result.start.objective
    cell = {
        "method": method,
        "loss": loss,
        "rate": rate,
        "seed": seed,
        "steps": STEPS,
        "threads": torch.get_num_threads(),
        "scoring_seconds": scoring_seconds,
        "unlearning_seconds": time.perf_counter() - begin,
        "selected": int((result.weights > 0).sum()),
        "start": result.start.figures,
        "best": result.best.figures,
        "points": [vars(point) for point in result.points],
    }
    write_json(name, cell)
    print(f"{name.stem}: J {gain:+.4f}, {cell['unlearning_seconds']:.0f} s", flush=True)


def add_held_out(bench: Bench, method: str, loss: str, rate: float, seed: int) -> None:
    """Measures the held-out pairs at a finished cell's φ and adds them to the cell."""
    name = cell_path(method, loss, rate, seed)
    cell = json.loads(name.read_text())
    if "test" in cell:
        return
    problem = bench.problem(loss, seed)
    restore(problem, load_file(bench.work / f"{name.stem}.safetensors"))
    write_json(name, {**cell, "test": held_out(problem, bench.parts)})


def held_out(problem: Problem, parts: Path) -> dict[str, Any]:
    """Log-probs and lengths of the held-out pairs under the policy as it is."""
    texts, _ = pair_texts(load_preferences(str(parts / "test.jsonl")), problem.renderer)
    begin = time.perf_counter()
    s = problem.logprobs(texts)
    return {"s": s.tolist(), "n_tokens": list(texts["n_tokens"]), "seconds": time.perf_counter() - begin}


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `path` holds, made if it is not there; of several processes one makes it, the others wait."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_file():
            write_json(path, make())
    return json.loads(path.read_text())


def cell_path(method: str, loss: str, rate: float, seed: int) -> Path:
    return CELLS / f"{loss}-{method}-{rate:g}-{seed}.json"


def read_cell(*name: Any) -> dict[str, Any] | None:
    path = cell_path(*name)
    return json.loads(path.read_text()) if path.is_file() else None


def best_rate(method: str, loss: str) -> float:
    """The rate of the largest validation J at the first seed, among those that kept the retain NLL's cap.

    A method none of whose rates keeps it is shown at its lowest rate, which left the original as it was.
    """
    cells = [read_cell(method, loss, rate, SEEDS[0]) for rate in RATES]
    kept = [c for c in cells if c and c["points"][-1]["admissible"]]
    return max(kept, key=lambda c: c["best"]["objective"])["rate"] if kept else RATES[0]


def run_all(data: Path, work: Path, max_chars: int, losses: list[str]) -> None:
    """Runs every missing cell; held-out pairs are measured only for the picked rates."""
    parts = split(data, work, max_chars)
    bench = Bench(parts, work, original(parts, work))

    def original_figures() -> dict[str, Any]:
        info = json.loads((bench.base / "done.json").read_text())
        sizes = {name: len((parts / f"{name}.jsonl").read_text().splitlines()) for name in PARTS}
        return {**held_out(bench.problem("npo", 0), parts), "sizes": sizes, "fine_tuning": info}

    once(work / "original.json", original_figures)
    write_json(CELLS / "original.json", json.loads((work / "original.json").read_text()))
    for loss in losses:
        for rate in RATES:
            for method in METHODS:
                if read_cell(method, loss, rate, SEEDS[0]) is None:
                    run_cell(bench, method, loss, rate, SEEDS[0])
        for seed in SEEDS:
            for method in METHODS:
                rate = best_rate(method, loss)
                if read_cell(method, loss, rate, seed) is None:
                    run_cell(bench, method, loss, rate, seed)
                add_held_out(bench, method, loss, rate, seed)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="hh_harmless.jsonl")
    parser.add_argument("--work", type=Path, default=Path("runs/main_job"))
    parser.add_argument("--max-chars", type=int, default=400)
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=LOSSES, help="to share the work")
    parser.add_argument("--table", action="store_true", help="only write docs/results.md from the cells")
    options = parser.parse_args()
    if not options.table:
        run_all(options.data, options.work, options.max_chars, options.losses)
    from main_job_table import write_table

    write_table(CELLS, LOSSES, METHODS, SEEDS, best_rate, read_cell)


if __name__ == "__main__":
    main()
