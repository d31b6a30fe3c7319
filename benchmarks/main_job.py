"""U2A against uniform and random-k unlearning on real data, in the same harness.

    python benchmarks/main_job.py --data PATH/hh_harmless.jsonl   # resumable: run it again
    python benchmarks/main_job.py --table                         # cells -> docs/results.md

What is done: a seeded split by prompt of the short rows; the original model is SmolLM2-135M-Instruct
fine-tuned on 35 % chosen and 65 % rejected answers; its rejected answers are the negatives. Every method
takes the same number of optimiser steps from the same adapter, with the same measured points, the same
guard (retain NLL may rise by 0.1 nat per token) and the best point by validation J. The learning rate of
each method and loss is picked on validation J at the first seed, from the same three values; the other
seeds (LoRA's A, order, random subset) use it. Held-out pairs are read once, with the picked rate.

What is left out: rows longer than --max-chars and the chat template's default system prompt (an empty
one stands in its place), so that two CPU cores suffice. Rows of the data never leave --work; the committed
cells hold numbers only.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from u2a.config import OuterOptions, UnlearnOptions, WeightOptions
from u2a.data.collate import tokenize_rows
from u2a.data.load import load_negatives, load_preferences, load_retain
from u2a.data.render import Renderer
from u2a.data.split import split_rows, write_split
from u2a.finetune import fine_tune
from u2a.impact.table import ImpactTable, score_impact
from u2a.models import load_policy
from u2a.outer_loop import align
from u2a.problem import Problem, pair_texts, prepare
from u2a.runs import write_json
from u2a.trainer import resolve_loss
from u2a.weighting import select_greedily

HERE = Path(__file__).parent
CELLS = HERE / "results" / "main_job"
LOSSES = ("npo", "graddiff")
METHODS = ("u2a", "uniform", "random-k")
RATES = (1e-4, 3e-4, 1e-3)
SEEDS = (0, 1, 2)
SELECT = "50%"
STEPS = 12
RETAIN_ROWS = 32
OUTER = OuterOptions(outer_steps=1, measurements=2, kl_budget=0.0, max_nll_rise=0.1, halvings=0)


def split(data: Path, work: Path, max_chars: int) -> Path:
    """The paper's protocol on the short rows: 300 training prompts, 48 validation and 100 test pairs."""
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
    write_split(split_rows(rows, seed=0, validation=48, test=100, train=300, chosen_fraction=0.35), folder)
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
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    write_json(
        folder / "done.json",
        {"rows": len(mixture), "train_loss": loss, "seconds": time.perf_counter() - begin},
    )
    return folder


def load_problem(loss: str, seed: int, parts: Path, base: Path) -> Problem:
    """A fresh adapter on the original model, at φ₀."""
    plain, _ = resolve_loss(loss, None)
    return prepare(
        load_policy(str(base), lora_rank=16, seed=seed),
        negatives=load_negatives(str(parts / "forget.jsonl")),
        preferences=load_preferences(str(parts / "validation.jsonl")),
        retain=load_retain(str(parts / "retain.jsonl")).select(range(RETAIN_ROWS)),
        loss=plain,
        max_length=256,
    )


def table_of(problem: Problem, loss: str, seed: int, work: Path) -> tuple[ImpactTable, float]:
    """Impacts at the original model, scored once for each loss and seed: they do not depend on the rate."""
    path = work / f"impact-{loss}-{seed}.json"
    if not path.is_file():
        begin = time.perf_counter()
        table = score_impact(problem, at=problem.measure())
        write_json(
            path,
            {
                "seconds": time.perf_counter() - begin,
                "impact": table.impact.tolist(),
                "utility_cost": table.utility_cost.tolist(),
                "loss": table.loss.tolist(),
                "self_checks": [vars(check) for check in table.self_checks],
            },
        )
    saved = json.loads(path.read_text())
    arrays = {name: np.asarray(saved[name]) for name in ("impact", "utility_cost", "loss")}
    return ImpactTable(**arrays, n_tokens=problem.lengths.numpy()), saved["seconds"]


def run_cell(
    method: str, loss: str, rate: float, seed: int, parts: Path, base: Path, work: Path
) -> dict[str, Any]:
    """Unlearns by one method from the original model; the problem comes back with the best φ set."""
    problem = load_problem(loss, seed, parts, base)
    fixed, first, scoring_seconds = None, None, 0.0
    count = len(problem.negatives)
    if method == "uniform":
        fixed = np.ones(count)
    elif method == "random-k":
        order = np.random.default_rng(seed).permutation(count).astype(float) + 1.0
        fixed = select_greedily(order, count // 2, np.ones(count))
    else:
        first, scoring_seconds = table_of(problem, loss, seed, work)
    begin = time.perf_counter()
    result = align(
        problem,
        unlearn=UnlearnOptions(learning_rate=rate, max_steps=STEPS, batch_size=8),
        weights=WeightOptions(select=SELECT),
        outer=OUTER,
        retain_loss=resolve_loss(loss, None)[1],
        fixed_weights=fixed,
        first_table=first,
        seed=seed,
    )
    seconds = time.perf_counter() - begin
    return {
        "method": method,
        "loss": loss,
        "rate": rate,
        "seed": seed,
        "scoring_seconds": scoring_seconds,
        "unlearning_seconds": seconds,
        "selected": int((result.weights > 0).sum()),
        "start": result.start.figures,
        "best": result.best.figures,
        "points": [vars(point) for point in result.points],
        "problem": problem,
    }


def held_out(problem: Problem, parts: Path) -> dict[str, Any]:
    """Log-probs and lengths of the held-out pairs under the policy as it is."""
    texts, _ = pair_texts(load_preferences(str(parts / "test.jsonl")), problem.renderer)
    begin = time.perf_counter()
    s = problem.logprobs(texts)
    return {"s": s.tolist(), "n_tokens": list(texts["n_tokens"]), "seconds": time.perf_counter() - begin}


def cell_path(method: str, loss: str, rate: float, seed: int) -> Path:
    return CELLS / f"{loss}-{method}-{rate:g}-{seed}.json"


def read_cell(*name: Any) -> dict[str, Any] | None:
    path = cell_path(*name)
    return json.loads(path.read_text()) if path.is_file() else None


def best_rate(method: str, loss: str) -> float:
    """The rate of the largest validation J at the first seed."""
    cells = [read_cell(method, loss, rate, SEEDS[0]) for rate in RATES]
    return max((c for c in cells if c), key=lambda c: c["best"]["objective"])["rate"]


def run_all(data: Path, work: Path, max_chars: int) -> None:
    """Runs every missing cell. Held-out pairs are measured in every cell, read only for the picked rate."""
    parts = split(data, work, max_chars)
    base = original(parts, work)
    if not (CELLS / "original.json").is_file():
        problem = load_problem("npo", 0, parts, base)
        info = json.loads((base / "done.json").read_text())
        sizes = {
            name: len((parts / f"{name}.jsonl").read_text().splitlines())
            for name in ("original", "forget", "retain", "validation", "test")
        }
        write_json(CELLS / "original.json", {**held_out(problem, parts), "sizes": sizes, "fine_tuning": info})
    grid = [(m, loss, rate, SEEDS[0]) for rate in RATES for loss in LOSSES for m in METHODS]
    for name in grid:
        _run_missing(name, parts, base, work)
    for seed in SEEDS[1:]:
        for loss in LOSSES:
            for method in METHODS:
                _run_missing((method, loss, best_rate(method, loss), seed), parts, base, work)


def _run_missing(name: tuple[str, str, float, int], parts: Path, base: Path, work: Path) -> None:
    if read_cell(*name) is not None:
        return
    cell = run_cell(*name, parts, base, work)
    problem = cell.pop("problem")
    cell["test"] = held_out(problem, parts)
    cell["threads"] = torch.get_num_threads()
    write_json(cell_path(*name), cell)
    gain = cell["best"]["objective"] - cell["start"]["objective"]
    print(f"{name}: J {gain:+.4f}, {cell['unlearning_seconds']:.0f} s", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="hh_harmless.jsonl")
    parser.add_argument("--work", type=Path, default=Path("runs/main_job"))
    parser.add_argument("--max-chars", type=int, default=300)
    parser.add_argument("--table", action="store_true", help="only write docs/results.md from the cells")
    options = parser.parse_args()
    if not options.table:
        run_all(options.data, options.work, options.max_chars)
    from main_job_table import write_table

    write_table(CELLS, LOSSES, METHODS, SEEDS, best_rate, read_cell)


if __name__ == "__main__":
    main()
