"""Does u2a beat what a user would have done instead, and how near does it come to those who see good answers?

    python benchmarks/study/study.py --data ../shared/data                       # resumable: run it again
    python benchmarks/study/study.py --data ../shared/data --case mislabelled    # after the main case
    python benchmarks/study/study.py --table                                     # cells -> docs/results.md

Each case is `u2a compare` with a configuration. The main one, hh_harmless: the original model, split and rows
of `main_job.py` (SmolLM2-135M fine-tuned on 35 % chosen and 65 % rejected answers, short rows), 64 validation
and 100 held-out pairs, every method at 16 optimiser steps of 8 answers, learning rates from one grid at the
first seed (variants of a method take that method's), three seeds. Training pairs are both answers to the
training prompts. Other cases: all 251 held-out pairs; plenty (246 validation and 471 held-out pairs); a fifth
of the negatives mislabelled (they are the chosen answers); truthfulqa; 16 to 128 validation pairs; 100 to 700
negatives. The last two kinds take two seeds, the others three; all but truthfulqa, with a grid of its own,
take what the main case picked.
rloo needs --reward-model, what `benchmarks/reward_model.py` made.

The main case takes about 10 hours on one core, each other up to two; two processes of one thread each share
the cells and take half; --busy counts seconds of the processor, for where other work goes on beside. Rows
never leave --work; the committed cells in `results/study` hold numbers only.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
CELLS = HERE.parent / "results" / "study"
BUSY = "import time; time.perf_counter = time.process_time; from u2a.cli import main; main()"


def prepared(
    name: str, data: Path, work: Path, first: int = 0, reward_model: Path | None = None
) -> tuple[dict[str, Any], Path]:
    """The configuration of a case and the folder of its files; makes what it names where it is not there."""
    from study_table import picked_rate

    from cases import CASES, MAX_CHARS, SETTINGS, read_parts, write_parts
    from main_job import original, split

    case = CASES[name]
    file = data / f"{case.data}.jsonl" if data.is_dir() else data
    work = work if case.data == "hh_harmless" else work / case.data
    work.mkdir(parents=True, exist_ok=True)
    rows = split(file, work, MAX_CHARS)
    base = original(rows, work)
    parts = read_parts(file, rows)
    case.change(parts)
    folder = work / "study" / name
    write_parts(parts, folder)
    methods = case.methods
    if not case.own_rates:
        rates = {each.get("name", each["method"]): 0.0 for each in methods}
        rates = {method: picked_rate(CELLS / "hh_harmless", method) for method in rates}
        missing = [method for method, rate in rates.items() if not rate]
        if missing:
            print(f"{name}: left out until the main case has their rates: {', '.join(missing)}")
        methods = [
            {**each, "rate": rates[key]} for each in methods if rates[key := each.get("name", each["method"])]
        ]
    if reward_model is None:
        methods = [each for each in methods if each["method"] != "rloo"]
    methods = methods[:first] if first else methods
    files = {"negatives": "forget", "mixture": "mixture", "pairs": "pairs", "preferences": "validation"}
    files |= {"test": "test", "retain": "retain"}
    config = {
        **SETTINGS,
        "seeds": case.seeds,
        **case.settings,
        "model": str(base),
        **{role: str(folder / f"{file}.jsonl") for role, file in files.items()},
        "methods": methods,
        "cells": str((CELLS / name).resolve()),
    }
    if reward_model is not None:
        config["reward_model"] = str(reward_model.resolve())
    return config, folder


def main() -> None:
    """Command line."""
    sys.path.insert(0, str(HERE))
    from cases import CASES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the folder of the data files")
    parser.add_argument("--case", default="hh_harmless", choices=list(CASES))
    parser.add_argument("--work", type=Path, default=Path("runs/main_job"), help="that of main_job.py")
    parser.add_argument("--reward-model", type=Path, help="that of reward_model.py, for rloo")
    parser.add_argument("--first", type=int, default=0, help="only the first so many methods; 0 = all")
    parser.add_argument("--table", action="store_true", help="only write docs/results.md from the cells")
    parser.add_argument("--busy", action="store_true", help="count processor seconds, not the clock's")
    options = parser.parse_args()
    if options.table:
        from study_table import write_tables

        write_tables(CELLS)
        return
    work, reward_model = options.work.resolve(), options.reward_model
    config, folder = prepared(options.case, options.data, work, options.first, reward_model)
    count = len(config["methods"])
    run, path = folder / f"run-{count}", folder / f"compare-{count}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    resume = ["--resume"] if (run / "config.yaml").is_file() else []
    start = ["-c", BUSY] if options.busy else ["-m", "u2a.cli"]
    command = [sys.executable, *start, "compare", "--config", str(path), "--output", str(run), *resume]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
