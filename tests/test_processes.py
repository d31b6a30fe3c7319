"""Several processes: each row is scored once, and everybody gets what one process alone would have found."""

import numpy as np
import pytest
import torch

from problems import tiny_problem
from several import by_processes
from u2a import interruption, processes
from u2a.impact.table import score_impact
from u2a.types import GuardStop, UserError

FIELDS = ("impact", "utility_cost", "loss", "n_tokens", "impact_se", "grad_norm", "cosine")
METHODS = ("exact", "fd", "jvp")


def scored(keep=None):
    """Measurement and scores by every route, with batches so small that some process goes without one."""
    problem = tiny_problem(max_tokens=64)
    at = problem.measure(negatives=True)
    tables = {
        method: score_impact(problem, scoring=method, at=at, keep=keep and keep / method)
        for method in METHODS
    }
    return (
        at,
        {m: {f: getattr(t, f) for f in FIELDS if getattr(t, f) is not None} for m, t in tables.items()},
    )


@pytest.mark.parametrize("count", [2, 4])
def test_scores_are_those_of_one_process(tmp_path, true_float64, count):
    at, tables = scored()
    for found_at, found in by_processes(count, tmp_path, scored):
        for name in ("s_objective", "s_utility", "s_negatives"):  # to the bit: the same batches
            assert torch.equal(getattr(found_at, name), getattr(at, name)), name
        assert found_at.figures == at.figures
        for method in METHODS:
            assert found[method].keys() == tables[method].keys()
            for name, values in found[method].items():
                # the gradient is summed in another order; differences of log-probs magnify that
                rtol = 1e-5 if method == "fd" else 1e-10
                np.testing.assert_allclose(values, tables[method][name], rtol=rtol, err_msg=name)
