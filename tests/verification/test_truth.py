"""Ground truth on a tiny model: real, independent of order, resumable, and refused when it is another's."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from problems import pairs, tiny_problem
from u2a.alignment.ledger import snapshot
from u2a.alignment.outer_loop import align
from u2a.config import UnlearnOptions
from u2a.fingerprint import fingerprint
from u2a.objectives.preference import Preference
from u2a.problem import Problem
from u2a.types import GuardStop, UserError
from u2a.verification import truth as truth_module
from u2a.verification.cells import Cells, settings_of
from u2a.verification.plan import Run, make_plan, steps
from u2a.verification.truth import TO_THE_END, GroundTruth, held_out_objective

OPTIONS = UnlearnOptions(learning_rate=3e-3, batch_size=2)


def ground_truth(folder, unlearn=OPTIONS, **problem_options):
    """2 subsets of 3 of 6 negatives, 1 single one, 1 repeat; held out are the validation pairs themselves."""
    problem = tiny_problem("llama", random_b=False, dtype=torch.float32, **problem_options)
    plan = make_plan(6, 3, unlearn, subsets=2, singles=1, repeats=1)
    held_out = held_out_objective(problem, pairs())
    cells = Cells(folder, plan, settings_of(problem, unlearn, plan, held_out.texts, {"lora_rank": 4}))
    return GroundTruth(problem, unlearn, cells, problem.measure(negatives=True), held_out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every cell, in the plan's order."""
    truth = ground_truth(tmp_path_factory.mktemp("whole"))
    truth.run_remaining()
    return truth


def figures(cell):
    return replace(cell, seconds=0.0)


def test_every_run_has_a_cell_and_every_cell_a_change(whole):
    assert whole.cells.finished() == 4
    names = {path.name for path in whole.cells.folder.iterdir()}
    assert "subset-0002-seed-0.json" in names  # the single one
    assert "subset-0000-seed-1.json" in names
    for run in whole.cells.plan.runs:
        cell = whole.cells.read(run)
        assert cell.members == whole.cells.plan.rows(run)
        assert cell.change("objective") != 0
        assert cell.change("utility") != 0
        assert cell.end["kl"] > 0


def test_held_out_pairs_are_measured_at_the_same_point(whole):
    """The held-out pairs are the validation pairs, so the two changes are one."""
    for run in whole.cells.plan.runs:
        cell = whole.cells.read(run)
        assert cell.change("held_out") == pytest.approx(cell.change("objective"), abs=1e-6)


def test_a_change_is_that_of_unlearning_for_real(whole):
    problem = tiny_problem("llama", random_b=False, dtype=torch.float32)
    before = problem.measure().objective
    weights = whole.cells.plan.members[1].astype(float)
    result = align(problem, unlearn=OPTIONS, fixed_weights=weights, outer=TO_THE_END, keep_last=True)
    assert result.points[-1].step == whole.cells.plan.steps == 2
    change = problem.measure().objective - before
    assert whole.cells.read(Run(1, 0)).change("objective") == pytest.approx(change, abs=1e-7)


@pytest.mark.parametrize(
    "unlearn",
    [
        UnlearnOptions(batch_size=2, epochs=1.5),
        UnlearnOptions(batch_size=2, gradient_accumulation=2, epochs=2.0),
        UnlearnOptions(batch_size=8, max_steps=3),
    ],
    ids=["epochs", "accumulation", "max_steps"],
)
def test_steps_are_counted_as_the_trainer_counts_them(unlearn):
    problem = tiny_problem("llama", random_b=False, dtype=torch.float32)
    weights = np.array([1.0, 1, 1, 1, 1, 0])
    result = align(problem, unlearn=unlearn, fixed_weights=weights, outer=TO_THE_END, keep_last=True)
    assert result.points[-1].step == steps(unlearn, 5)


def test_order_does_not_matter_steps_are_equal_and_the_original_is_back(whole, tmp_path, monkeypatch):
    """Backwards, so that the single negative comes before the subsets."""
    seen, real = [], truth_module.align

    def watched(problem, **options):
        result = real(problem, **options)
        seen.append(result.points[-1].step)
        return result

    monkeypatch.setattr(truth_module, "align", watched)
    truth = ground_truth(tmp_path)
    before = snapshot(truth.problem)
    for run in whole.cells.plan.runs[::-1]:
        assert figures(truth.run(run)) == figures(whole.cells.read(run))
        assert all(torch.equal(p, before[name]) for name, p in snapshot(truth.problem).items())
    assert seen == [whole.cells.plan.steps] * 4


def test_resumed_equals_uninterrupted_and_does_nothing_twice(whole, tmp_path, monkeypatch):
    calls, real = [], truth_module.align

    def interrupted(problem, **options):
        calls.append(options["seed"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(problem, **options)

    monkeypatch.setattr(truth_module, "align", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ground_truth(tmp_path).run_remaining()
    resumed = ground_truth(tmp_path)
    assert resumed.cells.finished() == 1
    resumed.run_remaining()
    assert len(calls) == 5
    for run in whole.cells.plan.runs:
        assert figures(resumed.cells.read(run)) == figures(whole.cells.read(run))


def test_the_seed_of_a_run_matters(whole):
    first, again = (whole.cells.read(Run(0, seed)).change("objective") for seed in (0, 1))
    assert first != again


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"unlearn": replace(OPTIONS, learning_rate=1e-3)}, "learning_rate"),
        ({"unlearn": replace(OPTIONS, epochs=2.0)}, "epochs, max_steps"),
        ({"loss": "ga"}, "loss"),
        ({"retain_loss": "l2"}, "retain_loss"),
        ({"objective_options": {"beta": 0.2}}, "objective"),
        ({"max_length": 20}, "negatives, preferences"),
        ({"seed": 1}, "U of the original model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_cell_of_other_settings_is_refused_by_name(whole, changed, named):
    other = ground_truth(whole.cells.folder, **changed)
    with pytest.raises(UserError, match=r"subset-0000-seed-0\.json was made with other settings") as refused:
        other.run_remaining()
    assert named in str(refused.value)


def test_other_members_are_refused(whole):
    plan = make_plan(6, 3, OPTIONS, subsets=2, singles=1, repeats=1, seed=0)
    other = replace(whole.cells, plan=replace(plan, members=~plan.members))
    with pytest.raises(UserError, match="the members of the subset"):
        other.read(Run(0, 0))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"settings": {}, "subset": 0}'])
def test_a_damaged_cell_is_set_aside_said_and_made_again(whole, tmp_path, caplog, content):
    cells = replace(whole.cells, folder=tmp_path)
    path = cells.path(Run(0, 0))
    path.write_text(content)
    assert cells.read(Run(0, 0)) is None
    assert f"{path} is damaged" in caplog.text
    assert Run(0, 0) in cells.remaining()
    assert path.with_name(f"{path.name}.damaged").read_text() == content


def test_a_guard_stops_and_writes_nothing(tmp_path, monkeypatch):
    truth = ground_truth(tmp_path)

    def failing(*_, **__):
        raise GuardStop("the log-prob of row 3 is nan")

    before = snapshot(truth.problem)
    monkeypatch.setattr(Problem, "measure", failing)
    with pytest.raises(GuardStop, match=r"subset 1, seed 0.*row 3"):
        truth.run(Run(1, 0))
    assert truth.cells.finished() == 0
    assert all(torch.equal(p, before[name]) for name, p in snapshot(truth.problem).items())


def test_cells_hold_no_text(whole):
    for path in whole.cells.folder.iterdir():
        cell = json.loads(path.read_text())
        assert set(cell) == {"subset", "seed", "members", "start", "end", "seconds", "settings"}
        assert "bread" not in path.read_text()


def test_held_out_takes_beta_and_reference_of_the_objective():
    problem = tiny_problem("llama", objective_options={"beta": 0.3})
    held_out = held_out_objective(problem, pairs())
    assert isinstance(held_out, Preference)
    assert held_out.beta == 0.3
    torch.testing.assert_close(held_out.reference, problem.objective.reference)


def scored(_prompts, texts):
    return [0.1 * len(text) for text in texts]


def test_held_out_prompts_are_answered_and_scored_as_those_of_validation():
    options = {"max_new_tokens": 4, "beta": 0.3, "samples": 2}
    problem = tiny_problem("llama", objective="reward", objective_options=options, scorer=scored)
    held_out = held_out_objective(problem, pairs().select([1, 0]))
    assert (held_out.scorer, held_out.beta, held_out.samples) == (scored, 0.3, 2)
    assert held_out.prompts == problem.objective.prompts[1::-1]
    drawn, s = problem.objective_here(objective=held_out)
    assert list(drawn.texts["row"]) == [1, 1, 0, 0]
    assert len(s) == 4


def test_a_cell_of_another_reward_is_refused_by_name():
    options = [{"max_new_tokens": 4}, {"max_new_tokens": 4, "samples": 3}, {"max_new_tokens": 5}]
    plan, found = make_plan(6, 3, OPTIONS, subsets=2), []
    for each in options:
        problem = tiny_problem("llama", objective="reward", objective_options=each, scorer=scored)
        found.append(settings_of(problem, OPTIONS, plan, None, {}))
    drawn_otherwise = replace(problem, objective=replace(problem.objective, seed=1))
    found.append(settings_of(drawn_otherwise, OPTIONS, plan, None, {}))
    assert found[0]["objective"] == "Reward 0.1 4 4 seed 0"
    assert [{k for k in found[0] if found[0][k] != other[k]} for other in found[1:]] == [{"objective"}] * 3
    assert fingerprint(drawn_otherwise) != fingerprint(problem)


def test_a_cell_of_another_retain_weight_is_refused_by_name():
    """What trains is the problem's; the options here say nothing of it."""
    plan = make_plan(6, 3, OPTIONS, subsets=2)
    one, fifty = (
        settings_of(tiny_problem("llama", retain_weight=weight), OPTIONS, plan, None, {})
        for weight in (1.0, 50.0)
    )
    assert {k for k in one if one[k] != fifty[k]} == {"retain_weight"}
