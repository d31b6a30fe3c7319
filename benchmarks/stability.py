"""Do scores depend on LoRA's random A, on its rank, and on which validation pairs there are?

    python benchmarks/main_job.py --data PATH/hh_harmless.jsonl --work runs/main_job   # the original model
    python benchmarks/stability.py --data PATH/hh_harmless.jsonl --work runs/main_job  # resumable
    python benchmarks/stability.py --table                                     # cells -> docs/results.md

The original model and the split are the main job's, the loss is npo, φ is the original model, the negatives
are the 60 of fidelity.py. Spearman of their scores (a) between seeds of A at rank 16 and (b) between ranks 4
and 16 and full parameters: with fidelity.py's 40 validation pairs and 32 retain rows, so that nothing but the
adapter differs. Full parameters by identity alone and by `fd`: `exact` is batched for linear layers only, and
Adam's moments of 135 million parameters would take more memory than the scores do.

(c) Between two disjoint halves of n pairs each. There are not 512 pairs of 72 tokens: the pool is the whole
validation part, then the shortest rows of --data whose prompts are in no part of the split, for they are read
here for the noise of ∇J alone and nothing is picked by them. At the original model J's slopes are known
(±β/2), so ∇J of a half is the mean of its blocks' gradients of 16 pairs, and one exact pass along all
blocks gives the scores of every half.

Cells hold numbers only. Gradients of blocks are kept in --work until they are scored.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import fidelity
from u2a.data.collate import tokenize_rows
from u2a.data.load import load_negatives, load_preferences, load_retain
from u2a.data.render import Renderer
from u2a.impact.context import Direction, ScoringContext
from u2a.impact.curvature import Adam, Diagonal, Identity
from u2a.impact.gradient import objective_coefficients, objective_gradient, weighted_logprob_gradient
from u2a.impact.scores import directional_derivatives, impact
from u2a.impact.several import score_curvatures
from u2a.models.policy import load_policy
from u2a.objectives.preference import Preference
from u2a.preparation import prepare
from u2a.problem import Measurement, Problem
from u2a.runs.run_folder import write_json
from u2a.validation import pair_texts

if TYPE_CHECKING:
    from datasets import Dataset

CELLS = Path(__file__).parent / "results" / "stability"
ADAPTERS = {"rank 16, seed 0": (16, 0), "rank 16, seed 1": (16, 1), "rank 16, seed 2": (16, 2)} | {
    "rank 4": (4, 0)
}
"""Name -> rank and seed of A."""
FULL, HALVES = "full", "halves"
CURVATURES: dict[str, Any] = {
    "identity": Identity(),
    "diagonal": Diagonal(),
    "adam": Adam(minibatches=4),
}
"""Adam from 4 minibatches of 8: the moments of each adapter come from the same rows."""
BLOCK = 16
"""Pairs whose gradient is one direction of the exact pass."""


class Bench:
    """What all cells share, measured once at the original model: B = 0, so no figure depends on A."""

    def __init__(self, work: Path, negatives: int, pairs: int) -> None:
        policy = load_policy(str(work / "original"), lora_rank=16, seed=0)
        renderer, parts = Renderer(policy.tokenizer), work / "split"
        answer, pair = ("response",), ("chosen", "rejected")
        short = fidelity.short
        self.work = work
        self.first = prepare(
            policy,
            negatives=short(load_negatives(str(parts / "forget.jsonl")), renderer, answer, negatives),
            preferences=short(load_preferences(str(parts / "validation.jsonl")), renderer, pair, pairs),
            retain=short(load_retain(str(parts / "retain.jsonl")), renderer, answer, fidelity.RETAIN),
            retain_loss="nll",
        )
        self.start = measurement_at_reference(self.first)

    def problem(self, rank: int, seed: int) -> Problem:
        """The same with another adapter; rank 0 = full parameters."""
        return replace(self.first, policy=load_policy(str(self.work / "original"), lora_rank=rank, seed=seed))


def measurement_at_reference(problem: Problem) -> Measurement:
    """What `problem.measure` would give at B = 0, from the log-probs that `prepare` took."""
    assert isinstance(problem.objective, Preference)
    s = problem.logprobs(problem.utility.texts)
    utility = float(problem.utility.terms(s.double()).mean())
    return Measurement(-np.log(2.0), utility, 0.0, problem.objective.reference, s, problem.reference)


def adapter_cell(bench: Bench, rank: int, seed: int) -> dict[str, Any]:
    """Scores by each curvature with that adapter."""
    tables = score_curvatures(bench.problem(rank, seed), CURVATURES, at=bench.start)
    return {"scores": {name: table.impact.tolist() for name, table in tables.items()}}


def full_cell(bench: Bench) -> dict[str, Any]:
    """Scores by identity over every parameter of the original model."""
    problem, start = bench.problem(0, 0), bench.start
    context = ScoringContext.of(problem)
    direction = objective_gradient(context, problem.objective, start.s_objective)
    found = directional_derivatives(
        context, problem.negative_texts, [direction], method="fd", base=problem.reference
    )
    scores = npo_scores(problem, found.along)[0]
    return {"scores": {"identity": scores.tolist()}, "self_check": vars(found.self_checks[0])}


def npo_scores(problem: Problem, along: torch.Tensor) -> np.ndarray:
    """Impacts (D, N) at the original model from ⟨∇s_i, v_d⟩."""
    s = problem.reference.double()
    return impact(problem.loss.derivative(s, s, problem.lengths.double()), along).numpy()


def pool_of_pairs(data: Path, work: Path, renderer: Renderer, count: int) -> tuple[Dataset, dict[str, int]]:
    """`count` pairs in a seeded order, 2·count texts (chosen first), and where they are from."""
    from datasets import concatenate_datasets

    parts = work / "split"
    names = ("original", "forget", "retain", "validation", "test")
    lines = [line for name in names for line in (parts / f"{name}.jsonl").read_text("utf-8").splitlines()]
    used = {_key(json.loads(line)["prompt"]) for line in lines}
    rows = load_preferences(str(data))
    free = rows.select([i for i, prompt in enumerate(rows["prompt"]) if _key(prompt) not in used])
    free = free.map(lambda row: {"prompt": [{"role": "system", "content": ""}, *row["prompt"]]})
    validation = load_preferences(str(parts / "validation.jsonl"))
    validation = validation.select(range(min(count, len(validation))))
    longest = np.max([_lengths(free, renderer, response) for response in ("chosen", "rejected")], axis=0)
    others = np.argsort(longest, kind="stable")[: count - len(validation)]
    columns = ["row", "prompt", "chosen", "rejected"]
    pool = concatenate_datasets(
        [validation.select_columns(columns), free.select(others).select_columns(columns)]
    )
    if len(pool) < count:
        raise SystemExit(f"{data} has only {len(pool)} pairs beside the split's own, {count} are wanted")
    pool = pool.select(np.random.default_rng(0).permutation(count))
    texts, _ = pair_texts(pool, renderer)
    longest_text = max(len(ids) for ids in texts["input_ids"])
    return texts, {
        "pairs": count, "of_validation": len(validation), "others": len(others), "most_tokens": longest_text,
    }  # fmt: skip


def _key(prompt: list[dict[str, str]]) -> str:
    return json.dumps([(turn["role"], turn["content"].strip()) for turn in prompt if turn["content"]])


def _lengths(rows: Dataset, renderer: Renderer, response: str) -> list[int]:
    return [len(ids) for ids in tokenize_rows(rows, renderer, response=response)["input_ids"]]


def halves_cell(bench: Bench, data: Path, count: int) -> dict[str, Any]:
    """Scores by each block of pairs (blocks, N), of which any half's are the mean."""
    problem = bench.first
    context = ScoringContext.of(problem)
    texts, facts = pool_of_pairs(data, bench.work, problem.renderer, count)
    folder = bench.work / "stability"
    folder.mkdir(exist_ok=True)
    directions: list[Direction] = []
    for begin in range(0, count, BLOCK):
        path, now = folder / f"block-{count}-{begin}.safetensors", time.process_time()
        if not path.is_file():
            rows = np.arange(begin, begin + BLOCK)
            block = texts.select([*rows, *(rows + count)])
            # only s − s_ref counts, and that is 0 here
            zeros = torch.zeros(len(block))
            coefficients = objective_coefficients(Preference(block, zeros), zeros)
            save_file(weighted_logprob_gradient(context, block, coefficients), path)
        directions.append(load_file(path))
        print(f"block {begin // BLOCK}: {time.process_time() - now:.0f} s", flush=True)
    found = directional_derivatives(context, problem.negative_texts, directions, method="exact")
    for path in folder.glob(f"block-{count}-*.safetensors"):
        path.unlink()
    return {**facts, "blocks": npo_scores(problem, found.along).tolist()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="hh_harmless.jsonl, for the halves")
    parser.add_argument("--work", type=Path, default=Path("runs/main_job"), help="that of main_job.py")
    parser.add_argument("--negatives", type=int, default=fidelity.NEGATIVES)
    parser.add_argument("--pairs", type=int, default=fidelity.VALIDATION, help="between adapters")
    parser.add_argument("--pool", type=int, default=512, help="pairs to make halves of, in steps of 16")
    parser.add_argument("--cells", type=Path, default=CELLS, help="where results go")
    parser.add_argument("--only", nargs="+", default=[], help="these cells alone")
    parser.add_argument("--table", action="store_true", help="only write docs/results.md from the cells")
    options = parser.parse_args()
    if options.table:
        from stability_table import write_table

        write_table(options.cells)
        return
    bench: Bench | None = None
    for name in options.only or [*ADAPTERS, FULL, HALVES]:
        path = options.cells / f"{name}.json"
        if path.is_file() or (name == HALVES and not options.data):
            continue
        bench = bench or Bench(options.work, options.negatives, options.pairs)
        begin = time.process_time()
        if name == HALVES:
            cell = halves_cell(bench, options.data, options.pool)
        else:
            cell = full_cell(bench) if name == FULL else adapter_cell(bench, *ADAPTERS[name])
        facts = {"negatives": options.negatives, "seconds": time.process_time() - begin}
        write_json(path, {**cell, **facts})
        print(f"{name}: {time.process_time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
