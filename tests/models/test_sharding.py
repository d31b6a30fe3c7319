"""A model whose parameters are sharded over processes (FSDP2) is scored and trained as the whole one is."""

import os
from functools import partial

import numpy as np
import pytest
import torch

from problems import BAD, answers, tiny_problem
from several import by_processes
from test_processes_train import aligned, cut_off, gone_on, trained
from u2a import processes
from u2a.alignment.ledger import snapshot
from u2a.impact.context import ScoringContext
from u2a.impact.curvature import CURVATURES
from u2a.impact.gradient import weighted_logprob_gradient
from u2a.impact.table import score_impact
from u2a.models.sharding import is_sharded, own_part, whole
from u2a.trainer import U2AConfig, UnlearnTrainer

SETTINGS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
"""As `accelerate launch` sets them for examples/accelerate/fsdp2.yaml."""


def sharded(problem):
    """The same problem with its parameters spread over the processes, if there are several."""
    if processes.count() > 1:
        os.environ.update(SETTINGS)
        problem.policy.shard()
        assert is_sharded(problem.policy.model)
    return problem


def aligned_sharded():
    return aligned(None, prepared=sharded)


@pytest.mark.usefixtures("true_float64")
def test_a_sharded_model_is_unlearned_as_the_whole_one(tmp_path):
    history, points, parameters = aligned_sharded()
    for found in by_processes(2, tmp_path / "several", aligned_sharded):
        assert [(w > 0).tolist() for w in found[0]] == [(w > 0).tolist() for w in history]
        np.testing.assert_allclose(found[0], history, rtol=0.02)  # fd for exact gradients
        assert [p["step"] for p in found[1]] == [p["step"] for p in points]
        for name, value in found[2].items():
            torch.testing.assert_close(value, parameters[name], rtol=1e-2, atol=1e-4)


@pytest.mark.usefixtures("true_float64")
def test_a_whole_model_s_steps_are_not_gone_on_with_by_a_sharded_one(tmp_path):
    """Its optimiser holds parts: the outer step begins again, and ends as it would have."""
    cut_off(tmp_path / "run")
    assert list((tmp_path / "run").glob("inner-001-00-*"))
    expected = aligned(tmp_path / "alone", outer_steps=1)
    work = partial(gone_on, tmp_path / "run", prepared=sharded)
    for found in by_processes(2, tmp_path / "several", work):
        assert found[3] == 0
        for name, value in found[2].items():
            torch.testing.assert_close(value, expected[2][name], rtol=1e-2, atol=1e-4)
    assert not list((tmp_path / "run").glob("inner-*"))


@pytest.mark.usefixtures("true_float64")
def test_every_parameter_of_a_sharded_model_takes_the_steps_of_the_whole_one(tmp_path):
    """Trained in full: some layers stay whole after a pass and must be seen to have changed."""

    def full():
        problem = sharded(tiny_problem("llama", lora_rank=0))
        before = problem.measure().figures["utility"]
        trained(tmp_path, policy=problem.policy, retain_loss="nll", gradient_checkpointing=True)
        after = problem.measure().figures["utility"]
        return snapshot(problem), before, after

    alone, *utility = full()
    assert utility[0] != utility[1]
    for found, *figures in by_processes(2, tmp_path / "several", full):
        assert figures == pytest.approx(utility, rel=1e-9)
        for name, value in found.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("true_float64")
@pytest.mark.parametrize("rank, accumulation", [(4, 1), (0, 2)])
def test_the_l2_term_of_a_sharded_model_is_that_of_the_whole_one(tmp_path, rank, accumulation):
    """It is 0 in the first step and pulls back in those that follow; with micro-batches that add up too."""

    def stepped(term="l2"):
        problem = sharded(tiny_problem("llama", lora_rank=rank))
        options = {"retain_loss": term, "gradient_accumulation_steps": accumulation}
        trained(tmp_path, policy=problem.policy, **options)
        return snapshot(problem)

    alone, without = stepped(), stepped("none")
    assert any(not torch.allclose(alone[n], without[n], rtol=1e-6, atol=1e-9) for n in alone)
    for found in by_processes(2, tmp_path / "several", stepped):
        for name, value in found.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-9, atol=1e-12)


def test_a_checkpoint_of_a_sharded_model_holds_the_whole_start_of_the_l2_term(tmp_path):
    def kept_and_read():
        problem = sharded(tiny_problem("llama", dtype=torch.float32))
        made = UnlearnTrainer(
            model=problem.policy.model,
            args=U2AConfig(str(tmp_path), retain_loss="l2", use_cpu=True, report_to="none"),
            train_dataset=answers(BAD),
            processing_class=problem.policy.tokenizer,
        )
        start = made._beside._start
        before = {name: whole(value).clone() for name, value in start.items()}
        made._beside.keep_start(str(tmp_path))
        processes.from_main(None)  # the first one has written
        for value in start.values():
            own_part(value).zero_()
        made._beside.take_start(str(tmp_path))
        return before, {name: whole(value) for name, value in start.items()}

    for before, after in by_processes(2, tmp_path / "several", kept_and_read):
        assert before
        for name, value in before.items():
            assert torch.equal(after[name], value), name


def gradient(problem):
    texts = problem.negative_texts
    found = weighted_logprob_gradient(ScoringContext.of(problem), texts, torch.arange(len(texts)) - 2.0)
    return {name: whole(value) for name, value in found.items()}


def measured(family, rank):
    problem = sharded(tiny_problem(family, lora_rank=rank, max_tokens=64))
    held = sum(own_part(p).numel() for p in problem.policy.model.parameters())
    at = problem.measure(negatives=True)
    figures = {name: value for name, value in at.figures.items() if value is not None}
    found = {"parameters": held, "s": at.s_negatives, "figures": figures, "gradient": gradient(problem)}
    for scoring, curvature in (("auto", "diagonal"), ("fd", "identity"), ("exact", "adam")):
        chosen = CURVATURES[curvature]()
        table = score_impact(problem, scoring=scoring, curvature=chosen, at=at, se_groups=0)
        found[curvature] = np.stack([table.impact, table.utility_cost])
    assert torch.equal(problem.measure_negatives(), at.s_negatives)  # φ is back, and seen to be
    return found


@pytest.mark.usefixtures("true_float64")
@pytest.mark.parametrize("family, rank, count", [("llama", 4, 3), ("qwen", 0, 2)])
def test_a_sharded_model_is_scored_as_the_whole_one(tmp_path, family, rank, count):
    alone = measured(family, rank)
    for found in by_processes(count, tmp_path, lambda: measured(family, rank)):
        assert found["parameters"] < 0.7 * alone["parameters"]
        torch.testing.assert_close(found["s"], alone["s"], rtol=1e-12, atol=1e-12)
        assert found["figures"] == pytest.approx(alone["figures"], rel=1e-9, abs=1e-12)
        for name, value in found["gradient"].items():
            torch.testing.assert_close(value, alone["gradient"][name], rtol=1e-9, atol=1e-12)
        # `auto` takes fd where the whole model takes exact gradients
        for curvature, rtol in (("diagonal", 0.05), ("identity", 1e-4), ("adam", 1e-6)):
            np.testing.assert_allclose(found[curvature], alone[curvature], rtol=rtol, err_msg=curvature)
