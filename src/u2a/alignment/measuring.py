"""What happens after the optimiser steps of an inner run: measured points, checkpoints, stops."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from u2a import interruption, processes
from u2a.alignment.checkpoints import OuterState
from u2a.alignment.inner_checkpoints import InnerCheckpoints, InnerPosition
from u2a.alignment.ledger import Ledger
from u2a.answers import greedy_answers
from u2a.models.sharding import is_sharded
from u2a.problem import Measurement, Task

if TYPE_CHECKING:
    from u2a.trainer import UnlearnTrainer

log = logging.getLogger("u2a")

EVERY = 180.0
"""Seconds between two checkpoints where no point is measured for longer."""


class Measuring(TrainerCallback):
    """Measures J, U and KL a few times in an inner run, and stops it once a point is past a budget.

    A checkpoint is kept at every measured point, every few minutes, and when a signal asks for a stop; none
    after the last step, which the outer loop's own follows at once, and none where the optimiser is
    sharded. `trainer` is set when it is made.
    """

    def __init__(
        self,
        ledger: Ledger,
        state: OuterState,
        position: InnerPosition,
        checkpoints: InnerCheckpoints,
        task: Task,
    ) -> None:
        self.ledger, self.state, self.position = ledger, state, position
        self.checkpoints, self.task = checkpoints, task
        self.trainer: UnlearnTrainer | None = None
        self.passed = ""  # the budgets that ended the run, in words
        self._kept_at = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Measures where it is time to; keeps what is there."""
        del args
        every = max(1, round(state.max_steps / self.ledger.options.measurements))
        last = state.global_step >= state.max_steps
        due = last or state.global_step % every == 0
        if due and not self._measure(state.global_step):
            control.should_training_stop = True
            return
        if last or self.checkpoints.folder is None or self.trainer is None:
            return
        if self.trainer.is_deepspeed_enabled or is_sharded(self.ledger.problem.policy.model):
            return  # no process has the optimiser's whole state: the outer loop's checkpoints must do
        if due or processes.any_of(interruption.asked() or time.monotonic() - self._kept_at > EVERY):
            self.checkpoints.save(self.trainer, self.position, self.state, self.ledger)
            self._kept_at = time.monotonic()
            interruption.check()

    def measured(self) -> Measurement:
        """J, U, KL and, where a guard is on them, answers at the current φ."""
        problem = self.ledger.problem
        found = problem.measure(self.task)
        if self.ledger.options.guards_repetition:
            found = replace(found, answers=greedy_answers(problem, self.task))
        return found

    def _measure(self, step: int) -> bool:
        """Measures φ; False when it is past a budget."""
        measured = self.measured()
        self.position.last_utility = measured.utility
        admissible = self.ledger.consider(measured, self.position.outer_step, step, self.state.learning_rate)
        self.position.admissible_points += admissible
        if not admissible:
            self.passed = self.ledger.passed(measured)
            log.info("outer step %d ends at step %d: %s", self.position.outer_step, step, self.passed)
        return admissible
