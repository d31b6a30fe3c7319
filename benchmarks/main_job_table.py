"""Writes the main job's section of docs/results.md from the committed cells. Called by main_job.py."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sections import write_section
from u2a.evaluation.preference import pair_margins

DRAWS = 10_000

Array = np.ndarray
Read = Callable[..., dict[str, Any] | None]


def per_pair(test: dict[str, Any]) -> dict[str, Array]:
    """Each held-out pair's figures: summed and per-token margin, whether it is right, chosen log-prob."""
    s, lengths = torch.tensor(test["s"]), torch.tensor(test["n_tokens"])
    margin, per_token = pair_margins(s, lengths)
    return {
        "margin": margin.numpy(),
        "margin per token": per_token.numpy(),
        "accuracy": (margin > 0).double().numpy(),
        "chosen log-prob": s.double().chunk(2)[0].numpy(),
    }


def interval(values: Array, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval of (seeds, pairs) values; pairs and seeds are drawn anew together."""
    rng = np.random.default_rng(seed)
    seeds, pairs = values.shape
    draws = [
        values[np.ix_(rng.integers(seeds, size=seeds), rng.integers(pairs, size=pairs))].mean()
        for _ in range(DRAWS)
    ]
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def shown(values: Array, digits: int = 3) -> str:
    """`mean [low, high]`."""
    mean, low, high = interval(values)
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def write_table(
    cells: Path,
    losses: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    best_rate: Callable[[str, str], float],
    read_cell: Read,
) -> None:
    """Replaces the section between the markers, or appends it."""
    import json

    base = json.loads((cells / "original.json").read_text())
    before = per_pair(base)
    changes: dict[tuple[str, str], dict[str, Array]] = {}
    rows = []
    for loss in losses:
        for method in methods:
            rate = best_rate(method, loss)
            cells_here = (read_cell(method, loss, rate, seed) for seed in seeds)
            found = [c for c in cells_here if c and "test" in c]
            if not found:
                continue
            after = [per_pair(c["test"]) for c in found]
            change = {name: np.stack([a[name] - before[name] for a in after]) for name in before}
            changes[loss, method] = change
            past = sum(not c["points"][-1]["admissible"] for c in found)
            nll = np.array([c["start"]["utility"] - c["best"]["utility"] for c in found])
            gain = np.array([c["best"]["objective"] - c["start"]["objective"] for c in found])
            # a cell whose process was stopped for a while says nothing about time
            timed = [c for c in found if not c.get("suspended")] or found
            unlearning = np.array([c["unlearning_seconds"] for c in timed])
            scoring = np.array([c["scoring_seconds"] for c in timed])
            rows.append(
                f"| {loss} | {method} | {rate:g} | {len(found)} | {gain.mean():+.4f} | "
                f"{shown(change['margin'])} | "
                f"{shown(change['margin per token'], 4)} | {shown(change['accuracy'])} | "
                f"{change['chosen log-prob'].mean():+.2f} | {nll.mean():+.4f} ({nll.max():+.4f}) | {past} | "
                f"{scoring.mean():.0f} + {unlearning.mean():.0f} |"
            )
    write_section(
        "main_job",
        [
            *_header(base, before),
            "| loss | method | rate | seeds | ΔJ validation | Δ margin, summed | Δ margin per token | "
            "Δ accuracy | Δ chosen log-prob | Δ retain NLL (worst) | past the cap | "
            "seconds: scoring + unlearning |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            *_differences(changes, losses),
            "",
            *_grid(cells),
        ],
    )


def _differences(changes: dict[tuple[str, str], dict[str, Array]], losses: Sequence[str]) -> list[str]:
    lines = [
        "Paired differences on the same held-out pairs and seeds (u2a minus the other):",
        "",
        "| loss | against | margin, summed | margin per token | accuracy | chosen log-prob |",
        "|---|---|---|---|---|---|",
    ]
    for loss in losses:
        for other in ("uniform", "random-k"):
            if (loss, "u2a") not in changes or (loss, other) not in changes:
                continue
            ours, theirs = changes[loss, "u2a"], changes[loss, other]
            count = min(len(ours["margin"]), len(theirs["margin"]))
            cells = [
                shown(ours[name][:count] - theirs[name][:count], digits)
                for name, digits in (
                    ("margin", 3),
                    ("margin per token", 4),
                    ("accuracy", 3),
                    ("chosen log-prob", 2),
                )
            ]
            lines.append(f"| {loss} | {other} | " + " | ".join(cells) + " |")
    return lines


def _grid(cells: Path) -> list[str]:
    """Every cell that was run, as it was measured on validation: what the rates were picked from."""
    import json

    lines = [
        "Every cell, on validation (last point; a retain NLL that rose by more than 0.1 does not count):",
        "",
        "| cell (loss, method, rate, seed) | J | retain NLL | KL | counts |",
        "|---|---|---|---|---|",
    ]
    for path in sorted(cells.glob("*-*.json")):
        point = json.loads(path.read_text())["points"][-1]
        figures = point["figures"]
        counts = "yes" if point["admissible"] else "no"
        lines.append(
            f"| {path.stem} | {figures['objective']:.4f} | {-figures['utility']:.4f} | "
            f"{figures['kl']:.4f} | {counts} |"
        )
    return lines


def _header(base: dict[str, Any], before: dict[str, Array]) -> list[str]:
    sizes = ", ".join(f"{name} {count}" for name, count in base["sizes"].items())
    return [
        "## The main job on hh_harmless",
        "",
        "Command: `python benchmarks/main_job.py --data PATH/hh_harmless.jsonl --work runs/main_job` "
        f"({platform.machine()}, 2 cores without an accelerator, torch {torch.__version__}). "
        "One process a loss, one thread each, other work beside them: seconds are an upper bound.",
        "",
        f"Rows: {sizes}. Original model: held-out margin {before['margin'].mean():+.3f} nats summed, "
        f"{before['margin per token'].mean():+.4f} per token, accuracy {before['accuracy'].mean():.3f}. "
        "Changes are against it. Square brackets: 95 % bootstrap interval over pairs and seeds.",
        "",
    ]
