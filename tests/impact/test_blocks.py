"""Scores kept block by block: the same numbers cut off or not, and nothing is scored twice."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from problems import tiny_problem
from u2a.impact import blocks as blocks_module
from u2a.impact import table as table_module
from u2a.impact.blocks import Blocks
from u2a.impact.curvature import Identity
from u2a.impact.table import score_impact
from u2a.losses.ga import GradientAscent


@pytest.mark.parametrize("scoring", ["exact", "fd", "jvp"])
def test_cut_off_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, scoring):
    monkeypatch.setattr(blocks_module, "BLOCK", 4)
    problem = tiny_problem(dtype=torch.float32)
    at = problem.measure(negatives=True)
    whole = score_impact(problem, at=at, scoring=scoring, keep=tmp_path / "whole" / "scores")
    plain = score_impact(problem, at=at, scoring=scoring)
    # other batches round otherwise, which differences of log-probs show
    np.testing.assert_allclose(whole.impact, plain.impact, rtol=0.05 if scoring == "fd" else 1e-3)

    real, made = Blocks._read, []

    def killed(self, path):
        found = real(self, path)
        made.append(path.name if found is None else "")
        if len(made) == 2:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Blocks, "_read", killed)
    with pytest.raises(KeyboardInterrupt):
        score_impact(problem, at=at, scoring=scoring, keep=tmp_path / "cut" / "scores")
    assert len(list((tmp_path / "cut" / "scores").iterdir())) == 1
    found = score_impact(problem, at=at, scoring=scoring, keep=tmp_path / "cut" / "scores")
    assert made[2] == ""  # the first block was there
    for name in ("impact", "utility_cost", "loss"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert found.method == whole.method
    assert found.self_checks == whole.self_checks


def test_a_kept_table_is_read_and_not_that_of_another_phi(tmp_path, monkeypatch):
    problem = tiny_problem()
    keep = tmp_path / "scores"
    made = score_impact(problem, keep=keep)
    assert not keep.exists()  # the blocks went, the table stays
    real, calls = table_module.directional_derivatives, []

    def counted(*args, **options):
        calls.append(1)
        return real(*args, **options)

    monkeypatch.setattr(table_module, "directional_derivatives", counted)
    kept = score_impact(problem, keep=keep)
    assert not calls
    for name in ("impact", "impact_se", "cosine", "grad_norm", "n_tokens"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(made, name))
        assert getattr(kept, name).dtype == getattr(made, name).dtype
    with torch.no_grad():
        for p in problem.policy.trainable().values():
            p.mul_(1.2)
    assert not np.array_equal(score_impact(problem, keep=keep).impact, made.impact)
    assert calls
    path = tmp_path / "scores.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    at = problem.measure(negatives=True)
    score_impact(problem, at=at, keep=keep)
    assert len(calls) == 2
    with torch.no_grad():  # by so little that J and U, which are rounded, do not tell
        next(iter(problem.policy.trainable().values())).mul_(1 + 1e-5)
    score_impact(problem, at=at, keep=keep)
    assert len(calls) == 3


def test_a_kept_table_is_not_that_of_another_loss_or_curvature(tmp_path):
    problem, keep = tiny_problem(), tmp_path / "scores"
    made = score_impact(problem, curvature=Identity(), keep=keep)
    halved = score_impact(problem, curvature=Identity(gamma=2.0), keep=keep)
    np.testing.assert_allclose(halved.impact, made.impact / 2, rtol=1e-12)
    by_ga = score_impact(replace(problem, loss=GradientAscent()), curvature=Identity(gamma=2.0), keep=keep)
    s = problem.measure(negatives=True).s_negatives.double()
    of_npo = problem.loss.derivative(s, problem.reference.double(), problem.lengths.double()).numpy()
    np.testing.assert_allclose(by_ga.impact, halved.impact / of_npo / made.n_tokens, rtol=1e-5)


def test_the_users_own_files_stay(tmp_path):
    folder = tmp_path / "scores"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    made = score_impact(tiny_problem(), keep=str(folder))
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    assert np.array_equal(score_impact(tiny_problem(), keep=str(folder)).impact, made.impact)
