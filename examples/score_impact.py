"""Which bad answers are worth unlearning? Scores them, prints the extremes and writes a table.

    u2a demo                                     # once: makes u2a-demo/original, the default model here
    python examples/score_impact.py --output impact.parquet

What was left out: resuming, a report, held-out pairs. `u2a impact` does those.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import numpy as np

from u2a import load_negatives, load_policy, load_preferences, load_retain, prepare, score_impact

ROWS = files("u2a") / "demo_data"


def main() -> None:
    """Loads, prepares, scores, shows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="u2a-demo/original", help="folder, Hub id, GGUF file or adapter")
    parser.add_argument("--negatives", default=str(ROWS / "negatives.jsonl"))
    parser.add_argument("--preferences", default=str(ROWS / "validation.jsonl"))
    parser.add_argument("--retain", default=str(ROWS / "retain.jsonl"))
    parser.add_argument("--output", type=Path, required=True, help="a parquet file, new")
    given = parser.parse_args()
    if given.output.exists():
        parser.error(f"{given.output} is there already")

    negatives = load_negatives(given.negatives)
    problem = prepare(
        load_policy(given.model),
        negatives=negatives,
        preferences=load_preferences(given.preferences),
        retain=load_retain(given.retain),
        loss="npo",
    )
    table = score_impact(problem)

    order = np.argsort(-table.impact)
    print(f"{(table.impact > 0).sum()} of {len(order)} are worth unlearning.")
    if table.impact_se is not None:
        sure = np.abs(table.impact) > 2 * table.impact_se
        print(f"The sign is known of {sure.sum()}: beyond two standard errors over the validation pairs.")
    for title, rows in (("Most worth unlearning", order[:5]), ("Least", order[-5:])):
        print(title)
        for i in map(int, rows):
            cost = table.utility_cost[i]
            print(f"  row {i:4}  impact {table.impact[i]:+.3g}  cost in usefulness {cost:+.3g}")
    table.write(given.output, negatives)
    print(f"Written: {given.output}")


if __name__ == "__main__":
    main()
