"""Small run folders as commands leave them, made of invented figures: what the report and its kin read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`&amp;{{ 7*7 }}<!-- "
    "\x00\x1b]0;owned\x07\u2028\u202e<a href=javascript:alert(3)>x</a>"
)
CONFIG = {
    "model": "org/model",
    "negatives": "/home/me/negatives.jsonl",
    "restart": False,
    "hub_token": "hf_x",
    "seed": 7,
    "kl_budget": 0.1,
    "max_nll_rise": 0.5,
}


def align_run(folder: Path, name: str = "run", **settings: Any) -> Path:
    """An `align` run of four negatives; two of them selected."""
    run = folder / name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(CONFIG | settings), encoding="utf-8")
    (run / "versions.json").write_text(json.dumps({"u2a": "0.1.0", "git_commit": None}), encoding="utf-8")
    write_summary(run, "align", "2 of 4 negatives are worth unlearning.", aligned=-0.5)
    write_impact(run)
    write_weights(run, [[1.0, 1.0, 0.0, 0.0], [1.25, 0.75, 0.0, 0.0]])
    point = {"event": "measurement", "outer_step": 0, "step": 0}
    point |= {"objective": -0.7, "utility": -2.0, "kl": 0.0}
    points = [point, point | {"outer_step": 1, "step": 5, "kl": None, "admissible": False}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(p) + "\n" for p in points), encoding="utf-8")
    return run


def write_impact(
    run: Path, *, ids: list[str] | None = None, text: str = "RESPONSE", prompt: str = "PROMPT"
) -> None:
    """Four negatives: two that raise J, one that lowers it, one without a finite impact."""
    columns = {
        "row": [0, 1, 2, 3],
        "id": ids or list("abcd"),
        "prompt": [f"{prompt} {i}" for i in range(4)],
        "response": [f"{text} {i}" for i in range(4)],
        "impact": [0.5, 0.25, -0.125, None],
        "utility_cost": [0.1, -0.2, 0.3, 0.4],
        "loss": [1.0] * 4,
        "n_tokens": [7, 8, 9, 10],
        "impact_se": [0.01, None, None, None],
    }
    pq.write_table(pa.table(columns), run / "impact.parquet")


def write_weights(run: Path, steps: list[list[float]]) -> None:
    """Weights of every outer step; the last ones are the result."""
    last = steps[-1]
    columns = {"row": list(range(len(last))), "id": [str(i) for i in range(len(last))], "weight": last}
    columns |= {"selected": [weight > 0 for weight in last]}
    columns |= {f"weight_{k}": step for k, step in enumerate(steps, start=1)}
    pq.write_table(pa.table(columns), run / "weights.parquet")


def write_summary(run: Path, command: str, outcome: str, aligned: float | None, metric: str = "J") -> None:
    """A table of three figures, one phase, a self-check and a warning."""
    table = [
        {"metric": metric, "unit": "nats", "better": "higher", "original": -0.75, "aligned": aligned},
        {"metric": "retain NLL", "unit": "nats/token", "better": "lower", "original": 2.0, "aligned": None},
        {"metric": "broken", "unit": "", "better": "", "original": float("nan"), "aligned": None},
    ]
    phases = [{"name": "scoring", "seconds": 1.5, "peak_bytes": 3 * 2**20}]
    counts = {"negatives": 4, "validation": 5} | ({"selected": 2} if command == "align" else {})
    check = {"examples": 4, "relative_error": 0.002, "epsilon": 0.1, "passed": True}
    summary = {"command": command, "outcome": outcome, "table": table, "phases": phases, "counts": counts}
    text = json.dumps(summary | {"self_check": check, "warnings": ["only 5 validation rows"]})
    (run / "summary.json").write_text(text, encoding="utf-8")


def large_run(folder: Path, count: int = 10_000, seed: int = 0) -> Path:
    """An `align` run of many negatives whose texts, of words drawn at random, do not compress away."""
    run = align_run(folder, "large")
    generator = np.random.default_rng(seed)
    words = np.array(["".join(generator.choice(list("abcdefghijklmnoprstuvwyz"), 6)) for _ in range(3000)])
    common = 1 / np.arange(1, len(words) + 1)  # Zipf's law, as in any language
    drawn = generator.choice(words, size=(count, 60), p=common / common.sum())
    impact = generator.normal(0.01, 0.1, count)
    columns = {
        "row": list(range(count)),
        "id": [f"negative-{i:05d}" for i in range(count)],
        "prompt": [" ".join(row[:15]) + "?" for row in drawn],
        "response": [" ".join(row[15:]) + "." for row in drawn],
        "impact": impact,
        "utility_cost": 0.5 * impact + generator.normal(0, 0.05, count),
        "loss": np.ones(count),
        "n_tokens": generator.integers(5, 90, count),
        "impact_se": np.abs(generator.normal(0.03, 0.01, count)),
    }
    pq.write_table(pa.table(columns), run / "impact.parquet")
    first = np.where(impact > np.quantile(impact, 0.7), 1.0, 0.0)
    steps = [first]
    for _ in range(2):
        steps.append(np.where(first > 0, steps[-1] * np.exp(generator.normal(0, 0.3, count)), 0.0))
    write_weights(run, [step.tolist() for step in steps])
    _write_many_points(run, generator)
    return run


def _write_many_points(run: Path, generator: np.random.Generator) -> None:
    points = [(0, 0)] + [(outer, step) for outer in (1, 2, 3) for step in range(5, 55, 5)]
    lines, best = [], -0.7
    for n, (outer, step) in enumerate(points):
        j = -0.7 + 0.02 * n - 0.0006 * n**2 + generator.normal(0, 0.01)
        kl = 0.004 * n
        lines.append(
            {"event": "measurement", "outer_step": outer, "step": step, "objective": j, "kl": kl}
            | {
                "utility": -2.0 - 0.003 * n,
                "negative_logprob": -1.0 - 0.05 * n,
                "repetition": 0.01 + 0.001 * n,
            }
            | {"admissible": kl <= 0.1, "best": kl <= 0.1 and j > best}
        )
        best = max(best, j) if kl <= 0.1 else best
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _figure(
    value: float, change: float | None, better: str = "higher", unit: str = "share"
) -> dict[str, Any]:
    def spread(middle: float) -> dict[str, Any]:
        return {"value": middle, "low": middle - 0.05, "high": middle + 0.05, "n": 40}

    return (
        spread(value)
        | {"better": better, "unit": unit}
        | {"change": None if change is None else spread(change)}
    )


def evaluate_run(folder: Path, name: str = "evaluated", answer: str = "ANSWER", asked: str = "ASKED") -> Path:
    """An `evaluate` run of one model beside the original, with answers to two prompts."""
    run = align_run(folder, name)
    for left in ("impact.parquet", "weights.parquet", "metrics.jsonl"):
        (run / left).unlink()
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    summary |= {"command": "evaluate", "outcome": "mine: better.", "table": [], "self_check": None}
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    figures = {"accuracy": (0.5, 0.2), "refused": (0.3, 0.01), "kl": (0.0, 0.3)}
    better = {"kl": "lower"}
    models = {
        "original": {k: _figure(v, None, better.get(k, "higher")) for k, (v, _) in figures.items()},
        "mine": {k: _figure(v + c, c, better.get(k, "higher")) for k, (v, c) in figures.items()},
    }
    for figures in models.values():  # of words that differ there is no interval
        figures["distinct"] = _figure(0.5, 0.3) | {"low": None, "high": None}
    models["original"]["distinct"]["change"] = None
    models["mine"]["distinct"]["change"] = {"value": 0.3, "low": None, "high": None, "n": 40}
    models["mine"]["distinct"]["value"] = 0.8
    document = {"schema": 1, "models": {k: {"source": k, "figures": v} for k, v in models.items()}}
    (run / "evaluation.json").write_text(json.dumps(document), encoding="utf-8")
    lines = [
        {
            "model": model,
            "prompts": "test",
            "prompt": i,
            "asked": f"{asked} {i}",
            "text": f"{answer} {model} {i}",
            "tokens": 3,
        }
        for model in models
        for i in range(2)
    ]
    (run / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return run


def verify_run(folder: Path, name: str = "verified") -> Path:
    """A `verify` run of eight subsets."""
    run = align_run(folder, name)
    (run / "weights.parquet").unlink()
    (run / "metrics.jsonl").unlink()
    write_summary(run, "verify", "diagonal has LDS 0.80.", aligned=None)
    predicted = np.linspace(-1, 1, 8)
    columns = {
        "subset": list(range(8)),
        "seed": [0] * 8,
        "single": [False] * 8,
        "predicted_diagonal": predicted,
        "objective_change": predicted + 0.2 * np.cos(np.arange(8)),
        "held_out_change": predicted + 0.3 * np.sin(np.arange(8)),
    }
    pq.write_table(pa.table(columns), run / "subsets.parquet")
    lds = {"lds": 0.8, "interval": [0.5, 0.95], "pearson": 0.7, "slope": 1.1}
    figures = {
        "chosen": "diagonal",
        "seeds": [0],
        "estimators": {"diagonal": {"validation": {"J": lds}}},
        "controls": {"random": {"validation": {"J": lds | {"lds": 0.1, "interval": [-0.3, 0.4]}}}},
        "noise_ceiling": {"validation": {"J": {"lds": 0.9}}},
    }
    (run / "verify.json").write_text(json.dumps(figures), encoding="utf-8")
    return run


def compare_run(folder: Path, name: str = "compared") -> Path:
    """A `compare` run of three methods, one with a figure whose change has no interval."""
    run = align_run(folder, name)
    for left in ("impact.parquet", "weights.parquet", "metrics.jsonl"):
        (run / left).unlink()
    write_summary(run, "compare", "u2a is better than dpo.", aligned=None)

    def method(kind: str, value: float, seconds: float) -> dict[str, Any]:
        return {
            "method": kind,
            "margin_at_cost": {"value": value, "low": value - 0.5, "high": value + 0.25},
            "reached": True,
            "seeds": 3,
            "seconds": seconds,
            "forward_tokens": 100.0,
            "trained_tokens": 50.0,
            "curve": [[0.01, value / 2, 5.0], [0.03, value, seconds]],
            "figures": {
                "margin": metric(value, kind, half=0.5),
                "perplexity_retain": metric(9.0 + value, kind, "lower", half=0.5),
                "answer_distinct_2": metric(0.5, kind),
            },
        }

    def metric(value: float, kind: str, better: str = "higher", half: float | None = None) -> dict[str, Any]:
        def around(middle: float) -> dict[str, float | None]:
            ends = (None, None) if half is None else (middle - half, middle + half)
            return {"value": middle, "low": ends[0], "high": ends[1], "n": 8}

        change = None if kind == "original" else around(value % 9.0)
        return {**around(value), "change": change, "better": better, "unit": "nats"}

    methods = {
        "original": method("original", 0.0, 1.0),
        "u2a": method("u2a", 2.0, 10.0),
        "<b>dpo</b> $x_1$": method("dpo", 1.0, 20.0),
    }
    (run / "comparison.json").write_text(json.dumps({"nll_rise": 0.02, "methods": methods}))
    return run
