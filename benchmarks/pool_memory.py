"""Is the peak memory of `u2a impact --pool` flat? Whole commands over pools of growing size.

    python benchmarks/pool_memory.py --work runs/pool_memory     # -> docs/scaling.md; about 15 minutes

Every run is a process of its own, and its peak is what the kernel says of its resident set. The model is a
random Llama of two layers with the demo's tokenizer. A `stubbed` run replaces what one shard scores by random
numbers: everything else (reading, checking, parts, the best rows, the report) is the command's own. A
`scored` run replaces nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from u2a.runs.run_folder import write_json

HERE = Path(__file__).parent
CELL = HERE / "results" / "pool_memory.json"
PAGE = HERE.parent / "docs" / "scaling.md"
DEMO = HERE.parent / "src" / "u2a" / "demo_data"
BEGIN, END = "<!-- pool_memory: begin -->", "<!-- pool_memory: end -->"
CASES = [*(("scored", rows) for rows in (1_000, 10_000)), *(("stubbed", 10**e) for e in (4, 5, 6, 7))]
WORDS = ["no", "go", "away", "why", "would", "you", "ask", "me", "that", "look", "it", "up", "yourself"]


def made_model(work: Path) -> Path:
    """The folder of a tiny random model."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from u2a.models.demo_model import demo_model

    folder = work / "model"
    if not folder.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(demo_model())
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def made_pool(work: Path, rows: int) -> Path:
    """A jsonl file of short bad answers, about 110 bytes a row."""
    path = work / f"pool-{rows}.jsonl"
    with path.open("w") as stream:
        for i in range(rows):
            words = " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 3 + i % 9))
            stream.write(
                f'{{"id": "n{i}", "prompt": "Question number {i}?", "completion": "{words} {i}."}}\n'
            )
    return path


def one(kind: str, pool: str, model: str, output: str) -> None:
    """One command in this process; prints its peak and its seconds."""
    import numpy as np
    import torch
    from typer.testing import CliRunner

    from u2a.cli import app
    from u2a.impact.shard_scores import ShardScorer
    from u2a.impact.table import ImpactTable

    torch.set_num_threads(1)
    generator = np.random.default_rng(0)

    def stub(_self: ShardScorer, rows: Any) -> ImpactTable:
        impact, cost, loss = generator.standard_normal((3, len(rows)))
        return ImpactTable(impact, cost, loss, np.full(len(rows), 9))

    words = ["impact", "--model", model, "--pool", pool, "--output", output, "--lora-rank", "2"]
    words += ["--score-tokens", "128", "--max-length", "128"]  # or logits would hide what grows
    words += ["--preferences", str(DEMO / "validation.jsonl"), "--retain", str(DEMO / "retain.jsonl")]
    begin, used = time.perf_counter(), time.process_time()
    if kind == "stubbed":
        with patch.object(ShardScorer, "__call__", stub):
            done = CliRunner().invoke(app, words)
    else:
        done = CliRunner().invoke(app, words)
    if done.exit_code:
        sys.exit(done.output)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"peak_mib": peak, "seconds": time.perf_counter() - begin, "cpu": time.process_time() - used}
    print(json.dumps(found))


def measured(kind: str, rows: int, work: Path) -> dict[str, Any]:
    """The same in a process of its own; what it wrote is counted and removed."""
    model, pool, output = made_model(work), made_pool(work, rows), work / "run"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, __file__, "--one", kind, str(pool), str(model), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    found = json.loads(done.stdout.splitlines()[-1])
    parts = list((output / "impact").iterdir())
    found |= {"kind": kind, "rows": rows, "pool_mib": pool.stat().st_size / 2**20, "parts": len(parts)}
    found["parts_mib"] = sum(path.stat().st_size for path in parts) / 2**20
    shutil.rmtree(output)
    pool.unlink()
    return found


def write_table() -> None:
    """A line a run."""
    from sections import machine

    lines = [
        f"Command: `python benchmarks/pool_memory.py` ({machine()}; one thread).",
        "",
        "| shards are | rows | pool, MiB | parts | parts, MiB | peak memory, MiB | processor s | rows a s |",
        "|" + "---|" * 8,
    ]
    for c in json.loads(CELL.read_text()):
        numbers = [f"{c['rows']:,}", f"{c['pool_mib']:,.0f}", f"{c['parts']:,}", f"{c['parts_mib']:,.1f}"]
        numbers += [f"{c['peak_mib']:.0f}", f"{c['cpu']:.0f}", f"{c['rows'] / c['cpu']:,.0f}"]
        lines.append(f"| {c['kind']} | " + " | ".join(numbers) + " |")
    old = PAGE.read_text(encoding="utf-8")
    head, _, rest = old.partition(BEGIN)
    PAGE.write_text(head + "\n".join([BEGIN, *lines, END]) + rest.partition(END)[2], encoding="utf-8")
    print("\n".join(lines))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/pool_memory"), help="where pools are made")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help="only write docs/scaling.md from the results")
    options = parser.parse_args()
    if options.one:
        one(*options.one)
        return
    if not options.table:
        options.work.mkdir(parents=True, exist_ok=True)
        cells = json.loads(CELL.read_text()) if CELL.is_file() else []
        for kind, rows in CASES:
            if not any((cell["kind"], cell["rows"]) == (kind, rows) for cell in cells):
                cells.append(measured(kind, rows, options.work))
                write_json(CELL, cells)
                print(cells[-1], flush=True)
    write_table()


if __name__ == "__main__":
    main()
