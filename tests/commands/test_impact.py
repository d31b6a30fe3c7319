"""`u2a impact`'s findings about how much the negatives differ."""

import numpy as np

from problems import pairs, tiny_problem
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
