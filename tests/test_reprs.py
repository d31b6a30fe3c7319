"""What Python shows of a result is for people, however many rows are behind it."""

import numpy as np

from problems import tiny_problem
from u2a import OuterOptions, align, score_impact
from u2a.evaluation.evaluate import Evaluation
from u2a.impact.table import ImpactTable


def test_results_are_shown_in_a_line():
    """Tensors of a solution made hundreds of kilobytes."""
    problem = tiny_problem()
    table = score_impact(problem)
    result = align(problem, outer=OuterOptions(outer_steps=1, measurements=1))
    for each in (table, result, result.start):
        assert len(repr(each)) < 500
    assert repr(table).startswith(f"ImpactTable({len(table.impact)} negatives: ")
    assert f"J {result.start.objective:.4g} → {result.best.objective:.4g}" in repr(result)
    assert repr(Evaluation({"original": {}}, {})) == "Evaluation(models: original; 0 figures of each)"


def test_impacts_are_counted_by_sign():
    impact = np.array([1.0, 2.0, -1.0, 0.0])
    table = ImpactTable(impact, impact, impact, impact.astype(int), method="fd")
    assert repr(table) == "ImpactTable(4 negatives: 2 with positive impact, 1 with negative; by fd)"
