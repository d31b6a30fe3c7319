"""Mixed precision: what is compared is measured in the same numbers, whatever a launcher wants."""

import numpy as np
import pytest
import torch

from cases import tiny_policy
from problems import BAD, answers, tiny_problem
from u2a.alignment.outer_loop import align
from u2a.config import OuterOptions, UnlearnOptions
from u2a.data.collate import tokenize_rows
from u2a.data.render import Renderer
from u2a.trainer import U2AConfig, UnlearnTrainer
from u2a.training.config import arguments_for
from u2a.training.finetune import fine_tune

STILL = 1e-30
"""A learning rate that moves nothing."""


@pytest.fixture(params=["bf16", "fp16"])
def launcher(request, monkeypatch):
    """The environment as `accelerate launch --mixed_precision …` leaves it."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", request.param)
    return request.param


def test_a_run_that_moves_nothing_measures_the_same_under_any_launcher(launcher):
    problem = tiny_problem("llama", random_b=False, dtype=torch.float32)
    before = problem.measure(negatives=True)
    result = align(
        problem,
        unlearn=UnlearnOptions(learning_rate=STILL, max_steps=2, batch_size=2),
        outer=OuterOptions(outer_steps=1, measurements=1),
    )
    assert not result.improved
    assert torch.equal(problem.measure(negatives=True).s_negatives, before.s_negatives), launcher


@pytest.mark.usefixtures("launcher")
def test_fine_tuning_leaves_no_mixed_precision_on_the_model():
    policy = tiny_policy("llama", dtype=torch.float32)
    texts = tokenize_rows(answers(BAD), Renderer(policy.tokenizer))
    tokens = torch.tensor([[5, 6, 7, 8]])
    before = policy.model.eval()(tokens).logits
    fine_tune(policy, texts, epochs=1, learning_rate=STILL, seed=0)
    assert torch.equal(policy.model.eval()(tokens).logits, before)


def test_arguments_are_made_without_it_and_the_environment_stays(launcher, tmp_path, monkeypatch):
    args = arguments_for(U2AConfig, output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert args.mixed_precision == "no"
    assert U2AConfig(str(tmp_path), use_cpu=True, report_to="none").mixed_precision == launcher
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert arguments_for(U2AConfig, output_dir=str(tmp_path), use_cpu=True).mixed_precision == "no"


@pytest.mark.parametrize("frozen", [False, True])
def test_a_trainer_in_bf16_begins_at_its_reference(tmp_path, frozen):
    """npo is log 2 there, and every slope 1; before the first step as after it."""
    policy = tiny_policy("llama", dtype=torch.float32, random_b=False)
    args = U2AConfig(
        str(tmp_path),
        bf16=True,
        max_steps=1,
        learning_rate=STILL,
        per_device_train_batch_size=len(BAD),
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    reference = tiny_policy("llama", dtype=torch.float32, random_b=False).model if frozen else None
    trainer = UnlearnTrainer(
        model=policy.model,
        args=args,
        train_dataset=answers(BAD),
        eval_dataset=answers(BAD[:3]),
        reference_model=reference,
        processing_class=policy.tokenizer,
    )
    at_reference = trainer.loss(torch.zeros(1), torch.zeros(1), torch.ones(1)).item()
    for when in ("before", "after"):
        found = trainer.evaluation_loop(trainer.get_eval_dataloader(), "")
        # batches are not padded alike, which bfloat16 feels; float32 references would be off by much more
        assert np.abs(found.predictions - at_reference).max() < 5e-3, when
        if when == "before":
            assert trainer.train().training_loss == pytest.approx(at_reference, abs=5e-3)
