"""Several processes: each row is scored once, and everybody gets what one process alone would have found."""

import numpy as np
import pytest
import torch

from problems import tiny_problem
from several import by_processes
from u2a import interruption, processes
from u2a.impact.table import score_impact
from u2a.types import GuardStop, UserError

FIELDS = ("impact", "utility_cost", "loss", "n_tokens", "impact_se", "grad_norm", "cosine")
METHODS = ("exact", "fd", "jvp")


def scored(keep=None):
    """Measurement and scores by every route, with batches so small that some process goes without one."""
    problem = tiny_problem(max_tokens=64)
    at = problem.measure(negatives=True)
    tables = {
        method: score_impact(problem, scoring=method, at=at, keep=keep and keep / method)
        for method in METHODS
    }
    return (
        at,
        {m: {f: getattr(t, f) for f in FIELDS if getattr(t, f) is not None} for m, t in tables.items()},
    )


@pytest.mark.usefixtures("true_float64")
@pytest.mark.parametrize("count", [2, 4])
def test_scores_are_those_of_one_process(tmp_path, count):
    at, tables = scored()
    for found_at, found in by_processes(count, tmp_path, scored):
        for name in ("s_objective", "s_utility", "s_negatives"):  # to the bit: the same batches
            assert torch.equal(getattr(found_at, name), getattr(at, name)), name
        assert found_at.figures == at.figures
        for method in METHODS:
            assert found[method].keys() == tables[method].keys()
            for name, values in found[method].items():
                # the gradient is summed in another order; differences of log-probs magnify that
                rtol = 1e-5 if method == "fd" else 1e-10
                np.testing.assert_allclose(values, tables[method][name], rtol=rtol, err_msg=name)


def test_a_process_that_runs_out_of_memory_repeats_its_own_rows(tmp_path, monkeypatch):
    """Its batches halve, the others' do not, and every row is there once, with the same numbers."""
    from u2a.passes import dataset as passes

    alone = tiny_problem(max_tokens=96).reference
    real = passes.response_logprobs

    def short_of_memory(model, batch):
        if processes.index() == 1 and len(batch.index) > 1:
            raise torch.OutOfMemoryError
        return real(model, batch)

    def scored_twice():
        monkeypatch.setattr(passes, "response_logprobs", short_of_memory)
        problem = tiny_problem(max_tokens=96)  # measures the reference; the second time the limit is known
        return problem.reference, problem.measure_negatives()

    first, second = by_processes(2, tmp_path, scored_twice)
    for reference, _ in (first, second):
        torch.testing.assert_close(reference, alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_an_error_of_one_process_is_raised_in_all_and_told_by_one(tmp_path):
    def failing():
        told = []
        for culprit, error in ((1, UserError("no such file")), (0, GuardStop("nan")), (1, KeyError("bug"))):
            try:
                with processes.as_one():
                    if processes.index() == culprit:
                        raise error
            except Exception as raised:
                told.append((type(raised).__name__, str(raised)[-300:], processes.speaks(raised)))
        return told

    first, second = by_processes(2, tmp_path, failing)
    assert first[0] == ("UserError", "no such file", False)
    assert second[0] == ("UserError", "no such file", True)
    assert (first[1], second[1]) == (("GuardStop", "nan", True), ("GuardStop", "nan", False))
    assert first[2][0] == "RuntimeError"
    assert "KeyError: 'bug'" in first[2][1]
    assert second[2] == ("KeyError", "'bug'", True)


def test_a_signal_to_one_process_stops_all_at_the_same_place(tmp_path, monkeypatch):
    def asked():
        interruption.check()
        monkeypatch.setattr(interruption._Asked, "by", 15 * processes.index())
        with pytest.raises(interruption.Interrupted):
            interruption.check()
        return True

    assert by_processes(2, tmp_path, asked) == [True, True]


def test_blocks_of_two_processes_are_gone_on_with_by_one(tmp_path, monkeypatch):
    """Kept once, by the first; the table that follows is that of a run of one process."""
    from u2a.impact import blocks, table

    monkeypatch.setattr(blocks, "BLOCK", 4)
    kept = tmp_path / "kept" / "scores"

    def cut_off():
        with monkeypatch.context() as patch:
            patch.setattr(table, "table_of", lambda *_: processes.stop_together(GuardStop("enough")))
            with pytest.raises(GuardStop):
                score_impact(tiny_problem(), scoring="exact", keep=kept)
        return sorted(path.name for path in kept.iterdir())

    names = by_processes(2, tmp_path, cut_off)
    assert names == [["exact-000000.safetensors", "exact-000001.safetensors"]] * 2
    made = []
    monkeypatch.setattr(blocks, "write_state", lambda *written: made.append(written))
    found = score_impact(tiny_problem(), scoring="exact", keep=kept)
    assert made == []  # all blocks were there
    np.testing.assert_allclose(found.impact, score_impact(tiny_problem(), scoring="exact").impact, rtol=1e-3)


def test_responses_are_drawn_and_scored_once_and_are_those_of_one_process(tmp_path):
    asked = tmp_path / "asked"

    def scorer(_prompts, answers):
        with asked.open("a") as file:
            file.write("x")
        return [float(len(answer)) for answer in answers]

    def drawn():
        problem = tiny_problem(
            dtype=torch.float32,
            max_tokens=96,
            objective="reward",
            objective_options={"max_new_tokens": 6, "samples": 2},
            scorer=scorer,
        )
        at = problem.measure()
        return at.drawn.texts["input_ids"], at.objective

    texts, objective = drawn()
    for found_texts, found in by_processes(3, tmp_path / "several", drawn):
        assert found_texts == texts
        assert found == pytest.approx(objective, rel=1e-5)
    assert asked.read_text() == "xx"
