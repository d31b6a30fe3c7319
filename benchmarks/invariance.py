"""Do scores depend on how they are computed: batches, padding, threads, processes, 16-bit weights?

    python benchmarks/main_job.py --data PATH/hh_harmless.jsonl --work runs/main_job   # original model
    python benchmarks/invariance.py --work runs/main_job                     # resumable by variant
    python benchmarks/invariance.py --table                                  # cells -> docs/results.md

48 short negatives and 8 validation pairs of the main job's split, its original model, npo, identity. LoRA's B
gets small random values from a seed, so that A has gradients too, and φ is not the reference. Each variant
computes everything anew in a process of its own, ∇J included, by `exact` and by `fd`: its score of negative
i is −⟨∇ℓ_i, ∇J⟩. `fd` makes its own self-check, which chooses the step or falls back to exact gradients; with
two processes each makes it on its own half.

Cells hold numbers only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

import fidelity
from sections import machine, write_section
from u2a.data.load import load_negatives, load_preferences
from u2a.data.render import Renderer
from u2a.impact.context import ScoringContext
from u2a.impact.finite_difference import SelfCheck
from u2a.impact.gradient import objective_gradient
from u2a.impact.scores import directional_derivatives, impact
from u2a.models.policy import load_policy
from u2a.preparation import prepare
from u2a.problem import Problem
from u2a.runs.run_folder import write_json

CELLS = Path(__file__).parent / "results" / "invariance"
B_SCALE = 0.003
"""Standard deviation of B's values."""
PLACES = 2
"""Processes of the variant that shares the negatives."""


@dataclass(frozen=True)
class Variant:
    """How everything is computed; `max_tokens` are padded tokens of a batch, 1 = one text at a time."""

    shown: str
    max_tokens: int = 2048
    threads: int = 1
    processes: int = 1
    dtype: str = "float32"


VARIANTS = {
    "base": Variant("batches of 2,048 padded tokens, 1 thread, 1 process, float32"),
    "batches-256": Variant("batches of 256 padded tokens", max_tokens=256),
    "one-by-one": Variant("one text at a time, no padding", max_tokens=1),
    "threads-2": Variant("2 threads", threads=2),
    "processes-2": Variant("2 processes, half the negatives each", processes=PLACES),
    "bfloat16": Variant("base model in bfloat16, adapter in float32", dtype="bfloat16"),
}


def problem_of(work: Path, variant: Variant, negatives: int, pairs: int) -> Problem:
    """The problem at a φ with small random B."""
    policy = load_policy(str(work / "original"), lora_rank=16, seed=0, dtype=variant.dtype)
    renderer, parts = Renderer(policy.tokenizer), work / "split"
    rows = fidelity.short(load_negatives(str(parts / "forget.jsonl")), renderer, ("response",), negatives)
    problem = prepare(
        policy,
        negatives=rows,
        preferences=fidelity.short(
            load_preferences(str(parts / "validation.jsonl")), renderer, ("chosen", "rejected"), pairs
        ),
        max_tokens=variant.max_tokens,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in policy.trainable().items():
            if "lora_B" in name:
                p.copy_(B_SCALE * torch.randn(p.shape, generator=generator))
    return problem


def scored(problem: Problem, rows: range) -> dict[str, Any]:
    """Scores (N,) of the negatives at positions `rows` by both methods, seconds, and `fd`'s self-check."""
    context = ScoringContext.of(problem)
    texts = problem.negative_texts.select(rows)
    # the memory of ∇J's backward pass, not a choice of this benchmark, asks for the smaller batches there
    s_objective = problem.logprobs(problem.objective.texts)
    direction = objective_gradient(context, problem.objective, s_objective)
    found: dict[str, Any] = {}
    for method in ("exact", "fd"):
        begin = time.process_time()
        derivatives = directional_derivatives(context, texts, [direction], method=method)
        slope = problem.loss.derivative(
            derivatives.s, problem.reference[list(rows)].double(), problem.lengths[list(rows)].double()
        )
        found[method] = impact(slope, derivatives.along[0]).tolist()
        found[f"{method}_seconds"] = time.process_time() - begin
        if derivatives.self_checks:
            found["self_checks"] = [vars(derivatives.self_checks[0])]
    found["shift"] = float((derivatives.s - problem.reference[list(rows)].double()).abs().mean())
    found["seconds"] = time.process_time()
    return found


def one(options: argparse.Namespace) -> dict[str, Any]:
    """A variant, or one process's share of it, in this process."""
    variant = VARIANTS[options.one]
    torch.set_num_threads(variant.threads)
    problem = problem_of(options.work, variant, options.negatives, options.pairs)
    bounds = np.linspace(0, options.negatives, variant.processes + 1).astype(int)
    return scored(problem, range(bounds[options.share], bounds[options.share + 1]))


def started(name: str, share: int, options: argparse.Namespace) -> subprocess.Popen[str]:
    """That process."""
    sizes = ["--negatives", str(options.negatives), "--pairs", str(options.pairs)]
    command = [sys.executable, __file__, "--one", name, "--share", str(share), "--work", str(options.work)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(VARIANTS[name].threads)}
    return subprocess.Popen([*command, *sizes], stdout=subprocess.PIPE, text=True, env=environment)


def joined(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs a variant's processes at the same time and puts their scores together."""
    running = [started(name, share, options) for share in range(VARIANTS[name].processes)]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"{name}: a process failed; its message is above")
    parts = [json.loads(output.splitlines()[-1]) for output in outputs]
    found: dict[str, Any] = {
        key: [value for part in parts for value in part[key]] for key in ("exact", "fd", "self_checks")
    }
    for key in ("exact_seconds", "fd_seconds", "seconds"):
        found[key] = sum(part[key] for part in parts)
    return {**found, "shift": parts[0]["shift"], "pairs": options.pairs}


# -- the table ----------------------------------------------------------------------------------------------


def compared(scores: list[float], against: list[float]) -> str:
    """Spearman, and the largest difference over the root mean square score."""
    x, y = np.asarray(scores), np.asarray(against)
    largest = np.abs(x - y).max() / np.sqrt(np.square(y).mean())
    return f"{spearmanr(x, y).statistic:.5f} | {largest:.1e}"


def chosen(check: dict[str, Any]) -> str:
    """What `fd` did, in words."""
    found = SelfCheck(**check)
    if not found.passed:
        return f"exact gradients (fd was off by {found.relative_error:.1%})"
    sides = {1: "one-sided", 2: "two-sided"}[found.sides]
    return f"{sides}, ε {found.epsilon:.1e}, off by {found.relative_error:.1%}"


def write_table(folder: Path) -> None:
    """Writes the section from the cells."""
    found = {n: folder / f"{n}.json" for n in VARIANTS if (folder / f"{n}.json").is_file()}
    cells = {name: json.loads(path.read_text()) for name, path in found.items()}
    if "base" not in cells:
        raise SystemExit(f"{folder}: no base.json; run without --table first")
    base, rows = cells["base"], []
    for name, cell in cells.items():
        checks = "; ".join(chosen(check) for check in cell["self_checks"])
        if name != "base":
            rows.append(f"| {VARIANTS[name].shown} | exact | {compared(cell['exact'], base['exact'])} | – |")
            rows.append(f"| {VARIANTS[name].shown} | fd | {compared(cell['fd'], base['fd'])} | {checks} |")
        else:
            rows.append(f"| base | fd against exact | {compared(base['fd'], base['exact'])} | {checks} |")
        if name == "bfloat16":
            agreement = compared(cell["fd"], cell["exact"])
            rows.append(f"| {VARIANTS[name].shown} | fd against its own exact | {agreement} | {checks} |")
    seconds = ", ".join(f"{name} {cell['seconds']:.0f}" for name, cell in cells.items())
    write_section(
        "invariance",
        [
            "## Invariance of the scores",
            "",
            f"Command: `python benchmarks/invariance.py --work runs/main_job` ({machine()}). "
            f"{len(base['exact'])} negatives, {base['pairs']} validation pairs, npo, identity; random B "
            f"moves a log-prob by {base['shift']:.2f} nats in the mean. Processor seconds: {seconds}.",
            "",
            f"Each variant against the base ({VARIANTS['base'].shown}), ∇J computed anew. Difference: the "
            "largest of any negative, in units of the root mean square score.",
            "",
            "| variant | method | Spearman | largest difference | what fd's self-check chose |",
            "|---|---|---|---|---|",
            *rows,
        ],
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/main_job"), help="that of main_job.py")
    parser.add_argument("--negatives", type=int, default=48)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--cells", type=Path, default=CELLS, help="where results go")
    parser.add_argument("--one", choices=VARIANTS, help="compute one here and print JSON")
    parser.add_argument("--share", type=int, default=0, help="with --one: which process of it this is")
    parser.add_argument("--table", action="store_true", help="only write docs/results.md from the cells")
    options = parser.parse_args()
    if options.table:
        write_table(options.cells)
        return
    if options.one:
        print(json.dumps(one(options)))
        return
    for name in options.variants:
        path = options.cells / f"{name}.json"
        if not path.is_file():
            cell = joined(name, options)
            write_json(path, cell)
            print(f"{name}: {cell['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
