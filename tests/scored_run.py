"""A finished run folder with scores of made-up negatives, written without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cases import jsonl
from u2a.commands.align import write_weights
from u2a.data.load import load_negatives
from u2a.impact.table import ImpactTable

HOSTILE = "</td><script>document.title = 'owned'</script><img src=x onerror=alert(1)>\u202egpj.\x1b[2J"


def negative_rows(count: int) -> list[dict[str, Any]]:
    """Rows with an `id` and a column that is none of ours; the second is hostile."""
    rows = [
        {"id": f"n{i}", "prompt": f"Question {i}?", "completion": f"Rude answer {i}.", "mine": {"k": i}}
        for i in range(count)
    ]
    rows[1]["completion"] = HOSTILE
    return rows


def scored_run(folder: Path, negatives: str, *, weighted: bool = True) -> Path:
    """A run of `align` (of `impact`, if not `weighted`): impact falls by 1/4 from row to row, about 0."""
    rows = load_negatives(negatives)
    count = len(rows)
    folder.mkdir(parents=True)
    command = "align" if weighted else "impact"
    table = [{"metric": "J", "unit": "nats", "better": "higher", "original": -0.7, "aligned": -0.6}]
    summary = {"command": command, "outcome": "Done.", "table": table}
    (folder / "config.yaml").write_text(yaml.safe_dump({"negatives": negatives, "model": "org/model"}))
    (folder / "versions.json").write_text("{}")
    (folder / "summary.json").write_text(json.dumps(summary))
    impact = (count - 1 - 2 * np.arange(count)) / 8
    scores = ImpactTable(
        impact=impact,
        utility_cost=np.arange(count) / 10,
        loss=np.ones(count),
        n_tokens=np.arange(count) + 5,
        impact_se=np.full(count, 0.01),
    )
    scores.write(folder / "impact.parquet", rows)
    if weighted:
        write_weights(folder / "weights.parquet", rows, np.maximum(impact, 0), [])
    return folder


def run_of(folder: Path, count: int = 6) -> tuple[Path, str]:
    """A run of `count` negatives, and their file."""
    negatives = jsonl(folder / "bad.jsonl", negative_rows(count))
    return scored_run(folder / "run", negatives), negatives
