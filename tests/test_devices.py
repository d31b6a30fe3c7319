"""Formats and kernels of accelerators: what the CPU has as well is tested on both."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from cases import save_tiny
from problems import BAD, GOOD, answers, pairs
from u2a.alignment.ledger import snapshot
from u2a.alignment.outer_loop import align
from u2a.config import OuterOptions, UnlearnOptions, WeightOptions
from u2a.impact.curvature import Identity
from u2a.impact.table import score_impact
from u2a.models.options import device_of
from u2a.models.policy import load_policy
from u2a.preparation import prepare
from u2a.training.config import U2AConfig, on_one_card
from u2a.types import UserError

ACCELERATOR = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=ACCELERATOR)]


def loaded(folder: Path, **options):
    policy = load_policy(save_tiny(folder, "llama"), lora_rank=4, **options)
    rows = {"negatives": answers(BAD), "preferences": pairs(), "retain": answers(GOOD)}
    return prepare(policy, **rows, retain_loss="nll", max_tokens=96)


def alike(*problems):
    """Correlation of their impacts; the default curvature would square what rounding did to gradients."""
    scores = [score_impact(problem, curvature=Identity(), scoring="exact").impact for problem in problems]
    return np.corrcoef(*scores)[0, 1]


def unlearned(problem, **options):
    """The problem after one outer step of three optimiser steps."""
    return align(
        problem,
        unlearn=UnlearnOptions(learning_rate=3e-3, max_steps=3, batch_size=2, **options),
        weights=WeightOptions(select="100%"),
        outer=OuterOptions(outer_steps=1, measurements=1, kl_budget=0.0, max_nll_rise=100.0, halvings=0),
        fixed_weights=np.ones(len(BAD)),
        keep_last=True,
    )


def test_several_cards_in_sight_do_not_change_the_batch(tmp_path, monkeypatch):
    """transformers counts the cards that a process sees, and multiplies the batch by their number."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    args = U2AConfig(str(tmp_path), per_device_train_batch_size=8, report_to="none")
    assert (args.train_batch_size, args.n_gpu) == (8, 1)
    plain = TrainingArguments(str(tmp_path), per_device_train_batch_size=8, report_to="none")
    assert plain.train_batch_size == 32
    assert on_one_card(plain).train_batch_size == 8


@pytest.mark.parametrize("device", DEVICES)
def test_a_base_in_16_bits_is_scored_and_unlearned_through_adapters_in_32(tmp_path, device):
    whole = loaded(tmp_path / "32", dtype="float32", device="cpu")
    half = loaded(tmp_path / "16", dtype="bfloat16", device=device)
    kinds = {p.dtype for p in half.policy.model.parameters() if not p.requires_grad}
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in half.policy.trainable().values()} == {torch.float32}
    assert half.policy.device.type == device
    assert alike(whole, half) > 0.95
    result = unlearned(half)
    assert result.best.negative_logprob < result.start.negative_logprob


@pytest.mark.parametrize("device", DEVICES)
def test_gradient_checkpointing_changes_no_step(tmp_path, device):
    plain, checkpointed = (
        loaded(tmp_path / str(again), dtype="float32", device=device) for again in (False, True)
    )
    unlearned(plain)
    base, on = checkpointed.policy.model.get_base_model(), []
    hook = base.register_forward_pre_hook(
        lambda *_: on.append(base.training and base.is_gradient_checkpointing)
    )
    unlearned(checkpointed, gradient_checkpointing=True)
    hook.remove()
    assert any(on)
    assert not base.is_gradient_checkpointing, "it is as it was"
    for name, value in snapshot(plain).items():
        torch.testing.assert_close(snapshot(checkpointed)[name], value, rtol=1e-4, atol=1e-6)


def with_accelerator(monkeypatch, kind, rank=None):
    """As on a machine with accelerators of that kind, in the process of that rank."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", str(rank))


@pytest.mark.parametrize("rank, other", [(None, "cuda:1"), (0, "cuda:3"), (2, "cuda:0")])
def test_the_card_of_another_process_is_refused(tmp_path, monkeypatch, rank, other):
    """From Python too: the trainer of transformers moves the model to the process's own."""
    with_accelerator(monkeypatch, "cuda", rank)
    with pytest.raises(
        UserError, match=f"{other}: pick the card by CUDA_VISIBLE_DEVICES and take --device cuda"
    ):
        load_policy(save_tiny(tmp_path, "llama"), device=other)
    own = torch.device("cuda", rank or 0)
    assert device_of("cuda") == torch.device("cuda")
    assert device_of(str(own)) == own
    assert device_of(None) == (torch.device("cuda") if rank is None else own)


@pytest.mark.parametrize("rank", [None, 1])
def test_a_device_without_float64_is_taken_only_when_asked_for(monkeypatch, rank):
    with_accelerator(monkeypatch, "mps", rank)
    assert device_of(None) == torch.device("cpu")
    assert device_of("mps") == torch.device("mps")


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_the_attention_kernel_is_the_one_asked_for(tmp_path, kernel):
    problem = loaded(tmp_path, attn_implementation=kernel)
    assert problem.policy.model.get_base_model().config._attn_implementation == kernel


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is there")
def test_flash_attention_without_its_package_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"(?i)flash"):
        loaded(tmp_path, attn_implementation="flash_attention_2")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_flash_attention_gives_the_scores_of_the_plain_kernel(tmp_path):
    pytest.importorskip("flash_attn")
    plain, flash = (
        loaded(tmp_path / kernel, dtype="bfloat16", device="cuda", attn_implementation=kernel)
        for kernel in ("sdpa", "flash_attention_2")
    )
    assert flash.policy.model.get_base_model().config._attn_implementation == "flash_attention_2"
    torch.testing.assert_close(flash.reference, plain.reference, rtol=0.02, atol=0.5)
    assert alike(plain, flash) > 0.95


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_base_in_4_bits_is_scored_and_unlearned(tmp_path):
    pytest.importorskip("bitsandbytes")
    problem = loaded(tmp_path, quantize="4bit", device="cuda")
    frozen = {n: p.clone() for n, p in problem.policy.model.named_parameters() if not p.requires_grad}
    assert np.isfinite(score_impact(problem).impact).all()
    result = unlearned(problem)
    assert result.best.negative_logprob < result.start.negative_logprob
    now = dict(problem.policy.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
