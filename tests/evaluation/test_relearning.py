"""Relearning against steps taken by hand, and the model is afterwards what it was."""

import copy

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

import cases
from problems import BAD, answers
from u2a.data.collate import collate, tokenize_rows
from u2a.data.render import Renderer
from u2a.evaluation.material import Material
from u2a.evaluation.relearning import Relearning, first_back
from u2a.evaluation.subject import Sampling, Subject
from u2a.models.policy import add_adapter
from u2a.passes.dataset import dataset_logprobs
from u2a.problem import silent
from u2a.types import GuardStop, UserError

RATE = 2e-3


def subject_of(family="llama", seed=0, name="tiny", **options):
    policy = cases.tiny_policy(family, lora_rank=0, seed=seed)
    policy.model.requires_grad_(False)
    return Subject(name, policy, Renderer(policy.tokenizer), **options)


def material_of(subject):
    return Material(negatives=tokenize_rows(answers(BAD), subject.renderer))


def by_name(figures):
    return {figure.name: figure for figure in figures}


def fingerprint(model):
    """All that another metric could notice: tensors, layers, what is trained, the mode, the configuration."""
    return (
        {name: (t.data_ptr(), t.clone()) for name, t in model.state_dict().items()},
        [(name, type(module)) for name, module in model.named_modules()],
        [(name, p.requires_grad) for name, p in model.named_parameters()],
        model.training,
        copy.deepcopy(model.config.to_dict()),
        {key for key in vars(model) if key != "_u2a_can_pack"},
    )


def assert_same(one, other):
    assert one[1:] == other[1:]
    assert one[0].keys() == other[0].keys()
    for name, (place, tensor) in one[0].items():
        assert other[0][name][0] == place, name
        assert torch.equal(other[0][name][1], tensor), name


def relearned_by_hand(subject, texts, steps):
    """Plain AdamW of the mean NLL per token over all six negatives, on a copy: batches of 8 hold them all, so
    their order does not matter. Gradients are clipped to norm 1, as transformers' trainer does."""
    model = add_adapter(copy.deepcopy(subject.policy.model), rank=16, seed=subject.sampling.seed)
    batch = collate(list(texts), range(len(texts)), pad_token_id=subject.pad_token_id)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten()
        ).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    return dataset_logprobs(model, texts, max_tokens=2048, pad_token_id=subject.pad_token_id).numpy()


def test_it_is_what_adamw_does_with_a_new_adapter_of_that_seed():
    subject = subject_of(sampling=Sampling(seed=5))
    material = material_of(subject)
    found = by_name(Relearning(3, RATE).measure(subject, material))
    texts = material.negatives
    lengths = np.array(texts["n_tokens"])
    after = relearned_by_hand(subject, texts, 3)
    np.testing.assert_allclose(found["relearned_logprob"].values[:, 0], after / lengths, rtol=1e-3)
    before = subject.logprobs("negatives", texts)
    assert np.abs(after - before).max() > 0.1  # the steps do something
    np.testing.assert_allclose(
        found["relearned_gap"].values[:, 0], (before - after) / lengths, rtol=1e-2, atol=1e-3
    )
    assert found["relearned_logprob"].better == "lower"
    assert found["relearned_gap"].better == "higher"


def test_the_gap_is_measured_from_the_original_before_any_step():
    """By hand: the original gives −2 per token; where the other relearned to −5 it is 3 short, where to −1 it
    has more than all of it back."""
    original, other = subject_of(name="original"), subject_of(seed=1)
    other.original = original
    material = material_of(other)
    lengths = np.array(material.negatives["n_tokens"], float)
    original.remember({}, {"negatives": -2.0 * lengths})
    metric = Relearning(1, RATE)
    object.__setattr__(metric, "_relearned", lambda *_: {1: lengths * [-5.0, -1.0, -2.0, -2.0, -2.0, -2.0]})
    found = by_name(metric.measure(other, material))
    np.testing.assert_allclose(found["relearned_gap"].values[:, 0], [3.0, -1.0, 0.0, 0.0, 0.0, 0.0])
    assert found["relearned_gap"].value == pytest.approx(2 / 6)
    assert found["relearned_logprob"].value == pytest.approx(-14 / 6)


def test_when_it_is_back_by_hand():
    """Of 5 steps the looks are before any and after 2, 3, 4, 5. Mean gaps of two negatives: 2, 1, 0.5, −0.5
    and −1, so it is back after 4; the first alone after 5, the second alone after 2; others never are."""
    subject = subject_of(name="original")
    material = material_of(subject)
    lengths = np.array(material.negatives["n_tokens"], float)
    first, second = [3, 2.5, 2, 0.5, -1], [1, -0.5, -1, -1.5, -1]
    looks = np.array([[*each, 0, 2, 3, 4, 5] for each in (first, second)])
    assert first_back(looks) == 4
    assert first_back(looks[:1]) == 5
    assert first_back(looks[1:]) == 2
    assert first_back(np.stack([looks, looks[::-1]])).tolist() == [4, 4]
    assert first_back(np.abs(looks) + 1) == np.inf
    other = subject_of(seed=1)
    other.original = subject
    subject.remember({}, {"negatives": -2.0 * lengths})
    other.remember({}, {"negatives": -5.0 * lengths})
    metric = Relearning(5, RATE)
    for back, expected in ((-2.0, 4.0), (-2.01, np.inf)):
        after = {2: -4.0 * lengths, 3: -3.0 * lengths, 4: back * lengths, 5: back * lengths}
        object.__setattr__(metric, "_relearned", lambda *_, after=after: after)
        found = by_name(metric.measure(other, material))["relearned_at"]
        assert found.value == expected
        assert found.estimate().low == pytest.approx(4.0) if expected == 4 else np.isnan(found.estimate().low)
    own = by_name(metric.measure(subject, material))["relearned_at"]
    assert own.value == 0
    assert found.minus(own).value == np.inf


def test_looks_are_the_models_of_fewer_steps():
    """After 2 of 4 steps the log-probs are those of a run of 2: looking changes nothing."""
    subject = subject_of()
    texts = material_of(subject).negatives
    longer = Relearning(4, RATE)._relearned(subject, texts)
    assert list(longer) == [1, 2, 3, 4]
    for steps in (1, 2):
        np.testing.assert_array_equal(
            longer[steps], Relearning(steps, RATE)._relearned(subject, texts)[steps]
        )


def test_models_are_treated_alike_and_more_steps_bring_back_more():
    one, again = (subject_of() for _ in range(2))
    texts = material_of(one)
    first, second = (by_name(Relearning(2, RATE).measure(s, texts)) for s in (one, again))
    np.testing.assert_array_equal(first["relearned_logprob"].values, second["relearned_logprob"].values)
    longer = by_name(Relearning(8, RATE).measure(one, texts))
    assert longer["relearned_logprob"].value > first["relearned_logprob"].value
    faster = by_name(Relearning(2, 4 * RATE).measure(one, texts))
    assert faster["relearned_logprob"].value > first["relearned_logprob"].value
    other = by_name(Relearning(2, RATE).measure(subject_of(sampling=Sampling(seed=1)), texts))
    assert other["relearned_logprob"].value != first["relearned_logprob"].value


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_model_is_what_it_was(family):
    subject = subject_of(family)
    subject.policy.model.config.use_cache = True
    material = material_of(subject)
    before = fingerprint(subject.policy.model)
    first = subject.logprobs("negatives", material.negatives)
    Relearning(2, RATE).measure(subject, material)
    assert_same(before, fingerprint(subject.policy.model))
    np.testing.assert_array_equal(first, subject.logprobs_now("again", material.negatives))


def test_the_model_is_what_it_was_when_the_steps_fail(monkeypatch):
    subject = subject_of(sampling=Sampling(seed=5))
    subject.policy.model.train()
    subject.policy.model.lm_head.requires_grad_(True)
    before = fingerprint(subject.policy.model)

    def broken(policy, texts, *, task, **options):
        del task
        assert len(texts) == 6
        assert len(options.pop("callbacks")) == 1
        assert options == {
            "epochs": 1.0, "max_steps": 2, "learning_rate": RATE, "schedule": "constant", "batch_size": 8,
            "seed": 5,
        }  # fmt: skip
        assert any(isinstance(m, BaseTunerLayer) for m in policy.model.modules())
        raise RuntimeError("boom")

    monkeypatch.setattr("u2a.training.finetune.fine_tune", broken)
    with pytest.raises(RuntimeError, match="boom"):
        Relearning(2, RATE).measure(subject, material_of(subject))
    assert_same(before, fingerprint(subject.policy.model))


def test_a_rate_that_breaks_the_model_is_named():
    subject = subject_of(name="mine")
    before = fingerprint(subject.policy.model)
    with pytest.raises(GuardStop, match=r"relearning mine: lower --relearn-rate \(the log-prob of row"):
        Relearning(2, 1e30).measure(subject, material_of(subject))
    assert_same(before, fingerprint(subject.policy.model))


def test_it_is_left_out_without_steps_and_without_negatives():
    subject = subject_of()
    assert Relearning().measure(subject, material_of(subject)) == []
    assert Relearning(2).measure(subject, Material()) == []


def test_a_model_with_an_adapter_is_refused():
    policy = cases.tiny_policy("llama")
    subject = Subject("mine", policy, Renderer(policy.tokenizer))
    with pytest.raises(
        UserError, match="relearning changes weights, and mine has an adapter: merge it first"
    ):
        Relearning(1).measure(subject, material_of(subject))


def test_progress_is_shown_by_what_it_is():
    shown = []
    subject = subject_of(name="mine")

    def task(name, total):
        shown.append((name, total))
        return silent(name, total)

    subject.task = task
    Relearning(2, RATE).measure(subject, material_of(subject))
    assert shown == [
        ("mine: log-probs, negatives", 6),
        ("mine: relearning, steps", 2),
        ("mine: log-probs after step 1", 6),
        ("mine: log-probs, relearned", 6),
    ]
