"""Every end of `align` has its last line and its exit status."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from cases import jsonl, save_tiny
from u2a.alignment.ledger import Point
from u2a.cli import app
from u2a.commands.ends import end_of
from u2a.types import GuardStop

UP, DOWN = np.array([1.0, 1.2, 0.9]), np.array([-1.0, -1.2, -0.9])


def ended(best=1.0, points=((0.5, True),), *, history=1, guard=False, before=None, after=None, **more):
    """A run that began at J = 1."""
    measured = [
        Point(1, k, {"objective": j}, 1e-4, within, best=False) for k, (j, within) in enumerate(points)
    ]
    result = SimpleNamespace(
        start=SimpleNamespace(objective=1.0),
        best=SimpleNamespace(objective=best),
        improved=best > 1.0,
        points=measured,
        history=[np.ones(2)] * history,
        stopped_by_guard=guard,
    )
    return end_of(result, before, after, **more)


ENDS = {
    "better": (ended(1.5), "Better: J rose by 0.5; the best measured step is kept.", 0),
    "held out too": (ended(1.5, before=0 * UP, after=UP), "held-out margin by +1.033 ± 0.17 nats (95 %)", 0),
    "within noise": (ended(1.5, before=UP, after=UP + np.array([0.1, -0.1, 0.1])), "Better on validation: J "
                     "rose by 0.5, the held-out margin by +0.03333 ± 0.13 nats (95 %), within noise", 0),
    "held out in doubt": (ended(1.5, before=UP, after=UP - np.array([0.1, -0.1, 0.1])), "Unclear: J changed "
                          "by +0.5, the held-out margin by -0.03333 ± 0.13 nats", 1),
    "too little": (ended(1.0005, min_gain=1e-3), "No better: J rose by 0.0005, no more than", 1),
    "too little, and better": (ended(1.0005, min_gain=1e-3, before=0 * UP, after=UP), "Better: J rose by", 0),
    "too little, in doubt": (ended(1.0005, min_gain=1e-3, before=UP, after=UP + np.array([0.1, -0.1, 0.1])),
                             "No better: J rose by 0.0005, no more than --min-gain 0.001, the held-out", 1),
    "too little, and worse": (ended(1.0005, min_gain=1e-3, before=0 * UP, after=DOWN), "Worse: J changed", 1),
    "worse on held-out": (ended(1.5, before=0 * UP, after=DOWN), "Worse: J changed by +0.5, the held-out", 1),
    "one held-out pair": (ended(1.5, before=UP[:1], after=DOWN[:1]), "Unclear: J changed by +0.5, the margin "
                          "of the one held-out pair by -2 nats. ", 1),
    "one good pair": (ended(1.5, before=DOWN[:1], after=UP[:1]), "Better on validation: ", 0),
    "worse": (ended(points=((0.5, True), (0.8, True))), "Worse: every measured step within the budgets "
              "lowered J (the best by -0.2), so the original", 1),
    "the same": (ended(points=((1.0, True),)), "No better: no measured step raised J", 1),
    "none within": (ended(points=((2.0, False),)), "No better: every measured step was past a budget", 1),
    "nothing to do": (ended(points=(), history=0), "Unchanged: nothing here is worth unlearning", 0),
    "guard": (ended(guard=True), "Stopped by a guard, and the original model is kept", 3),
    "guard after a gain": (ended(1.5, guard=True), "Stopped by a guard, and the kept model is the best", 3),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS)
def test_line_and_status(case):
    end, words, status = ENDS[case]
    assert words in end.line
    assert end.status == status


def test_kinds_of_ends_for_programs():
    assert {end.kind for end, _, _ in ENDS.values()} == {
        *("better", "better on validation", "unclear", "no better", "worse", "unchanged", "stopped")
    }


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Options of a small run."""
    folder = tmp_path_factory.mktemp("data")
    pairs = [{"prompt": f"Q {i}?", "chosen": f"Answer {i}, kindly.", "rejected": "Go."} for i in range(4)]
    bad = [{"prompt": f"Bad {i}?", "completion": "No. " * (i + 1)} for i in range(4)]
    return {
        "--model": str(save_tiny(folder / "model", "qwen")),
        "--negatives": jsonl(folder / "bad.jsonl", bad),
        "--preferences": jsonl(folder / "pairs.jsonl", pairs),
        "--lora-rank": "2",
        "--outer-steps": "1",
        "--halvings": "0",
    }


def last_line(given, tmp_path, monkeypatch, measured):
    """Of a run whose measured steps `measured` changes or stops."""
    from u2a.alignment.measuring import Measuring

    real = Measuring.measured
    monkeypatch.setattr(Measuring, "measured", lambda self: measured(real(self)))
    words = [word for pair in {**given, "--output": str(tmp_path / "run")}.items() for word in pair]
    result = CliRunner().invoke(app, ["align", *words])
    return result.output.strip().splitlines()[-1], result.exit_code


def test_a_run_that_lowers_j_says_so_last(given, tmp_path, monkeypatch):
    line, status = last_line(given, tmp_path, monkeypatch, lambda m: replace(m, objective=m.objective - 9))
    assert line.startswith("Worse: every measured step within the budgets lowered J")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["end"], summary["ended"]) == (line, "worse")
    assert status == 1


def test_a_guard_says_so_last(given, tmp_path, monkeypatch):
    def stop(_measured):
        raise GuardStop("the log-prob of row 3 is nan")

    line, status = last_line(given, tmp_path, monkeypatch, stop)
    assert line.startswith("Stopped by a guard")
    assert status == 3


def test_what_cannot_be_printed_costs_a_run_none_of_its_files(given, tmp_path, monkeypatch):
    monkeypatch.setattr("u2a.commands.align.print_summary", lambda *_: 1 / 0)
    options = {
        **given,
        "--measurements": "1",
        "--max-repetition-rise": "1",
        "--output": str(tmp_path / "run"),
    }
    result = CliRunner().invoke(app, ["align", *(word for pair in options.items() for word in pair)])
    assert result.exit_code == 70
    for name in ("summary.json", "report.html", "README.md", "adapter/README.md"):
        assert (tmp_path / "run" / name).is_file(), name
