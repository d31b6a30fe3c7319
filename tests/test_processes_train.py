"""Unlearning by several processes takes the very steps of one: each row once, whatever remains of a batch."""

import numpy as np
import pytest
import torch

from cases import tiny_policy
from problems import BAD, GOOD, answers, tiny_problem
from several import by_processes
from u2a import interruption, processes
from u2a.alignment.inner_checkpoints import InnerCheckpoints
from u2a.alignment.ledger import snapshot
from u2a.alignment.outer_loop import align
from u2a.config import OuterOptions, UnlearnOptions, WeightOptions
from u2a.trainer import U2AConfig, UnlearnTrainer
from u2a.types import GuardStop

WEIGHTS = [0.5, 2.0, 0.0, 0.25, 3.0, 1.5]


def trained(folder, reference=None, policy=None, **options):
    """φ after two passes over 5 rows of positive weight, in micro-batches of 4 over all processes."""
    policy = policy or tiny_policy("llama", dtype=torch.float64)
    rows = answers(BAD).remove_columns("weight").add_column("weight", WEIGHTS)
    if reference is not None:
        rows = rows.add_column("ref_logprob", reference)
    args = U2AConfig(
        str(folder),
        per_device_train_batch_size=4 // processes.count(),
        num_train_epochs=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        optim="sgd",
        retain_batch_size=3,
        retain_weight=0.7,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    trainer = UnlearnTrainer(
        model=policy.model,
        args=args,
        train_dataset=rows,
        retain_dataset=answers(GOOD) if options.get("retain_loss") in ("nll", "kl") else None,
        processing_class=policy.tokenizer,
    )
    trainer.train()
    return torch.cat([p.detach().flatten() for p in policy.trainable().values()])


@pytest.mark.usefixtures("true_float64")
@pytest.mark.parametrize(
    "count, options",
    [
        (2, {"retain_loss": "nll"}),
        (4, {"retain_loss": "kl", "gradient_accumulation_steps": 2}),
        (2, {"retain_loss": "l2", "loss_type": "simnpo"}),
    ],
    ids=str,
)
def test_the_steps_are_those_of_one_process(tmp_path, count, options):
    before = torch.cat([p.flatten() for p in tiny_policy("llama", dtype=torch.float64).trainable().values()])
    alone = trained(tmp_path, **options)
    assert (alone - before).norm() > 1e-3
    for found in by_processes(count, tmp_path / "several", lambda: trained(tmp_path, **options)):
        torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-12)


def test_a_guard_in_one_process_stops_all(tmp_path):
    """One row has no finite loss; only the process that comes to it can tell."""

    def stopped():
        with pytest.raises(GuardStop, match=r"the negative row 4 is inf at step \d") as stop:
            trained(tmp_path, [0.0] * 4 + [-1.7e308, 0.0])
        return stop.value.elsewhere

    assert sorted(by_processes(2, tmp_path / "several", stopped)) == [False, True]


def aligned(folder, resume=False, prepared=lambda problem: problem, outer_steps=2):
    problem = prepared(tiny_problem("llama", random_b=False, dtype=torch.float64, retain_loss="nll"))
    result = align(
        problem,
        unlearn=UnlearnOptions(learning_rate=3e-3, max_steps=3, batch_size=4),
        weights=WeightOptions(select="80%"),
        outer=OuterOptions(
            outer_steps=outer_steps,
            measurements=2,
            kl_budget=0.0,
            max_nll_rise=100.0,
            min_gain=-100.0,
            halvings=0,
        ),
        folder=folder,
        resume=resume,
    )
    return result.history, [vars(point) for point in result.points], snapshot(problem)


@pytest.mark.usefixtures("true_float64")
def test_the_outer_loop_selects_weighs_and_unlearns_as_one_process(tmp_path):
    """Four; tests/commands/test_launch.py has two."""
    history, points, parameters = aligned(tmp_path / "alone")
    for found in by_processes(4, tmp_path / "several", lambda: aligned(tmp_path / "together")):
        assert [(w > 0).tolist() for w in found[0]] == [(w > 0).tolist() for w in history]
        np.testing.assert_allclose(found[0], history, rtol=1e-6)
        assert [p["step"] for p in found[1]] == [p["step"] for p in points]
        for name, value in found[2].items():
            torch.testing.assert_close(value, parameters[name], rtol=1e-5, atol=1e-7)
    # one set of files, and one process can go on with it
    assert sorted(p.name for p in (tmp_path / "together").iterdir()) == sorted(
        p.name for p in (tmp_path / "alone").iterdir()
    )
    again = aligned(tmp_path / "together", resume=True)
    np.testing.assert_allclose(again[0], history, rtol=1e-6)


def cut_off(folder):
    """A run that a signal stops at the first checkpoint within its steps."""
    kept = InnerCheckpoints.save

    def signalled(self, *args):
        patch.setattr(interruption._Asked, "by", 15)
        return kept(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InnerCheckpoints, "save", signalled)
        with pytest.raises(interruption.Interrupted):
            aligned(folder, outer_steps=1)


def gone_on(folder, **options):
    """What `aligned` returns of the run resumed, and the first step that was taken."""
    real, steps = UnlearnTrainer.training_step, []

    def counted(self, *args, **kwargs):
        steps.append(self.state.global_step)
        return real(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnlearnTrainer, "training_step", counted)
        return *aligned(folder, resume=True, outer_steps=1, **options), steps[0]


@pytest.mark.usefixtures("true_float64")
@pytest.mark.parametrize("first, then", [(2, 1), (1, 2)])
def test_a_run_cut_off_within_its_steps_goes_on_with_other_processes(tmp_path, first, then):
    """The points and weights are those of one process, and the steps before are not taken again."""
    history, points, parameters = aligned(tmp_path / "alone", outer_steps=1)
    by_processes(first, tmp_path / "cut", cut_off, tmp_path / "run")
    assert list((tmp_path / "run").glob("inner-001-00-*"))
    for found in by_processes(then, tmp_path / "gone_on", gone_on, tmp_path / "run"):
        assert found[3] > 0
        np.testing.assert_allclose(found[0], history, rtol=1e-6)
        assert [p["step"] for p in found[1]] == [p["step"] for p in points]
        for name, value in found[2].items():
            torch.testing.assert_close(value, parameters[name], rtol=1e-5, atol=1e-7)
