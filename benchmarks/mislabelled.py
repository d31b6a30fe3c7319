"""Do negatives that are no negatives get low impact? Labels flipped on purpose, found again by their score.

    python benchmarks/mislabelled.py --data PATH          # the folder of these files; resumable by data set
    python benchmarks/mislabelled.py --table              # cells -> docs/results.md

`ultrafeedback`: ultrafeedback_label_flip_20.jsonl, in whose rows chosen and rejected were swapped in a fifth;
rejected answers are the negatives, ultrafeedback_eval.jsonl the validation pairs. `hh_harmless`:
hh_harmless.jsonl, a fifth of its negatives swapped here by a seed, other pairs of it for validation. Retain
rows: alpaca_en_demo.json. The model is SmolLM2-135M-Instruct as it is, with a new adapter (φ₀); loss npo.
AUC = probability that a flipped negative scores below an unflipped one.

Flags and score columns never reach a scorer: `mislabelled_rows.stripped` keeps prompt, chosen and rejected
of each row before anything else is done, and the flags go into an array of their own that is only written
beside the finished scores. It also decides the draw: flipped and unflipped rows are drawn in the share that
they have.

What is cut so that two cores suffice (options): prompts of at most 400 characters, answers cut at a space
before 300, the default system prompt left out, few negatives and pairs; adam, ggn and hessian from few rows,
minibatches and products (CURVATURES). The implicit reward of DPO is 0 for every row at φ₀ and is left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from mislabelled_rows import DATA_SETS, Material, Row, Sizes, retain_rows
from u2a.data.load import load_negatives, load_preferences, load_retain
from u2a.impact.curvature import EKFAC, KFAC, Adam, Diagonal, GaussNewton, Hessian, Identity
from u2a.impact.several import score_curvatures
from u2a.models.policy import load_policy
from u2a.objectives.preference import Preference
from u2a.preparation import prepare
from u2a.problem import Measurement, Problem
from u2a.runs.run_folder import write_json
from u2a.validation import pair_texts
from u2a.verification.controls import control_scores

CELLS = Path(__file__).parent / "results" / "mislabelled"
CURVATURES: dict[str, Any] = {
    "identity": Identity(),
    "diagonal": Diagonal(),
    "adam": Adam(minibatches=8),
    "kfac": KFAC(),
    "ekfac": EKFAC(),
    "ggn": GaussNewton(rows=16, max_iterations=5, preconditioner="kfac"),
    "hessian": Hessian(rows=8, max_iterations=3),
}

MAX_LENGTH, MAX_TOKENS = 256, 1024
"""Tokens of a text (400 characters of some scripts are more), and of a batch, for the sake of memory."""


@contextmanager
def announced(name: str, total: int) -> Iterator[None]:
    """A `Task` that prints what a piece of work took."""
    begin = time.process_time()
    yield
    print(f"{name}, {total}: {time.process_time() - begin:.0f} processor seconds", flush=True)


def problem_of(material: Material, retain: list[Row], model: str) -> tuple[Problem, Measurement]:
    """The problem at φ₀ and the measurement there, which at B = 0 needs next to no passes of its own."""
    with tempfile.TemporaryDirectory() as folder:

        def saved(name: str, rows: list[Row]) -> str:
            path = Path(folder) / name
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
            return str(path)

        preferences = load_preferences(saved("pairs.jsonl", material.pairs))
        policy = load_policy(model, lora_rank=16, seed=0)
        problem = prepare(
            policy,
            negatives=load_negatives(saved("negatives.jsonl", material.negatives)),
            # J's slopes depend on s − s_ref alone, which is 0 here: one pair stands in until below
            preferences=preferences.select([0]),
            retain=load_retain(saved("retain.jsonl", retain)),
            retain_loss="nll",
            max_length=MAX_LENGTH,
            max_tokens=MAX_TOKENS,
            task=announced,
        )
        texts, _ = pair_texts(preferences, problem.renderer)
        zeros = torch.zeros(len(texts))
        problem = replace(problem, objective=Preference(texts, zeros))
        s_utility = problem.logprobs(problem.utility.texts)
    utility = float(problem.utility.terms(s_utility.double()).mean())
    at = Measurement(-np.log(2.0), utility, 0.0, zeros, s_utility, problem.reference)
    return problem, at


def scores_of(problem: Problem, at: Measurement, pairs: list[Row], embedding_model: str) -> dict[str, Any]:
    """Scores by every curvature and by every control of `u2a.verification`; what was refused, and why."""
    refused: dict[str, str] = {}
    tables = score_curvatures(problem, CURVATURES, at=at, refused=refused, task=announced)
    preferences = Dataset.from_list([{side: row[side] for side in ("chosen", "rejected")} for row in pairs])
    controls = control_scores(
        problem, at, preferences, embedding_model=embedding_model, table=tables["identity"]
    )
    refused |= controls.left_out
    solved = {name: table.solutions[0] for name, table in tables.items()}
    return {
        "estimators": {name: table.impact.tolist() for name, table in tables.items()},
        "controls": {
            name: np.asarray(values, np.float64).tolist() for name, values in controls.scores.items()
        },
        "solutions": {
            name: {"residual": s.residual, "converged": s.converged, "products": s.iterations}
            for name, s in solved.items()
            if s.iterations
        },
        "left_out": refused,
    }


def run(name: str, data: Path, sizes: Sizes, model: str, embedding_model: str) -> dict[str, Any]:
    """One data set: scores first, flags beside them at the very end."""
    begin = time.process_time()
    material = DATA_SETS[name](data, sizes)
    retain = retain_rows(data, sizes)
    problem, at = problem_of(material, retain, model)
    print(f"{name}: prepared in {time.process_time() - begin:.0f} s", flush=True)
    found = scores_of(problem, at, material.pairs, embedding_model)
    facts = {"pairs": len(material.pairs), "retain": len(retain), **vars(sizes), "seconds": 0.0}
    facts["tokens"] = sum(len(ids) for ids in problem.negative_texts["input_ids"])
    facts["seconds"] = time.process_time() - begin
    return {
        **found,
        **facts,
        "negatives": len(material.negatives),
        "flags": material.flags.astype(int).tolist(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the data files")
    parser.add_argument("--sets", nargs="+", default=list(DATA_SETS), choices=DATA_SETS)
    parser.add_argument("--negatives", type=int, default=400, help="at most")
    parser.add_argument("--pairs", type=int, default=96, help="validation pairs, at most")
    parser.add_argument(
        "--retain", type=int, default=32, help="retain rows, half for U and half for curvatures"
    )
    parser.add_argument("--max-chars", type=int, default=400, help="of a prompt; hh_harmless: of all")
    parser.add_argument(
        "--response-chars", type=int, default=300, help="answers are cut at a space before it"
    )
    parser.add_argument("--model", default="demo", help="another one, to try this out")
    parser.add_argument("--embedding-model", default="", help="folder for sentence-transformers")
    parser.add_argument("--cells", type=Path, default=CELLS, help="where results go")
    parser.add_argument("--table", action="store_true", help="only write docs/results.md from the cells")
    o = parser.parse_args()
    if o.table:
        from mislabelled_table import write_table

        write_table(o.cells)
        return
    if o.data is None:
        parser.error("--data: the folder of the data files is needed")
    sizes = Sizes(o.negatives, o.pairs, o.retain, o.max_chars, o.response_chars)
    for name in o.sets:
        path = o.cells / f"{name}.json"
        if not path.is_file():
            write_json(path, run(name, o.data, sizes, o.model, o.embedding_model))


if __name__ == "__main__":
    main()
