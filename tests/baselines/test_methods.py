"""Every method on a tiny problem: its weights or its first step by hand, and what it leaves behind."""

import numpy as np
import pytest
import torch

from problems import BAD, answers
from stages import tiny_stage
from u2a.alignment.ledger import snapshot
from u2a.baselines import METHODS, Budget, Watch
from u2a.baselines import preference as preference_methods
from u2a.baselines import unlearning as unlearning_methods
from u2a.baselines.preference import D2o, Dpo, Kto
from u2a.baselines.unlearning import first_weights
from u2a.impact.context import ScoringContext
from u2a.impact.gradient import objective_gradient
from u2a.passes.generation import ending_tokens, sampled
from u2a.types import UserError
from u2a.weighting import Weighting, impact_scale, mirror_ascent

pytestmark = pytest.mark.usefixtures("true_float64")

IMPACT = np.array([0.4, -0.1, 0.2, 0.0, 0.1, 0.3])
COSINE = np.array([0.1, 0.9, -0.2, 0.3, 0.0, 0.2])


class Table:
    """An impact table of chosen numbers."""

    impact, cosine = IMPACT, COSINE


@pytest.fixture
def given_weights(monkeypatch):
    """What methods hand to the trainer instead of training: (weights, options, seed) each."""
    found = []

    class Nothing:
        def train(self):
            pass

    def trainer(_problem, weights, options, *, learning_rate, seed, folder, callbacks):
        assert (learning_rate, len(callbacks)) == (1e-2, 1)
        assert folder
        found.append((np.asarray(weights), options, seed))
        return Nothing()

    monkeypatch.setattr(unlearning_methods, "unlearning_trainer", trainer)
    return found


def stage_with(tmp_path, prior=None, **options):
    stage = tiny_stage(tmp_path, random_b=False, **options)
    if prior is not None:
        rows = answers(BAD).remove_columns("weight").add_column("weight", prior)
        stage.problem.negatives = rows
    stage.scores = Table
    return stage


def weights_of(given, name, stage, **options):
    METHODS[name](**options).train(stage)
    return given[-1][0]


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("uniform", {}, [1, 1, 1, 1, 1, 1]),
        ("selected", {"select": "50%"}, [1, 0, 1, 0, 0, 1]),
        ("selected", {"select": "100%"}, [1, 0, 1, 0, 1, 1]),
        ("cosine", {"select": "2"}, [0, 1, 0, 1, 0, 0]),
        ("static", {}, [0.4, 0, 0.2, 0, 0.1, 0.3]),
    ],
)
def test_weights_by_hand(tmp_path, given_weights, name, options, expected):
    found = weights_of(given_weights, name, stage_with(tmp_path), **options)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("uniform", [1, 0, 1, 1, 1, 1]),
        ("cosine", [1, 0, 0, 1, 0, 1]),
        ("static", [0.4, 0, 0.2, 0, 0.1, 0.3]),
        ("selected", [1, 0, 1, 0, 0, 1]),
    ],
)
def test_a_prior_weight_of_zero_leaves_one_out(tmp_path, given_weights, name, expected):
    found = weights_of(given_weights, name, stage_with(tmp_path, prior=[1.0, 0.0, 1.0, 1.0, 1.0, 1.0]))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_random_k_is_drawn_by_the_seed(tmp_path, given_weights):
    found = [weights_of(given_weights, "random-k", stage_with(tmp_path, seed=s)) for s in (0, 0, 1, 2, 3)]
    assert all(weights.sum() == 3 and set(weights) == {0.0, 1.0} for weights in found)
    assert (found[0] == found[1]).all()
    assert any((weights != found[0]).any() for weights in found[2:])


def test_u2a_selects_and_weights(tmp_path, given_weights):
    found = weights_of(given_weights, "u2a", stage_with(tmp_path), select="50%", eta=0.7)
    chosen = np.array([1.0, 0, 1, 0, 0, 1])
    expected = mirror_ascent(chosen, IMPACT, impact_scale(IMPACT, chosen), Weighting("50%", 0.7))
    np.testing.assert_allclose(found, expected)
    assert found[0] > found[5] > found[2] > 0
    assert given_weights[-1][1].max_steps == 2
    assert given_weights[-1][1].joint == 0


def test_u2a_scores_anew_in_every_outer_step(tmp_path, given_weights):
    scored = []

    class Later:
        impact = np.array([0.1, 0.0, 0.9, 0.0, 0.0, 0.1])

    stage = stage_with(tmp_path, steps=6)
    stage.score = lambda at: scored.append(at) or Later
    weights_of(given_weights, "u2a", stage, outer_steps=3, joint=0.5)
    assert len(scored) == 2
    assert [options.joint for _, options, _ in given_weights] == [0.5, 0.5, 0.5]
    assert [seed for *_, seed in given_weights] == [0, 1000, 2000]
    first, second, third = (weights for weights, *_ in given_weights)
    assert first[0] > first[2]
    assert second[2] > first[2]
    assert third[2] > second[2]


@pytest.mark.parametrize("steps, rounds", [(5, 2), (2, 3), (4, 4)])
def test_rounds_spend_the_whole_budget_and_no_more(tmp_path, monkeypatch, steps, rounds):
    stage = tiny_stage(tmp_path, random_b=False, steps=steps, rate=1e-4)
    begun, real = [], unlearning_methods.unlearning_trainer

    def noted(*args, **options):
        begun.append(stage.watch.steps)
        return real(*args, **options)

    monkeypatch.setattr(unlearning_methods, "unlearning_trainer", noted)
    METHODS["u2a"](outer_steps=rounds).train(stage)
    assert stage.watch.steps == steps
    assert begun == {(5, 2): [0, 3], (2, 3): [0, 1], (4, 4): [0, 1, 2, 3]}[steps, rounds]


def test_rounds_share_out_seconds(tmp_path, monkeypatch):
    """Ten seconds in two rounds, one second a step: five steps each, whatever `steps` says."""
    stage = tiny_stage(tmp_path, random_b=False, rate=1e-4)
    stage.watch.budget = Budget(steps=4, batch_size=4, seconds=10.0)
    monkeypatch.setattr(Watch, "seconds", property(lambda watch: float(watch.steps)))
    begun, real = [], unlearning_methods.unlearning_trainer

    def noted(*args, **options):
        begun.append(stage.watch.steps)
        return real(*args, **options)

    monkeypatch.setattr(unlearning_methods, "unlearning_trainer", noted)
    METHODS["u2a"](outer_steps=2).train(stage)
    assert begun == [0, 5]
    assert stage.watch.steps == 10


def test_weights_alone_keep_every_negative(tmp_path, given_weights):
    found = weights_of(given_weights, "weights", stage_with(tmp_path), eta=0.5)
    ones = np.ones(6)
    options = Weighting("100%", 0.5, floor=0.0)
    np.testing.assert_allclose(found, mirror_ascent(ones, IMPACT, impact_scale(IMPACT, ones), options))
    assert (found > 0).all()
    assert found.sum() == pytest.approx(6)


@pytest.mark.parametrize("name", ["u2a", "selected", "static"])
def test_nothing_worth_unlearning_is_said(tmp_path, given_weights, name):
    stage = stage_with(tmp_path)
    stage.scores = lambda: type("T", (), {"impact": -np.abs(IMPACT), "cosine": None})
    with pytest.raises(UserError, match="no negative has a positive impact"):
        METHODS[name]().train(stage)
    assert not given_weights


def test_cosine_says_what_it_needs(tmp_path, given_weights):
    stage = stage_with(tmp_path)
    stage.scores = lambda: type("T", (), {"cosine": None})
    with pytest.raises(UserError, match="--scoring exact"):
        METHODS["cosine"]().train(stage)
    assert not given_weights


# -- every method for real ----------------------------------------------------------------------------------

TRL = ("dpo", "kto", "d2o", "rloo")


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("original", "retrain")])
def test_trains_within_its_budget_and_leaves_the_policy_whole(tmp_path, name):
    if name in TRL:
        pytest.importorskip("trl")
    options = {"longest": 4} if name in ("d2o", "rloo") else {}
    stage = tiny_stage(tmp_path, random_b=False)
    policy, before = stage.problem.policy, snapshot(stage.problem)
    forward = policy.model.get_base_model().forward.__func__
    with stage.watch.running():
        METHODS[name](**options).train(stage)
    after = snapshot(stage.problem)
    assert list(after) == list(before)
    assert any((after[key] != before[key]).any() for key in before)
    assert stage.watch.steps == 2
    assert stage.watch.spent.trained > 0
    assert list(policy.model.peft_config) == ["default"]
    assert policy.model.get_base_model().forward.__func__ is forward
    assert not policy.model.training
    with policy.reference():
        reference = stage.problem.logprobs(stage.problem.objective.texts)
    torch.testing.assert_close(reference.double(), stage.problem.objective.reference.double())


@pytest.mark.parametrize("name", TRL)
def test_an_adapter_that_trl_would_round_keeps_its_numbers(tmp_path, name):
    """TRL turns the adapter of a quantised model into bfloat16, for every cell after it too."""
    pytest.importorskip("trl")
    stage = tiny_stage(tmp_path, random_b=False, dtype=torch.float32)
    stage.problem.policy.model.get_base_model().is_loaded_in_8bit = True  # what TRL looks at
    seen = []

    class Looking(type(stage.watch)):
        def on_step_begin(self, *args, **kwargs):
            seen.append({p.dtype for p in stage.problem.policy.trainable().values()})
            return super().on_step_begin(*args, **kwargs)

    stage.watch.__class__ = Looking
    with stage.watch.running():
        METHODS[name](**({"longest": 4} if name in ("d2o", "rloo") else {})).train(stage)
    assert seen == [{torch.float32}] * 2
    assert {p.dtype for p in stage.problem.policy.trainable().values()} == {torch.float32}


def test_a_model_that_trl_refuses_is_a_failure_of_the_method(tmp_path, monkeypatch):
    trl = pytest.importorskip("trl")

    def refuses(*_, **__):
        raise ValueError("no such model")

    monkeypatch.setattr(trl, "DPOTrainer", refuses)
    with pytest.raises(UserError, match="TRL refuses it: no such model"):
        Dpo().train(tiny_stage(tmp_path, random_b=False))


def test_rloo_refuses_too_few_prompts_for_a_step(tmp_path):
    """TRL would leave the incomplete batch out, and train nothing."""
    stage = tiny_stage(tmp_path, random_b=False)
    stage.watch.budget = Budget(steps=2, batch_size=32)
    with pytest.raises(UserError, match="takes 8 prompts of 4 samples each, and there are 4 validation"):
        METHODS["rloo"](longest=4).train(stage)
    METHODS["rloo"](samples=8).check_prompts(4, 32)


def test_retraining_loads_as_the_original_was_loaded(tmp_path, monkeypatch):
    asked = {}

    def loads(source, **options):
        asked.update(options, source=source)
        raise UserError("enough")

    monkeypatch.setattr("u2a.baselines.imitation.load_policy", loads)
    stage = tiny_stage(tmp_path, random_b=False, seed=3)
    stage.load_options = {
        "lora_rank": 2,
        "lora_targets": "q_proj",
        "lora_alpha": 5,
        "seed": 0,
        "device": None,
    }
    with pytest.raises(UserError, match="enough"):
        METHODS["retrain"](pretrained="base").train(stage)
    assert asked["source"] == "base"
    assert (asked["lora_targets"], asked["lora_alpha"], asked["seed"]) == ("q_proj", 5, 3)
    assert asked["device"] == stage.problem.policy.device


def test_the_original_stays(tmp_path):
    stage = tiny_stage(tmp_path, random_b=False)
    before = snapshot(stage.problem)
    METHODS["original"]().train(stage)
    assert all((snapshot(stage.problem)[name] == before[name]).all() for name in before)


def test_retraining_needs_to_know_from_what(tmp_path):
    with pytest.raises(UserError, match="`pretrained`"):
        METHODS["retrain"]().train(tiny_stage(tmp_path, random_b=False))


def test_methods_that_need_training_pairs_say_so(tmp_path):
    stage = tiny_stage(tmp_path, random_b=False)
    stage.training = None
    for name in ("sft", "dpo", "kto"):
        assert METHODS[name]().needs == ("training",)
        assert METHODS[name](pairs="validation").needs == ()
        with pytest.raises(UserError, match="--pairs"):
            METHODS[name]().train(stage)


def test_climbing_takes_adams_first_step_along_the_gradient_of_j(tmp_path):
    stage = tiny_stage(tmp_path, random_b=False, steps=1, rate=1e-3)
    stage.watch.budget = type(stage.watch.budget)(steps=1, batch_size=8)  # all four pairs
    problem = stage.problem
    before = snapshot(problem)
    gradient = objective_gradient(ScoringContext.of(problem), problem.objective, stage.start.s_objective)
    METHODS["climb"]().train(stage)
    after = snapshot(problem)
    for name, g in gradient.items():
        expected = 1e-3 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(after[name] - before[name], expected, rtol=1e-5, atol=1e-10)


def test_climbing_raises_j(tmp_path):
    stage = tiny_stage(tmp_path, random_b=False, steps=12, rate=1e-2)
    with stage.watch.running():
        METHODS["climb"]().train(stage)
    assert stage.watch.points[-1].objective > stage.start.objective + 0.01


def captured(monkeypatch):
    found = {}

    def instead(_stage, trainer, config, rows, *, batch_size, **options):
        found.update(trainer=trainer, config=config, rows=list(rows), batch_size=batch_size, options=options)

    monkeypatch.setattr(preference_methods, "run", instead)
    return found


def test_dpo_counts_two_answers_a_pair(tmp_path, monkeypatch):
    found = captured(monkeypatch)
    Dpo(beta=0.3).train(tiny_stage(tmp_path, random_b=False))
    assert (found["trainer"], found["config"]) == ("DPOTrainer", "DPOConfig")
    assert (found["batch_size"], found["options"]) == (2, {"beta": 0.3})
    assert len(found["rows"]) == 4


@pytest.mark.parametrize("undesirable, bad", [("rejected", 4), ("negatives", 6)])
def test_kto_balances_its_two_kinds(tmp_path, monkeypatch, undesirable, bad):
    found = captured(monkeypatch)
    stage = tiny_stage(tmp_path, random_b=False)
    Kto(undesirable=undesirable, beta=0.3).train(stage)
    labels = [row["label"] for row in found["rows"]]
    assert (labels.count(True), labels.count(False)) == (4, bad)
    assert labels != sorted(labels)  # mixed
    weights = {"desirable_weight": bad / 4, "undesirable_weight": 1.0}
    assert found["options"] == {"beta": 0.3, **weights}
    assert found["batch_size"] == 4


def test_weighted_kto_weights_selected_negatives(tmp_path, monkeypatch):
    found = captured(monkeypatch)
    stage = stage_with(tmp_path)
    Kto(undesirable="negatives", weighted=True).train(stage)
    starts = stage.problem.negative_texts["response_start"]
    ids = stage.problem.negative_texts["input_ids"]
    known = [list(ids[i][starts[i] :]) for i in range(6)]
    weights = first_weights(stage, "50%", 0.5)
    given = {known.index(row["completion_ids"]): row["weight"] for row in found["rows"] if not row["label"]}
    assert set(given) == {0, 2, 5}
    for position, weight in given.items():
        assert weight == pytest.approx(weights[position] / weights[weights > 0].mean())
    assert {row["weight"] for row in found["rows"] if row["label"]} == {1.0}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"undesirable": "bad"}, "take one of rejected, negatives"),
        ({"weighted": True}, "undesirable: negatives"),
    ],
)
def test_kto_refuses_what_it_cannot_mean(options, message):
    with pytest.raises(UserError, match=message):
        Kto(**options)


def test_pairs_have_two_names(tmp_path):
    with pytest.raises(UserError, match="neither training nor validation"):
        tiny_stage(tmp_path, random_b=False).pairs("train")


def test_a_last_batch_of_one_gets_company(tmp_path, monkeypatch):
    found = captured(monkeypatch)
    stage = tiny_stage(tmp_path, random_b=False)
    stage.watch.budget = type(stage.watch.budget)(steps=1, batch_size=3)
    Kto(undesirable="negatives").train(stage)  # 4 good and 6 bad answers: ten rows
    assert len(found["rows"]) == 11
    assert found["rows"][10]["completion_ids"] == found["rows"][0]["completion_ids"]


def test_d2o_prefers_the_models_own_answers(tmp_path, monkeypatch):
    """As they were drawn: with the token that ended one, and none behind one that was cut."""
    drawn = []

    def spied(policy, prompts, **how):
        drawn.extend(zip(prompts, (found := sampled(policy, prompts, **how)), strict=True))
        return found

    monkeypatch.setattr(preference_methods, "sampled", spied)
    found = captured(monkeypatch)
    stage = tiny_stage(tmp_path, random_b=False)
    D2o(samples=2, longest=5).train(stage)
    assert found["trainer"] == "DPOTrainer"
    rejected = [row["rejected_ids"] for row in found["rows"]]
    starts = stage.problem.negative_texts["response_start"]
    known = [list(ids[s:]) for ids, s in zip(stage.problem.negative_texts["input_ids"], starts, strict=True)]
    assert all(ids in known for ids in rejected)
    assert 6 < len(rejected) <= 12
    assert all((row["prompt_ids"], row["chosen_ids"]) in drawn for row in found["rows"])
    ends = ending_tokens(stage.problem.policy)
    cut = [row["chosen_ids"] for row in found["rows"] if len(row["chosen_ids"]) == 5]
    assert cut
    assert any(ids[-1] not in ends for ids in cut)


def test_d2o_draws_from_the_seed_and_anew_for_each_sample(tmp_path, monkeypatch):
    rows = []
    for seed in (0, 0, 1):
        found = captured(monkeypatch)
        D2o(samples=2, longest=5).train(tiny_stage(tmp_path, random_b=False, seed=seed))
        rows.append([row["chosen_ids"] for row in found["rows"]])
    assert rows[0] == rows[1] != rows[2]
    assert rows[0][: len(rows[0]) // 2] != rows[0][len(rows[0]) // 2 :]


def test_d2o_without_an_answer_to_prefer_says_so(tmp_path, monkeypatch):
    stage = tiny_stage(tmp_path, random_b=False)
    end = min(ending_tokens(stage.problem.policy))
    monkeypatch.setattr(preference_methods, "sampled", lambda _policy, prompts, **_: [[end] for _ in prompts])
    with pytest.raises(UserError, match="nothing to prefer"):
        D2o().train(stage)


@pytest.mark.parametrize(
    "method, bad", [(Kto(undesirable="negatives"), "completion_ids"), (D2o(longest=5), "rejected_ids")]
)
def test_trl_methods_leave_out_a_negative_of_prior_weight_zero(tmp_path, monkeypatch, method, bad):
    found = captured(monkeypatch)
    stage = stage_with(tmp_path, prior=[0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    method.train(stage)
    texts = stage.problem.negative_texts
    known = [list(ids[s:]) for ids, s in zip(texts["input_ids"], texts["response_start"], strict=True)]
    used = {known.index(row[bad]) for row in found["rows"] if not row.get("label", False)}
    assert 0 not in used
    assert used <= {1, 2, 3, 4, 5}
    assert len(used) >= 4
