"""The joint option: −μ·J on a share of the pairs beside the unlearning."""

import math

import numpy as np
import pytest
import torch

from cases import tiny_policy
from problems import BAD, PAIRS, answers, pairs, tiny_problem
from test_trainer import full_pass_gradient
from u2a.alignment.inner_run import unlearning_trainer
from u2a.config import UnlearnOptions
from u2a.impact.context import ScoringContext
from u2a.impact.gradient import objective_gradient
from u2a.objectives.preference import Preference
from u2a.trainer import U2AConfig, UnlearnTrainer
from u2a.trajectory.metagradient import metagradient_impact
from u2a.types import UserError
from u2a.validation import shared_out

pytestmark = pytest.mark.usefixtures("true_float64")


def trainer(tmp_path, problem, joint, *, rows=6, **options):
    args = U2AConfig(
        str(tmp_path),
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        report_to="none",
        **{"per_device_train_batch_size": 2, **options},
    )
    return UnlearnTrainer(
        model=problem.policy.model,
        args=args,
        train_dataset=answers(BAD[:rows]),
        joint_objective=joint,
        processing_class=problem.policy.tokenizer,
    )


def gain_gradient(problem):
    """∇J, one number after the other."""
    s = problem.logprobs(problem.objective.texts)
    gradient = objective_gradient(ScoringContext.of(problem), problem.objective, s)
    return torch.cat([gradient[name].flatten() for name in problem.policy.trainable()])


@pytest.mark.parametrize(
    "options",
    [
        {"joint_batch_size": 4},  # all pairs in each of three steps
        {"joint_batch_size": 4, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
        {"joint_batch_size": 2, "rows": 4},  # half of the pairs in each of two steps
        {"joint_batch_size": 0, "rows": 4, "per_device_train_batch_size": 4},  # two of four pairs: see below
        {"joint_batch_size": 4, "seed": 3},
    ],
    ids=str,
)
def test_a_pass_adds_the_gradient_of_j(tmp_path, options):
    problem = tiny_problem()
    more = {**options, "joint_weight": 0.7}
    joint = trainer(tmp_path, problem, problem.objective, **more)
    plain = trainer(tmp_path, problem, None, **options)
    found = full_pass_gradient(joint) - full_pass_gradient(plain)
    expected = -0.7 * gain_gradient(problem)
    if options["joint_batch_size"] == 0:  # one step of half the pairs is not the whole of J
        assert not torch.allclose(found, expected, rtol=1e-3)
        return
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def test_by_default_a_step_takes_as_many_answers_of_pairs_as_negatives(tmp_path):
    problem = tiny_problem()
    made = trainer(tmp_path, problem, problem.objective, joint_weight=1.0, per_device_train_batch_size=4)
    batches, _ = made.get_batch_samples(iter(made.get_train_dataloader()), 1, torch.device("cpu"))
    assert batches[0]["pairs"]["index"].tolist()[0] + 4 == batches[0]["pairs"]["index"].tolist()[2]
    assert len(batches[0]["pairs"]["index"]) == 4


def test_a_weight_without_pairs_is_refused(tmp_path):
    with pytest.raises(UserError, match="joint_weight needs preference pairs"):
        trainer(tmp_path, tiny_problem(), None, joint_weight=0.5)


def test_pairs_without_a_weight_are_refused(tmp_path):
    problem = tiny_problem()
    with pytest.raises(UserError, match="joint_objective has no effect with joint_weight 0"):
        trainer(tmp_path, problem, problem.objective)


def test_terms_of_some_pairs_are_those_of_all():
    problem = tiny_problem()
    s = problem.logprobs(problem.objective.texts).double()
    index = torch.tensor([2, 0, 6, 4])  # pairs 2 and 0 of four
    found = problem.objective.terms_of(s[index], index)
    torch.testing.assert_close(found, problem.objective.terms(s)[[2, 0]])


def test_pairs_are_shared_out_by_prompt():
    rows = pairs()
    doubled = [*rows["prompt"], rows["prompt"][1]]
    objective = tiny_problem().objective
    texts = [0, 1, 2, 3, 1, 4, 5, 6, 7, 5]
    five = Preference(objective.texts.select(texts), objective.reference[texts])
    inside, outside = shared_out(five, doubled, 0.5)

    def prompts(part):
        count = len(part.texts) // 2
        chosen = [tuple(ids) for ids in part.texts.select(range(count))["input_ids"]]
        everything = [tuple(ids) for ids in five.texts["input_ids"]]
        return [everything.index(ids) for ids in chosen]

    assert sorted({*prompts(inside), *prompts(outside)}) == [0, 1, 2, 3]
    assert not set(prompts(inside)) & set(prompts(outside))
    assert len(set(prompts(inside))) == 2
    for part in (inside, outside):  # rejected answers and reference log-probs go along
        count = len(part.texts) // 2
        everything = [tuple(ids) for ids in five.texts["input_ids"]]
        at = [everything.index(tuple(ids)) for ids in part.texts["input_ids"]]
        assert [i + 5 for i in at[:count]] == at[count:] or len(set(at)) < len(at)
        torch.testing.assert_close(part.reference, five.reference[at])


def test_shares_do_not_depend_on_the_order_of_rows():
    problem, rows = tiny_problem(), pairs()
    order = [2, 0, 3, 1]
    texts = [*order, *(i + 4 for i in order)]
    turned = Preference(problem.objective.texts.select(texts), problem.objective.reference[texts])
    one, _ = shared_out(problem.objective, rows["prompt"], 0.5)
    other, _ = shared_out(turned, [rows["prompt"][i] for i in order], 0.5)
    assert sorted(map(tuple, one.texts["input_ids"])) == sorted(map(tuple, other.texts["input_ids"]))


@pytest.mark.parametrize("share, inside", [(0.01, 1), (0.5, 2), (0.75, 3), (0.9, 3)])
def test_both_shares_have_a_prompt(share, inside):
    one, other = shared_out(tiny_problem().objective, pairs()["prompt"], share)
    assert (len(one.texts), len(other.texts)) == (2 * inside, 2 * (4 - inside))


def test_one_prompt_cannot_be_shared_out():
    with pytest.raises(UserError, match="all of them have the same one"):
        shared_out(tiny_problem().objective, [pairs()["prompt"][0]] * 4, 0.5)


def test_preparing_keeps_the_shares_apart():
    problem = tiny_problem(random_b=False, joint_share=0.5)
    ours, theirs = (set(map(tuple, part.texts["input_ids"])) for part in (problem.joint, problem.objective))
    assert len(ours) == len(theirs) == len(PAIRS)
    assert not ours & theirs
    measured = problem.measure()
    assert measured.objective == pytest.approx(-math.log(2))
    assert tiny_problem(random_b=False).joint is None


def test_utility_without_retain_rows_is_measured_on_the_share_of_j():
    problem = tiny_problem(random_b=False, joint_share=0.5, retain=None)
    chosen = problem.objective.texts.select(range(2))["input_ids"]
    assert problem.utility.texts["input_ids"][:] == chosen[:]


def test_only_pairs_can_be_shared_out():
    with pytest.raises(UserError, match="--objective nll has none"):
        tiny_problem(joint_share=0.5, objective="nll", preferences=answers(BAD))


def test_the_inner_run_climbs(tmp_path):
    problem = tiny_problem(random_b=False, joint_share=0.5)

    def gain(joint):
        options = UnlearnOptions(batch_size=4, max_steps=8, joint=joint)
        made = unlearning_trainer(
            problem, np.ones(6), options, learning_rate=3e-3, seed=0, folder=str(tmp_path)
        )
        before = {n: p.detach().clone() for n, p in problem.policy.trainable().items()}
        made.train()
        s = problem.logprobs(problem.joint.texts).double()
        with torch.no_grad():
            for n, p in problem.policy.trainable().items():
                p.copy_(before[n])
        return float(problem.joint.terms(s).mean())

    assert gain(20.0) > gain(0.0)


def test_the_metagradient_goes_through_it():
    """Finite differences of whole runs, two weights moved against each other so that their sum stays."""
    problem = tiny_problem(random_b=False, joint_share=0.5)
    options = UnlearnOptions(batch_size=3, max_steps=4, learning_rate=1e-2, joint=0.5)
    found = metagradient_impact(problem, options).impact

    def outcome(change):
        import tempfile

        weights = np.ones(6)
        weights[0] += change
        weights[3] -= change
        before = {n: p.detach().clone() for n, p in problem.policy.trainable().items()}
        with tempfile.TemporaryDirectory() as folder:
            unlearning_trainer(problem, weights, options, learning_rate=1e-2, seed=0, folder=folder).train()
        value = problem.measure().objective
        with torch.no_grad():
            for n, p in problem.policy.trainable().items():
                p.copy_(before[n])
        return value

    step = 1e-5
    measured = (outcome(step) - outcome(-step)) / (2 * step)
    assert measured == pytest.approx(found[0] - found[3], rel=1e-2, abs=1e-9)


def test_full_fine_tuning_can_be_joint(tmp_path):
    policy = tiny_policy("gpt2", lora_rank=0, dtype=torch.float64)
    problem = tiny_problem("gpt2", lora_rank=0, random_b=False)
    made = trainer(tmp_path, problem, problem.objective, joint_weight=1.0)
    made.args.max_steps = 1
    made.train()
    assert any(
        (p != q).any() for p, q in zip(policy.model.parameters(), made.model.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    "count, joint, words",
    [(40, 0.0, None), (40, 1.0, "only 20 validation rows of 40: --joint"), (60, 1.0, None)],
)
def test_the_warning_of_few_pairs_counts_those_that_j_is_measured_on(tmp_path, count, joint, words):
    from cases import jsonl
    from u2a.commands.schemas import ALIGN
    from u2a.commands.session import load_data

    bad = jsonl(tmp_path / "bad.jsonl", [{"prompt": "Hi", "completion": "Go away."}])
    rows = [{"prompt": f"Is {i} odd?", "chosen": "Maybe.", "rejected": "No."} for i in range(count)]
    pairs = jsonl(tmp_path / "pairs.jsonl", rows)
    flags = {"model": "m", "negatives": bad, "preferences": pairs, "output": "o", "joint": joint}
    values = ALIGN.resolve(None, flags)
    few = [warning for warning in load_data(values, ALIGN).warnings if "validation rows" in warning]
    assert len(few) == (words is not None)
    assert all(words in warning for warning in few)
