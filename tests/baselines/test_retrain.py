"""Retraining from the pretrained model: the stage goes on with another policy."""

import pytest
import torch

from cases import save_tiny
from stages import tiny_stage
from u2a.baselines import METHODS


def test_retraining_begins_at_the_pretrained_model(tmp_path):
    stage = tiny_stage(tmp_path, random_b=False)
    folder = save_tiny(tmp_path / "pretrained", "llama", seed=5)
    old = stage.problem
    s = old.measure()
    with stage.watch.running():
        METHODS["retrain"](pretrained=str(folder), epochs=1.0).train(stage)
    assert stage.problem.policy is not old.policy
    assert stage.watch.problem is stage.problem
    formats = [p.policy.model.get_input_embeddings().weight.dtype for p in (old, stage.problem)]
    assert formats == [torch.float64, torch.float64]  # else the two would differ by their rounding
    assert stage.watch.spent.trained > 0
    assert stage.watch.points[-1].objective != s.objective
    assert stage.watch.points[-1].kl > 0  # from the original model, not from the pretrained one
    assert old.measure().objective == pytest.approx(s.objective, abs=1e-9)
