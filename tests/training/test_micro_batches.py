"""Out of memory in training: a few texts at a time, the very same steps; gradients that are not finite."""

import pytest
import torch

from allocators import Allocator
from problems import BAD, tiny_problem
from u2a.alignment.inner_run import unlearning_trainer
from u2a.alignment.ledger import snapshot
from u2a.config import UnlearnOptions
from u2a.passes.memory import largest
from u2a.training.micro_batches import TRAINING, parts, texts_in
from u2a.types import GuardStop, OutOfMemory

MOST = 130


def trained(tmp_path, monkeypatch, *, most=None, backward=False, options=None, **problem):
    """φ after three steps, and the allocator; `most` tokens fit."""
    given = {"lora_rank": 4, "max_tokens": 400, "retain_loss": "nll", "joint_share": 0.5, **problem}
    tiny = tiny_problem("llama", **given)
    run = UnlearnOptions(**{"max_steps": 3, "batch_size": 4, "joint": 0.5, **(options or {})})
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0]).numpy()
    trainer = unlearning_trainer(tiny, weights, run, learning_rate=1e-2, seed=0, folder=str(tmp_path))
    allocator = None
    if most:
        allocator = Allocator(monkeypatch, tiny.policy.model, most, backward=backward)
    trainer.train()
    return snapshot(tiny), allocator, tiny


@pytest.mark.parametrize(
    "case, backward",
    [
        ({}, False),
        ({}, True),
        ({"options": {"gradient_accumulation": 2, "batch_size": 3}}, True),
        ({"retain_loss": "kl", "options": {"joint": 0.0}}, False),
        ({"retain_loss": "l2", "joint_share": 0.0, "options": {"joint": 0.0}}, True),
    ],
    ids=["forward", "backward", "accumulation", "kl", "l2"],
)
def test_steps_are_the_same(tmp_path, monkeypatch, case, backward):
    expected, _, _ = trained(tmp_path, monkeypatch, **case)
    found, allocator, tiny = trained(tmp_path, monkeypatch, most=MOST, backward=backward, **case)
    assert allocator.failures > 0
    assert largest(tiny.policy.model, TRAINING, 100) < 4  # it stays
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9)


def test_full_fine_tuning_is_the_same_within_one_micro_batch_a_step(tmp_path, monkeypatch):
    case = {"lora_rank": 0, "joint_share": 0.0, "options": {"joint": 0.0, "batch_size": 6}}
    expected, _, _ = trained(tmp_path, monkeypatch, **case)
    found, allocator, _ = trained(tmp_path, monkeypatch, most=MOST, backward=True, **case)
    assert allocator.failures > 0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-8)


def test_one_text_that_does_not_fit_is_named(tmp_path, monkeypatch):
    with pytest.raises(OutOfMemory, match=r"training with the negative row \d alone\. Lower --max-length"):
        trained(tmp_path, monkeypatch, most=10)


def test_parts_hold_every_text_once():
    def batch(rows):
        mask = torch.ones(rows, 5, dtype=torch.int64)
        mask[0, 3:] = 0
        return {"input_ids": mask, "attention_mask": mask, "labels": mask, "index": torch.arange(rows)}

    retain = {"retain": batch(3), "retain_tokens": 9, "retain_counts": 0.0}
    whole = {**batch(4), **retain, "pairs": batch(4), "pairs_of_step": 2, "pairs_count": 1.0}
    assert texts_in(whole) == 11
    assert list(parts(whole, 11)) == [whole]
    cut = list(parts(whole, 1))
    assert [int(p["index"][0]) for p in cut if "index" in p] == [0, 1, 2, 3]
    assert [int(p["retain"]["index"][0]) for p in cut if "retain" in p] == [0, 1, 2]
    assert [p["pairs"]["index"].tolist() for p in cut if "pairs" in p] == [[0, 2], [1, 3]]
    assert {(p["retain_tokens"], p["retain_counts"]) for p in cut if "retain" in p} == {(9, 0.0)}
    assert {(p["pairs_of_step"], p["pairs_count"]) for p in cut if "pairs" in p} == {(2, 1.0)}
    assert [p["l2"] for p in cut] == [True] + [False] * 8
    assert cut[0]["input_ids"].shape == (1, 3)  # columns of padding alone are gone


def test_a_gradient_that_is_not_finite_names_step_and_row(tmp_path, monkeypatch):
    """A loss that is finite and has no finite slope in one row: √ at 0."""
    tiny = tiny_problem("llama")
    broken = 4

    class Steep(type(tiny.loss)):
        def __call__(self, s, reference, lengths):
            own = super().__call__(s, reference, lengths)
            here = lengths == int(tiny.lengths[broken])
            zero = torch.where(here, s - s.detach(), torch.ones_like(s))
            return own + torch.where(here, zero.abs().sqrt(), torch.zeros_like(s))

    monkeypatch.setattr(tiny, "loss", Steep())
    assert (tiny.lengths == tiny.lengths[broken]).sum() == 1
    run = UnlearnOptions(learning_rate=1e-2, max_steps=6, batch_size=2)
    trainer = unlearning_trainer(
        tiny, torch.ones(len(BAD)).numpy(), run, learning_rate=1e-2, seed=0, folder=str(tmp_path)
    )
    before = snapshot(tiny)
    whose = rf"gradient of .* is not finite at step \d: that of the negative row {broken};"
    with pytest.raises(GuardStop, match=whose):
        trainer.train()
    assert all(torch.isfinite(p).all() for p in snapshot(tiny).values())
    assert before.keys() == snapshot(tiny).keys()


def test_a_loss_that_is_not_finite_names_row_and_id(tmp_path, monkeypatch):
    from datasets import Dataset

    from problems import answers

    rows = answers(BAD)
    named = Dataset.from_list([{**row, "id": f"ticket-{row['row']}"} for row in rows])
    tiny = tiny_problem("llama", negatives=named)
    real = type(tiny.loss).__call__

    def infinite(self, s, reference, lengths):
        own = real(self, s, reference, lengths)
        return torch.where(lengths == int(tiny.lengths[3]), own * float("inf"), own)

    run, weights = UnlearnOptions(max_steps=3, batch_size=6), torch.ones(len(BAD)).numpy()
    trainer = unlearning_trainer(tiny, weights, run, learning_rate=1e-2, seed=0, folder=str(tmp_path))
    monkeypatch.setattr(type(tiny.loss), "__call__", infinite)  # the trainer has checked the loss by now
    with pytest.raises(GuardStop, match=r"loss of the negative row 3 \(id ticket-3\) is .*inf at step 0"):
        trainer.train()
