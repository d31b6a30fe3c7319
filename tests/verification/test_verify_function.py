"""`verify`: what the command does, from Python."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from problems import pairs, tiny_problem
from u2a import verify
from u2a.types import UserError
from u2a.verification.estimators import Estimate


def test_it_compares_leaves_the_model_alone_and_goes_on(tmp_path):
    problem = tiny_problem()
    before = {name: p.detach().clone() for name, p in problem.policy.trainable().items()}
    asked = []

    def constant(problem, _, unlearn, seed, __):
        asked.append((len(problem.negatives), unlearn.max_steps, seed))
        return Estimate(np.arange(6.0), None)

    options = {
        "estimators": {"mine": constant},
        "subsets": 4,
        "subset_share": "50%",
        "repeats": 1,
        "preferences": pairs(),
        "held_out": pairs(),
        "folder": tmp_path / "cells",
        "seed": 3,
    }
    found = verify(problem, **options)
    for name, parameter in problem.policy.trainable().items():
        assert torch.equal(parameter, before[name])
    assert (found.figures["runs"], found.figures["chosen"]) == (5, "mine")
    assert asked == [(6, 1, 3)]
    # the judged figure is that of the runs in `comparison`, by the estimator's sums
    sums = found.comparison.sums(np.arange(6.0))
    measured = found.comparison.changes("objective")[:, 0]
    assert found.rank_correlation == pytest.approx(spearmanr(sums, measured).statistic)
    assert {"validation", "held_out"} <= set(found.figures["estimators"]["mine"])
    assert "bm25" in found.figures["controls"]
    assert found.verdict.sentence
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert len(files) == 5
    again = verify(problem, **options)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == files
    assert again.figures == found.figures


def test_without_validation_rows_bm25_is_left_out():
    found = verify(tiny_problem(), subsets=4, subset_share="50%", repeats=0)
    assert "bm25" not in found.figures["controls"]
    assert "cosine" in found.figures["controls"]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"estimators": ["nothing"]}, "estimators: nothing: take some of"),
        ({"estimators": []}, "name at least one"),
        ({"subset_share": "100%"}, "must leave some"),
        ({"singles": 7}, "there are only 6 negatives"),
    ],
)
def test_what_cannot_be_done_is_said_first(options, words):
    with pytest.raises(UserError, match=words):
        verify(tiny_problem(), **options)


def test_runs_of_another_adapter_are_not_taken(tmp_path):
    options = {"subsets": 4, "subset_share": "50%", "repeats": 0, "folder": tmp_path}
    verify(tiny_problem(), **options)
    with pytest.raises(UserError, match="model"):
        verify(tiny_problem(lora_rank=2), **options)
