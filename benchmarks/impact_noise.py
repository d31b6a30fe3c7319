"""How much of what tells the main job's negatives apart is noise of the validation pairs?

    python benchmarks/impact_noise.py --work runs/main_job     # after main_job.py, a few seconds

Reads the impacts and standard errors that main_job.py left in its work folder and writes, for each seed and
loss, the share of negatives whose sign is known (beyond 1.96 standard errors), and the ratio of the mean
squared standard error to the variance of the impacts over negatives. At a ratio of 1 the spread of the
scores is what noise alone would give. Part of a standard error is common to all negatives and does not
change their order, so the ratio is an upper bound.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from u2a.data.collate import tokenize_rows
from u2a.data.load import load_negatives
from u2a.data.render import Renderer
from u2a.models.demo_model import demo_model
from u2a.runs.run_folder import write_json

RESULT = Path(__file__).parent / "results" / "impact_noise.json"


def noise(impact: np.ndarray, se: np.ndarray) -> dict[str, float]:
    """Shares and the ratio, of impacts (N,) and their standard errors (N,)."""
    return {
        "surely_helps": float((impact > 1.96 * se).mean()),
        "surely_harms": float((impact < -1.96 * se).mean()),
        "noise_over_spread": float(np.square(se).mean() / impact.var()),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/main_job"))
    options = parser.parse_args()
    renderer = Renderer(AutoTokenizer.from_pretrained(demo_model()), max_length=256)
    texts = tokenize_rows(load_negatives(str(options.work / "split" / "forget.jsonl")), renderer)
    lengths = np.asarray(texts["n_tokens"], np.float64)
    found: dict[str, Any] = {}
    for path in sorted(options.work.glob("impact-*.json")):
        saved = json.loads(path.read_text())
        impact, se = np.asarray(saved["impact"]), np.asarray(saved["impact_se"])
        # npo's slope at the reference is 1, ga's 1/|y|
        found[path.stem] = {"npo": noise(impact, se), "graddiff": noise(impact / lengths, se / lengths)}
    write_json(RESULT, found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
