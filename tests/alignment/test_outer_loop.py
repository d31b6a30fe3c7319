"""The outer loop on tiny models: it raises J, keeps the best point, obeys its budgets, and resumes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from problems import tiny_problem
from u2a.alignment.ledger import snapshot
from u2a.alignment.measured_run import MeasuredRun
from u2a.alignment.outer_loop import align
from u2a.config import OuterOptions, UnlearnOptions, WeightOptions
from u2a.impact.table import score_impact
from u2a.types import GuardStop, UserError

FREE = {"kl_budget": 0.0, "max_nll_rise": 100.0, "min_gain": -100.0, "measurements": 2, "halvings": 0}
STRONG = UnlearnOptions(learning_rate=3e-3, max_steps=4, batch_size=2)


def problem(**options):
    return tiny_problem("llama", random_b=False, dtype=torch.float32, **options)


def run(tiny, *, unlearn=STRONG, select="100%", **options):
    outer = OuterOptions(**{**FREE, "outer_steps": 2, **options.pop("outer", {})})
    return align(tiny, unlearn=unlearn, weights=WeightOptions(select=select), outer=outer, **options)


def test_it_raises_j_and_keeps_the_best_measured_point():
    tiny = problem()
    result = run(tiny)
    assert result.improved
    admissible = [p.figures["objective"] for p in result.points if p.admissible]
    assert result.best.objective == pytest.approx(max(admissible), abs=1e-6)
    assert tiny.measure().objective == pytest.approx(result.best.objective, abs=1e-6)
    assert [p for p in result.points if p.best][-1].figures["objective"] == pytest.approx(max(admissible))


def test_points_are_measured_in_every_inner_run():
    result = run(problem())
    assert [(p.outer_step, p.step) for p in result.points] == [(0, 0), (1, 2), (1, 4), (2, 2), (2, 4)]
    assert len(result.history) == 2
    assert result.points[0].figures["kl"] == pytest.approx(0.0, abs=1e-6)
    assert result.points[-1].figures["kl"] > 0


def test_a_run_that_only_harms_keeps_the_original_and_says_so():
    """Weights on the negatives of lowest impact, at a rate that wrecks the model."""
    tiny = problem()
    original = snapshot(tiny)
    from u2a.impact.table import score_impact

    worst = np.zeros(6)
    worst[np.argsort(score_impact(tiny).impact)[:2]] = 1.0
    result = run(
        tiny, fixed_weights=worst, unlearn=UnlearnOptions(learning_rate=0.3, max_steps=4, batch_size=2)
    )
    if not result.improved:
        assert "original model is kept" in result.outcome
        assert all(torch.equal(p, original[name]) for name, p in snapshot(tiny).items())
    assert result.best.objective >= result.start.objective


def test_the_kl_budget_holds_for_the_kept_point_and_halves_the_rate():
    result = run(problem(), outer={"kl_budget": 1e-3, "halvings": 8, "outer_steps": 1})
    assert result.best.kl <= 1e-3
    assert any(not p.admissible for p in result.points)
    rates = [p.learning_rate for p in result.points]
    assert rates[-1] < rates[0]
    assert rates[0] / rates[-1] == 2 ** round(np.log2(rates[0] / rates[-1]))


def test_a_guard_on_the_retain_nll_stops_an_inner_run():
    result = run(problem(), outer={"max_nll_rise": 0.0, "outer_steps": 1})
    assert [p.admissible for p in result.points] == [True, True, False]
    assert result.points[-1].figures["utility"] < result.start.utility <= result.best.utility


def test_a_utility_budget_is_held_by_measurement():
    strong = UnlearnOptions(learning_rate=3e-2, max_steps=4, batch_size=2)
    free = run(problem(), unlearn=strong)
    falls = [free.start.utility - p.figures["utility"] for p in free.points]
    assert max(falls) > 0
    held = run(problem(), unlearn=strong, outer={"utility_budget": max(falls) / 2})
    assert held.start.utility - held.best.utility <= max(falls) / 2
    assert not all(p.admissible for p in held.points)


def test_a_utility_budget_that_no_weights_would_keep_ends_the_loop(monkeypatch):
    """What is kept is what the steps before it found; no step is made on the one cheapest negative."""
    from u2a.alignment import outer_loop

    monkeypatch.setattr(outer_loop, "step_within_budget", lambda *_: None)
    monkeypatch.setattr("u2a.alignment.measured_run.MeasuredRun.__call__", costly(MeasuredRun.__call__))
    result = run(problem(), outer={"outer_steps": 3, "utility_budget": 100.0})
    assert result.outcome.startswith("Stopped after outer step 1: no weights would keep within")
    assert len(result.history) == 1
    assert {p.outer_step for p in result.points} == {0, 1}


def costly(real):
    """An inner run that calibrates, whether or not U fell in it."""

    def call(self, state, position, begin):
        real(self, state, position, begin)
        state.cost_calibration = 1.0

    return call


def test_nothing_worth_unlearning_is_a_result(monkeypatch):
    from u2a.alignment import outer_loop

    tiny = problem()
    table = score_impact(tiny)
    harmful = type(table)(-np.abs(table.impact), table.utility_cost, table.loss, table.n_tokens)
    monkeypatch.setattr(outer_loop, "score_impact", lambda *_, **__: harmful)
    result = run(tiny)
    assert "Nothing here is worth unlearning" in result.outcome
    assert not result.weights.any()
    assert [(p.outer_step, p.step) for p in result.points] == [(0, 0)]


def test_why_nothing_is_worth_unlearning():
    tiny = problem()
    helpful = score_impact(tiny).impact > 0
    for prior, why in (
        (~helpful, "every negative of positive impact has the prior weight 0"),
        (0, "every prior"),
    ):
        weights = np.broadcast_to(np.asarray(prior, float), helpful.shape).tolist()
        rows = tiny.negatives.remove_columns("weight").add_column("weight", weights)
        assert why in run(replace(tiny, negatives=rows)).outcome
    assert "every fixed weight is 0" in run(tiny, fixed_weights=np.zeros(6)).outcome


def test_joint_with_no_weight_anywhere_is_no_error():
    tiny = tiny_problem(joint_share=0.5)
    rows = tiny.negatives.remove_columns("weight").add_column("weight", [0.0] * 6)
    joint = UnlearnOptions(max_steps=1, joint=1.0)
    assert "every prior weight is 0" in run(replace(tiny, negatives=rows), unlearn=joint).outcome


@pytest.mark.parametrize("weights", [np.ones(3), [1, 1, 1, 1, 1, -1], [1, 1, 1, 1, 1, math.nan]], ids=str)
def test_fixed_weights_are_one_for_each_negative(weights):
    with pytest.raises(UserError, match="fixed_weights must be 6 finite numbers of at least 0"):
        run(problem(), fixed_weights=weights)


def test_kl_without_a_copy_to_measure_it_from_is_told(logged):
    tiny = tiny_problem("qwen", lora_rank=0, dtype=torch.float32)
    run(tiny, outer={"outer_steps": 1, "kl_budget": 0.1})
    assert "KL is not guarded" in logged.text
    logged.clear()
    run(tiny, outer={"outer_steps": 1})
    assert "KL is not guarded" not in logged.text


def test_weights_grow_with_impact():
    result = run(problem(), outer={"outer_steps": 1})
    selected = result.weights > 0
    order = np.argsort(result.impact.impact[selected])
    assert (np.diff(result.weights[selected][order]) >= 0).all()
    assert result.weights.sum() == pytest.approx(selected.sum())
    assert (result.impact.impact[selected] > 0).all()


def test_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    whole_problem = problem()
    whole = run(whole_problem, folder=tmp_path / "whole", outer={"outer_steps": 3})

    from u2a.alignment.measured_run import MeasuredRun

    broken_problem, real, calls = problem(), MeasuredRun.__call__, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(MeasuredRun, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(broken_problem, folder=tmp_path / "broken", outer={"outer_steps": 3})
    monkeypatch.setattr(MeasuredRun, "__call__", real)
    resumed_problem = problem()
    resumed = run(resumed_problem, folder=tmp_path / "broken", resume=True, outer={"outer_steps": 3})

    assert resumed.points == whole.points
    np.testing.assert_array_equal(resumed.weights, whole.weights)
    for name, p in snapshot(resumed_problem).items():
        assert torch.equal(p, snapshot(whole_problem)[name])


def test_non_finite_values_stop_the_run_and_keep_the_best_step(monkeypatch):
    from u2a.problem import Problem

    real, calls = Problem.measure, []

    def failing(self, *args, **options):
        calls.append(1)
        if len(calls) == 4:
            raise GuardStop("the log-prob of row 3 is nan")
        return real(self, *args, **options)

    monkeypatch.setattr(Problem, "measure", failing)
    tiny = problem()
    result = run(tiny)
    assert result.stopped_by_guard
    assert "row 3" in result.outcome
    assert result.best.objective >= result.start.objective


def test_full_fine_tuning_with_a_frozen_copy():
    tiny = tiny_problem("qwen", lora_rank=0, dtype=torch.float32, keep_frozen_copy=True)
    result = run(tiny, unlearn=UnlearnOptions(learning_rate=1e-3, max_steps=4, batch_size=2))
    assert result.points[0].figures["kl"] == pytest.approx(0.0, abs=1e-6)
    assert result.points[-1].figures["kl"] > 0


@pytest.mark.parametrize("retain_loss", ["none", "nll", "kl", "l2"])
def test_every_retain_term_runs(retain_loss):
    result = run(problem(retain_loss=retain_loss), outer={"outer_steps": 1})
    assert len(result.points) == 3


def test_the_l2_term_holds_phi_near_the_original_in_every_inner_run(monkeypatch):
    from u2a.alignment import measured_run

    tiny = problem(retain_loss="l2")
    original, real, began = snapshot(tiny), measured_run.unlearning_trainer, []

    def noted(*args, **options):
        trainer = real(*args, **options)
        apart = sum(float((p - original[name]).square().sum()) for name, p in snapshot(tiny).items())
        began.append((apart / 2, trainer._beside.retain_loss(trainer.model, {}).item()))
        return trainer

    monkeypatch.setattr(measured_run, "unlearning_trainer", noted)
    monkeypatch.setattr("u2a.trainer.UnlearnTrainer.current_gradient_accumulation_steps", 1, raising=False)
    run(tiny)
    (first, at_first), (second, at_second) = began
    assert first == at_first == 0
    assert second > 0  # the second run goes on from where the first one came to
    assert at_second == pytest.approx(second, rel=1e-5)


def test_a_rate_that_makes_everything_non_finite_is_halved_first(monkeypatch):
    """Non-finite values are the far end of a rate that is too large, not the end of the run."""
    from u2a.alignment.measured_run import MeasuredRun

    real, rates = MeasuredRun._train, []

    def failing_twice(self, state, measuring, seed):
        rates.append(state.learning_rate)
        if len(rates) <= 2:
            raise GuardStop("the log-prob of row 0 is nan")
        return real(self, state, measuring, seed)

    monkeypatch.setattr(MeasuredRun, "_train", failing_twice)
    result = run(problem(), outer={"outer_steps": 1, "halvings": 3})
    assert not result.stopped_by_guard
    assert rates == [3e-3, 1.5e-3, 0.75e-3]


@pytest.mark.parametrize("what", ["preferences", "retain", "model"])
def test_resume_refuses_other_rows_and_another_model(tmp_path, what):
    from datasets import Dataset

    from problems import GOOD, answers, pairs

    run(problem(retain_loss="nll"), folder=tmp_path, outer={"outer_steps": 1})
    changed = {"retain_loss": "nll"}
    if what == "preferences":
        changed["preferences"] = Dataset.from_list([{**row, "chosen": "Other."} for row in pairs()])
    elif what == "retain":
        changed["retain"] = answers([(prompt, "Other.") for prompt, _ in GOOD])
    else:
        changed["seed"] = 5
    with pytest.raises(UserError, match="resume"):
        run(problem(**changed), folder=tmp_path, resume=True)


LONG = UnlearnOptions(learning_rate=3e-3, max_steps=6, batch_size=2)


def _cut(monkeypatch, outer_step, count=1):
    """Lets the run end at that checkpoint of that outer step's inner run, as a kill would."""
    from u2a.alignment.inner_checkpoints import InnerCheckpoints

    real, calls = InnerCheckpoints.save, []

    def cut(self, trainer, position, *args):
        real(self, trainer, position, *args)
        calls.append(position.outer_step)
        if calls.count(outer_step) == count:
            raise KeyboardInterrupt

    monkeypatch.setattr(InnerCheckpoints, "save", cut)


@pytest.mark.parametrize(("restart", "halved"), [(False, False), (True, False), (False, True)])
def test_an_inner_run_goes_on_bit_for_bit(tmp_path, monkeypatch, restart, halved):
    """Cut off in the second inner run, with the l2 term, which looks back to the original."""
    options = {"unlearn": LONG, "outer": {"measurements": 3, "restart": restart}}
    if halved:
        options["outer"] |= {"kl_budget": 1e-3, "halvings": 8}
    whole_problem, cut_problem = problem(retain_loss="l2"), problem(retain_loss="l2")
    whole = run(whole_problem, folder=tmp_path / "whole", **options)
    inner = {path.name for path in (tmp_path / "whole").glob("inner-*")}
    assert not inner  # done with
    with monkeypatch.context() as patch:
        _cut(patch, outer_step=2)
        with pytest.raises(KeyboardInterrupt):
            run(cut_problem, folder=tmp_path / "cut", **options)
    assert list((tmp_path / "cut").glob("inner-002-*"))
    resumed_problem = problem(retain_loss="l2")
    resumed = run(resumed_problem, folder=tmp_path / "cut", resume=True, **options)
    assert resumed.points == whole.points
    assert any(p.learning_rate < LONG.learning_rate for p in whole.points) == halved
    np.testing.assert_array_equal(resumed.weights, whole.weights)
    for name, p in snapshot(resumed_problem).items():
        assert torch.equal(p, snapshot(whole_problem)[name]), name


@pytest.mark.parametrize("damaged", ["inner", "outer"])
def test_a_damaged_checkpoint_is_left_aside_and_said(tmp_path, monkeypatch, logged, damaged):
    options = {"unlearn": LONG, "outer": {"measurements": 3}}
    whole = run(problem(), folder=tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        _cut(patch, outer_step=2, count=2)
        with pytest.raises(KeyboardInterrupt):
            run(problem(), folder=tmp_path / "cut", **options)
    pattern = {"inner": "inner-*/optimizer.safetensors", "outer": "outer-*.safetensors"}[damaged]
    path = sorted((tmp_path / "cut").glob(pattern))[-1]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    resumed = run(problem(), folder=tmp_path / "cut", resume=True, **options)
    assert "going on from the checkpoint before" in logged.text
    assert resumed.points == whole.points


def test_scores_are_not_made_again(tmp_path, monkeypatch):
    from u2a.impact import table as module

    with monkeypatch.context() as patch:
        _cut(patch, outer_step=1)
        with pytest.raises(KeyboardInterrupt):
            run(problem(), folder=tmp_path, outer={"outer_steps": 1})
    monkeypatch.setattr(module, "directional_derivatives", lambda *_, **__: pytest.fail("scored again"))
    run(problem(), folder=tmp_path, resume=True, outer={"outer_steps": 1})


def test_a_new_run_does_not_take_what_an_old_one_kept(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        _cut(patch, outer_step=1)
        with pytest.raises(KeyboardInterrupt):
            run(problem(), folder=tmp_path, unlearn=LONG)
    run(problem(), folder=tmp_path, outer={"outer_steps": 1})
    assert not list(tmp_path.glob("inner-*"))
    assert [path.name for path in tmp_path.glob("outer-*")] == ["outer-001.safetensors"]


def test_a_signal_finishes_the_step_and_keeps_it(tmp_path):
    import os
    import signal

    from u2a import interruption

    points = []

    def record(_event, **figures):
        points.append(figures["step"])
        if len(points) == 2:  # the first point of the first inner run
            os.kill(os.getpid(), signal.SIGTERM)

    with interruption.listening(quiet=True), pytest.raises(interruption.Interrupted):
        run(problem(), folder=tmp_path, record=record)
    assert [path.name for path in tmp_path.glob("inner-*")] == ["inner-001-00-00000002"]
    whole = run(problem(), folder=tmp_path.with_name("whole"))
    assert run(problem(), folder=tmp_path, resume=True).points == whole.points


def test_an_inner_run_of_another_model_is_refused(tmp_path, monkeypatch):
    options = {"unlearn": LONG, "outer": {"measurements": 3}}
    with monkeypatch.context() as patch:
        _cut(patch, outer_step=1)
        with pytest.raises(KeyboardInterrupt):
            run(problem(), folder=tmp_path, **options)
    other = problem()
    with torch.no_grad():
        for p in other.policy.model.parameters():
            p.mul_(1.5)
    with pytest.raises(UserError, match="the original model is another one"):
        run(other, folder=tmp_path, resume=True, **options)


@pytest.mark.parametrize("cut", [False, True], ids=["after an outer step", "within one"])
def test_resume_refuses_other_settings_by_name(tmp_path, monkeypatch, cut):
    options = {"unlearn": LONG, "outer": {"measurements": 3, "outer_steps": 1}}
    with monkeypatch.context() as patch:
        if cut:
            _cut(patch, outer_step=1)
            with pytest.raises(KeyboardInterrupt):
                run(problem(), folder=tmp_path, **options)
        else:
            run(problem(), folder=tmp_path, **options)
    faster = replace(LONG, learning_rate=1e-2)
    for tiny, changed, words in (
        (problem(), {"unlearn": faster}, "learning_rate was 0.003 and is 0.01: keep them"),
        (problem(), {"seed": 3}, "seed was 0 and is 3"),
        (problem(), {"fixed_weights": np.ones(6)}, "fixed_weights was none and is [0-9a-f]{16}"),
        (problem(loss="simnpo"), {}, "loss was .*NPO.* and is .*SimNPO"),
        (problem(lora_rank=2), {}, "trained was 28 tensors"),
    ):
        with pytest.raises(UserError, match=words):
            run(tiny, folder=tmp_path, resume=True, **{**options, **changed})


def test_a_finished_run_goes_on_with_more_outer_steps(tmp_path):
    whole = run(problem(), folder=tmp_path / "whole")
    run(problem(), folder=str(tmp_path / "parts"), outer={"outer_steps": 1})
    assert run(problem(), folder=str(tmp_path / "parts"), resume=True).points == whole.points


def test_other_files_of_the_folder_stay(tmp_path):
    kept = [tmp_path / name for name in ("scores-of-mine/a.csv", "outer-notes.md", "inner-001.txt")]
    kept[0].parent.mkdir()
    for path in kept:
        path.write_text("mine")
    run(problem(), folder=tmp_path, outer={"outer_steps": 1})
    assert (tmp_path / "outer-001.safetensors").is_file()
    run(problem(), folder=tmp_path, outer={"outer_steps": 1})
    assert all(path.read_text() == "mine" for path in kept)
