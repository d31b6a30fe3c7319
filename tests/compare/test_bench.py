"""One bench for all methods: each cell begins at φ₀, and scoring is charged to everyone who uses it."""

import json

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from problems import pairs, tiny_problem
from u2a.baselines import Budget
from u2a.compare import bench as module
from u2a.compare.bench import Bench
from u2a.compare.plan import CellName, parse_methods
from u2a.evaluation.figure import figure_of_json
from u2a.evaluation.subject import Sampling
from u2a.impact.curvature import Identity
from u2a.ngrams import AnswerShares
from u2a.validation import pair_texts

pytestmark = pytest.mark.usefixtures("true_float64")


@pytest.fixture
def bench(tmp_path):
    return Bench(
        first=tiny_problem(random_b=False, retain_loss="nll"),
        validation=pairs(),
        test=pairs(),
        budget=Budget(steps=2, batch_size=3),
        folder=tmp_path,
        curvature=Identity(),
        looks=2,
        metrics=("preference", "forgetting"),
    )


def entry(given):
    return parse_methods([given], "npo")[1]


def run(bench, given, *, rate=1e-2, seed=0, final=True):
    made = entry(given)
    return bench.run(made, CellName(made.name, rate, seed, final))


def figures_of(cell):
    return [(p["objective"], p["utility"], p["held_out"]) for p in cell["points"]]


def test_a_cell_does_not_depend_on_what_was_made_before(bench):
    first = run(bench, "uniform")
    run(bench, {"method": "u2a", "select": "100%"}, rate=1e-1, seed=4)
    again = run(bench, "uniform")
    assert figures_of(first) == figures_of(again)
    assert first["tokens"] == again["tokens"]
    assert first["figures"] == again["figures"]
    assert figures_of(run(bench, "uniform", seed=1)) != figures_of(first)


def test_scores_are_made_once_and_charged_to_everyone(bench, tmp_path):
    """Both train on the same negatives in the same order, so their tokens are equal, scoring included."""
    ours = run(bench, {"method": "u2a", "select": "100%"})
    kept = json.loads((tmp_path / "npo-0.json").read_text())
    theirs = run(bench, {"method": "selected", "select": "100%"})
    assert kept["tokens"]["trained"] > 0
    # J and U at φ₀ too: gradients are made of their log-probs
    assert kept["tokens"]["forward"] >= sum(bench.first.utility.texts["n_tokens"])
    assert ours["tokens"] == theirs["tokens"]
    assert theirs["seconds"] > kept["seconds"]
    assert [path.name for path in tmp_path.glob("*.json")] == ["npo-0.json"]
    run(bench, {"method": "selected", "select": "100%", "loss": "ga"})
    run(bench, {"method": "selected", "select": "100%"}, seed=2)
    assert {path.name for path in tmp_path.glob("*.json")} == {"npo-0.json", "ga-0.json", "npo-2.json"}


def test_only_the_cosine_pays_for_the_exact_route(bench, tmp_path):
    """What u2a is charged does not depend on who else is compared."""
    bench.scoring = "jvp"
    alone = run(bench, {"method": "u2a", "select": "100%"})
    run(bench, "cosine")
    assert {path.name for path in tmp_path.glob("*.json")} == {"npo-0.json", "exact-npo-0.json"}
    (tmp_path / "npo-0.json").unlink()
    again = run(bench, {"method": "u2a", "select": "100%"})
    assert (again["tokens"], figures_of(again)) == (alone["tokens"], figures_of(alone))


def test_the_loss_brings_its_retain_term(bench):
    plain, graddiff = run(bench, "uniform"), run(bench, {"method": "uniform", "loss": "graddiff"})
    assert graddiff["tokens"]["trained"] > plain["tokens"]["trained"]
    assert figures_of(plain) != figures_of(graddiff)


def test_options_of_the_loss_reach_the_loss_that_they_belong_to(bench):
    plain = run(bench, "uniform")
    bench.loss, bench.loss_options = "npo", {"beta": 5.0}
    assert figures_of(run(bench, "uniform")) != figures_of(plain)
    ga = run(bench, {"method": "uniform", "loss": "ga"})
    bench.loss_options = {}
    assert figures_of(run(bench, {"method": "uniform", "loss": "ga"})) == figures_of(ga)


@pytest.mark.parametrize("method", [{"method": "u2a", "select": "100%"}, {"method": "uniform"}])
def test_joint_methods_measure_j_on_other_pairs_than_they_train_on(bench, method):
    cell = run(bench, {**method, "joint": 2.0})
    assert cell["start"]["objective"] == pytest.approx(-np.log(2))
    plain = run(bench, method)
    assert cell["points"][-1]["objective"] != plain["points"][-1]["objective"]


def test_without_retain_rows_joint_methods_measure_u_on_no_answer_that_they_train_on(tmp_path):
    """Two of four prompts are trained on: U is on the preferred answers to the others, as in `prepare`."""
    alike, plain = (tiny_problem(random_b=False, retain=None, joint_share=share) for share in (0.5, 0.0))
    made = Bench(
        first=plain,
        validation=pairs(),
        test=pairs(),
        budget=Budget(steps=2, batch_size=3),
        folder=tmp_path,
        curvature=Identity(),
        has_retain=False,
    )
    joint, start = made._problem(entry({"method": "u2a", "joint": 1.0}), 0)
    assert joint.utility.texts["input_ids"][:] == alike.utility.texts["input_ids"][:]
    trained_on = joint.joint.texts["input_ids"][:]
    assert not any(text in trained_on for text in joint.utility.texts["input_ids"])
    assert len(start.s_utility) == 2
    others, _ = made._problem(entry("uniform"), 0)
    assert len(others.utility.texts) == 4


def test_metrics_are_measured_at_the_end_of_final_cells(bench):
    cell = run(bench, "uniform")
    margin = figure_of_json("margin", cell["figures"]["margin"])
    chosen, rejected = np.split(np.asarray(cell["points"][-1]["held_out"]), 2)
    np.testing.assert_allclose(margin.values[:, 0], chosen - rejected)
    change = figure_of_json("implicit_reward_margin", cell["figures"]["implicit_reward_margin"])
    before = np.split(bench._test_at_start, 2)
    moved = margin.values[:, 0] - (before[0] - before[1])
    np.testing.assert_allclose(change.values[:, 0], 0.1 * moved, atol=1e-12)
    assert "negative_logprob" in cell["figures"]
    grid = run(bench, "uniform", final=False)
    assert grid["figures"] == {}
    assert [point["held_out"] for point in grid["points"]] == [None, None]


def test_repetition_is_that_of_answers_to_all_validation_prompts(bench, monkeypatch):
    """A joint method measures J on a half of the pairs; its answers are to the same prompts as everyone's."""
    asked = []

    def share(problem, _task):
        asked.append(len(problem.objective.texts))
        return AnswerShares(np.array([0.1, 0.4]), np.array([0.5, 0.75]))

    monkeypatch.setattr(module, "greedy_answers", share)
    monkeypatch.setattr(bench, "_answers_at_start", AnswerShares(np.array([0.1, 0.1]), np.array([0.25, 0.5])))
    for given, final in (("uniform", True), ({"method": "u2a", "joint": 1.0}, True), ("uniform", False)):
        cell = run(bench, given, final=final)
        assert cell["repetition"] == 0.25
        assert cell["repetition_rise"] == 0.0  # of two answers one: noise
        assert (cell["overlap"], cell["overlap_rise"]) == (0.625, 0.25)
    assert asked == [8, 8, 8]
    monkeypatch.setattr(bench, "_answers_at_start", AnswerShares(np.array([0.0, 0.3]), np.zeros(2)))
    assert run(bench, "uniform")["repetition_rise"] == pytest.approx(0.1)


def test_final_models_are_kept_where_asked(bench, tmp_path):
    run(bench, "uniform")
    run(bench, "uniform", final=False)
    assert not (tmp_path / "models").exists()
    bench.models = tmp_path / "models"
    run(bench, "uniform", final=False)
    run(bench, "uniform", seed=1)
    (folder,) = bench.models.iterdir()
    assert folder.name == "uniform-0.01-seed-1"
    kept = load_file(folder / "adapter_model.safetensors")
    now = get_peft_model_state_dict(bench.first.policy.model)
    assert kept.keys() == now.keys()
    assert all(torch.equal(kept[name], now[name]) for name in kept)


def test_each_prompt_is_answered_once(bench):
    """As in `u2a evaluate`: two pairs of one prompt are one question."""
    bench.metrics, bench.answers = ("fluency",), 8
    bench.sampling = Sampling(max_new_tokens=2)
    prompts = list(bench.test["prompt"])
    bench.test = bench.test.select([0, 0, *range(1, len(prompts))])
    bench.held_out, _ = pair_texts(bench.test, bench.first.renderer)
    cell = run(bench, "uniform")
    assert len(cell["figures"]["answer_tokens"]["values"]) == len(prompts)


@pytest.mark.parametrize("spoil", ["damaged", "of other rows"])
def test_scores_that_are_not_of_these_rows_are_made_again(bench, tmp_path, logged, spoil):
    u2a = {"method": "u2a", "select": "100%"}
    first = run(bench, u2a)
    path = tmp_path / "npo-0.json"
    kept = json.loads(path.read_text())
    if spoil == "damaged":
        path.write_text(path.read_text()[:100])
    else:
        kept["mark"], kept["table"]["impact"] = "of others", list(np.ones(len(kept["table"]["impact"])))
        path.write_text(json.dumps(kept))
    assert figures_of(run(bench, u2a)) == figures_of(first)
    assert "scored again" in logged.text
