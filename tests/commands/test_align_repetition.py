"""`u2a align` says how much answers repeat themselves, before and after, and warns where that rose."""

import json

import pytest
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from problems import BAD, GOOD, PAIRS
from u2a.cli import app


@pytest.mark.parametrize("after, warned", [(0.35, True), (0.11, False)])
def test_answers_that_run_in_circles_are_told(tmp_path, monkeypatch, after, warned):
    from u2a import repetition

    shares = iter([0.02, after])
    monkeypatch.setattr(repetition, "greedy_repetition", lambda *_: next(shares))
    pairs = [{"prompt": p, "chosen": good, "rejected": bad} for p, good, bad in PAIRS]
    flags = {
        "--model": str(save_tiny(tmp_path / "model", "llama")),
        "--negatives": jsonl(tmp_path / "bad.jsonl", [{"prompt": p, "completion": a} for p, a in BAD]),
        "--preferences": jsonl(tmp_path / "pairs.jsonl", pairs),
        "--retain": jsonl(tmp_path / "good.jsonl", [{"prompt": p, "completion": a} for p, a in GOOD]),
        "--output": str(tmp_path / "run"),
        "--max-steps": "1",
        "--outer-steps": "1",
        "--scoring": "exact",
    }
    result = CliRunner().invoke(app, ["align", *(word for pair in flags.items() for word in pair)])
    assert result.exit_code in (0, 1), result.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    row = next(row for row in summary["table"] if row["metric"] == "repetition in answers")
    assert (row["original"], row["aligned"], row["better"]) == (0.02, after, "lower")
    said = [line for line in summary["warnings"] if "greedy answers run in circles" in line]
    assert bool(said) is warned
    if warned:
        assert "35% of their 4-grams stood in them before, 2% in the original's" in said[0]
        assert "run in circles" in result.output
