"""`u2a impact`'s findings about how much the negatives differ."""

import numpy as np
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from problems import BAD, PAIRS, pairs, tiny_problem
from u2a.cli import app
from u2a.commands import impact as command
from u2a.impact.table import score_impact
from u2a.verification.bm25 import bm25
from u2a.verification.controls import likeness


def _negatives(problem):
    return problem.negatives.add_column("extra", [""] * len(problem.negatives))


def test_likeness_to_the_rejected_answers_is_one_of_the_explanations(monkeypatch):
    """With impacts in the order of that likeness it explains everything; where it would take long it is
    left out."""
    problem = tiny_problem("llama")
    negatives = _negatives(problem)
    table = score_impact(problem, se_groups=0)
    object.__setattr__(table, "impact", likeness(negatives, pairs(), bm25))
    found = command.negatives_differ(table, negatives, pairs()).explained
    assert set(found) >= {"length", "gradient norm", "likeness to the rejected answers", "all together"}
    np.testing.assert_allclose(found["likeness to the rejected answers"], 1.0)
    assert found["length"] < 0.9
    monkeypatch.setattr(command, "MOST_COMPARISONS", 1)
    assert (
        "likeness to the rejected answers"
        not in command.negatives_differ(table, negatives, pairs()).explained
    )


def test_a_finished_run_is_not_written_over_with_other_rows(tmp_path):
    """Its table belongs to the rows that it was made of; `align` refuses this too."""
    pairs = [{"prompt": p, "chosen": good, "rejected": bad} for p, good, bad in PAIRS]
    bad = [{"prompt": p, "completion": a} for p, a in BAD]
    flags = {
        "--model": str(save_tiny(tmp_path / "model", "llama")),
        "--negatives": jsonl(tmp_path / "bad.jsonl", bad),
        "--preferences": jsonl(tmp_path / "pairs.jsonl", pairs),
        "--lora-rank": "2",
        "--output": str(tmp_path / "run"),
    }
    words = ["impact", *(word for pair in flags.items() for word in pair)]
    assert CliRunner().invoke(app, words).exit_code == 0
    made = (tmp_path / "run" / "impact.parquet").read_bytes()
    assert CliRunner().invoke(app, [*words, "--resume"]).exit_code == 0
    jsonl(tmp_path / "bad.jsonl", bad[:3])
    refused = CliRunner().invoke(app, [*words, "--resume"])
    assert refused.exit_code == 2
    assert "is finished, and the negatives" in " ".join(refused.output.split())
    assert (tmp_path / "run" / "impact.parquet").read_bytes() == made
