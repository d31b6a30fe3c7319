"""TRL's trainers on our policy: their first step against gradients of our own, and what they leave behind.

Not with `true_float64`: TRL casts on purpose.
"""

import pytest
import torch
from datasets import Dataset

from stages import tiny_stage
from u2a.alignment.ledger import snapshot
from u2a.baselines.preference import with_neighbours
from u2a.baselines.trl_run import answer_rows, lent, one_prompt, pair_rows, run
from u2a.impact.context import ScoringContext
from u2a.impact.gradient import objective_gradient, weighted_logprob_gradient
from u2a.types import UserError
from u2a.validation import pair_texts


def first_step(stage, trainer, config, rows, size, **options):
    """Δφ / rate of one plain gradient step without clipping."""
    before = snapshot(stage.problem)
    run(stage, trainer, config, rows, batch_size=size, optim="sgd", max_grad_norm=0.0, **options)
    after = snapshot(stage.problem)
    return {name: (after[name] - before[name]) / stage.rate for name in before}


def test_text_that_is_not_trained_on_is_not_talked_about(tmp_path, capfd, caplog):
    pytest.importorskip("trl")
    stage = tiny_stage(tmp_path, random_b=False, steps=1)
    first_step(stage, "DPOTrainer", "DPOConfig", pair_rows(stage, stage.validation), 4)
    assert "Tokenizing" not in capfd.readouterr().err
    assert not [record for record in caplog.records if record.name.startswith("trl")]


def test_dpo_climbs_j(tmp_path):
    pytest.importorskip("trl")
    stage = tiny_stage(tmp_path, random_b=False, steps=1, rate=1.0)
    problem = stage.problem
    expected = objective_gradient(ScoringContext.of(problem), problem.objective, stage.start.s_objective)
    rows = pair_rows(stage, stage.validation)
    found = first_step(stage, "DPOTrainer", "DPOConfig", rows, 4, beta=0.1)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_kto_pushes_both_ways(tmp_path):
    """At φ₀ no answer has moved and the KL term is 0, so the slope of an answer's loss in its log-prob is
    ∓β·σ'(0) = ∓β/4, times the weight of its kind; TRL takes the mean over the batch."""
    pytest.importorskip("trl")
    stage = tiny_stage(tmp_path, random_b=False, steps=1, rate=1.0)
    problem = stage.problem
    bad = problem.negative_texts
    good = pair_texts(stage.validation, problem.renderer)[1]
    rows = answer_rows(good, True) + answer_rows(bad, False)
    mixed = with_neighbours(Dataset.from_list(rows), 10)
    context = ScoringContext.of(problem)
    up = weighted_logprob_gradient(context, good, torch.full((4,), 1.5 * 0.05 / 10, dtype=torch.float64))
    down = weighted_logprob_gradient(context, bad, torch.full((6,), -0.05 / 10, dtype=torch.float64))
    found = first_step(
        stage, "KTOTrainer", "KTOConfig", mixed, 10, beta=0.2, desirable_weight=1.5, undesirable_weight=1.0
    )
    for name in up:
        torch.testing.assert_close(found[name], up[name] + down[name], rtol=1e-4, atol=1e-7)


def test_each_row_of_kto_has_a_weight_of_its_own(tmp_path):
    """As above, times the row's weight."""
    pytest.importorskip("trl")
    stage = tiny_stage(tmp_path, random_b=False, steps=1, rate=1.0)
    problem = stage.problem
    bad = problem.negative_texts
    good = pair_texts(stage.validation, problem.renderer)[1]
    own = torch.tensor([1.0, 0.5, 1.0, 2.0, 0.25, 1.75, 0.5, 0.0, 3.0, 0.5], dtype=torch.float64)
    rows = answer_rows(good, True) + answer_rows(bad, False)
    rows = [{**row, "weight": weight} for row, weight in zip(rows, own.tolist(), strict=True)]
    mixed = with_neighbours(Dataset.from_list(rows), 10)
    context = ScoringContext.of(problem)
    up = weighted_logprob_gradient(context, good, 1.5 * 0.05 / 10 * own[:4])
    down = weighted_logprob_gradient(context, bad, -0.05 / 10 * own[4:])
    found = first_step(
        stage, "KTOTrainer", "KTOConfig", mixed, 10, beta=0.2, desirable_weight=1.5, undesirable_weight=1.0
    )
    for name in up:
        torch.testing.assert_close(found[name], up[name] + down[name], rtol=1e-4, atol=1e-7)


def test_pairs_have_the_tokens_of_every_other_method(tmp_path):
    stage = tiny_stage(tmp_path, random_b=False)
    texts, _ = pair_texts(stage.validation, stage.problem.renderer)
    rows = pair_rows(stage, stage.validation)
    for i, row in enumerate(rows):
        assert row["prompt_ids"] + row["chosen_ids"] == texts[i]["input_ids"]
        assert row["prompt_ids"] + row["rejected_ids"] == texts[i + 4]["input_ids"]
        assert len(row["prompt_ids"]) == texts[i]["response_start"]


def test_a_scaffold_goes_to_the_answer_behind_it():
    """The shorter prompt is both answers', and no token of either text is lost; prompts that were cut differ
    at their beginning, which stays lost."""
    texts = ([1, 2, 3, 90, 91], [7, 8]), ([1, 2, 3], [90, 9, 91, 7])
    row = {"prompt_ids": [1, 2, 3], "chosen_ids": [90, 91, 7, 8], "rejected_ids": [90, 9, 91, 7]}
    assert one_prompt(*texts) == row
    swapped = {**row, "chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]}
    assert one_prompt(*texts[::-1]) == swapped
    cut = one_prompt(([1, 4, 5, 6], [7]), ([1, 6], [8, 9]))  # a BOS token and the end
    assert cut == {"prompt_ids": [1, 6], "chosen_ids": [7], "rejected_ids": [8, 9]}
    assert one_prompt(([4, 5, 6], [7]), ([6], [8]))["chosen_ids"] == [7]


def test_neighbours_stay_within_a_batch():
    rows = Dataset.from_list([{"completion_ids": [i]} for i in range(5)])
    assert with_neighbours(rows, 3)["KL_completion_ids"] == [[2], [0], [1], [4], [3]]


def test_without_an_adapter_trl_is_refused(tmp_path):
    stage = tiny_stage(tmp_path, lora_rank=0, random_b=False)
    with pytest.raises(UserError, match="--lora-rank"), lent(stage.problem.policy):
        pass


def test_dropout_and_gradients_are_given_back(tmp_path):
    stage = tiny_stage(tmp_path, family="gpt2", random_b=False)
    model = stage.problem.policy.model
    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    dropouts[0].p = 0.25
    trained = set(stage.problem.policy.trainable())

    def interrupted():
        with lent(stage.problem.policy):
            dropouts[0].p = 0.0
            model.requires_grad_(True)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        interrupted()
    assert dropouts[0].p == 0.25
    assert set(stage.problem.policy.trainable()) == trained
