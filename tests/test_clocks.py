"""A wall clock that jumps: durations and budgets never read it."""

import itertools
import time
from pathlib import Path

import numpy as np

import u2a
from problems import tiny_problem
from u2a.alignment.inner_run import unlearning_trainer
from u2a.baselines import Budget, Watch
from u2a.config import UnlearnOptions
from u2a.evaluation.endpoint import retry_after
from u2a.runs.run_folder import RunFolder

YEAR = 365 * 86_400.0
WALL_CLOCK = {"runs/run_folder.py", "evaluation/endpoint.py"}
"""Who may ask for the time of day: the stamps in `metrics.jsonl`, and a server that names a date."""


def jumping(monkeypatch):
    """`time.time` a year ahead, then a year back, by turns."""
    real, jumps = time.time, itertools.cycle([YEAR, -YEAR])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))


def test_a_budget_of_seconds_is_kept(monkeypatch):
    watch = Watch(tiny_problem(), Budget(steps=1, batch_size=2, seconds=0.5))
    jumping(monkeypatch)
    begin = time.monotonic()
    with watch.running():
        while not watch.step():
            time.sleep(0.02)
    taken = time.monotonic() - begin
    assert watch.steps > 1
    assert 0.5 <= taken < 60
    assert 0.5 <= watch.points[-1].seconds <= taken


def test_training_goes_through_it(tmp_path, monkeypatch):
    jumping(monkeypatch)
    tiny, options = tiny_problem(), UnlearnOptions(max_steps=3, batch_size=2)
    trainer = unlearning_trainer(tiny, np.ones(6), options, learning_rate=1e-4, seed=0, folder=str(tmp_path))
    trainer.train()
    assert trainer.state.global_step == 3


def test_phases_take_the_time_they_take(tmp_path, monkeypatch):
    jumping(monkeypatch)
    with RunFolder.create(tmp_path / "run", {}) as run, run.phase("one"):
        run.record("event")
    assert 0 <= run.phases["one"].seconds < 60


def test_a_server_s_date_is_counted_from_its_own_clock(monkeypatch):
    """This machine is a year behind: it would take a minute for a year, and give up."""
    sent = {"date": "Tue, 24 Nov 2026 10:00:00 GMT", "retry-after": "Tue, 24 Nov 2026 10:01:00 GMT"}
    jumping(monkeypatch)
    assert retry_after(sent) == 60.0


def test_nothing_else_reads_the_wall_clock():
    package = Path(u2a.__file__).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(call in path.read_text(encoding="utf-8") for call in ("time.time()", "datetime.now", "utcnow"))
    }
    assert found <= WALL_CLOCK
