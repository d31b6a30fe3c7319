"""Adam's curvature: the moments are those of torch's AdamW and of the trainer's own steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from curvatures import WEIGHT, gradient_of, shared_problem
from oracle import small_problem
from problems import GOOD, answers, tiny_problem
from u2a.impact.curvature import Adam
from u2a.logprobs import response_logprobs
from u2a.losses import NPO, SimNPO
from u2a.problem import silent


def uneven():
    """Retain rows, every other one of which is trained on, of very different lengths: more than a batch."""
    return answers([(f"Say {i}!", "yes " * (1 + 5 * (i // 2 % 4))) for i in range(16)])


def _minibatch_loss(problem, rows, kept, steps):
    """The trainer's loss of one step, spelled out."""
    from u2a.data.collate import collate

    def logprobs(texts, positions):
        batch = collate([texts[int(r)] for r in positions], positions, pad_token_id=problem.pad_token_id)
        return response_logprobs(problem.policy.model, batch)

    losses = problem.loss(
        logprobs(problem.negative_texts, rows),
        problem.reference[rows].double(),
        problem.lengths[rows].double(),
    )
    texts = problem.retain_texts
    tokens = len(kept) * np.mean(texts["n_tokens"])  # not those of `kept`: a step of short ones pulls less
    forget = steps / len(problem.negative_texts) * losses.sum()
    return forget - WEIGHT * logprobs(texts, kept).sum() / tokens


@pytest.mark.usefixtures("true_float64")
def test_adam_is_the_preconditioner_of_torch_adamw():
    """Three minibatches of 2, 2 and 1 negatives at a φ that does not move (learning rate 0)."""
    from u2a.data.retain_order import retain_rows

    negatives = answers([*GOOD, *GOOD[:2]])
    problem = small_problem(loss=SimNPO(0.1), retain_loss="nll", negatives=negatives, retain=uneven())
    order = np.random.default_rng(5).permutation(5)
    leaves = list(problem.policy.trainable().values())
    optimizer = torch.optim.AdamW(leaves, lr=0.0, weight_decay=0.0)
    for step in range(3):
        rows = order[2 * step : 2 * step + 2]
        kept = retain_rows(len(problem.retain_texts), 2, step, 5)
        optimizer.zero_grad()
        _minibatch_loss(problem, rows, kept, 3).backward()
        optimizer.step()
    optimizer.zero_grad()
    solver = Adam(retain_weight=WEIGHT, batch_size=2, seed=5).prepare(problem, silent)
    for name, p in problem.policy.trainable().items():
        second = optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**3)
        torch.testing.assert_close(solver.diagonal[name], second.sqrt() + 1e-8, rtol=1e-9, atol=0)


@pytest.mark.parametrize("retain_loss", ["nll", "kl", "l2", "none"])
def test_adam_has_the_moments_of_the_trainers_own_first_step(tmp_path, retain_loss):
    """`UnlearnTrainer` itself, one step with every negative in the batch."""
    from u2a.trainer import U2AConfig, UnlearnTrainer

    problem = small_problem(loss=NPO(0.1), retain_loss=retain_loss, retain=uneven())
    count = len(problem.negative_texts)
    solver = Adam(retain_weight=WEIGHT, batch_size=count, seed=7).prepare(problem, silent)
    args = U2AConfig(
        str(tmp_path),
        loss_type="npo",
        retain_loss=retain_loss,
        retain_weight=WEIGHT,
        per_device_train_batch_size=count,
        max_steps=1,
        learning_rate=0.0,
        seed=7,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    negatives = problem.negative_texts.add_column("ref_logprob", problem.reference.tolist())
    trainer = UnlearnTrainer(
        problem.policy.model,
        args,
        train_dataset=negatives,
        retain_dataset=problem.retain_texts,
        processing_class=problem.policy.tokenizer,
    )
    trainer.train()
    state = trainer.optimizer.state
    for name, p in problem.policy.trainable().items():
        inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        second = (state or inner.state)[p]["exp_avg_sq"] / (1 - 0.999)
        torch.testing.assert_close(solver.diagonal[name], second.sqrt() + 1e-8, rtol=1e-4, atol=1e-9)


def test_adam_does_not_move_what_had_no_gradient():
    """LoRA with B = 0: the gradient at A is exactly 0, so v is 0 there and finite at B."""
    problem = tiny_problem("llama", random_b=False)
    solution = Adam().prepare(problem, silent).solve(gradient_of(problem))
    for name, value in solution.direction.items():
        if "lora_A" in name:
            assert not value.any()
        else:
            assert torch.isfinite(value).all()
            assert value.any()


def test_adams_options_count():
    problem, _ = shared_problem()
    base = Adam(retain_weight=1.0, batch_size=2)
    changes = {"retain_weight": 5.0, "batch_size": 3, "minibatches": 1, "seed": 4}
    before = base.prepare(problem, silent).diagonal
    for name, value in changes.items():
        after = replace(base, **{name: value}).prepare(problem, silent).diagonal
        assert any(not torch.allclose(after[key], before[key]) for key in before), name
