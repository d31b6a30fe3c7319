"""The main job in Python: select, weight and unlearn; then the held-out margin of the model before and after.

    u2a demo                                     # once: makes u2a-demo/original, the default model here
    python examples/align_in_python.py --output aligned

`aligned` is a PEFT adapter on `--model`. What was left out: resuming, a report and a model card. `u2a align`
does those.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import torch

from u2a import (
    OuterOptions,
    UnlearnOptions,
    WeightOptions,
    align,
    load_negatives,
    load_policy,
    load_preferences,
    load_retain,
    pair_metrics,
    pair_texts,
    prepare,
)

ROWS = files("u2a") / "demo_data"


def main() -> None:
    """Prepares, aligns, compares, saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="u2a-demo/original", help="folder, Hub id, GGUF file or adapter")
    parser.add_argument("--select", default="50%", help="how many negatives at most")
    parser.add_argument("--outer-steps", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True, help="a folder, new")
    given = parser.parse_args()
    if given.output.exists():
        parser.error(f"{given.output} is there already")

    problem = prepare(
        load_policy(given.model),
        negatives=load_negatives(ROWS / "negatives.jsonl"),
        preferences=load_preferences(ROWS / "validation.jsonl"),
        retain=load_retain(ROWS / "retain.jsonl"),
        loss="npo",
        retain_loss="nll",
        max_length=128,
    )
    result = align(
        problem,
        unlearn=UnlearnOptions(epochs=2, learning_rate=2e-4),
        weights=WeightOptions(select=given.select),
        outer=OuterOptions(outer_steps=given.outer_steps, kl_budget=0.1, max_nll_rise=0.1),
    )
    print(result.outcome)
    print(f"J {result.start.objective:.4f} -> {result.best.objective:.4f}")
    print(f"{(result.weights > 0).sum()} negatives have a weight, the largest {result.weights.max():.2f}")

    held_out, _ = pair_texts(load_preferences(ROWS / "test.jsonl"), problem.renderer)
    lengths = torch.tensor(held_out["n_tokens"])
    before = pair_metrics(problem.reference_logprobs(held_out), lengths)
    after = pair_metrics(problem.logprobs(held_out), lengths)
    print(f"held-out margin {before.margin:.2f} -> {after.margin:.2f} nats")
    problem.policy.save(given.output)
    print(f"Written: {given.output}")


if __name__ == "__main__":
    main()
