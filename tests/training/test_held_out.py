"""`eval_dataset` of `UnlearnTrainer`: the weighted loss over held-out negatives, as with any Trainer."""

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from transformers import EarlyStoppingCallback

from cases import tiny_policy
from problems import BAD, answers
from several import by_processes
from u2a import processes
from u2a.data.collate import collate, tokenize_rows
from u2a.data.render import Renderer
from u2a.logprobs import response_logprobs
from u2a.trainer import U2AConfig, UnlearnTrainer
from u2a.types import UserError

pytestmark = pytest.mark.usefixtures("true_float64")
WEIGHTS = [0.5, 2.0, 0.0, 3.0]


def weighted(rows, weights):
    return rows.remove_columns("weight").add_column("weight", np.asarray(weights, float))


def held_out_rows():
    return weighted(answers(BAD[1:]).select(range(4)), WEIGHTS)


def made(folder, *, policy=None, eval_dataset=None, callbacks=None, **options):
    policy = policy or tiny_policy("llama", dtype=torch.float64)
    given = {
        "learning_rate": 1e-2,
        "max_steps": 3,
        "per_device_train_batch_size": 4 // processes.count(),
        "save_strategy": "no",
        "logging_strategy": "no",
    }
    return UnlearnTrainer(
        model=policy.model,
        args=U2AConfig(
            str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **{**given, **options}
        ),
        train_dataset=answers(BAD),
        eval_dataset=eval_dataset,
        processing_class=policy.tokenizer,
        callbacks=callbacks,
    )


def npo_by_hand(policy, rows, weights, beta):
    """(1/Ω)·Σ ω·(2/β)·log(1 + (π/π_ref)^β), each text in a batch of its own."""
    texts = tokenize_rows(rows, Renderer(policy.tokenizer, template="auto", max_length=512))
    terms = []
    for i in range(len(texts)):
        batch = collate([texts[i]], [i], pad_token_id=0)
        with torch.no_grad():
            s = float(response_logprobs(policy.model, batch))
            with policy.reference():
                s_ref = float(response_logprobs(policy.model, batch))
        terms.append(2 / beta * np.log1p(np.exp(beta * (s - s_ref))))
    return sum(w * term for w, term in zip(weights, terms, strict=True)) / sum(weights), terms


def test_eval_loss_is_the_weighted_mean_by_hand(tmp_path):
    policy = tiny_policy("llama", dtype=torch.float64)
    trainer = made(tmp_path, policy=policy, eval_dataset=held_out_rows(), loss_options={"beta": 0.3})
    trainer.train()
    expected, terms = npo_by_hand(policy, held_out_rows(), WEIGHTS, 0.3)
    assert len({round(term, 6) for term in terms}) == 4
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-9)
    assert found["eval_samples_per_second"] > 0
    predicted = trainer.predict(held_out_rows())
    np.testing.assert_allclose(predicted.predictions, terms, rtol=1e-9)
    assert predicted.metrics["test_loss"] == pytest.approx(expected, rel=1e-9)


def test_before_the_first_step_npo_is_two_over_beta_log_two(tmp_path):
    """At π_ref −(2/β)·log σ(0) = (2/β)·log 2 for every row, whatever its weight."""
    trainer = made(tmp_path, eval_dataset=held_out_rows(), policy=tiny_policy("llama", random_b=False))
    beta = trainer.loss.beta
    assert trainer.evaluate()["eval_loss"] == pytest.approx(2 / beta * np.log(2), rel=1e-6)


def test_padding_and_batch_size_change_nothing(tmp_path):
    """64 tokens a pass, or all rows in one; alone, or beside a long text that they are padded to."""
    found = [
        made(
            tmp_path, eval_dataset=held_out_rows(), per_device_eval_batch_size=size, max_length=64
        ).evaluate()
        for size in (1, 64)
    ]
    assert found[0]["eval_loss"] == pytest.approx(found[1]["eval_loss"], rel=1e-9)
    long = answers([(BAD[0][0], BAD[0][1] * 8)])
    beside = weighted(concatenate_datasets([held_out_rows(), weighted(long, [1.0])]), [*WEIGHTS, 0.0])
    assert made(tmp_path, max_length=64, eval_dataset=beside).evaluate()["eval_loss"] == pytest.approx(
        found[0]["eval_loss"], rel=1e-9
    )


def test_it_is_measured_while_training_and_leaves_the_steps_alone(tmp_path):
    policies = [tiny_policy("llama", dtype=torch.float64) for _ in range(2)]
    plain = made(tmp_path, policy=policies[0])
    plain.train()
    watched = made(
        tmp_path, policy=policies[1], eval_dataset=held_out_rows(), eval_strategy="steps", eval_steps=1
    )
    watched.train()
    losses = [each["eval_loss"] for each in watched.state.log_history if "eval_loss" in each]
    assert len(losses) == 3
    assert losses[0] > losses[-1]  # what is unlearned spreads to rows like it
    for a, b in zip(*(policy.trainable().values() for policy in policies), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_best_step_is_kept_and_early_stopping_stops(tmp_path):
    """No later step is better by the threshold, so the second evaluation is the last."""
    trainer = made(
        tmp_path,
        eval_dataset=held_out_rows(),
        callbacks=[EarlyStoppingCallback(1, early_stopping_threshold=1e6)],
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    trainer.train()
    assert trainer.state.global_step == 2
    history = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(history.values()), rel=1e-6)


def test_several_sets_by_name(tmp_path):
    sets = {"mild": held_out_rows(), "harsh": answers(BAD)}
    trainer = made(tmp_path, eval_dataset=sets, eval_strategy="epoch", max_steps=-1, num_train_epochs=1)
    trainer.train()
    logged = set().union(*trainer.state.log_history)
    assert {"eval_mild_loss", "eval_harsh_loss"} <= logged
    assert trainer.evaluate(sets["mild"])["eval_loss"] == trainer.evaluate()["eval_mild_loss"]


def test_full_fine_tuning_compares_with_the_model_before_the_first_step(tmp_path):
    policy = tiny_policy("llama", lora_rank=0)
    trainer = made(tmp_path, policy=policy, eval_dataset=held_out_rows(), learning_rate=1e-3)
    at_first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < at_first
    with pytest.raises(UserError, match="give these rows as eval_dataset when the trainer is made"):
        trainer.evaluate(answers(BAD))


@pytest.mark.parametrize(
    "rows, message",
    [
        (lambda: weighted(held_out_rows(), [1, -1, 1, 1]), "eval_dataset, row 2: `weight` is negative"),
        (lambda: weighted(held_out_rows(), [0] * 4), "eval_dataset: every weight is 0"),
        (lambda: held_out_rows().select([]), "eval_dataset is empty"),
        (lambda: held_out_rows().remove_columns("prompt"), "eval_dataset, row 1: no columns for negatives"),
        (lambda: {"x": held_out_rows().add_column("label", [True] * 4)}, r"eval_dataset\['x'\]: there are"),
    ],
    ids=["negative", "zero", "empty", "column", "label"],
)
def test_rows_that_cannot_be_measured_are_named(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        made(tmp_path, eval_dataset=rows())


def test_several_processes_find_the_same(tmp_path):
    """Three rows over two processes: none counts twice."""

    def found():
        trainer = made(
            tmp_path / "out",
            eval_dataset=held_out_rows().select([0, 1, 3]),
            eval_strategy="steps",
            eval_steps=1,
        )
        trainer.train()
        return [each["eval_loss"] for each in trainer.state.log_history if "eval_loss" in each]

    alone = found()
    assert len(alone) == 3
    for each in by_processes(2, tmp_path / "several", found):
        assert each == pytest.approx(alone, rel=1e-9)
