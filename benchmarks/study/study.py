"""Does u2a beat what a user would have done instead, and how near does it come to those who see good answers?

    python benchmarks/study/study.py --data ../shared/data/hh_harmless.jsonl     # resumable: run it again
    python benchmarks/study/study.py --table                                      # cells -> docs/results.md

It is `u2a compare` with a configuration: the original model, split and rows of `main_job.py` (SmolLM2-135M
fine-tuned on 35 % chosen and 65 % rejected answers, short rows of hh_harmless), 64 validation and 100
held-out pairs, every method at 16 optimiser steps of 8 answers, learning rates from one grid at the first
seed, three seeds. Training pairs are both answers to the training prompts. About 14 hours on one core; two
processes of one thread each share the cells and take half.

Rows never leave --work; the committed cells in `results/study` hold numbers only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
CELLS = HERE.parent / "results" / "study"
VALIDATION, TEST, RETAIN = 64, 100, 64
SETTINGS: dict[str, Any] = {
    "max_length": 256,
    "loss": "npo",
    "curvature": "diagonal",
    "scoring": "exact",
    "steps": 16,
    "batch_size": 8,
    "rates": "1e-4,2e-4,4e-4",
    "seeds": 3,
    "looks": 2,
    "nll_rise": 0.02,
    "max_nll_rise": 0.1,
    "judged": "u2a npo",
}
LOSSES = ("ga", "graddiff", "npo", "simnpo")


def methods(pretrained: str) -> list[dict[str, Any]]:
    """Every method of the study, those that matter most first."""
    found: list[dict[str, Any]] = [
        {"method": kind, "name": f"{kind} {loss}", "loss": loss}
        for loss in ("npo", "graddiff")
        for kind in ("u2a", "uniform", "random-k")
    ]
    found += [
        {"method": "u2a", "name": "u2a joint", "joint": 1.0},
        {"method": "dpo", "name": "dpo validation", "pairs": "validation"},
        {
            "method": "kto",
            "name": "kto validation",
            "pairs": "validation",
            "undesirable": "negatives",
        },
        {
            "method": "kto",
            "name": "kto weighted",
            "pairs": "validation",
            "undesirable": "negatives",
            "weighted": True,
        },
        {"method": "sft", "name": "sft validation", "pairs": "validation"},
        {"method": "climb"},
        {"method": "dpo"},
        {"method": "kto"},
        {"method": "sft"},
        *({"method": kind} for kind in ("selected", "weights", "cosine", "static")),
        {"method": "d2o"},
        {"method": "retrain", "pretrained": pretrained},
    ]
    return found + [
        {"method": kind, "name": f"{kind} {loss}", "loss": loss}
        for loss in ("ga", "simnpo")
        for kind in ("u2a", "uniform", "random-k")
    ]


def prepared(data: Path, work: Path) -> dict[str, Any]:
    """The configuration of the comparison; makes what it names where it is not there yet."""
    from main_job import original, split

    parts = split(data, work, 400)
    base = original(parts, work)
    folder = work / "study"
    folder.mkdir(exist_ok=True)
    for name, count in (("validation", VALIDATION), ("test", TEST), ("retain", RETAIN)):
        lines = (parts / f"{name}.jsonl").read_text().splitlines()[:count]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    write_training_pairs(data, parts, folder / "pairs.jsonl")
    return {
        **SETTINGS,
        "model": str(base),
        "negatives": str(parts / "forget.jsonl"),
        "mixture": str(parts / "retain.jsonl"),
        "pairs": str(folder / "pairs.jsonl"),
        **{role: str(folder / f"{name}.jsonl") for role, name in FILES.items()},
        "methods": methods("demo"),
    }


FILES = {"preferences": "validation", "test": "test", "retain": "retain"}


def write_training_pairs(data: Path, parts: Path, path: Path) -> None:
    """Both answers to every prompt of the original model's mixture."""
    from u2a.data.load import load_preferences
    from u2a.data.validate import prompt_key

    mixture = [json.loads(line) for line in (parts / "original.jsonl").read_text().splitlines()]
    wanted = {prompt_key(row["prompt"]) for row in mixture}
    rows = []
    for row in load_preferences(str(data)):
        prompt = [{"role": "system", "content": ""}, *row["prompt"]]  # as the split has them
        if prompt_key(prompt) in wanted:
            rows.append({"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="hh_harmless.jsonl")
    parser.add_argument("--work", type=Path, default=Path("runs/main_job"), help="that of main_job.py")
    parser.add_argument("--first", type=int, default=0, help="only the first so many methods; 0 = all")
    parser.add_argument("--table", action="store_true", help="only write docs/results.md from the cells")
    options = parser.parse_args()
    if options.table:
        from study_table import write_table

        write_table(CELLS / "hh_harmless")
        return
    work = options.work.resolve()
    config = prepared(options.data, work)
    if options.first:
        config["methods"] = config["methods"][: options.first]
    count = len(config["methods"])
    run, path = work / "study" / f"hh_harmless-{count}", work / "study" / f"compare-{count}.yaml"
    config["cells"] = str((CELLS / "hh_harmless").resolve())
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    resume = ["--resume"] if (run / "config.yaml").is_file() else []
    command = [sys.executable, "-m", "u2a.cli", "compare", "--config", str(path), "--output", str(run)]
    os.execv(sys.executable, [*command, *resume])


if __name__ == "__main__":
    main()
