"""Seconds and memory of our scorers and of the peers that install here: same model, data, threads; one run.

    python benchmarks/peers.py            # about an hour on two idle cores; stopped, it goes on
    python benchmarks/peers.py --table    # writes the section of docs/results.md from the kept cells

The model is SmolLM2-135M-Instruct with a saved LoRA adapter on all linear layers, its B small random values
(with B = 0 half of all gradients would be zero); the data are the negatives of `scoring.py`, tokenised
once, by us, for everybody; the loss is the summed response log-prob; the query is the mean gradient of
eight further texts. Every measurement is a process of its own and a cell of its own; a peer runs in its own
virtual environment, made here, by a worker of `peers_workers/`. One that fails is tried again by the next
run and stands in the table with its error.

Each peer at its gradient dot product and at the curvature that it recommends, with its own defaults. What is
left out: imports, reading texts, one warm-up batch; 16-bit, compiled and GPU code; how good the scores are.
Only scores of one definition are compared: dot products with the query's gradient, not those behind a
preconditioner.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from scoring import QUERY_TEXTS, ragged_negatives
from sections import write_section
from u2a.data.collate import tokenize_rows
from u2a.data.render import Renderer
from u2a.models.policy import load_policy
from u2a.runs.run_folder import write_json, write_text

HERE = Path(__file__).parent
OURS = ("forward", "fd", "exact", "exact-19", "authors")
PEERS = {
    "bergson": ("bergson==2.5.1", ("identity", "trackstar", "ekfac")),
    "kronfluence": ("kronfluence==1.0.1", ("identity", "ekfac")),
    "dattri": ("dattri-llm==0.1.0", ("identity", "ekfac")),
}
TORCH = "torch==2.13.0"
RANK, RANKS = 16, (4, 16, 64)
B_SCALE = 0.01
"""Standard deviation of LoRA's B: the log-probs move, the model stays the one it was."""

NOTES = """\
Loading is the model and the adapter; factors are what a peer can keep for other queries. identity is a
dot product with the query's gradient; the others are preconditioned, so their scores are another
quantity and have no Spearman. kronfluence's `ekfac` samples labels (the true Fisher matrix, its default)
and takes its damping heuristic, a tenth of the mean eigenvalue. bergson writes its query and scores to
disk within the time. dattri-llm keeps one column for each query text, and its `ekfac` passes over the
negatives again instead of storing gradients (its default). bergson batches 2,048 padded tokens (its
default), the other peers 8 texts sorted by length. Every peer computes logits at every position."""

Cell = dict[str, Any]


class Bench:
    """Where things are, and how many threads and negatives."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.work, self.cells = options.work.resolve(), options.cells
        self.count, self.threads = options.negatives, options.threads
        # whatever is not here already must not be waited for
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        self.environment = {**os.environ, **offline, **threads}

    def cell(self, name: str) -> Cell | None:
        """A kept measurement."""
        path = self.cells / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def measure(self, name: str, command: list[str]) -> None:
        """Runs `command`, whose last line of output is the cell, unless it is kept already."""
        kept = self.cell(name)
        if kept and "failed" not in kept:
            return
        print(f"==> {name}", flush=True)
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, check=False)
        if done.returncode:
            write_text(self.work / f"{name}.log", done.stdout + done.stderr)
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            found: Cell = {"failed": lines[-1].replace(str(self.work), "WORK").replace("|", "/")[:300]}
        else:
            found = json.loads(done.stdout.splitlines()[-1])
        write_json(self.cells / f"{name}.json", {**found, "threads": self.threads})
        print(found.get("failed") or found["seconds"], flush=True)

    def ours(self, method: str, count: int, rank: int) -> str:
        """One of our methods; the name of its cell."""
        name = f"ours-{method}-{count}-r{rank}"
        adapter = str(saved_adapter(self.work, rank))
        script = [sys.executable, str(HERE / "scoring.py"), "--one", method]
        self.measure(name, [*script, "--negatives", str(count), "--adapter", adapter])
        return name

    def peer(self, peer: str, setting: str) -> str:
        """One setting of one peer; the name of its cell."""
        name = f"{peer}-{setting}-{self.count}"
        files = {
            "--texts": saved_texts(self.work, self.count),
            "--adapter": saved_adapter(self.work, RANK),
            "--work": self.work / name,
        }
        worker = [str(environment(self.work, peer)), str(HERE / "peers_workers" / f"run_{peer}.py")]
        paths = [str(part) for pair in files.items() for part in pair]
        self.measure(name, [*worker, "--setting", setting, *paths])
        return name


def saved_adapter(work: Path, rank: int) -> Path:
    """The adapter of that rank, made once: A as `load_policy` draws it, B random from a seed."""
    folder = work / f"adapter-{rank}"
    if not (folder / "adapter_model.safetensors").is_file():
        policy = load_policy("demo", lora_rank=rank)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, p in policy.trainable().items():
                if "lora_B" in name:
                    p.copy_(B_SCALE * torch.randn(p.shape, generator=generator))
        policy.save(folder)
    return folder


def saved_texts(work: Path, count: int) -> Path:
    """Token ids and where the response starts, of the negatives and of the query's texts, made once."""
    path = work / f"texts-{count}.json"
    if not path.is_file():
        renderer = Renderer(load_policy("demo").tokenizer)
        tokenized = tokenize_rows(ragged_negatives(count + QUERY_TEXTS), renderer)
        rows = tokenized.select_columns(["input_ids", "response_start"]).to_list()
        write_json(path, {"negatives": rows[:count], "queries": rows[count:]})
    return path


def environment(work: Path, peer: str) -> Path:
    """The Python of the peer's own virtual environment, made once."""
    folder = work / f"venv-{peer}"
    python = folder / "bin" / "python"
    done = folder / "installed.txt"
    if not done.is_file():
        print(f"==> setting up {folder}", flush=True)
        pip = [str(python), "-m", "pip"]
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([*pip, "install", "--quiet", TORCH, PEERS[peer][0], "peft"], check=True)
        # built for another torch than the pinned one: importing them would fail
        subprocess.run([*pip, "uninstall", "--quiet", "-y", "torchvision", "torchaudio"], check=True)
        versions = subprocess.run([*pip, "freeze"], capture_output=True, text=True, check=True).stdout
        write_text(done, versions)
    return python


# -- the table ----------------------------------------------------------------------------------------------


def seconds(cell: Cell, phase: str) -> float:
    """Seconds of a phase; our cells have one key for each, the peers' a table."""
    if isinstance(cell["seconds"], dict):
        return float(cell["seconds"].get(phase, 0.0))
    key = "seconds" if phase == "score" else f"{phase}_seconds"
    return float(cell.get(key, 0.0))


def peak(cell: Cell, phase: str) -> float:
    """Peak resident MiB of a phase, 0 where the cell has no such phase."""
    peaks = cell["peak_mib"] if isinstance(cell["peak_mib"], dict) else {"score": cell["peak_mib"]}
    return float(peaks.get(phase, 0.0))


def row(bench: Bench, label: str, name: str, *, comparable: bool) -> str:
    """One line of the main table; a measurement that failed gives its error."""
    cell = bench.cell(name)
    base, exact = (bench.cell(f"ours-{m}-{bench.count}-r{RANK}") for m in ("forward", "exact"))
    if cell is None or "failed" in cell or base is None:
        return f"| {label} | did not run: {cell['failed'] if cell else 'no cell'} |" + " – |" * 9
    unit, score = seconds(base, "score"), seconds(cell, "score")
    factors = peak(cell, "factors") if seconds(cell, "factors") >= 0.1 else 0.0
    ranks = "–"
    if comparable and exact and "failed" not in exact:
        ranks = f"{spearmanr(cell['values'], exact['values']).statistic:.4f}"
    numbers = [
        f"{seconds(cell, 'load'):.1f}",
        f"{seconds(cell, 'factors'):.1f}",
        f"{seconds(cell, 'query'):.1f}",
        f"{score:.1f}",
        f"{score / unit:.2f}",
        f"{1000 * score / cell['tokens']:.2f}",
        f"{peak(cell, 'score'):,.0f}",
        f"{peak(cell, 'score') - cell['loaded_mib']:,.0f}",
        f"{factors:,.0f}" if factors else "–",
        ranks,
    ]
    return f"| {label} | " + " | ".join(numbers) + " |"


def scaling(bench: Bench) -> list[str]:
    """Our seconds against tokens at one rank, and against the rank at one number of tokens."""
    lines = [
        "| negatives | tokens | rank | `fd`, s | s / 1,000 tokens | `exact`, s | s / 1,000 tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for count, rank in scaling_points(bench.count):
        found = [bench.cell(f"ours-{method}-{count}-r{rank}") for method in ("fd", "exact")]
        kept = [cell for cell in found if cell and "failed" not in cell]
        if len(kept) == 2:
            each = [f"{c['seconds']:.1f} | {1000 * c['seconds'] / c['tokens']:.2f}" for c in kept]
            lines.append(f"| {count} | {kept[0]['tokens']:,} | {rank} | " + " | ".join(each) + " |")
    return lines


def scaling_points(count: int) -> list[tuple[int, int]]:
    """(negatives, rank): from a quarter of them to twice as many at one rank, then other ranks at a half."""
    sizes = [(max(1, count // 4), RANK), (max(1, count // 2), RANK), (count, RANK), (2 * count, RANK)]
    return sizes + [(max(1, count // 2), rank) for rank in RANKS if rank != RANK]


def write_table(bench: Bench) -> None:
    """The section `peers` of docs/results.md."""
    base = bench.cell(f"ours-forward-{bench.count}-r{RANK}")
    if base is None or "failed" in base:
        raise SystemExit("the plain forward pass is the unit of the table: run `benchmarks/peers.py` first")
    rows = [
        row(bench, f"u2a `{m}`", f"ours-{m}-{bench.count}-r{RANK}", comparable=m != "forward") for m in OURS
    ]
    for peer, (package, settings) in PEERS.items():
        for setting in settings:
            label = f"{package.replace('==', ' ')}, {setting}"
            rows.append(
                row(bench, label, f"{peer}-{setting}-{bench.count}", comparable=setting == "identity")
            )
    columns = (
        "scorer | loading, s | factors, s | query, s | scoring, s | scoring, forward passes | "
        "s / 1,000 tokens | peak MiB | over the loaded model | peak MiB, factors | Spearman to `exact`"
    )
    torch_version = TORCH.replace("==", " ")
    heading = (
        f"Command: `python benchmarks/peers.py` ({platform.machine()}, {base['threads']} threads, no "
        f"accelerator, {torch_version}, one run). {bench.count} negatives, {base['tokens']:,} tokens, "
        f"SmolLM2-135M-Instruct, float32, LoRA of rank {RANK} on all linear layers, B not zero. The query "
        f"is the mean gradient of {QUERY_TEXTS} texts; scoring is one direction (`exact-19`: 19) over all "
        "negatives, the base log-probs included."
    )
    write_section(
        "peers",
        [
            "## Speed and memory against peers",
            "",
            heading,
            "",
            f"| {columns} |",
            "|" + "---|" * 11,
            *rows,
            "",
            NOTES,
            "",
            "Our scorers against tokens and against the rank:",
            "",
            *scaling(bench),
        ],
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/peers"), help="environments, adapters, texts")
    parser.add_argument("--cells", type=Path, default=HERE / "results" / "peers")
    parser.add_argument("--negatives", type=int, default=128)
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--only", nargs="+", default=[*PEERS, "ours", "scaling"], help="of the measurements")
    parser.add_argument("--table", action="store_true", help="only write the table")
    options = parser.parse_args()
    bench = Bench(options)
    if options.table:
        write_table(bench)
        return
    bench.work.mkdir(parents=True, exist_ok=True)
    for peer in set(options.only) & set(PEERS):  # before anything is timed
        environment(bench.work, peer)
    if "ours" in options.only:
        for method in OURS:
            bench.ours(method, bench.count, RANK)
    for peer, (_, settings) in PEERS.items():
        for setting in settings if peer in options.only else ():
            bench.peer(peer, setting)
    if "scaling" in options.only:
        for count, rank in scaling_points(bench.count):
            for method in ("fd", "exact"):
                bench.ours(method, count, rank)


if __name__ == "__main__":
    main()
