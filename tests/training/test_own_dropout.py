"""Unlearning without the model's own dropout: at φ₀ s is s_ref, and the adapter's dropout stays."""

import json
import math

import pytest
import torch
from transformers import TrainerCallback

from cases import tiny_model, tiny_tokenizer
from problems import BAD, GOOD, answers, pairs
from u2a import align, prepare
from u2a.config import OuterOptions, UnlearnOptions
from u2a.models.policy import Policy, add_adapter, ensure_pad_token
from u2a.trainer import U2AConfig, UnlearnTrainer
from u2a.training.own_dropout import own_dropout_off

IDS = torch.arange(5, 45)[None]


def dropping(family):
    """A model with dropout wherever its family has some, and its tokenizer."""
    tokenizer = tiny_tokenizer(family)
    model = tiny_model(family, tokenizer=tokenizer)
    ensure_pad_token(tokenizer, model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    model.config.attention_dropout = 0.3
    return model, tokenizer


def rates(model):
    found = [model.config.attention_dropout]
    for module in model.modules():
        found += [getattr(module, name) for name in ("p", "attention_dropout") if hasattr(module, name)]
    return found


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_within_there_is_none_and_after_it_what_there_was(family):
    model, _ = dropping(family)
    without, before = logits(model), rates(model)
    model.train()
    assert not torch.equal(logits(model), without)
    with own_dropout_off(model):
        torch.testing.assert_close(logits(model), without)
    with pytest.raises(KeyError), own_dropout_off(model):
        raise KeyError
    assert rates(model) == before
    assert not torch.equal(logits(model), without)


def test_an_adapters_own_stays():
    model, _ = dropping("llama")
    wrapped = add_adapter(model, rank=2, dropout=0.5)
    for name, p in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    without = logits(wrapped)
    wrapped.train()
    with own_dropout_off(wrapped):
        assert not torch.equal(logits(wrapped), without)
        with wrapped.disable_adapter():
            torch.testing.assert_close(logits(wrapped), logits(dropping("llama")[0].eval()))


class _Rates(TrainerCallback):
    """The model's rates between the steps."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, _args, _state, _control, model=None, **_):
        self.seen.append(rates(model.get_base_model()))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_at_the_reference_losses_are_what_they_are_there(tmp_path, family):
    """npo at s = s_ref is (2/β)·log 2, and KL is 0; the learning rate is too small to leave it."""
    model, tokenizer = dropping(family)
    noted, losses, divergences = _Rates(), [], []
    before = rates(model)
    trainer = UnlearnTrainer(
        model=add_adapter(model, rank=2),
        args=U2AConfig(
            str(tmp_path),
            loss_type="npo",
            retain_loss="kl",
            learning_rate=1e-12,
            max_steps=2,
            save_steps=1,
            per_device_train_batch_size=3,
            gradient_checkpointing=True,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=answers(BAD),
        retain_dataset=answers(GOOD),
        processing_class=tokenizer,
        callbacks=[noted],
    )
    real = trainer.compute_loss

    def noting(model, inputs, return_outputs=False, num_items_in_batch=None):  # noqa: ARG001
        assert model.training
        loss, found = real(model, inputs, return_outputs=True)
        losses.append(found["losses"].detach())
        divergences.append(trainer._beside.retain_loss(model, inputs).detach())
        return (loss, found) if return_outputs else loss

    trainer.compute_loss = noting
    trainer.train()
    torch.testing.assert_close(torch.cat(losses), torch.full((6,), 20 * math.log(2)), rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.stack(divergences), torch.zeros(2), rtol=0, atol=1e-5)
    assert noted.seen == [before] * 2
    assert rates(model) == before


def test_full_fine_tuning_saves_the_models_own_rates(tmp_path):
    model, tokenizer = dropping("llama")
    trainer = UnlearnTrainer(
        model=model,
        args=U2AConfig(
            str(tmp_path), max_steps=1, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
        ),
        train_dataset=answers(BAD),
        processing_class=tokenizer,
    )
    trainer.train()
    saved = json.loads((tmp_path / "checkpoint-1" / "config.json").read_text())
    assert saved["attention_dropout"] == 0.3


@pytest.mark.parametrize("on", [False, True])
def test_align_leaves_the_policy_as_it_was(on):
    """In eval mode, and with activations checkpointed only if they were before."""
    model, tokenizer = dropping("llama")
    if on:
        model.gradient_checkpointing_enable()
    policy = Policy(add_adapter(model, rank=2), tokenizer, True, "tiny")
    problem = prepare(policy, negatives=answers(BAD), preferences=pairs())
    embedding = model.get_input_embeddings()
    hooks = len(embedding._forward_hooks)
    result = align(
        problem,
        unlearn=UnlearnOptions(learning_rate=1e-3, max_steps=2, batch_size=2, gradient_checkpointing=True),
        outer=OuterOptions(outer_steps=2, min_gain=-10, kl_budget=0, max_nll_rise=100),
    )
    assert len(result.points) > 2
    assert not policy.model.training
    assert not any(module.training for module in policy.model.modules())
    layers = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    assert {layer.gradient_checkpointing for layer in layers} == {on}
    if not on:
        assert len(embedding._forward_hooks) == hooks
    torch.testing.assert_close(logits(policy.model), logits(policy.model), rtol=0, atol=0)
