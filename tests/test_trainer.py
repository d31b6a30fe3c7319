"""The weight contract, on the gradient of one full pass, and the trainer on its own."""

import inspect

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback

from cases import FAMILIES, tiny_model, tiny_policy, tiny_tokenizer
from problems import BAD, GOOD, answers
from u2a.logprobs import response_logprobs
from u2a.losses import LOSSES, resolve_loss
from u2a.trainer import U2AConfig, UnlearnTrainer
from u2a.types import GuardStop, UserError

pytestmark = pytest.mark.usefixtures("true_float64")


def _trainer(tmp_path, rows, *, weights=None, family="llama", policy=None, retain=None, **options):
    policy = policy or tiny_policy(family, dtype=torch.float64)
    if weights is not None:
        rows = rows.remove_columns("weight").add_column("weight", np.asarray(weights, float))
    given = {"loss_type": "npo", "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none"}
    args = U2AConfig(str(tmp_path), save_strategy="no", disable_tqdm=True, **{**given, **options})
    return UnlearnTrainer(
        model=policy.model,
        args=args,
        train_dataset=rows,
        retain_dataset=retain,
        processing_class=policy.tokenizer,
    )


def full_pass_gradient(trainer):
    """The mean over one pass of the optimiser steps' gradients, through the trainer's own loop pieces."""
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    batches = iter(trainer.get_train_dataloader())
    steps = 0
    while True:
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        samples, _ = trainer.get_batch_samples(
            batches, trainer.args.gradient_accumulation_steps, torch.device("cpu")
        )
        if not samples:
            break
        trainer.model.zero_grad()
        for inputs in samples:
            trainer.compute_loss(trainer.model, inputs).backward()
        for sum_, p in zip(total, parameters, strict=True):
            if p.grad is not None:
                sum_ += p.grad
        steps += 1
        trainer.state.global_step += 1
    return torch.cat([(t / steps).flatten() for t in total])


def expected_gradient(policy, rows, weights, loss):
    """∇ (1/Ω)·Σ ω_i·ℓ_i, one example at a time, by autograd."""
    from u2a.data.collate import collate, tokenize_rows
    from u2a.data.render import Renderer

    texts = tokenize_rows(rows, Renderer(policy.tokenizer, template="auto", max_length=512))
    parameters = list(policy.trainable().values())
    objective = 0.0
    for i, weight in enumerate(weights):
        batch = collate([texts[i]], [i], pad_token_id=0)
        s = response_logprobs(policy.model, batch)
        with policy.reference(), torch.no_grad():
            reference = response_logprobs(policy.model, batch)
        objective = objective + weight / sum(weights) * loss(
            s, reference, torch.tensor([texts[i]["n_tokens"]])
        )
    gradients = torch.autograd.grad(objective.sum(), parameters, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for p, g in zip(parameters, gradients, strict=True)
        ]
    )


@pytest.mark.parametrize("loss", ["ga", "npo", "simnpo"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_is_the_weighted_objective(tmp_path, family, loss):
    weights = [0.5, 2.0, 1.0, 0.25, 3.0, 1.5]
    policy = tiny_policy(family, dtype=torch.float64)
    expected = expected_gradient(policy, answers(BAD), weights, LOSSES[loss]())
    trainer = _trainer(tmp_path, answers(BAD), weights=weights, policy=policy, loss_type=loss)
    torch.testing.assert_close(full_pass_gradient(trainer), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"per_device_train_batch_size": 1},
        {"per_device_train_batch_size": 4},
        {"per_device_train_batch_size": 6},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
        {"seed": 7},
    ],
    ids=str,
)
def test_independent_of_batch_size_accumulation_and_order(tmp_path, options):
    weights = [0.5, 2.0, 1.0, 0.25, 3.0, 1.5]
    expected = full_pass_gradient(_trainer(tmp_path, answers(BAD), weights=weights))
    found = full_pass_gradient(_trainer(tmp_path, answers(BAD), weights=weights, **options))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_doubling_a_weight_is_putting_the_example_twice(tmp_path):
    doubled = full_pass_gradient(_trainer(tmp_path, answers(BAD), weights=[1, 1, 2, 1, 1, 1]))
    twice = full_pass_gradient(_trainer(tmp_path, answers([*BAD, BAD[2]])))
    torch.testing.assert_close(doubled, twice, rtol=1e-9, atol=1e-12)


def test_weight_zero_is_leaving_the_example_out(tmp_path):
    zero = full_pass_gradient(_trainer(tmp_path, answers(BAD), weights=[1, 1, 0, 1, 1, 1]))
    without = full_pass_gradient(_trainer(tmp_path, answers([*BAD[:2], *BAD[3:]])))
    torch.testing.assert_close(zero, without, rtol=1e-9, atol=1e-12)


def test_unit_weights_are_the_unweighted_loss(tmp_path):
    rows = answers(BAD)
    ones = full_pass_gradient(_trainer(tmp_path, rows, weights=[1.0] * 6))
    none = full_pass_gradient(_trainer(tmp_path, rows.remove_columns("weight")))
    torch.testing.assert_close(ones, none, rtol=0, atol=0)
    scaled = full_pass_gradient(_trainer(tmp_path, rows, weights=[7.0] * 6))
    torch.testing.assert_close(ones, scaled, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_does_not_change_logprobs(side):
    from u2a.data.collate import collate, tokenize_rows
    from u2a.data.render import Renderer

    for family in FAMILIES:
        policy = tiny_policy(family, dtype=torch.float64)
        texts = tokenize_rows(answers(BAD), Renderer(policy.tokenizer, template="auto", max_length=512))
        rows = [texts[i] for i in range(len(texts))]
        padded = collate(rows, range(len(rows)), pad_token_id=0, padding_side=side)
        together = response_logprobs(policy.model, padded)
        for i, row in enumerate(rows):
            alone = response_logprobs(policy.model, collate([row], [0], pad_token_id=0))
            torch.testing.assert_close(together[i], alone[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_retain_nll_is_per_token_of_the_step(tmp_path, accumulation):
    """With weights' part subtracted, the step's gradient is λ·∇(Σ NLL / Σ tokens), however it is cut."""
    retain = answers(GOOD)
    common = {
        "retain_batch_size": 3,
        "per_device_train_batch_size": 4 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    rows = answers(BAD[:4])
    with_retain = _trainer(tmp_path, rows, retain=retain, retain_loss="nll", retain_weight=0.7, **common)
    without = _trainer(tmp_path, rows, **common)
    found = full_pass_gradient(with_retain) - full_pass_gradient(without)
    policy = tiny_policy("llama", dtype=torch.float64)
    from u2a.data.collate import collate, tokenize_rows
    from u2a.data.render import Renderer

    texts = tokenize_rows(retain, Renderer(policy.tokenizer, template="auto", max_length=512))
    batch = collate([texts[i] for i in range(3)], range(3), pad_token_id=0)
    nll = -response_logprobs(policy.model, batch).sum() / sum(texts["n_tokens"])
    gradients = torch.autograd.grad(0.7 * nll, list(policy.trainable().values()))
    expected = torch.cat([g.flatten() for g in gradients])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("term", ["nll", "kl"])
@pytest.mark.parametrize("rows, accumulation", [(1, 1), (2, 1), (3, 1), (1, 3)], ids=str)
def test_the_retain_term_does_not_depend_on_how_many_rows_a_step_has(tmp_path, term, rows, accumulation):
    """Six retain rows of unequal length, each seen as often: the mean of the steps is λ·∇R of all of them."""
    retain = answers([*GOOD, ("Why?", "Yes."), ("And then, after that?", "A much longer answer than that.")])
    retain = retain.select(range(len(retain) // rows * rows))
    steps = len(retain) // rows
    common = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": accumulation}
    common |= {"retain_batch_size": rows, "num_train_epochs": 1}
    bad = answers((BAD * 3)[: steps * accumulation])
    with_term = _trainer(tmp_path, bad, retain=retain, retain_loss=term, retain_weight=0.7, **common)
    found = full_pass_gradient(with_term) - full_pass_gradient(_trainer(tmp_path, bad, **common))
    whole = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    whole |= {"retain_batch_size": len(retain)}
    one = answers(BAD[:1])
    at_once = _trainer(tmp_path, one, retain=retain, retain_loss=term, retain_weight=0.7, **whole)
    expected = full_pass_gradient(at_once) - full_pass_gradient(_trainer(tmp_path, one, **whole))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_kl_retain_term_is_zero_at_the_reference_and_positive_away_from_it(tmp_path):
    def value(random_b):
        policy = tiny_policy("llama", dtype=torch.float64, random_b=random_b)
        trainer = _trainer(
            tmp_path, answers(BAD), policy=policy, retain=answers(GOOD), retain_loss="kl", retain_weight=1.0
        )
        batches, _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
        return trainer._beside.retain_loss(trainer.model, batches[0]).item()

    assert value(False) == pytest.approx(0.0, abs=1e-12)
    assert value(True) > 1e-4


def test_l2_pulls_back_to_the_start_by_hand(tmp_path):
    """½‖φ − φ₀‖² after adding 0.1 to every element of one parameter: 0.005 per element."""
    trainer = _trainer(tmp_path, answers(BAD), retain_loss="l2")
    trainer.current_gradient_accumulation_steps = 1
    p = next(p for p in trainer.model.parameters() if p.requires_grad)
    with torch.no_grad():
        p.add_(0.1)
    assert trainer._beside.retain_loss(trainer.model, {}).item() == pytest.approx(0.005 * p.numel())


def test_training_makes_the_negatives_less_likely_and_is_seeded(tmp_path):
    def train(seed):
        policy = tiny_policy("qwen", random_b=False)
        trainer = _trainer(
            tmp_path, answers(BAD), policy=policy, seed=seed, learning_rate=1e-2, num_train_epochs=3
        )
        trainer.train()
        return torch.cat([p.detach().flatten() for p in policy.trainable().values()]), policy

    first, policy = train(1)
    again, _ = train(1)
    other, _ = train(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    from u2a.data.collate import collate, tokenize_rows
    from u2a.data.render import Renderer

    texts = tokenize_rows(answers(BAD), Renderer(policy.tokenizer, template="auto", max_length=512))
    batch = collate([texts[i] for i in range(6)], range(6), pad_token_id=0)
    with torch.no_grad():
        after = response_logprobs(policy.model, batch)
        with policy.reference():
            before = response_logprobs(policy.model, batch)
    assert (after < before).all()


def test_alone_in_ten_lines(tmp_path):
    from peft import LoraConfig

    tokenizer = tiny_tokenizer("qwen")
    bad = Dataset.from_list(
        [{"prompt": "Hi!", "completion": "Go away."}, {"prompt": "Yo", "completion": "No."}]
    )
    trainer = UnlearnTrainer(
        model=tiny_model("qwen", tokenizer=tokenizer),
        args=U2AConfig(str(tmp_path), max_steps=2, use_cpu=True, report_to="none", save_strategy="no"),
        train_dataset=bad,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear"),
    )
    assert trainer.train().global_step == 2


@pytest.mark.parametrize(
    "options, words",
    [
        ({"weights": [1, 1, -1, 1, 1, 1]}, "train_dataset, row 3: `weight` is negative"),
        ({"weights": [0] * 6}, "nothing to unlearn"),
        ({"retain_loss": "nll"}, "needs retain data"),
        ({"retain": answers(GOOD)}, "retain_dataset has no effect with the retain term none"),
        ({"retain": answers(GOOD), "retain_loss": "l2"}, "has no effect with the retain term l2"),
        ({"retain_weight": -5.0}, "retain_weight=-5.0.*: must be a finite number of at least 0"),
        ({"joint_weight": float("nan")}, "joint_weight=nan.*: must be a finite number"),
    ],
)
def test_bad_input_is_refused(tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        _trainer(tmp_path, answers(BAD), **options)


def test_an_sgd_step_of_the_trainer_itself_is_minus_the_rate_times_the_gradient(tmp_path):
    """Through `train()`: accumulation, clipping and scaling of the framework included."""
    rate, weights = 1e-3, [0.5, 2.0, 1.0, 0.25, 3.0, 1.5]
    for size, accumulation in ((6, 1), (2, 3), (1, 6)):
        policy = tiny_policy("llama", dtype=torch.float64)
        expected = expected_gradient(policy, answers(BAD), weights, LOSSES["npo"]())
        before = torch.cat([p.detach().flatten().clone() for p in policy.trainable().values()])
        trainer = _trainer(
            tmp_path,
            answers(BAD),
            weights=weights,
            policy=policy,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=1,
            learning_rate=rate,
            optim="sgd",
            lr_scheduler_type="constant",
        )
        trainer.train()
        after = torch.cat([p.detach().flatten() for p in policy.trainable().values()])
        torch.testing.assert_close((before - after) / rate, expected, rtol=1e-6, atol=1e-9)


def test_a_conversational_completion_is_read(tmp_path):
    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "content": reply}],
            }
            for question, reply in BAD
        ]
    )
    plain = full_pass_gradient(_trainer(tmp_path, answers(BAD)))
    torch.testing.assert_close(full_pass_gradient(_trainer(tmp_path, rows)), plain)


def test_kl_of_full_fine_tuning_needs_a_frozen_copy(tmp_path):
    policy = tiny_policy("llama", lora_rank=0)
    with pytest.raises(UserError, match="frozen copy"):
        _trainer(tmp_path, answers(BAD), policy=policy, retain=answers(GOOD), retain_loss="kl")


def test_a_non_finite_loss_names_the_row_and_the_step(tmp_path):
    trainer = _trainer(tmp_path, answers(BAD).add_column("ref_logprob", [0.0, 0.0, -1.7e308, 0.0, 0.0, 0.0]))
    with pytest.raises(GuardStop, match=r"negative row 2 is inf at step \d"):
        full_pass_gradient(trainer)


def test_names_of_the_literature():
    assert resolve_loss("graddiff", None) == ("ga", "nll")
    assert resolve_loss("ga+kl", None) == ("ga", "kl")
    assert resolve_loss("npo", None) == ("npo", "none")
    assert resolve_loss("npo", "nll") == ("npo", "nll")
    with pytest.raises(UserError, match="means --retain-loss nll"):
        resolve_loss("graddiff", "kl")
    with pytest.raises(UserError, match="not a loss"):
        resolve_loss("dpo", None)


def test_a_given_reference_model_is_the_reference(tmp_path):
    """Full fine-tuning with a frozen original that is not the model as it is."""
    policy = tiny_policy("llama", lora_rank=0, dtype=torch.float64)
    other = tiny_policy("llama", lora_rank=0, dtype=torch.float64, seed=3)
    args = U2AConfig(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    common = {"args": args, "train_dataset": answers(BAD), "processing_class": policy.tokenizer}
    trainer = UnlearnTrainer(model=policy.model, reference_model=other.model, **common)
    expected = UnlearnTrainer(model=other.model, **common)
    torch.testing.assert_close(trainer._reference_logprobs, expected._reference_logprobs)


def test_a_reference_model_in_training_mode_has_no_dropout(tmp_path):
    """The kl term is 0 at the reference, whatever mode its user left it in."""
    policy, other = (tiny_policy("gpt2", lora_rank=0, dtype=torch.float64) for _ in range(2))
    for module in other.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    trainer = UnlearnTrainer(
        model=policy.model,
        args=U2AConfig(str(tmp_path), retain_loss="kl", use_cpu=True, report_to="none", disable_tqdm=True),
        train_dataset=answers(BAD),
        retain_dataset=answers(GOOD),
        reference_model=other.model.train(),
        processing_class=policy.tokenizer,
    )
    batches, _ = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    assert trainer._beside.retain_loss(trainer.model, batches[0]).item() == pytest.approx(0.0, abs=1e-12)
    assert other.model.training


@pytest.mark.parametrize("bad, good", [(False, True), (0, 1)])
def test_good_answers_of_a_kto_set_are_left_out(tmp_path, bad, good):
    labelled = answers(BAD).add_column("label", [bad] * 5 + [good])
    found = full_pass_gradient(_trainer(tmp_path, labelled))
    torch.testing.assert_close(found, full_pass_gradient(_trainer(tmp_path, answers(BAD[:5]))))


def test_nothing_that_is_logged_saved_or_pushed_holds_text_of_rows_or_a_token(tmp_path):
    """`push_to_hub` uploads the output folder; trackers of `report_to` get what callbacks get."""
    logged = []

    class Tracker(TrainerCallback):
        def on_log(self, *_, logs=None, **__):
            logged.append(dict(logs))

    rows = Dataset.from_list([{"prompt": f"zebra {i}?", "completion": f"No zebra {i}."} for i in range(4)])
    policy = tiny_policy("llama", dtype=torch.float64)
    trainer = UnlearnTrainer(
        model=policy.model,
        args=U2AConfig(
            str(tmp_path),
            save_strategy="steps",
            save_steps=1,
            logging_steps=1,
            max_steps=2,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            hub_token="hf_sesame",
            retain_loss="none",
        ),
        train_dataset=rows,
        processing_class=policy.tokenizer,
        callbacks=[Tracker()],
    )
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"training_args.bin", "README.md", "trainer_state.json"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert b"zebra" not in content, path
        assert b"sesame" not in content, path
    assert logged
    assert all(isinstance(value, (int, float)) for line in logged for value in line.values())
    assert trainer.args.hub_token == "hf_sesame"  # it can still push


@pytest.mark.parametrize("value", [None, float("nan"), float("-inf")])
def test_a_given_reference_that_is_no_number_is_refused_by_its_row(tmp_path, value):
    rows = answers(BAD).add_column("ref_logprob", [-1.0, -2.0, value, -3.0, -4.0, -5.0])
    with pytest.raises(UserError, match="train_dataset row 2: ref_logprob is"):
        _trainer(tmp_path, rows)


def test_rows_that_are_tokenised_by_halves_are_refused(tmp_path):
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1, 1]]})
    with pytest.raises(UserError, match="train_dataset has input_ids and no response_start"):
        _trainer(tmp_path, rows)
    retain = rows.add_column("response_start", [1])
    with pytest.raises(UserError, match="retain_dataset has input_ids and no n_tokens"):
        _trainer(tmp_path, answers(BAD), retain=retain, retain_loss="nll")


@pytest.mark.parametrize(
    "start, n_tokens, words",
    [
        (0, 3, "response_start is 0 of 3 tokens; it must be at least 1"),  # three, of which two are predicted
        (3, 0, "response_start is 3 of 3 tokens"),
        (1, 3, "n_tokens is 3, but from response_start 1 on there are 2"),
    ],
)
def test_tokenised_rows_whose_responses_are_elsewhere_are_refused_by_row(tmp_path, start, n_tokens, words):
    """Losses and denominators count response tokens in two ways, which would be two numbers for these."""
    columns = {"input_ids": [[1, 2, 3]] * 2, "response_start": [1, start], "n_tokens": [2, n_tokens]}
    rows = Dataset.from_dict(columns)
    with pytest.raises(UserError, match=f"train_dataset row 1: {words}"):
        _trainer(tmp_path, rows)
    with pytest.raises(UserError, match=f"retain_dataset row 1: {words}"):
        _trainer(tmp_path, answers(BAD), retain=rows, retain_loss="nll")


OVERRIDDEN = [
    name
    for name, found in vars(UnlearnTrainer).items()
    if inspect.isfunction(found) and name in {n for base in UnlearnTrainer.__mro__[1:-1] for n in vars(base)}
]


def test_what_is_overridden_is_known():
    """A base class that renames one of these would go on without ours: checkpoints would be pickles again."""
    assert {
        "_save_optimizer_and_scheduler", "_load_optimizer_and_scheduler", "_save_rng_state",
        "_load_rng_state", "_load_from_checkpoint", "_get_train_sampler", "_defer_fsdp_gradient_reduction",
        "create_model_card", "get_batch_samples", "compute_loss", "training_step", "evaluation_loop",
    } <= set(OVERRIDDEN)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in OVERRIDDEN if name != "__init__"])
def test_what_is_overridden_takes_what_the_base_class_hands_on(name):
    ours, theirs = (inspect.signature(getattr(cls, name)).parameters for cls in (UnlearnTrainer, Trainer))
    assert list(ours) == list(theirs)
